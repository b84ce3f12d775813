"""nnU-Net's trainer, which need not turn scans over that all lie the same way."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.orientation import LARGEST_ODD_SHARE, LEAST_IMAGES, turned_over

ALL, AUTO, NONE = "all", "auto", "none"
LARGEST_ROTATION = np.pi / 12  # nnU-Net's own of 2-D patches that are much longer than wide
LARGEST_SAMPLE = 32  # of the images that are looked at; ours: 5 % of them are one


class MirroringTrainer(nnUNetTrainer):
    """Mirrors, if so asked, only along axes along which scans lie both ways: elsewhere left, front or top tell much.

    The axes are the run's, in training and prediction, and stand in its checkpoints as nnU-Net's do.
    """

    mirroring = ALL  # along all of nnU-Net's axes; auto: those along which the images lie both ways; none
    was_resumed: bool

    def initialize(self) -> None:
        """Initialise as nnU-Net does, unless `mirroring` is another word."""
        if self.mirroring not in (ALL, AUTO, NONE):
            raise ValueError(f"mirroring is {ALL}, {AUTO} or {NONE}, got {self.mirroring!r}")
        super().initialize()

    def cases_to_compare(self) -> tuple[list[str], list[str]]:
        """Return the cases that are trained on with their labels, and all others; as nnU-Net's planning, of all."""
        raise NotImplementedError

    def image_of(self, case: str) -> np.ndarray:
        """Return the first channel of a preprocessed image, (Z, Y, X)."""
        raise NotImplementedError

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 - nnU-Net's name
        """Return rotation, dummy 2-D augmentation, initial patch size, and the axes of mirroring.

        Where nnU-Net rotates to all sides, as nearly square patches, and one of its axes is not mirrored along, it is
        by up to 15 degrees: turned upside down is mirrored twice.
        """
        axes_of_run = self.inference_allowed_mirroring_axes
        rotation, dummy_2d, initial_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.mirroring != ALL:
            kept = self._open_axes(axes) if self.mirroring == AUTO else ()
            kept = tuple(axes_of_run or ()) if self.was_resumed else kept
            if len(kept) < len(axes) and max(rotation) > np.pi / 2:
                rotation = (-LARGEST_ROTATION, LARGEST_ROTATION)
            axes = self.inference_allowed_mirroring_axes = kept or None
        return rotation, dummy_2d, initial_size, axes

    def _open_axes(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return those of the patch's axes along which the images lie both ways, or may; and say it in the log."""
        labeled, others = map(_spread, self.cases_to_compare())
        if len(others) < LEAST_IMAGES:
            self.print_to_log_file(f"Mirroring along all axes: {len(others)} other scans say too little")
            return tuple(axes)
        first = 3 - len(self.configuration_manager.patch_size)  # the axis of the image that is the patch's first
        images, references = map(self.image_of, others), [self.image_of(case) for case in labeled]
        turned = turned_over(references, images, [first + axis for axis in axes])
        kept = tuple(axis for axis in axes if turned[first + axis] > LARGEST_ODD_SHARE * len(others))
        along = f"axes {', '.join(map(str, kept))}" if kept else "no axis"
        found = ", ".join(f"{turned[first + axis]} along axis {axis}" for axis in axes)
        self.print_to_log_file(f"Mirroring along {along}: of {len(others)} scans lie the other way {found}")
        return kept


def _spread(cases: Sequence[str]) -> list[str]:
    """Return some of the cases, at equal distances."""
    return sorted(cases)[:: ceil(len(cases) / LARGEST_SAMPLE) or 1]
