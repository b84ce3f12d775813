"""nnU-Net's trainer with options of its runs, and runs that go on exactly where they stopped."""

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.trained_cases import cases_of_weights
from nnunet_ssl.training import run_state
from nnunet_ssl.training.checkpoints import load_checkpoint_file, load_intact, previous_checkpoint, save_atomically
from nnunet_ssl.training.networks import Networks, bare
from nnunet_ssl.training.observer import Observer
from nnunet_ssl.training.options import ENVIRONMENT_VARIABLE, allowed_options, check_ranges
from nnunet_ssl.training.two_stream_trainer import TwoStreamTrainer


class ResumableTrainer(TwoStreamTrainer):
    """nnU-Net's hooks around options and checkpoints; what they hold is made by the class that derives from this one.

    Attributes:
        options: what the run was given, by name.
        was_resumed: whether a checkpoint has been loaded, or is about to be: other weights need not be looked for.
        optimizer_steps: that were taken, over the whole run.
    """

    init_checkpoint: str | None = None  # start from all weights of this nnU-Net checkpoint, output layers included

    options: dict[str, Any]
    networks: Networks
    observer: Observer
    state: dict[str, run_state.Stateful]
    was_resumed: bool
    optimizer_steps: int

    def _apply_settings(self) -> None:
        """Set what nnU-Net's constructor has set to its own defaults, then the options."""
        allowed = allowed_options(type(self), nnUNetTrainer)
        for name in allowed:
            if hasattr(type(self), name):
                setattr(self, name, getattr(type(self), name))
        for name, value in self.options.items():
            setattr(self, name, value)
        check_ranges({name: getattr(self, name) for name in allowed})

    def on_train_start(self) -> None:
        """Start as nnU-Net does, from the weights that were asked for."""
        if not self.was_initialized:
            self.initialize()
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
        splits = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        self._first_weights = filename, cases_of_weights(checkpoint, splits)
        try:
            bare(self.network).load_state_dict(checkpoint["network_weights"])
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

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint of the inference network, with the rest of the run under one more key."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        rest = {
            "options": self.options,
            **self._split_digests,
            "optimizer_steps": self.optimizer_steps,
            "curves": self.observer.curves.values,
        }
        checkpoint = {
            "network_weights": self.networks[self.inference_network()].state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            run_state.KEY: run_state.pack(self.networks, self.state, rest),
        }
        save_atomically(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Restore the whole run; a damaged file falls back to the previous one.

        The options are the checkpoint's. With `--c`, options that differ from them are an error.
        """
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = load_intact(checkpoint, torch.device("cpu"), self.print_to_log_file)
        ours = run_state.our_part(checkpoint, type(self).__name__)
        self.was_resumed = True
        if not self.was_initialized:
            given = run_state.given_options(type(self)) if self.logger.resume else None
            self.options = run_state.options_to_go_on_with(type(self), ours["options"], given)
            self.initialize()
        self._split_digests = {name: ours[name] for name in run_state.SPLIT_DIGESTS if name in ours}
        self.optimizer_steps = ours["optimizer_steps"]
        self.observer.curves.values = ours["curves"]
        run_state.restore(ours, self.networks, self.state)
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        # nnU-Net writes checkpoint_latest before it notes a new best, which the stored value therefore misses.
        self._best_ema = max(self.logger.get_value("ema_fg_dice", step=None), default=None)
        self.inference_allowed_mirroring_axes = checkpoint.get("inference_allowed_mirroring_axes")
