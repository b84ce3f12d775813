"""nnU-Net's trainer, which can be told that all scans lie the same way."""

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

LARGEST_ROTATION = np.pi / 12  # nnU-Net's own of 2-D patches that are much longer than wide


class OrientationTrainer(nnUNetTrainer):
    """Turns no patch over, if so asked: where left, front or top tell structures apart, they still do then."""

    keeps_orientation = False  # true: no mirroring, in predictions neither, and no rotation by more than 90 degrees

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 - nnU-Net's name
        """Return rotation, dummy 2-D augmentation, initial patch size, and the axes of mirroring: nnU-Net's, or none.

        Where nnU-Net rotates to all sides, as nearly square patches, it is by up to 15 degrees then.
        """
        rotation, dummy_2d, initial_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.keeps_orientation:
            axes = self.inference_allowed_mirroring_axes = None
            if max(rotation) > np.pi / 2:
                rotation = (-LARGEST_ROTATION, LARGEST_ROTATION)
        return rotation, dummy_2d, initial_size, axes
