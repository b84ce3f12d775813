"""Weak and strong views of one patch with one geometry, made of the transforms that nnU-Net trains with."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

VIEWS = ("weak", "strong", "second_strong")
GEOMETRIC = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)


class ViewsTransform(BasicTransform):
    """Turns an image patch into the views that a trainer asks for.

    weak: nnU-Net's spatial and mirror transforms. strong and second_strong: the same patch through nnU-Net's intensity
    transforms, each with random numbers of its own. All are set to zero outside the image in channels normalised inside
    the image only, as nnU-Net does. Outside is where the segmentation is negative, and where all such channels are
    exactly zero: before resampling they are so outside the image, and a case whose label must not be read has nothing
    else to go by.
    """

    def __init__(self, training_transforms: list[BasicTransform], views: tuple[str, ...]) -> None:
        """Sort nnU-Net's training transforms by what they change.

        Raises:
            ValueError: an unknown view.
            NotImplementedError: a transform that is neither geometric, nor on the image or the label alone.
        """
        super().__init__()
        if not views or not set(views) <= set(VIEWS):
            raise ValueError(f"views are some of {VIEWS}, got {views}")
        self.views = views
        self.geometric = _those(GEOMETRIC, training_transforms)
        self.intensity = _those(ImageOnlyTransform, training_transforms)
        self.masking = _those(MaskImageTransform, training_transforms)
        self.masked_channels = [channel for mask in self.masking.transforms for channel in mask.apply_to_channels]
        known = [*self.geometric.transforms, *self.intensity.transforms, *self.masking.transforms]
        for transform in training_transforms:
            if transform not in known and not isinstance(_inner(transform), SegOnlyTransform):
                raise NotImplementedError(f"no place among the views for {type(_inner(transform)).__name__}")

    def __call__(self, image: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        """Return {"image": (V, C, *spatial)}, the views in the order of `views`, and an empty segmentation.

        Args:
            image: (C, *spatial).
            segmentation: int (1, *spatial), -1 outside the image and where the patch reaches over its border.
        """
        sample = {"image": image}
        if self.masked_channels:
            outside = (image[self.masked_channels] == 0).all(0)
            sample["segmentation"] = segmentation.masked_fill(outside, -1)
        sample = self.geometric(**sample)
        views = {}
        for name in ("strong", "second_strong"):
            if name in self.views:  # cloned, because the transforms work in place
                views[name] = self.masking(**self.intensity(**sample | {"image": sample["image"].clone()}))["image"]
        if "weak" in self.views:
            views["weak"] = self.masking(**sample)["image"]
        return {"image": torch.stack([views[name] for name in self.views]), "segmentation": torch.empty(0)}


def _inner(transform: BasicTransform) -> BasicTransform:
    """Return what a transform that is applied at random applies."""
    return transform.transform if isinstance(transform, RandomTransform) else transform


def _those(kind: type | tuple[type, ...], transforms: list[BasicTransform]) -> ComposeTransforms:
    return ComposeTransforms([transform for transform in transforms if isinstance(_inner(transform), kind)])
