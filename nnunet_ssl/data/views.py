"""Weak and strong views of one patch with one geometry, and its predicted label, by nnU-Net's own transforms."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor

LABEL = "pseudo_label"
IMAGES = ("weak", "strong", "second_strong")
VIEWS = (*IMAGES, LABEL)
GEOMETRIC = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)
OF_LABELS = (RemoveLabelTansform, ConvertSegmentationToRegionsTransform)
OF_PREVIOUS_STAGE = (ApplyRandomBinaryOperatorTransform, RemoveRandomConnectedComponentFromOneHotEncodingTransform)


class ViewsTransform(BasicTransform):
    """Turns an image patch into the views that a trainer asks for.

    weak: nnU-Net's spatial and mirror transforms. strong and second_strong: the same patch through nnU-Net's intensity
    transforms, each with random numbers of its own. All are set to zero outside the image in channels normalised inside
    the image only, as nnU-Net does. Outside is where the segmentation is negative, and where all such channels are
    exactly zero: before resampling they are so outside the image, and a case whose label must not be read has nothing
    else to go by.

    In a cascade each view has the segmentation of the previous stage as one more channel for each label: appended after
    the intensity transforms, which it is not changed by. In the strong views nnU-Net's own transforms of such channels
    change it (dilated, eroded, components removed), in the weak one nothing does.

    pseudo_label: the labels that were predicted for the whole image, with the geometry of the others.
    """

    def __init__(self, training_transforms: list[BasicTransform], views: tuple[str, ...]) -> None:
        """Sort nnU-Net's training transforms by what they change.

        Raises:
            ValueError: an unknown view.
            NotImplementedError: a transform that is neither geometric, nor on the image or the label alone.
        """
        super().__init__()
        self.images = tuple(name for name in views if name != LABEL)
        if not self.images or not set(views) <= set(VIEWS):
            raise ValueError(f"views are some of {VIEWS}, one of the first three among them, got {views}")
        self.geometric = _those(GEOMETRIC, training_transforms)
        self.appending = _those(MoveSegAsOneHotToDataTransform, training_transforms)
        self.of_previous_stage = _those(OF_PREVIOUS_STAGE, training_transforms)
        changing = [
            transform for transform in training_transforms if transform not in self.of_previous_stage.transforms
        ]
        self.intensity = _those(ImageOnlyTransform, changing)
        self.masking = _those(MaskImageTransform, training_transforms)
        self.of_labels = _those(OF_LABELS, training_transforms)
        self.masked_channels = [channel for mask in self.masking.transforms for channel in mask.apply_to_channels]
        of_images = (self.geometric, self.intensity, self.masking, self.appending, self.of_previous_stage)
        known = [transform for group in of_images for transform in group.transforms]
        for transform in training_transforms:
            if transform not in known and not isinstance(_inner(transform), SegOnlyTransform):
                raise NotImplementedError(f"no place among the views for {type(_inner(transform)).__name__}")

    def __call__(self, image: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        """Return {"image": (V, C, *spatial)}, the views in the order of `images`, and the predicted label.

        The label is nnU-Net's "segmentation" (1, *spatial), or for regions (R, *spatial); empty if none is given.

        Args:
            image: (C, *spatial).
            segmentation: int (1, *spatial), -1 outside the image and where the patch reaches over its border; in a
                cascade a second channel is the segmentation of the previous stage; one more channel is the label.
        """
        sample, is_cascaded = {"image": image}, bool(self.appending.transforms)
        has_label = len(segmentation) > 1 + is_cascaded
        if self.masked_channels:
            outside = (image[self.masked_channels] == 0).all(0)
            segmentation = torch.cat([segmentation[:1].masked_fill(outside, -1), segmentation[1:]])
        if self.masked_channels or is_cascaded or has_label:
            sample["segmentation"] = segmentation
        sample = self.geometric(**sample)
        views = {}
        for name in ("strong", "second_strong"):
            if name in self.images:  # cloned, because the transforms work in place
                strong = self.intensity(**sample | {"image": sample["image"].clone()})
                views[name] = self.of_previous_stage(**self.appending(**self.masking(**strong)))["image"]
        if "weak" in self.images:
            views["weak"] = self.appending(**self.masking(**sample))["image"]
        label = torch.empty(0)
        if has_label:
            label = self.of_labels(segmentation=sample["segmentation"][-1:])["segmentation"].short()
        return {"image": torch.stack([views[name] for name in self.images]), "segmentation": label}


def _inner(transform: BasicTransform) -> BasicTransform:
    """Return what a transform that is applied at random applies."""
    return transform.transform if isinstance(transform, RandomTransform) else transform


def _those(kind: type | tuple[type, ...], transforms: list[BasicTransform]) -> ComposeTransforms:
    return ComposeTransforms([transform for transform in transforms if isinstance(_inner(transform), kind)])
