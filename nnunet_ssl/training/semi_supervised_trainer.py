"""The base of all trainers: nnU-Net's run with a second, unlabeled stream and a step made of yielded losses."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import isfile, load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions, SoftmaxLabels
from nnunet_ssl.data.loaders import (
    LabeledBatch,
    TwoStreamLoader,
    UnlabeledBatch,
    UnlabeledLoader,
    batches_on_device,
    close_loader,
    divide_workers,
    start_loader,
)
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.unlabeled_pool import UnlabeledPool, collect_pool, unlabeled_cases_of_fold
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing, folder_of
from nnunet_ssl.training import distributed, reproducibility
from nnunet_ssl.training.checkpoints import load_intact, previous_checkpoint, save_atomically
from nnunet_ssl.training.options import ENVIRONMENT_VARIABLE, allowed_options, merge_options, parse_options

Losses = dict[str, Tensor]

STREAMS = {"labeled": 0, "unlabeled": 1, "validation": 2, "step": 3, "network": 4}  # each draws its own random numbers


class SemiSupervisedTrainer(nnUNetTrainer):
    """A semi-supervised method is a subclass that says what its losses are, in `training_losses`.

    Its hyper-parameters are class attributes; there is no `__init__`. The base owns everything around the losses:
    gradients, precision, clipping, optimiser, devices and processes, data, options, logging and checkpoints.
    """

    views: tuple[str, ...] = ("weak", "strong")  # of each unlabeled patch; see nnunet_ssl.data.views
    seed: int | None = None  # None: not reproducible, as nnU-Net
    init_checkpoint: str | None = None  # start from all weights of this nnU-Net checkpoint, output layers included
    max_nonfinite_steps = 10  # so many losses in a row that are not finite stop the run; ours

    # ---- what a method writes, and what it writes it with ----

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of one step, already weighted, by name; their sum is the loss.

        What is yielded is back-propagated before the next line runs, so that one graph is alive at a time and a step
        needs no more memory than nnU-Net planned for. Terms that share a graph are yielded together.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its losses are: write training_losses")

    def student(self, image: Tensor) -> Tensor:
        """Return the trained network's logits (B, C, *spatial) at full resolution, with gradient to its weights."""
        outputs = self.student_outputs(image)
        if not self.enable_deep_supervision:
            return outputs
        return distributed.tie_unused_heads(outputs) if self.is_ddp else outputs[0]

    def student_outputs(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return what nnU-Net's loss takes: the logits of all deep supervision heads, full resolution first."""
        return self.network(image)

    def supervised_loss(self, labeled: LabeledBatch) -> Tensor:
        """Return nnU-Net's own loss of a labeled batch."""
        return self.loss(self.student_outputs(labeled.image), labeled.target)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (B, C, *spatial), in float32: softmax, or sigmoid for regions."""
        return self.label_space.probabilities(logits)

    @property
    def label_space(self) -> LabelSpace:
        """What the network's channels mean, and what can be done with them."""
        kind = SigmoidRegions if self.label_manager.has_regions else SoftmaxLabels
        return kind(self.label_manager.num_segmentation_heads, self.label_manager.ignore_label)

    @property
    def progress(self) -> float:
        """How much of the run is over: a fraction in [0, 1)."""
        return (self.current_epoch + self.step_of_epoch / self.num_iterations_per_epoch) / self.num_epochs

    # ---- what a base adds to this one ----

    def stateful_parts(self) -> dict[str, Any]:
        """Return all that a run needs beyond nnU-Net's checkpoint, each with `state_dict` and `load_state_dict`."""
        return {"student": distributed.unwrap(self.network)}

    def network_for_inference(self) -> nn.Module:
        """Return the network that validates, predicts and is saved as the model."""
        return self.network

    def after_step(self) -> None:
        """Do what follows an optimiser step."""

    # ---- setting up ----

    def initialize(self) -> None:
        """Build network, optimiser and loss with the settings of class, variant and options, in this order."""
        if self.is_cascaded:
            raise NotImplementedError(
                f"configuration {self.configuration_name} is the second stage of a cascade, which semi-supervised "
                "training does not support: train 3d_fullres or 2d"
            )
        if not hasattr(self, "options"):
            self.options = self._given_options() or {}
        self._apply_settings()
        self.was_resumed = False
        self.step_of_epoch = self.nonfinite_in_a_row = self.nonfinite_of_epoch = 0
        self.optimizer_steps = 0  # over the whole run
        self.nonfinite_cases = deque(maxlen=self.max_nonfinite_steps)
        self.epoch_terms: dict[str, list[float]] = {}
        if self.seed is not None:
            reproducibility.seed_everything(reproducibility.derive_seed(self.seed, STREAMS["network"]))
        self._initialize_on_any_device()

    def _given_options(self) -> dict[str, Any] | None:
        text = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
        return parse_options(text, allowed_options(type(self), nnUNetTrainer)) if text else None

    def _apply_settings(self) -> None:
        """Set what nnU-Net's constructor has set to its own defaults, then the options."""
        for name in allowed_options(type(self), nnUNetTrainer):
            if hasattr(type(self), name):
                setattr(self, name, getattr(type(self), name))
        for name, value in self.options.items():
            setattr(self, name, value)

    def _initialize_on_any_device(self) -> None:
        """Let nnU-Net initialise as one process, then distribute; its own way knows CUDA devices of one node only."""
        is_ddp, self.is_ddp = self.is_ddp, False
        if is_ddp:
            self.device = distributed.device_of_this_process(self.my_init_kwargs["device"])
            if self.device.type != "cuda":
                self.grad_scaler = None
        super().initialize()
        self.is_ddp = is_ddp
        if is_ddp:
            self._set_batch_size_and_oversample()
            self.loss = self._build_loss()
            self.network = distributed.wrap_for_distributed_training(self.network, self.device)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; a fold that the splits file does not have is an error, not a random split."""
        splits_file = os.path.join(self.preprocessed_dataset_folder_base, "splits_final.json")
        folds = len(load_json(splits_file)) if isfile(splits_file) else 5  # nnU-Net makes 5 when there is no file
        if self.fold != "all" and self.fold >= folds:
            raise ValueError(f"there is no fold {self.fold}: {splits_file} has the folds 0 to {folds - 1}")
        return super().do_split()

    # ---- data ----

    def get_dataloaders(self) -> tuple[TwoStreamLoader, Any]:
        """Return nnU-Net's loaders, the training one joined by the unlabeled stream."""
        pool = self._collect_pool()
        labeled, validation = self._loaders_of_nnunet()
        unlabeled = UnlabeledLoader(UnlabeledDataset(pool.folders), labeled, self.label_manager, self.views)
        if self.seed is not None:
            reproducibility.fix_timed_choices(labeled.transforms)
        num_workers = get_allowed_n_proc_DA()
        num_labeled, num_unlabeled = divide_workers(num_workers)
        num_validation = max(1, num_workers // 2) if num_workers else 0  # as nnU-Net
        return (
            TwoStreamLoader(
                self._start_loader(labeled, "labeled", num_labeled),
                self._start_loader(unlabeled, "unlabeled", num_unlabeled),
            ),
            self._start_loader(validation, "validation", num_validation),
        )

    def _loaders_of_nnunet(self) -> tuple[Any, Any]:
        """Return nnU-Net's bare loaders: with 0 workers it starts no process, so that ours can be seeded."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        os.environ["nnUNet_n_proc_DA"] = "0"
        try:
            labeled, validation = super().get_dataloaders()
        finally:
            if workers is None:
                del os.environ["nnUNet_n_proc_DA"]
            else:
                os.environ["nnUNet_n_proc_DA"] = workers
        return labeled.data_loader, validation.data_loader

    def _start_loader(self, loader: Any, stream: str, num_workers: int) -> Any:  # noqa: ANN401 - nnU-Net's loaders
        seed = np.random.SeedSequence().entropy if self.seed is None else self.seed
        seeds = [
            reproducibility.derive_seed(seed, STREAMS[stream], self.local_rank, worker, self.current_epoch)
            for worker in range(num_workers)
        ]
        return start_loader(loader, seeds, pin_memory=self.device.type == "cuda")

    def _collect_pool(self) -> UnlabeledPool:
        train, validation = self.do_split()
        dataset_folder = Path(self.preprocessed_dataset_folder_base)
        preprocessing = UnlabeledPreprocessing(
            self.plans_manager.plans,
            self.configuration_name,
            self.dataset_json,
            Path(nnUNet_raw.get() or "", self.plans_manager.dataset_name, "imagesUn"),
            folder_of(dataset_folder, self.configuration_manager.data_identifier),
        )
        pool = collect_pool(
            preprocessing,
            Path(self.preprocessed_dataset_folder),
            {*train, *validation},
            unlabeled_cases_of_fold(dataset_folder / "splits_final.json", self.fold),
            lambda outdated: self._preprocess(preprocessing, outdated),
        )
        self.print_to_log_file(f"Unlabeled cases: {len(pool.folders)}")
        for case, problem in pool.left_out.items():
            self.print_to_log_file(f"WARNING: unlabeled case {case} is left out: {problem}")
        return pool

    def _preprocess(self, preprocessing: UnlabeledPreprocessing, outdated: list[str]) -> None:
        dataset, plans = self.plans_manager.dataset_name, self.plans_manager.plans_name
        if self.is_ddp:  # the other processes would wait for one another until the time-out of their collectives
            raise RuntimeError(
                f"{len(outdated)} unlabeled cases are not preprocessed, which a training in several processes does "
                f"not do: nnunet_ssl preprocess -d {dataset} -c {self.configuration_name} -p {plans}"
            )
        self.print_to_log_file(f"Preprocessing {len(outdated)} unlabeled cases, once: {preprocessing.preprocessed}")
        preprocessing.run(min(default_num_processes, os.cpu_count() or 1), outdated)

    # ---- the run ----

    def run_training(self) -> None:
        """Run as nnU-Net does; whatever happens, no worker process is left behind."""
        try:
            super().run_training()
        finally:
            close_loader(self.dataloader_train)
            close_loader(self.dataloader_val)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, from the weights that were asked for."""
        if not self.was_initialized:
            self.initialize()
        if self.seed is not None:
            reproducibility.use_deterministic_algorithms()
        if self.init_checkpoint is not None and not self.was_resumed:
            self._load_initial_weights(self.init_checkpoint)
        super().on_train_start()
        options = " ".join(f"{name}={value}" for name, value in self.options.items()) or "none"
        self.print_to_log_file(f"Options ({ENVIRONMENT_VARIABLE}): {options}")

    def _load_initial_weights(self, filename: str) -> None:
        if not isfile(filename):
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: init_checkpoint={filename} is not a file")
        checkpoint = load_intact(filename, self.device, self.print_to_log_file)
        distributed.unwrap(self.network).load_state_dict(checkpoint["network_weights"])

    def on_train_end(self) -> None:
        """End as nnU-Net does, which deletes checkpoint_latest.pth; its previous one goes too."""
        super().on_train_end()
        if self.local_rank == 0:
            previous_checkpoint(Path(self.output_folder, "checkpoint_latest.pth")).unlink(missing_ok=True)

    def on_epoch_start(self) -> None:
        """Draw an epoch's random numbers from seed and epoch, so that a resumed run draws the same ones."""
        super().on_epoch_start()
        if self.seed is not None:
            parts = (self.seed, STREAMS["step"], self.local_rank, self.current_epoch)
            reproducibility.seed_everything(reproducibility.derive_seed(*parts))

    def on_train_epoch_start(self) -> None:
        """Start an epoch's steps."""
        super().on_train_epoch_start()
        self.step_of_epoch = self.nonfinite_of_epoch = 0
        self.epoch_terms = {}

    def train_step(self, batch: dict) -> dict:
        """Do one step over all losses of the method; one that is not finite changes nothing and is counted."""
        labeled, unlabeled = batches_on_device(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._backpropagate(labeled, unlabeled)
        norm = self._clip_gradients()
        # One transfer brings all numbers. It waits for the device no longer than nnU-Net's own step does.
        *values, finite = torch.stack([*terms.values(), self._is_finite(terms, norm)]).cpu().tolist()
        self._step_optimizer(bool(finite))
        self._count_nonfinite(bool(finite), labeled.keys + unlabeled.keys)
        if finite:
            self.optimizer_steps += 1
            self.after_step()
            for name, value in zip(terms, values, strict=True):
                self.epoch_terms.setdefault(name, []).append(value)
        self.step_of_epoch += 1
        return {"loss": np.array(sum(values) if finite else np.nan, dtype=np.float32)}

    def _backpropagate(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Losses:
        terms: Losses = {}
        losses = self.training_losses(labeled, unlabeled)
        while True:
            with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():  # as nnU-Net
                yielded = next(losses, None)
            if yielded is None:
                return terms
            loss = sum(yielded.values())
            (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
            terms |= {name: term.detach().float() for name, term in yielded.items()}

    def _clip_gradients(self) -> Tensor:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.network.parameters(), 12)  # as nnU-Net

    def _is_finite(self, terms: Losses, norm: Tensor) -> Tensor:
        """Return 1 if this step may be taken, else 0, the same in all processes."""
        finite = torch.stack(list(terms.values())).isfinite().all()
        if self.grad_scaler is None:  # a scaler overflows now and then, and skips such a step itself
            finite = finite & norm.isfinite()
        return distributed.agree(finite.float()) if self.is_ddp else finite.float()

    def _step_optimizer(self, finite: bool) -> None:
        if self.grad_scaler is None:
            if finite:
                self.optimizer.step()
            return
        if finite:
            self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _count_nonfinite(self, finite: bool, keys: tuple[str, ...]) -> None:
        if finite:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        self.nonfinite_of_epoch += 1
        self.nonfinite_cases.append(keys)
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            cases = sorted({key for keys in self.nonfinite_cases for key in keys})
            raise RuntimeError(
                f"the loss was not finite in {self.nonfinite_in_a_row} steps in a row; the weights are those from "
                f"before them. Look at these cases, or lower initial_lr ({self.initial_lr}): {', '.join(cases)}"
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch's losses without the steps that were skipped."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)
        if self.nonfinite_of_epoch:
            self.print_to_log_file(f"WARNING: {self.nonfinite_of_epoch} steps were skipped: their loss was not finite")
        means = [f"{name} {np.mean(values):.4f}" for name, values in self.epoch_terms.items()]
        self.print_to_log_file("loss terms:", ", ".join(means))

    # ---- validation with the network that counts ----

    @contextmanager
    def inference_network(self) -> Iterator[None]:
        """Put the network that counts in the place of `self.network`, and all back as it was, whatever happens."""
        trained, self.network = self.network, distributed.without_ddp(self.network_for_inference())
        decoder, training = distributed.unwrap(self.network).decoder, self.network.training
        deep_supervision = decoder.deep_supervision
        try:
            yield
        finally:
            decoder.deep_supervision = deep_supervision
            self.network.train(training)
            self.network = trained

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the deep supervision heads of whatever network stands in `self.network`, wrapped or bare."""
        distributed.unwrap(self.network).decoder.deep_supervision = enabled

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch with the inference network."""
        with self.inference_network():
            self.network.eval()
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
            return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the pseudo-Dice; an epoch without one (no foreground anywhere) leaves its moving average as it was."""
        super().on_validation_epoch_end(val_outputs)
        average = None
        for dice in self.logger.get_value("mean_fg_dice", step=None):
            if np.isfinite(dice):
                average = dice if average is None else 0.9 * average + 0.1 * dice  # as nnU-Net
        self.logger.local_logger.my_fantastic_logging["ema_fg_dice"][-1] = 0.0 if average is None else average

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases with the inference network."""
        with self.inference_network():
            super().perform_actual_validation(save_probabilities)

    # ---- checkpoints ----

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint of the inference network, with the rest of the run under one more key."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoint = {
            "network_weights": distributed.unwrap(self.network_for_inference()).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnunet_ssl": {
                "options": self.options,
                "optimizer_steps": self.optimizer_steps,
                "parts": {name: part.state_dict() for name, part in self.stateful_parts().items()},
            },
        }
        save_atomically(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Restore the whole run; a damaged file falls back to the previous one.

        The options are the checkpoint's. With `--c`, options that differ from them are an error.
        """
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = load_intact(checkpoint, torch.device("cpu"), self.print_to_log_file)
        ours = checkpoint.get("nnunet_ssl")
        if ours is None:
            raise ValueError(
                f"this is a checkpoint of {checkpoint.get('trainer_name')}, not of {type(self).__name__}: to start "
                f'from its weights, train without --c and with {ENVIRONMENT_VARIABLE}="init_checkpoint=PATH"'
            )
        if not self.was_initialized:
            self._adopt_options(ours["options"])
            self.initialize()
        self.was_resumed = True
        self.optimizer_steps = ours["optimizer_steps"]
        for name, part in self.stateful_parts().items():
            part.load_state_dict(ours["parts"][name])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def _adopt_options(self, stored: dict[str, Any]) -> None:
        given = self._given_options() if self.logger.resume else None
        allowed = allowed_options(type(self), nnUNetTrainer)
        defaults = {name: getattr(type(self), name, getattr(self, name, None)) for name in allowed}
        self.options = merge_options(stored, given, defaults)
