"""The base of all trainers: nnU-Net's run with a second, unlabeled stream and a step made of yielded losses."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.masked_loss import deep_supervision_loss, masked_cross_entropy_and_dice
from nnunet_ssl.building_blocks.ramps import gaussian_rampup
from nnunet_ssl.building_blocks.teaching import collapsed, foreground_shares, teaching_statistics, usual_share
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch, batches_on_device, close_loader
from nnunet_ssl.training import distributed, reproducibility
from nnunet_ssl.training.checkpoints import (
    load_checkpoint_file,
    load_intact,
    previous_checkpoint,
    refuse_missing,
    save_atomically,
)
from nnunet_ssl.training.curves import Curves
from nnunet_ssl.training.epoch_progress import EpochProgress
from nnunet_ssl.training.options import (
    ENVIRONMENT_VARIABLE,
    allowed_options,
    check_ranges,
    merge_options,
    parse_options,
)
from nnunet_ssl.training.teaching_preview import draw_teaching
from nnunet_ssl.training.two_stream_trainer import STREAMS, TwoStreamTrainer

Losses = dict[str, Tensor]

OBSERVE_EVERY = 25  # steps: often enough for a curve, too seldom to cost time
PREVIEW_EVERY = 50  # epochs
COLLAPSE_AFTER = 0.1  # of the run: before, a class may just not have been learned
COMPILED_FORMS = 32  # of one forward function that torch keeps; a student and its teacher have 8, torch's own limit


class Health(NamedTuple):
    """What is finite in a step: the losses and the gradient over all processes, the losses of this one."""

    loss: bool
    gradient: bool
    loss_of_this_process: bool


class SemiSupervisedTrainer(TwoStreamTrainer):
    """A semi-supervised method is a subclass that says what its losses are, in `training_losses`.

    Its hyper-parameters are class attributes; there is no `__init__`. The base owns everything around the losses:
    gradients, precision, clipping, optimiser, devices and processes, data, options, logging and checkpoints.
    """

    init_checkpoint: str | None = None  # start from all weights of this nnU-Net checkpoint, output layers included
    max_nonfinite_steps = 10  # so many losses in a row that are not finite stop the run; ours
    previews = False  # a picture of what is taught, every 50 epochs and in the last one; see teaching_preview.py
    validate_all_networks = False  # also predict the validation cases with the networks that do not predict otherwise
    changes_supervised_term = False  # whether the method's supervised loss is by its nature another than nnU-Net's

    # ---- what a method writes, and what it writes it with ----

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of one step, already weighted, by name; their sum is the loss.

        What is yielded is back-propagated before the next line runs, so that one graph is alive at a time and a step
        needs no more memory than nnU-Net planned for. Terms that share a graph are yielded together.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its losses are: write training_losses")

    def student(self, image: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the trained network's logits (B, C, *spatial) at full resolution, with gradient to its weights.

        Args:
            image: (B, C, *spatial).
            network: another trained network than the first one, where a method has several.
        """
        return self.finest_outputs(image, 1, network)[0]

    def finest_outputs(self, image: Tensor, count: int, network: nn.Module | None = None) -> list[Tensor]:
        """Return the trained network's logits of the finest deep supervision heads, full resolution first.

        Args:
            image: (B, C, *spatial).
            count: at most so many heads; without deep supervision there is one.
            network: see `student`.
        """
        outputs = self.student_outputs(image, network)
        if not self.enable_deep_supervision:
            return [outputs]
        return distributed.tie_unused_heads(outputs, count) if self.is_ddp else outputs[:count]

    def student_outputs(self, image: Tensor, network: nn.Module | None = None) -> Tensor | list[Tensor]:
        """Return what nnU-Net's loss takes: the logits of all deep supervision heads, full resolution first."""
        return (self.network if network is None else network)(image)

    @torch.no_grad()
    def student_probabilities(self, image: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the trained network's probabilities (B, C, *spatial) at full resolution, without gradient."""
        outputs = distributed.without_ddp(self.network if network is None else network)(image)
        return self.probabilities(outputs[0] if self.enable_deep_supervision else outputs)

    def supervised_loss(self, labeled: LabeledBatch, network: nn.Module | None = None) -> Tensor:
        """Return nnU-Net's own loss of a labeled batch."""
        return self.loss(self.student_outputs(labeled.image, network), labeled.target)

    def masked_loss(self, outputs: Tensor | list[Tensor], labels: Tensor, weight: Tensor) -> Tensor:
        """Return cross-entropy and Dice of all heads, weighted among each other as in nnU-Net's own loss, as a scalar.

        Args:
            outputs: as `student_outputs` returns them.
            labels: at full resolution, as `label_space.pseudo_label` returns them.
            weight: of each voxel, bool or ≥ 0, (B, 1, *spatial) or for regions (B, C, *spatial); 0 leaves it out.
        """
        return self.masked_losses(outputs, labels, [weight])[0]

    def masked_losses(self, outputs: Tensor | list[Tensor], labels: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return `masked_loss` for each of several maps of voxel weights, for little more than one of them costs."""
        if not self.enable_deep_supervision:
            return masked_cross_entropy_and_dice(self.label_space, outputs, labels, weights)
        return deep_supervision_loss(self.label_space, outputs, labels, weights, self.loss.weight_factors)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (B, C, *spatial), in float32: softmax, or sigmoid for regions."""
        return self.label_space.probabilities(logits)

    def record(self, values: dict[str, float | Tensor]) -> None:
        """Keep scalars of this step for the curves; tensors are fetched from the device together with the losses."""
        self.step_records |= values

    def ramp(self, name: str) -> float:
        """Return and record the weight of an unsupervised loss as a fraction of its maximum, in [0, 1].

        It grows over the first `rampup_duration` of what follows the warm-up.
        """
        ramp = gaussian_rampup(self.progress_after_warmup, self.rampup_duration)
        self.record({f"ramp/{name}": ramp})
        return ramp

    def observe_teaching(self, target: Tensor, probs: Tensor | None = None, taught: str = "") -> None:
        """Record now and then what a network is taught, and warn when a class vanishes from it or floods it.

        Args:
            target: the probabilities (B, C, *spatial) that it is taught.
            probs: its own; None where it sees other voxels than the target's.
            taught: a name for the network, where a method teaches a second one.
        """
        if self.step_of_epoch % OBSERVE_EVERY == 0:
            statistics = teaching_statistics(self.label_space, target, probs)
            self.record({_for_network(name, taught): value for name, value in statistics.items()})

    def accepted_pseudo_labels(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard labels, and where they are sure enough for their class, by `confidence_threshold`; observed.

        Args:
            probs: (B, C, *spatial) that a network is taught.
        """
        accepted = self.label_space.is_accepted(probs, self.confidence_threshold)
        self.record({"utilization": accepted.float().mean()})
        self.observe_teaching(probs)
        return self.label_space.pseudo_label(probs), accepted

    @property
    def label_space(self) -> LabelSpace:
        """What the network's channels mean, and what can be done with them."""
        kind = SigmoidRegions if self.label_manager.has_regions else SoftmaxLabels
        return kind(self.label_manager.num_segmentation_heads, self.label_manager.ignore_label)

    @property
    def progress(self) -> float:
        """How much of the run is over: a fraction in [0, 1)."""
        return (self.current_epoch + self.step_of_epoch / self.num_iterations_per_epoch) / self.num_epochs

    @property
    def in_warmup(self) -> bool:
        """Whether the first stage is on, in methods that have a `warmup_fraction` of the run.

        A run that starts from `init_checkpoint` has none.
        """
        return self.progress < self._warmup

    @property
    def epoch_is_labeled_only(self) -> bool:
        """Whether the first stage lasts until the end of the epoch."""
        return (self.current_epoch + 1) / self.num_epochs <= self._warmup

    @property
    def progress_after_warmup(self) -> float:
        """How much of what follows the first stage is over: a fraction in [0, 1), 0 while it is on."""
        return max(0.0, (self.progress - self._warmup) / (1.0 - self._warmup)) if self._warmup < 1.0 else 0.0

    @property
    def _warmup(self) -> float:
        return getattr(self, "warmup_fraction", 0.0) if self.init_checkpoint is None else 0.0

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The spatial axes along which this run mirrors, by nnU-Net's choice."""
        return tuple(self.inference_allowed_mirroring_axes or ())

    # ---- what a base adds to this one ----

    def stateful_parts(self) -> dict[str, Any]:
        """Return all that a run needs beyond nnU-Net's checkpoint, each with `state_dict` and `load_state_dict`."""
        return {"student": distributed.unwrap(self.network)}

    name_of_inference_network = "student"

    def network_for_inference(self) -> nn.Module:
        """Return the network that validates, predicts and is saved as the model."""
        return self.network

    def other_networks(self) -> dict[str, nn.Module]:
        """Return networks whose pseudo-Dice is of interest beside that of the inference network, by name."""
        return {}

    def trained_networks(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """Return the networks that are trained, each with its optimiser; each is clipped and stepped for itself."""
        return [(self.network, self.optimizer)]

    def transform_features(self, transform: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        """Send the features of the student's encoder, finest first, through a function in every pass.

        Called in `initialize`, before the network is compiled by its first pass. It adds nothing to the weights.
        """
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # or a graph compiled without the hook may be taken
        encoder = distributed.unwrap(self.network).encoder
        encoder.register_forward_hook(lambda _module, _inputs, features: transform(features))

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
        self.collapse_states: dict[str, str | None] = {}  # by curve
        self.nonfinite_cases = deque(maxlen=self.max_nonfinite_steps)
        self.curves = Curves()
        self.epoch_progress: EpochProgress | None = None  # in the first process, while an epoch runs
        self.other_counts: dict[str, np.ndarray] = {}
        self.epoch_records: dict[str, list[float]] = {}
        self.step_records: dict[str, float | Tensor] = {}
        if self.seed is not None:
            reproducibility.seed_everything(reproducibility.derive_seed(self.seed, STREAMS["network"]))
        check_ranges({name: getattr(self, name) for name in allowed_options(type(self), nnUNetTrainer)})
        if self._do_i_compile():
            limit = torch._dynamo.config.cache_size_limit
            torch._dynamo.config.cache_size_limit = max(limit, COMPILED_FORMS)
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
        if self.was_resumed and self.current_epoch < self.num_epochs and self.local_rank == 0:
            self._reopen()
        super().on_train_start()
        options = " ".join(f"{name}={value}" for name, value in self.options.items()) or "none"
        self.print_to_log_file(f"Options ({ENVIRONMENT_VARIABLE}): {options}")

    def _reopen(self) -> None:
        """Let a finished run that goes on count as unfinished: nnU-Net prefers checkpoint_final to all later ones."""
        final, latest = (Path(self.output_folder, f"checkpoint_{name}.pth") for name in ("final", "latest"))
        if final.exists():
            final.replace(latest)
            self.print_to_log_file(f"The run goes on to epoch {self.num_epochs}: {final.name} is {latest.name} now")

    def _load_initial_weights(self, filename: str) -> None:
        checkpoint = load_checkpoint_file(filename, torch.device("cpu"))
        try:
            distributed.unwrap(self.network).load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            raise ValueError(
                f"init_checkpoint: the network of {filename} is not that of configuration {self.configuration_name} "
                f"with {self.plans_manager.plans_name} and {self.label_manager.num_segmentation_heads} output "
                "channels: train it with the same plans, configuration and labels"
            ) from error

    def on_train_end(self) -> None:
        """End as nnU-Net does, which deletes checkpoint_latest.pth; its previous one goes too."""
        super().on_train_end()
        if self.local_rank == 0:
            previous_checkpoint(Path(self.output_folder, "checkpoint_latest.pth")).unlink(missing_ok=True)
            for unfinished in Path(self.output_folder).glob("checkpoint_*.pth.tmp"):  # of a run that was killed
                unfinished.unlink()

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
        self.epoch_records = {}
        if self.local_rank == 0:
            dice = self.logger.get_value("mean_fg_dice", step=None)
            last = dice[-1] if dice else None
            self.epoch_progress = EpochProgress(
                self.current_epoch, self.num_iterations_per_epoch, last, self.print_to_log_file
            )

    def train_step(self, batch: dict) -> dict:
        """Do one step over all losses of the method; one that is not finite changes nothing and is counted."""
        started = time.perf_counter()
        labeled, unlabeled = batches_on_device(batch, self.device)
        self.step_records = {}
        if self.previews:
            self.last_unlabeled = unlabeled
        for _, optimizer in self.trained_networks():
            optimizer.zero_grad(set_to_none=True)
        terms = self._backpropagate(labeled, unlabeled)
        norm = self._clip_gradients()
        self._observe_labels(labeled)
        health, losses, records = self._fetch(terms, self._check_health(terms, norm))
        finite = self._step_optimizer(health)
        self._count_nonfinite(health, labeled.keys + unlabeled.keys)
        if finite:
            self.optimizer_steps += 1
            self.after_step()
            for name, value in {**losses, **records, "step_seconds": time.perf_counter() - started}.items():
                self.epoch_records.setdefault(name, []).append(value)
        self.step_of_epoch += 1
        loss = sum(losses.values()) if health.loss else np.nan
        if self.epoch_progress is not None:
            self.epoch_progress.advance(loss)
        return {"loss": np.array(loss, dtype=np.float32)}

    def _fetch(self, terms: Losses, health: Tensor) -> tuple[Health, dict[str, float], dict[str, float]]:
        """Bring all numbers of a step from the device in one transfer: what is finite, its losses, its records.

        It waits for the device no longer than nnU-Net's own step does.
        """
        on_device = {f"loss/{name}": term for name, term in terms.items()}
        on_device |= {name: value.float() for name, value in self.step_records.items() if isinstance(value, Tensor)}
        fetched = torch.cat([health, torch.stack([*on_device.values()])]).cpu().tolist()
        numbers = dict(zip(on_device, fetched[3:], strict=True))
        losses = {name: numbers.pop(name) for name in list(numbers)[: len(terms)]}
        return Health(*map(bool, fetched[:3])), losses, {**self.step_records, **numbers}

    def _observe_labels(self, labeled: LabeledBatch) -> None:
        """Record the labeled prior of each class, of the samples that nnU-Net did not centre on foreground."""
        at_random = round(self.batch_size * (1 - self.oversample_foreground_percent))
        if self.step_of_epoch % OBSERVE_EVERY == 0 and at_random:
            shares = foreground_shares(self.label_space, labeled.full_target[:at_random])
            self.record({f"labeled/{name}": share for name, share in shares.items()})

    def _backpropagate(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Losses:
        terms: Losses = {}
        losses = self.training_losses(labeled, unlabeled)
        while True:
            with self._autocast():
                yielded = next(losses, None)
            if yielded is None:
                break
            if repeated := yielded.keys() & terms.keys():
                raise ValueError(f"training_losses yields {', '.join(sorted(repeated))} twice: give each term a name")
            loss = sum(yielded.values())
            if loss.requires_grad:  # an empty mask may leave a constant
                (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
            terms |= {name: term.detach().float() for name, term in yielded.items()}
        if not terms:
            raise ValueError(f"training_losses of {type(self).__name__} yields no loss")
        return terms

    def _autocast(self) -> AbstractContextManager:
        """Return nnU-Net's mixed precision, without its cache of weights.

        In older torch a pass without gradient leaves its weights there, and a later one of the same network gives them
        no gradient: https://github.com/pytorch/pytorch/issues/112583.
        """
        return torch.autocast("cuda", cache_enabled=False) if self.device.type == "cuda" else nullcontext()

    def _clip_gradients(self) -> Tensor:
        """Clip each network's gradient as nnU-Net does; return the sum of their norms, finite if all are."""
        norms = []
        for network, optimizer in self.trained_networks():
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            norms.append(nn.utils.clip_grad_norm_(network.parameters(), 12))
        return sum(norms)

    def _check_health(self, terms: Losses, norm: Tensor) -> Tensor:
        """Return what `Health` holds, as 0 and 1."""
        here = torch.stack(list(terms.values())).isfinite().all()
        everywhere = torch.stack([here, norm.isfinite()]).float()
        if self.is_ddp:
            everywhere = distributed.agree(everywhere)
        return torch.cat([everywhere, here.float()[None]])

    def _step_optimizer(self, health: Health) -> bool:
        """Step if all is finite; return whether it was."""
        finite = health.loss and health.gradient
        if finite:
            for _, optimizer in self.trained_networks():
                optimizer.step() if self.grad_scaler is None else self.grad_scaler.step(optimizer)
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return finite

    def _count_nonfinite(self, health: Health, keys: tuple[str, ...]) -> None:
        if health.loss and health.gradient:
            self.nonfinite_in_a_row = 0
            return
        if health.loss and self._may_overflow():
            return
        self.nonfinite_in_a_row += 1
        self.nonfinite_of_epoch += 1
        self.nonfinite_cases.append(() if health.loss_of_this_process and not health.loss else keys)
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            cases = distributed.union_over_processes(key for keys in self.nonfinite_cases for key in keys)
            raise RuntimeError(
                f"the loss was not finite in {self.nonfinite_in_a_row} steps in a row; the weights are those from "
                f"before them. Look at these cases, or lower initial_lr ({self.initial_lr}): {', '.join(cases)}"
            )

    def _may_overflow(self) -> bool:
        """Whether mixed precision explains gradients that are not finite: until its scale has come down to 1."""
        return self.grad_scaler is not None and self.grad_scaler.get_scale() >= 1.0

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch's losses without the steps that were skipped."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)
        if self.nonfinite_of_epoch:
            self.print_to_log_file(f"WARNING: {self.nonfinite_of_epoch} steps were skipped: their loss was not finite")
        losses = {name: values for name, values in self.epoch_records.items() if name.startswith("loss/")}
        means = [f"{name.removeprefix('loss/')} {np.mean(values):.4f}" for name, values in losses.items()]
        self.print_to_log_file("loss terms:", ", ".join(means))
        if self.epoch_progress is not None:
            self.epoch_progress.close()

    # ---- validation with the network that counts ----

    @contextmanager
    def network_in_place(self, network: nn.Module) -> Iterator[None]:
        """Put a network in the place of `self.network`, to be validated, and all back as it was, whatever happens."""
        trained, self.network = self.network, distributed.without_ddp(network)
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

    def on_validation_epoch_start(self) -> None:
        """Start counting hits of the other networks."""
        super().on_validation_epoch_start()
        self.other_counts = {}

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch with the inference network, and count the hits of the others."""
        target = batch["target"]
        for name, network in self.other_networks().items():
            # nnU-Net writes into the target where there is an ignore label.
            copied = [level.clone() for level in target] if isinstance(target, list) else target.clone()
            result = self._validate(network, {**batch, "target": copied})
            hits = np.array([result[f"{kind}_hard"] for kind in ("tp", "fp", "fn")])
            self.other_counts[name] = self.other_counts.get(name, 0) + hits
        return self._validate(self.network_for_inference(), batch)

    def _validate(self, network: nn.Module, batch: dict) -> dict:
        with self.network_in_place(network):
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

    def on_epoch_end(self) -> None:
        """Log the epoch's curves, then end it as nnU-Net does, which may save them, then draw them."""
        self._log_curves()
        is_due = self.current_epoch % PREVIEW_EVERY == 0 or self.current_epoch == self.num_epochs - 1
        if self.previews and self.local_rank == 0 and is_due and self.last_unlabeled.keys:
            self.draw_preview(
                self.last_unlabeled, Path(self.output_folder, "previews", f"epoch_{self.current_epoch:04d}.png")
            )
        super().on_epoch_end()
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            self.curves.write_csv(folder / "progress_ssl.csv")
            self.curves.plot(folder / "progress_ssl.png", f"{type(self).__name__}, fold {self.fold}")

    def draw_preview(self, unlabeled: UnlabeledBatch, file: Path) -> None:
        """Draw the views of unlabeled patches, their pseudo-labels by the inference network, and what is accepted."""
        image = unlabeled.weak if unlabeled.weak is not None else unlabeled.strong
        with torch.no_grad(), self.network_in_place(self.network_for_inference()):
            self.network.eval()
            self.set_deep_supervision_enabled(False)
            with self._autocast():
                probs = self.probabilities(self.network(image))
        threshold = getattr(self, "confidence_threshold", None)
        title = f"{type(self).__name__}, fold {self.fold}, epoch {self.current_epoch}"
        draw_teaching(self.label_space, unlabeled, probs, threshold, file, title)

    def _log_curves(self) -> None:
        values = {name: float(np.mean(values)) for name, values in self.epoch_records.items() if name != "step_seconds"}
        if "step_seconds" in self.epoch_records:
            values["step_seconds"] = float(np.median(self.epoch_records["step_seconds"]))
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values[f"dice/{self.name_of_inference_network}"] = float(self.logger.get_value("mean_fg_dice", step=-1))
        for name, counts in self.other_counts.items():
            tp, fp, fn = distributed.sum_over_processes(counts)
            possible = (2 * tp + fp + fn) > 0
            dice = 2 * tp[possible] / (2 * tp + fp + fn)[possible]
            values[f"dice/{name}"] = float(dice.mean()) if possible.any() else np.nan
        self.curves.log(self.current_epoch, values)
        self._warn_of_collapse()
        for logger in self.logger.loggers:  # Weights & Biases, when switched on
            for name, value in values.items():
                logger.log(f"nnunet_ssl/{name}", value, self.current_epoch)

    def _warn_of_collapse(self) -> None:
        """Name once each class that has vanished from the pseudo-labels, or floods them."""
        if self.progress < COLLAPSE_AFTER:
            return
        for name, taught in self.curves.values.items():
            kind, _, channel = name.partition("/")
            labeled = self.curves.values.get(f"labeled/{channel}")
            if not kind.startswith("pseudo_label") or labeled is None:
                continue
            state = collapsed(labeled, taught, labels_are_complete=not self.label_manager.has_ignore_label)
            if state and state != self.collapse_states.get(name):
                network = kind.removeprefix("pseudo_label_for_")
                which = "" if network == kind else f" that teach the {network} network"
                self.print_to_log_file(
                    f"WARNING: class {self._name_of_channel(int(channel))} has {state} in the pseudo-labels{which}: it "
                    f"is {taught[-1]:.3%} of their voxels, and {usual_share(labeled):.3%} of the labeled ones. "
                    "Unlabeled images teach what is wrong: see progress_ssl.png, and lower the weight of their losses"
                )
            self.collapse_states[name] = state

    def _name_of_channel(self, channel: int) -> str:
        labels = {
            name: value for name, value in self.dataset_json["labels"].items() if name not in ("background", "ignore")
        }
        if self.label_manager.has_regions:
            return list(labels)[channel]
        return next(name for name, value in labels.items() if value == channel)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases with the inference network, if asked for with the others too.

        What another network predicts lies in a folder of its name, student/validation for example.
        """
        if self.validate_all_networks:
            for name, network in self.other_networks().items():
                self.print_to_log_file(f"Validation of the {name}:")
                with self.network_in_place(network), self._output_in(name):
                    super().perform_actual_validation(save_probabilities)
        with self.network_in_place(self.network_for_inference()):
            super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _output_in(self, name: str) -> Iterator[None]:
        folder = self.output_folder
        self.output_folder = os.path.join(folder, name)
        try:
            yield
        finally:
            self.output_folder = folder

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
                **self._split_digests,
                "optimizer_steps": self.optimizer_steps,
                "curves": self.curves.values,
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
        refuse_missing(checkpoint, ("optimizer_state", "init_args", "current_epoch", "logging"), "the checkpoint")
        refuse_missing(ours, ("options", "optimizer_steps", "curves", "parts"), "the checkpoint")
        if not self.was_initialized:
            self._adopt_options(ours["options"])
            self.initialize()
        self.was_resumed = True
        self._split_digests = {name: ours[name] for name in ("split", "train_and_val") if name in ours}
        self.optimizer_steps = ours["optimizer_steps"]
        self.curves.values = ours["curves"]
        for name, part in self.stateful_parts().items():
            part.load_state_dict(ours["parts"][name])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        # nnU-Net writes checkpoint_latest before it notes a new best, which the stored value therefore misses.
        self._best_ema = max(self.logger.get_value("ema_fg_dice", step=None), default=None)
        self.inference_allowed_mirroring_axes = checkpoint.get("inference_allowed_mirroring_axes")

    def _adopt_options(self, stored: dict[str, Any]) -> None:
        given = self._given_options() if self.logger.resume else None
        allowed = allowed_options(type(self), nnUNetTrainer)
        defaults = {name: getattr(type(self), name, getattr(self, name, None)) for name in allowed}
        self.options = merge_options(stored, given, defaults)


def _for_network(name: str, network: str) -> str:
    """Return the name of a curve of what a network is taught: of pseudo_label/1 pseudo_label_for_second/1."""
    kind, slash, channel = name.partition("/")
    return f"{kind}_for_{network}{slash}{channel}" if network else name
