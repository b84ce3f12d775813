"""The base of all trainers: nnU-Net's hooks, which hand over to the rooms of this folder; see docs/architecture.md."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssl.building_blocks.label_space import label_space_of
from nnunet_ssl.building_blocks.second_network import other_architecture
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch, batches_on_device, close_loader
from nnunet_ssl.data.views import VIEWS
from nnunet_ssl.training import author_checks, distributed, reproducibility, run_state
from nnunet_ssl.training.cascade_trainer import CascadeTrainer
from nnunet_ssl.training.host_work import HostWork
from nnunet_ssl.training.method import Method
from nnunet_ssl.training.networks import Networks, bare, on_device
from nnunet_ssl.training.observer import Observer, channel_names, is_preview_due
from nnunet_ssl.training.preview import draw_pseudo_labels
from nnunet_ssl.training.stages import MAIN, PRETRAINING, WARMUP, Schedule, Stages
from nnunet_ssl.training.step import Losses, SkippedSteps, Step
from nnunet_ssl.training.two_stream_trainer import STREAMS
from nnunet_ssl.training.validation import HitCounts, moving_average, output_in, with_own_target


class SemiSupervisedTrainer(Method, CascadeTrainer):
    """A semi-supervised method is a subclass that says what its losses are; all that it may use stands in `Method`."""

    pretrain_fraction = 0.0  # of the run: the first stage, in methods that write pretraining_losses
    warmup_fraction = 0.0  # of the run: the labeled-only stage that follows; a run from init_checkpoint has neither
    max_nonfinite_steps = 10  # so many losses in a row that are not finite stop the run; ours
    previews = False  # a picture of the pseudo-labels, every 50 epochs and in the last one; see preview.py
    pseudo_dice_of_all_networks = True  # in each epoch; false: of the one that predicts alone, which saves time
    validate_all_networks = False  # also predict the validation cases with the networks that do not predict otherwise

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Refuse a class that was written for an earlier version."""
        super().__init_subclass__(**kwargs)
        author_checks.refuse_renamed(cls, SemiSupervisedTrainer)

    # ---- setting up ----

    def initialize(self) -> None:
        """Build networks, optimisers and loss with the settings of class, variant and options, in this order."""
        author_checks.refuse_configuration(type(self), self.configuration_name, self.configuration_manager.patch_size)
        if not hasattr(self, "options"):
            self.options = run_state.options_at_start(self, self.output_folder, self.logger.resume)
        self._apply_settings()
        fractions = (self.pretrain_fraction, self.warmup_fraction) if self.init_checkpoint is None else ()
        self.stages = Stages(*fractions)
        author_checks.refuse_missing_losses(type(self), Method, self.stages.pretrain_fraction)
        self.was_resumed = getattr(self, "was_resumed", False)  # a checkpoint that is being loaded says so before
        self.step_of_epoch = self.optimizer_steps = 0  # of the epoch; over the whole run
        self.skipped_steps = SkippedSteps(self.max_nonfinite_steps)
        self.last_unlabeled: UnlabeledBatch | None = None
        self.hit_counts = HitCounts()
        names = channel_names(self.dataset_json, self.label_manager.has_regions)
        self.observer = Observer(label_space_of(self.label_manager), names, self.print_to_log_file)
        self.check_settings()
        if self.seed is not None:
            reproducibility.seed_everything(reproducibility.derive_seed(self.seed, STREAMS["network"]))
        self._initialize_on_any_device()
        self._build_networks()
        author_checks.refuse_slips(self, SemiSupervisedTrainer, Method, VIEWS)

    def _initialize_on_any_device(self) -> None:
        """Let nnU-Net initialise as one process, then distribute; its own way knows CUDA devices of one node only."""
        requested = self.my_init_kwargs["device"]  # with several processes self.device is a GPU, whatever was asked
        distributed.refuse_missing_gpu(requested)
        is_ddp, self.is_ddp = self.is_ddp, False
        if is_ddp:
            self.device = distributed.device_of_this_process(requested)
            if self.device.type != "cuda":
                self.grad_scaler = None
        super().initialize()
        self.is_ddp = is_ddp
        self.supervised_losses = distributed.SupervisedLosses(is_ddp, self.configuration_manager)
        if is_ddp:
            self._set_batch_size_and_oversample()
            loss_of_one_process, self.loss = self.loss, self._build_loss()
            if self.enable_deep_supervision:  # nnU-Net gives the last head a weight, for DistributedDataParallel alone
                self.loss.weight_factors = loss_of_one_process.weight_factors

    def _build_networks(self) -> None:
        self.networks = Networks(self._build_network, self._do_i_compile())
        self.networks.add_network(self.FIRST_NETWORK, self.network, self.optimizer, self.lr_scheduler)
        for name, network in self.build_other_networks().items():
            network = network.to(self.device)
            network = torch.compile(network) if self._do_i_compile() else network
            self.networks.add_network(name, network, *self._optimizer_of(network))
        self.networks.parts = on_device(self.build_parts(), self.device)
        if self.is_ddp:
            self.networks.synchronize_batch_norm()
        self.networks.train_parts(self.build_part_optimizers(), self._schedule, self.networks_of_parts())
        self.networks.make_teachers(self.build_teachers())
        if self.networks.teachers and not hasattr(self, "ema_decay"):
            raise AttributeError(f"{type(self).__name__} has teachers and no ema_decay: write it as a class attribute")
        self.state = on_device(self.build_state(), self.device)
        self.step = Step(self.networks.trained, self.device, self.grad_scaler, self.is_ddp)
        self.host_work = HostWork(self.device, self.observer.add)

    def _build_network(self, architecture: str) -> nn.Module:
        channels = (self.num_input_channels, self.label_manager.num_segmentation_heads)
        configuration, deep_supervision = self.configuration_manager, self.enable_deep_supervision
        if architecture == "same":
            return self.build_network_architecture(self.plans_manager, configuration, *channels, deep_supervision)
        name = configuration.network_arch_class_name
        name, arguments = other_architecture(name, configuration.network_arch_init_kwargs)
        imports = configuration.network_arch_init_kwargs_req_import
        return get_network_from_plans(name, arguments, imports, *channels, deep_supervision=deep_supervision)

    def _optimizer_of(self, network: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        """Return what nnU-Net would train a network with."""
        first, self.network = self.network, network
        try:
            return self.configure_optimizers()
        finally:
            self.network = first

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Schedule]:
        """Return nnU-Net's, with a learning rate that begins anew after a pre-training."""
        optimizer, schedule = super().configure_optimizers()
        return optimizer, self.stages.schedule(schedule, self.num_epochs)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        schedule = PolyLRScheduler(optimizer, optimizer.param_groups[0]["lr"], self.num_epochs)
        return self.stages.schedule(schedule, self.num_epochs)

    # ---- the run ----

    def run_training(self) -> None:
        """Run as nnU-Net does; whatever happens, no worker process and no thread is left behind."""
        self._begin()
        with reproducibility.torch_settings(self.seed is not None, self._do_i_compile()):
            try:
                super().run_training()
            finally:
                close_loader(self.dataloader_train)
                close_loader(self.dataloader_val)
                self.host_work.close()

    def on_train_start(self) -> None:
        """Start with the same weights in all processes, and with teachers that equal their networks."""
        super().on_train_start()
        if self.is_ddp:
            distributed.refuse_different_epochs(self.current_epoch)
            self.networks.broadcast()
            distributed.broadcast(kept for kept in self.state.values() if isinstance(kept, nn.Module))
        if not self.was_resumed:  # the weights may have come from a file since `initialize`
            self.networks.make_teachers(self.build_teachers())

    def on_epoch_start(self) -> None:
        """Draw an epoch's random numbers from seed and epoch, so that a resumed run draws the same ones."""
        super().on_epoch_start()
        if self.seed is not None:
            parts = (self.seed, STREAMS["step"], self.local_rank, self.current_epoch)
            reproducibility.seed_everything(reproducibility.derive_seed(*parts))
            reproducibility.forget_orders(stream.transforms for stream in self.streams[:1])

    @property
    def epoch_is_labeled_only(self) -> bool:
        """Whether the warm-up lasts through the epoch."""
        return self.stages.is_labeled_only(
            self.current_epoch / self.num_epochs, (self.current_epoch + 1) / self.num_epochs
        )

    def on_train_epoch_start(self) -> None:
        """Start an epoch's steps."""
        super().on_train_epoch_start()
        if self.stages.is_first_after_pretraining(self.current_epoch, self.num_epochs):
            self.networks.begin_anew()
        self.networks.start_epoch(self.current_epoch, self.optimizer, self.lr_scheduler)
        self.step_of_epoch = 0
        self.skipped_steps.start_epoch()
        dice = self.logger.get_value("mean_fg_dice", step=None)
        self.observer.start_epoch(
            self.current_epoch, self.num_iterations_per_epoch, dice[-1] if dice else None, self.local_rank == 0
        )

    def train_step(self, batch: dict) -> dict:
        """Do one step over all losses of the method; one that is not finite changes nothing and is counted."""
        started = time.perf_counter()
        labeled, unlabeled = batches_on_device(batch, self.device)
        if self.previews:
            self.last_unlabeled = unlabeled
        self.observer.start_step(self.step_of_epoch)
        outcome = self.step.run(self._losses(labeled, unlabeled), self.observer.step_records)
        if outcome.was_taken:
            self.optimizer_steps += 1
            if self.networks.teachers:
                self.networks.update_teachers(self.ema_decay, self.optimizer_steps - 1)
            self.after_step()
        self.step_of_epoch += 1
        loss = sum(outcome.losses.values()) if outcome.losses_are_finite else np.nan
        values = {f"loss/{name}": value for name, value in outcome.losses.items()} | outcome.records
        seconds = time.perf_counter() - started
        self.observer.end_step({**values, "step_seconds": seconds}, loss, is_kept=outcome.was_taken)
        if outcome.was_taken or not (outcome.losses_are_finite and self.step.may_overflow()):
            self.observer.name_suspects(outcome, labeled.keys, unlabeled.keys, self.current_epoch)
            self.skipped_steps.count(outcome, labeled.keys + unlabeled.keys, self.initial_lr)
        return {"loss": np.array(loss, dtype=np.float32)}

    def _losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of the stage that is on, and observe the labels."""
        stage = self.stages.at(self.progress)
        if stage == PRETRAINING:
            yield from self.pretraining_losses(labeled, unlabeled)
        elif stage == WARMUP:
            yield from self.warmup_losses(labeled)
        elif stage == MAIN:
            yield from self.training_losses(labeled, unlabeled)
        self.supervised_losses.agree(on_another=False)
        # nnU-Net centres the last samples of a batch on foreground.
        at_random = round(self.batch_size * (1 - self.oversample_foreground_percent))
        self.observer.observe_labels(labeled.full_target[:at_random])

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch's losses without the steps that were skipped."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)
        self.observer.end_steps(self.skipped_steps.of_epoch)

    # ---- validation with the network that counts ----

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the deep supervision heads of whatever network stands in `self.network`, compiled or not."""
        bare(self.network).decoder.deep_supervision = enabled

    def on_validation_epoch_start(self) -> None:
        """Start counting hits of the other networks."""
        super().on_validation_epoch_start()
        self.hit_counts = HitCounts()

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch with the inference network, and count the hits of the others."""
        for name in self.networks.predictors() if self.pseudo_dice_of_all_networks else ():
            if name != self.inference_network():
                self.hit_counts.add(name, self._validate(name, with_own_target(batch)))
        return self._validate(self.inference_network(), batch)

    def _validate(self, network: str, batch: dict) -> dict:
        with self.networks.in_place(self, network):
            self.network.eval()
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
            return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the pseudo-Dice; an epoch without one (no foreground anywhere) leaves its moving average as it was."""
        super().on_validation_epoch_end(val_outputs)
        average = moving_average(self.logger.get_value("mean_fg_dice", step=None))
        self.logger.local_logger.my_fantastic_logging["ema_fg_dice"][-1] = average

    def on_epoch_end(self) -> None:
        """Log the epoch's curves, then end it as nnU-Net does, which may save them, then draw them."""
        own = {self.inference_network(): float(self.logger.get_value("mean_fg_dice", step=-1))}
        values = {f"dice/{name}": value for name, value in (own | self.hit_counts.dice()).items()}
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        is_complete = not self.label_manager.has_ignore_label
        values = self.observer.end_epoch(self.current_epoch, self.num_epochs, values, is_complete)
        for logger in self.logger.loggers:  # Weights & Biases, when switched on
            for name, value in values.items():
                logger.log(f"nnunet_ssl/{name}", value, self.current_epoch)
        folder, unlabeled = Path(self.output_folder), self.last_unlabeled
        is_due = unlabeled is not None and is_preview_due(self.current_epoch, self.num_epochs)
        if is_due and unlabeled.keys and self.local_rank == 0:
            file = folder / "previews" / f"epoch_{self.current_epoch:04d}.png"
            self.observer.drawing.draw(self.draw_preview, unlabeled, file=file)
        super().on_epoch_end()
        if self.local_rank == 0:
            self.observer.draw_curves(folder, f"{type(self).__name__}, fold {self.fold}")

    def draw_preview(self, unlabeled: UnlabeledBatch, file: Path) -> None:
        """Draw the views of unlabeled patches, their pseudo-labels by the inference network, and what is accepted."""
        image = unlabeled.weak if unlabeled.weak is not None else unlabeled.strong
        with torch.no_grad(), self.networks.in_place(self, self.inference_network()), self.step.autocast():
            self.network.eval()
            self.set_deep_supervision_enabled(False)
            contents = self.preview_contents(self.probabilities(self.network(image)))
        threshold = getattr(self, "confidence_threshold", None)
        title = f"{type(self).__name__}, fold {self.fold}, epoch {self.current_epoch}"
        draw_pseudo_labels(self.label_space, unlabeled, *contents, threshold, file, title, self.observer.channel_names)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases with the inference network, if asked for with the others too.

        What another network predicts lies in a folder of its name, student/validation for example.
        """
        others = [name for name in self.networks.predictors() if name != self.inference_network()]
        for name in others if self.validate_all_networks else ():
            self.print_to_log_file(f"Validation of the {name}:")
            with self.networks.in_place(self, name), output_in(self, name):
                super().perform_actual_validation(save_probabilities)
        with self.networks.in_place(self, self.inference_network()):
            super().perform_actual_validation(save_probabilities)
        self.segment_for_next_stages()
