"""Softmax labels and sigmoid regions behind one interface, so that a method supports both without thinking of it.

| | softmax labels | sigmoid regions |
|---|---|---|
| channels C | classes, background first | regions, which may overlap; no background |
| labels | integers (B, 1, *spatial) | one 0/1 map for each region (B, C, *spatial) |
| nnU-Net's target | labels; the highest integer is the ignore label | labels; a last channel is the ignore label |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5  # of the Dice, as in nnU-Net's loss


@dataclass(frozen=True)
class LabelSpace(ABC):
    """What the channels of a network's output mean.

    Attributes:
        num_channels: C, the number of the network's output channels.
        ignore_label: nnU-Net's ignore label, or None.
    """

    num_channels: int
    ignore_label: int | None = None

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities (B, C, *spatial) in float32, whatever the precision of the logits."""

    @abstractmethod
    def pseudo_label(self, probs: Tensor) -> Tensor:
        """Return the hard labels of probabilities (B, C, *spatial), without gradient."""

    @abstractmethod
    def confidence(self, probs: Tensor) -> Tensor:
        """Return how sure the prediction is: (B, 1, *spatial) in [1/C, 1], for regions (B, C, *spatial) in [½, 1]."""

    @abstractmethod
    def entropy(self, probs: Tensor) -> Tensor:
        """Return the entropy as a share of its maximum, in [0, 1]; the shape is that of `confidence`."""

    @abstractmethod
    def divergence(self, probs: Tensor, other: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence KL(probs ‖ other) of each voxel in nats, shaped like `confidence`."""

    @abstractmethod
    def class_thresholds(self, probs: Tensor, threshold: float) -> Tensor:
        """Return for each voxel the confidence that its predicted class asks for, shaped like `confidence`.

        The class that the batch is surest of has `threshold`; one that is predicted with a lower mean confidence has a
        threshold lower by the same factor, so that small structures are not left out.
        """

    @abstractmethod
    def one_hot(self, labels: Tensor) -> Tensor:
        """Return labels as float maps (B, C, *spatial); the ignore label counts as background."""

    @abstractmethod
    def labels(self, target: Tensor) -> Tensor:
        """Return nnU-Net's target in the form of `pseudo_label`; the ignore label counts as background."""

    @abstractmethod
    def is_known(self, target: Tensor) -> Tensor:
        """Return where nnU-Net's target carries a label: bool (B, 1, *spatial), false on the ignore label."""

    @abstractmethod
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each voxel, shaped like `confidence`, in float32; gradient to the logits."""

    def is_accepted(self, probs: Tensor, threshold: float) -> Tensor:
        """Return where a pseudo-label is sure enough for its class: bool, shaped like `confidence`."""
        return self.confidence(probs) >= self.class_thresholds(probs, threshold)

    @property
    @abstractmethod
    def foreground(self) -> slice:
        """The channels that are foreground."""

    def dice(self, probs: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the soft Dice of the foreground channels over the whole batch, a mean over channels, as a scalar.

        Args:
            probs: (B, C, *spatial) in [0, 1]; the gradient flows here.
            reference: 0/1 maps (B, C, *spatial), as `one_hot` returns them.
            weight: (B, 1, *spatial) or (B, C, *spatial), ≥ 0; 0 leaves a voxel out. None means 1.
        """
        weight = torch.ones_like(probs) if weight is None else weight.expand_as(probs)
        axes = [0, *range(2, probs.ndim)]
        overlap = (weight * probs * reference).sum(axes)
        size = (weight * (probs + reference)).sum(axes)
        return ((2.0 * overlap + SMOOTH) / (size + SMOOTH))[self.foreground].mean()


class SoftmaxLabels(LabelSpace):
    """Classes that exclude each other."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(1)

    def pseudo_label(self, probs: Tensor) -> Tensor:
        return probs.detach().max(1, keepdim=True).indices  # argmax is many times slower on the CPU

    def confidence(self, probs: Tensor) -> Tensor:
        return probs.amax(1, keepdim=True)

    def entropy(self, probs: Tensor) -> Tensor:
        return _entropy(probs).sum(1, keepdim=True) / math.log(self.num_channels)

    def divergence(self, probs: Tensor, other: Tensor) -> Tensor:
        return (probs * (_log(probs) - _log(other))).sum(1, keepdim=True)

    def class_thresholds(self, probs: Tensor, threshold: float) -> Tensor:
        predicted = self.one_hot(self.pseudo_label(probs))
        mean = _mean_confidence(self.confidence(probs), predicted)
        return (predicted * (threshold * mean / mean.max())).sum(1, keepdim=True)

    def one_hot(self, labels: Tensor) -> Tensor:
        labels = self.labels(labels)
        shape = (labels.shape[0], self.num_channels, *labels.shape[2:])
        return torch.zeros(shape, device=labels.device).scatter_(1, labels, 1.0)

    def labels(self, target: Tensor) -> Tensor:
        return torch.where(self.is_known(target), target, 0).long()

    def is_known(self, target: Tensor) -> Tensor:
        return torch.ones_like(target, dtype=torch.bool) if self.ignore_label is None else target != self.ignore_label

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = torch.where(self.is_known(labels), labels, -100)[:, 0].long()  # what torch leaves out
        return F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-100)[:, None]

    @property
    def foreground(self) -> slice:
        return slice(1, None)


class SigmoidRegions(LabelSpace):
    """Regions that may overlap, each a yes or no."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()

    def pseudo_label(self, probs: Tensor) -> Tensor:
        return (probs.detach() > 0.5).long()

    def confidence(self, probs: Tensor) -> Tensor:
        return torch.maximum(probs, 1.0 - probs)

    def entropy(self, probs: Tensor) -> Tensor:
        return (_entropy(probs) + _entropy(1.0 - probs)) / math.log(2.0)

    def divergence(self, probs: Tensor, other: Tensor) -> Tensor:
        inside = probs * (_log(probs) - _log(other))
        return inside + (1.0 - probs) * (_log(1.0 - probs) - _log(1.0 - other))

    def class_thresholds(self, probs: Tensor, threshold: float) -> Tensor:
        inside, confidence = self.pseudo_label(probs).float(), self.confidence(probs)
        means = [_mean_confidence(confidence, part) for part in (inside, 1.0 - inside)]
        best = torch.maximum(*means)
        return threshold * torch.where(inside > 0, means[0] / best, means[1] / best)

    def one_hot(self, labels: Tensor) -> Tensor:
        return self.labels(labels).float()

    def labels(self, target: Tensor) -> Tensor:
        return (target[:, : self.num_channels] * self.is_known(target)).long()

    def is_known(self, target: Tensor) -> Tensor:
        if target.shape[1] == self.num_channels:
            return torch.ones_like(target[:, :1], dtype=torch.bool)
        return ~target[:, -1:].bool()

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        regions = labels[:, : self.num_channels].float()
        return F.binary_cross_entropy_with_logits(logits.float(), regions, reduction="none") * self.is_known(labels)

    @property
    def foreground(self) -> slice:
        return slice(None)


class DescribesLabels(Protocol):
    """What nnU-Net's label manager says of a data set's labels."""

    has_regions: bool
    num_segmentation_heads: int
    ignore_label: int | None


def label_space_of(labels: DescribesLabels) -> LabelSpace:
    """Return the label space of a data set."""
    kind = SigmoidRegions if labels.has_regions else SoftmaxLabels
    return kind(labels.num_segmentation_heads, labels.ignore_label)


def _log(probs: Tensor) -> Tensor:
    """Return the logarithm, finite at 0 so that a difference or a quotient of two stays a number."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _entropy(probs: Tensor) -> Tensor:
    """Return -p ln p, whose gradient is finite at 0."""
    return -probs * _log(probs)


def _mean_confidence(confidence: Tensor, part: Tensor) -> Tensor:
    """Return the mean confidence over the voxels of each channel's part, (1, C, 1 ...); 0 where there are none."""
    axes = [0, *range(2, part.ndim)]
    return (confidence * part).sum(axes, keepdim=True) / part.sum(axes, keepdim=True).clamp_min(1.0)
