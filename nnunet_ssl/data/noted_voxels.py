"""The content of a raw image, noted while nnU-Net reads it to preprocess it: it is not read again to be compared."""

from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.preprocessed_images import Content, content_of


class NotingPlans(PlansManager):
    """nnU-Net's plans, whose reader leaves the content of the last image (C, *spatial) that it has read in `voxels`."""

    voxels: Content | None = None

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """nnU-Net's reader."""
        plans, reader = self, super().image_reader_writer_class

        class NotingReader(reader):
            def read_images(self, *files: Any, **named: Any) -> tuple[np.ndarray, dict]:  # noqa: ANN401
                voxels, properties = super().read_images(*files, **named)
                plans.voxels = content_of(voxels)
                return voxels, properties

        return NotingReader
