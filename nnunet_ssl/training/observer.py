"""What is seen of a run: the numbers of each step, the curves over epochs, warnings, pictures and a progress bar."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace
from nnunet_ssl.building_blocks.pseudo_label_statistics import (
    collapsed,
    foreground_shares,
    pseudo_label_statistics,
    usual_share,
)
from nnunet_ssl.training.curves import SECONDS, Curves
from nnunet_ssl.training.drawing import Drawing, draw_whole
from nnunet_ssl.training.epoch_progress import EpochProgress
from nnunet_ssl.training.nonfinite import Suspects
from nnunet_ssl.training.step import Outcome

OBSERVE_EVERY = 25  # steps: often enough for a curve, too seldom to cost time
PREVIEW_EVERY = 50  # epochs
COLLAPSE_AFTER = 0.1  # of the run: before, a class may just not have been learned

WriteLine = Callable[..., None]


class Observer:
    """Gathers the numbers of a run and says what is wrong with them.

    Attributes:
        step_records: what has been recorded since the step began.
        epoch_records: all values of the epoch's steps, by name.
        curves: one value for each epoch, by name.
        drawing: of pictures.
    """

    def __init__(self, label_space: LabelSpace, channel_names: Mapping[int, str], write_line: WriteLine) -> None:
        """Start with nothing.

        Args:
            label_space: of the networks.
            channel_names: of the foreground channels.
            write_line: writes to the run's log.
        """
        self.label_space = label_space
        self.channel_names = channel_names
        self.write_line = write_line
        self.curves = Curves()
        self.drawing = Drawing(write_line)
        self.step_records: dict[str, float | Tensor] = {}
        self.epoch_records: dict[str, list[float]] = {}
        self._step_of_epoch = 0
        self._is_last_epoch = False
        self._progress_bar: EpochProgress | None = None
        self._collapse_states: dict[str, str | None] = {}
        self._suspects = Suspects()

    # ---- of a step ----

    def start_epoch(self, epoch: int, steps: int, last_dice: float | None, shows_progress: bool) -> None:
        """Start an epoch's steps; with `shows_progress` a bar or a line every minute shows them."""
        self.epoch_records = {}
        progress = EpochProgress(epoch, steps, last_dice, self.write_line) if shows_progress else None
        self._progress_bar = progress

    def start_step(self, step_of_epoch: int) -> None:
        """Start a step."""
        self._step_of_epoch = step_of_epoch
        self.step_records = {}

    @property
    def is_due(self) -> bool:
        """Whether in this step what costs time is observed too."""
        return self._step_of_epoch % OBSERVE_EVERY == 0

    def record(self, values: Mapping[str, float | Tensor]) -> None:
        """Keep scalars of this step, without their graph."""
        detached = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        self.step_records |= {**values, **detached}

    def add(self, values: Mapping[str, float]) -> None:
        """Keep numbers of this step, each added to what the step has of its name already."""
        self.step_records |= {name: self.step_records.get(name, 0.0) + value for name, value in values.items()}

    def observe_labels(self, target: Tensor) -> None:
        """Record now and then the share of each class in the labels of patches from anywhere."""
        if self.is_due and len(target):
            shares = foreground_shares(self.label_space, target)
            self.record({f"labeled/{channel}": share for channel, share in shares.items()})

    def observe_pseudo_labels(self, target: Tensor, probs: Tensor | None, network: str) -> None:
        """Record now and then what pseudo-labels are like; see `Method.observe_pseudo_labels`."""
        if self.is_due:
            statistics = pseudo_label_statistics(self.label_space, target, probs)
            self.record({_for_network(name, network): value for name, value in statistics.items()})

    def end_step(self, values: Mapping[str, float], loss: float, is_kept: bool) -> None:
        """Keep a step's numbers, if it was taken, and show the loss."""
        if is_kept:
            recorded_since = {name: one for name, one in self.step_records.items() if not isinstance(one, Tensor)}
            for name, value in {**recorded_since, **values}.items():
                self.epoch_records.setdefault(name, []).append(value)
        if self._progress_bar is not None:
            self._progress_bar.advance(loss)

    def name_suspects(self, outcome: Outcome, labeled: Sequence[str], unlabeled: Sequence[str], epoch: int) -> None:
        """Name the cases of a step that was skipped, all processes at once, where none of them was named before."""
        if outcome.was_taken:
            return
        where = f"epoch {epoch}, step {self._step_of_epoch}"
        if sentence := self._suspects.add_step(outcome, labeled, unlabeled, where):
            self.write_line(sentence)

    # ---- of an epoch ----

    def end_steps(self, skipped: int) -> None:
        """Write the epoch's loss terms, and how many of its steps were skipped."""
        if skipped:
            cases = self._suspects.names()
            self.write_line(f"WARNING: {skipped} steps were skipped: their loss was not finite (suspected: {cases})")
        losses = {name: values for name, values in self.epoch_records.items() if name.startswith("loss/")}
        means = [f"{name.removeprefix('loss/')} {np.mean(values):.4f}" for name, values in losses.items()]
        self.write_line("loss terms:", ", ".join(means))
        if self._progress_bar is not None:
            self._progress_bar.close()

    def end_epoch(
        self, epoch: int, num_epochs: int, values: Mapping[str, float], labels_are_complete: bool
    ) -> dict[str, float]:
        """Add an epoch to the curves and warn of what collapses; return the epoch's values.

        Args:
            epoch: its number.
            num_epochs: of the run.
            values: of the epoch beside those of its steps: Dice, learning rate.
            labels_are_complete: whether each labeled voxel has a class, which is so without an ignore label.
        """
        everything = {name: float(np.mean(values)) for name, values in self.epoch_records.items()}
        seconds = {name: one for name, one in self.epoch_records.items() if name.startswith(SECONDS)}
        everything |= {name: float(np.median(values)) for name, values in seconds.items()}
        everything |= values
        self.curves.log(epoch, everything)
        self._is_last_epoch = epoch + 1 == num_epochs
        if (epoch + 1) / num_epochs >= COLLAPSE_AFTER:
            self._warn_of_collapse(labels_are_complete)
        return everything

    def _warn_of_collapse(self, labels_are_complete: bool) -> None:
        """Name once each class that has vanished from the pseudo-labels, or floods them."""
        for name, shares in self.curves.values.items():
            kind, _, channel = name.partition("/")
            labeled = self.curves.values.get(f"labeled/{channel}")
            if not kind.startswith("pseudo_label") or labeled is None:
                continue
            state = collapsed(labeled, shares, labels_are_complete)
            if state and state != self._collapse_states.get(name):
                network = kind.removeprefix("pseudo_label_for_")
                which = "" if network == kind else f" that the {network} network learns from"
                self.write_line(
                    f"WARNING: class {self.channel_names[int(channel)]} has {state} in the pseudo-labels{which}: it is "
                    f"{shares[-1]:.3%} of their voxels, and {usual_share(labeled):.3%} of the labeled ones. What is "
                    "learned from unlabeled images is wrong: see progress_ssl.png, and lower the weight of their losses"
                )
            self._collapse_states[name] = state

    def draw_curves(self, folder: Path, title: str) -> None:
        """Write `progress_ssl.csv`, and now and then `progress_ssl.png`."""
        self.drawing.draw(self.curves.write_csv, file=folder / "progress_ssl.csv")
        plot, file = partial(self.curves.plot, title=title, class_names=self.channel_names), folder / "progress_ssl.png"
        self.drawing.draw_now_and_then(plot, file=file, is_last=self._is_last_epoch)

    def guard(self, logger: MetaLogger) -> None:
        """Let nnU-Net's own picture of the curves end nothing, and take little time, either."""
        plot = logger.plot_progress_png
        logger.plot_progress_png = lambda folder: self.drawing.draw_now_and_then(
            lambda file: draw_whole(plot, file), file=Path(folder, "progress.png"), is_last=self._is_last_epoch
        )


def is_preview_due(epoch: int, num_epochs: int) -> bool:
    """Return whether an epoch ends with a picture: every 50, and the last one."""
    return epoch % PREVIEW_EVERY == 0 or epoch == num_epochs - 1


def channel_names(dataset_json: Mapping[str, Any], has_regions: bool) -> dict[int, str]:
    """Return the names of the foreground channels of a network: its labels, or its regions."""
    labels = {name: label for name, label in dataset_json["labels"].items() if name not in ("background", "ignore")}
    if has_regions:
        return dict(enumerate(labels))
    return {label[0] if isinstance(label, list) else label: name for name, label in labels.items()}


def _for_network(name: str, network: str) -> str:
    """Return the name of a curve for one of several networks: of pseudo_label/1 pseudo_label_for_second/1."""
    kind, slash, channel = name.partition("/")
    return f"{kind}_for_{network}{slash}{channel}" if network else name
