"""nnU-Net's trainer with options of its runs, and runs that go on exactly where they stopped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from filelock import SoftFileLease
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.checksums import DamagedCaseError
from nnunet_ssl.data.disk_faults import is_fault_of_disk, words_of
from nnunet_ssl.data.loader_processes import WorkerFailure
from nnunet_ssl.training import run_lock, run_state
from nnunet_ssl.training.checkpoints import (
    checkpoints_of,
    load_checkpoint_file,
    load_intact,
    load_newest,
    previous_checkpoint,
    save_atomically,
)
from nnunet_ssl.training.disks import disk_ends_the_run, no_half_of, whole_predictions, written_together
from nnunet_ssl.training.interruption import Interrupted, signals_interrupt
from nnunet_ssl.training.last_epoch import LastEpoch
from nnunet_ssl.training.networks import Networks, bare
from nnunet_ssl.training.nonfinite import refuse_nonfinite
from nnunet_ssl.training.observer import Observer
from nnunet_ssl.training.options import ENVIRONMENT_VARIABLE, check_ranges, of_run, settings_of
from nnunet_ssl.training.run_start import RunStart, delete_replaced, refuse_to_replace
from nnunet_ssl.training.two_stream_trainer import TwoStreamTrainer


class ResumableTrainer(TwoStreamTrainer):
    """nnU-Net's hooks around options and checkpoints; what they hold is made by the class that derives from this one.

    Attributes:
        options: what the run was given, by name.
        was_resumed: whether a checkpoint has been loaded, or is about to be: other weights need not be looked for.
        optimizer_steps: that were taken, over the whole run.
    """

    init_checkpoint: str | None = None  # start from all weights of this nnU-Net checkpoint, output layers included
    checkpoint_minutes = 10.0  # between two checkpoints, which are written at the end of an epoch; ours
    replace = False  # delete the run that the folder holds, and train anew

    options: dict[str, Any]
    networks: Networks
    observer: Observer
    state: dict[str, run_state.Stateful]
    was_resumed: bool
    optimizer_steps: int
    _round: Mapping[str, Any] = MappingProxyType({})  # of whole-pool predictions, the last one; see pool_trainer.py
    last_epoch: LastEpoch
    _lock: SoftFileLease | None = None  # of the folder; the first process has it while it trains or validates

    def _apply_settings(self) -> None:
        """Set what the class says, also of what nnU-Net's constructor has set to its own defaults, then the options."""
        settings = settings_of(self, nnUNetTrainer) | self.options
        for name, value in settings.items():
            setattr(self, name, value)
        self.options = of_run(self.options)
        check_ranges(settings)
        self.last_epoch = LastEpoch(self.output_folder, self.checkpoint_minutes)

    def _begin(self) -> None:
        """Initialise what is not yet; with `--c`, go on from what nnU-Net has not looked for: replaced checkpoints."""
        if self.logger.resume and not self.was_initialized and (there := checkpoints_of(self.output_folder)):
            self.load_checkpoint(str(there[0]))
        if not self.was_initialized:
            self.initialize()

    def run_training(self) -> None:
        """Run as nnU-Net does, alone in the folder; whatever ends it early, its last whole epoch is saved first."""
        with self._alone_and_interruptible():
            if self.local_rank == 0:
                self._write_start()
            try:
                super().run_training()
            except BaseException as reason:
                if self.local_rank == 0:
                    self._end_early(reason)
                raise

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, alone in the folder; no case that is damaged, no prediction that is cut off."""
        folder, ending = Path(self.output_folder, "validation"), self.dataset_json["file_ending"]
        looked_at = whole_predictions(folder, ending) if self.local_rank == 0 else nullcontext()
        with self._alone_and_interruptible(), looked_at:
            try:
                super().perform_actual_validation(save_probabilities)
            except DamagedCaseError as error:
                self.print_to_log_file(error)
                raise SystemExit(1) from None

    @contextmanager
    def _alone_and_interruptible(self) -> Iterator[None]:
        """Hold the folder of the run, and let signals raise; both in the first process of a run."""
        with signals_interrupt(is_first_process=self.local_rank == 0), disk_ends_the_run(self.print_to_log_file):
            if self.local_rank != 0:
                yield
                return
            with run_lock.locked(Path(self.log_file).parent, self.print_to_log_file) as self._lock:
                yield

    def _write_start(self) -> None:
        """Write what the run is started with; refuse one that would write over another."""
        if self.current_epoch and not self.was_resumed:
            raise ValueError(
                f"{type(self).__name__} replaces load_checkpoint without calling that of its other bases: what "
                "nnunet_ssl keeps would begin anew in the middle of the run; let its load_checkpoint call super()"
            )
        start = RunStart.read(self.output_folder) if self.logger.resume and not self.was_resumed else None
        self.replace = self.replace or (start is not None and start.replaces)
        if not (self.was_resumed or self.replace):
            refuse_to_replace(self.output_folder)
        RunStart(self.options, replaces=self.replace and not self.was_resumed).write(self.output_folder)

    def _end_early(self, reason: BaseException) -> None:
        """Save the last whole epoch, and say what has ended the training.

        Raises:
            SystemExit: a worker process has failed, a disk, or a case is damaged: there is nothing in this process to
                look into.
        """
        saved = self._save_last_epoch()
        if isinstance(reason, WorkerFailure | DamagedCaseError) or is_fault_of_disk(reason):
            said = words_of(reason) if is_fault_of_disk(reason) else reason
            self.print_to_log_file(f"{said}; {saved}")
            raise SystemExit(1) from None
        by = reason.name if isinstance(reason, Interrupted) else f"an error ({type(reason).__name__})"
        self.print_to_log_file(f"The training is ended by {by}; {saved}")

    def _save_last_epoch(self) -> str:
        """Write what is not on disk yet, and return words about what is there."""
        if self.disable_checkpointing:
            return "nothing is saved, because checkpointing is disabled"
        try:
            run_lock.refuse_if_lost(self._lock, self.print_to_log_file)
            self.last_epoch.write()
        except (OSError, RuntimeError) as error:
            said = words_of(error) if is_fault_of_disk(error) else error
            return f"its last epoch cannot be saved: {said}"
        if self.last_epoch.epoch == 0:
            return "no epoch is over: the same command with --c begins again, with the same options"
        return f"it is saved after {self.last_epoch.epoch} epochs: the same command with --c goes on from there"

    def on_train_start(self) -> None:
        """Start as nnU-Net does, from the weights that were asked for."""
        if not self.was_initialized:
            self.initialize()
        if self.init_checkpoint is not None and not self.was_resumed:
            self._load_initial_weights(self.init_checkpoint)
        if self.was_resumed and self.current_epoch < self.num_epochs and self.local_rank == 0:
            self._reopen()
        self.observer.guard(self.logger)
        with self._model_written_whole():
            super().on_train_start()
        if self.replace and not self.was_resumed and self.local_rank == 0:  # only now: the new run can begin
            delete_replaced(self.output_folder)
            RunStart(self.options).write(self.output_folder)
        options = " ".join(f"{name}={value}" for name, value in self.options.items()) or "none"
        self.print_to_log_file(f"Options ({ENVIRONMENT_VARIABLE}): {options}")

    @contextmanager
    def _model_written_whole(self) -> Iterator[None]:
        """Let nnU-Net write plans and dataset.json of the model, which all folds share, all of them or none."""
        base = self.output_folder_base
        with written_together(Path(base), f"{Path(self.output_folder).name}_{self.local_rank}") as unfinished:
            self.output_folder_base = str(unfinished)
            try:
                yield
            finally:
                self.output_folder_base = base

    def _save_debug_information(self) -> None:
        """Write nnU-Net's debug.json, of which no half is left; the files of the model are written by now."""
        self.output_folder_base = str(Path(self.output_folder).parent)
        with no_half_of(Path(self.output_folder, "debug.json")):
            super()._save_debug_information()

    def _reopen(self) -> None:
        """Let a finished run that goes on count as unfinished: nnU-Net prefers checkpoint_final to all later ones."""
        final, latest = (Path(self.output_folder, f"checkpoint_{name}.pth") for name in ("final", "latest"))
        if final.exists():
            final.replace(latest)
            self.print_to_log_file(f"The run goes on to epoch {self.num_epochs}: {final.name} is {latest.name} now")

    def _load_initial_weights(self, filename: str) -> None:
        checkpoint = load_checkpoint_file(filename, torch.device("cpu"))
        try:
            bare(self.network).load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            raise ValueError(
                f"init_checkpoint: the network of {filename} is not that of configuration {self.configuration_name} "
                f"with {self.plans_manager.plans_name} and {self.label_manager.num_segmentation_heads} output "
                "channels: train it with the same plans, configuration and labels"
            ) from error

    def on_epoch_end(self) -> None:
        """End an epoch as nnU-Net does, and keep its state where nnU-Net has not written it."""
        super().on_epoch_end()
        if self.local_rank == 0 and not self.disable_checkpointing and self.last_epoch.epoch < self.current_epoch:
            run_lock.refuse_if_lost(self._lock, self.print_to_log_file)
            self.last_epoch.keep(self._checkpoint(self.current_epoch))

    def on_train_end(self) -> None:
        """End as nnU-Net does, which deletes checkpoint_latest.pth; its previous one goes too."""
        super().on_train_end()
        if self.local_rank == 0:
            previous_checkpoint(Path(self.output_folder, "checkpoint_latest.pth")).unlink(missing_ok=True)
            for unfinished in Path(self.output_folder).glob("checkpoint_*.pth.tmp"):  # of a run that was killed
                unfinished.unlink()

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint of the inference network, with the rest of the run under one more key."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        run_lock.refuse_if_lost(self._lock, self.print_to_log_file)
        save_atomically(self._checkpoint(self.current_epoch + 1), filename)
        self.last_epoch.note_written(self.current_epoch + 1)

    def _checkpoint(self, epoch: int) -> dict[str, Any]:
        """Return what a checkpoint after so many epochs holds; it changes with the run.

        Raises:
            RuntimeError: weights are not finite.
        """
        rest = {
            "options": self.options,
            **self._split_digests,
            "optimizer_steps": self.optimizer_steps,
            "round": dict(self._round),
            "curves": self.observer.curves.values,
        }
        network = self.networks[self.inference_network()].state_dict()
        ours = run_state.pack(self.networks, self.state, rest)
        refuse_nonfinite(network, ours, epoch)
        return {
            "network_weights": network,
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": epoch,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            run_state.KEY: ours,
        }

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Restore the whole run; a damaged file falls back to the previous one.

        With `--c` it is the newest checkpoint of the run that can be read: nnU-Net names another one, or none that is
        of a run which this one replaces. The options are the checkpoint's; options that differ are an error then.
        """
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = self._read_checkpoint(Path(checkpoint))
        if checkpoint is None:
            return
        ours = run_state.our_part(checkpoint, type(self).__name__)
        self.was_resumed = True
        if not self.was_initialized:
            given = run_state.given_options(type(self)) if self.logger.resume else None
            self.options = run_state.options_to_go_on_with(self, ours["options"], given)
            self.initialize()
        self._split_digests = {name: ours[name] for name in run_state.SPLIT_DIGESTS if name in ours}
        self.optimizer_steps = ours["optimizer_steps"]
        self._round = ours.get("round", {})
        self.observer.curves.values = ours["curves"]
        run_state.restore(ours, self.networks, self.state)
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.last_epoch.note_written(self.current_epoch)
        self.logger.load_checkpoint(checkpoint["logging"])
        # nnU-Net writes checkpoint_latest before it notes a new best, which the stored value therefore misses.
        self._best_ema = max(self.logger.get_value("ema_fg_dice", step=None), default=None)
        self.inference_allowed_mirroring_axes = checkpoint.get("inference_allowed_mirroring_axes")

    def _read_checkpoint(self, file: Path) -> dict | None:
        """Return a checkpoint; None where it is one of a run that is to be replaced."""
        device = torch.device("cpu")
        if self.was_initialized or not self.logger.resume or file not in checkpoints_of(self.output_folder):
            return load_intact(file, device, self.print_to_log_file)
        start = RunStart.read(self.output_folder)
        if start is not None and start.replaces:
            return None
        return load_newest(self.output_folder, device, self.print_to_log_file)
