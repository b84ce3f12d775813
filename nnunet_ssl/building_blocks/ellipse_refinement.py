"""Pseudo-labels of one structure in 2-D, drawn towards the ellipse that is fitted to them.

The host fits; the device refines. A batch of ellipses is a tensor (B, 5) of center x, center y, semi-axes a ≥ b and the
angle of a, as in `ellipses.Ellipse`, in pixels; zeros stand for none.

ERSR, https://arxiv.org/abs/2508.19815, and its code, https://github.com/BioMedIA-repo/ERSR
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.building_blocks.dual_score import case_numbers, contour_regularity
from nnunet_ssl.building_blocks.ellipses import ellipse_within
from nnunet_ssl.building_blocks.label_space import LabelSpace

OUTSIDE_DECAY = 0.5  # of the logarithm of a probability, per unit of d; authors' code


def channel_of(labels: Mapping[str, int | Sequence[int]], has_regions: bool, wanted: str | None) -> slice:
    """Return the channel of the label, or the region, that an ellipse is fitted to, as a slice of one.

    Args:
        labels: of a data set, by name.
        has_regions: whether the channels are regions.
        wanted: its name or number; None: the only foreground label.

    Raises:
        ValueError: there is no such label; there are several, and none is named.
    """
    foreground = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    for name, value in foreground.items():
        if isinstance(value, list) and len(value) == 1:
            foreground[name] = value[0]
    found = [name for name, value in foreground.items() if wanted is None or str(wanted) in (name, str(value))]
    if len(found) != 1:
        raise ValueError(
            f"the option elliptic_label says, by name or number, which label has the form of an ellipse: one of "
            f"{', '.join(foreground)}; got {wanted}"
        )
    channel = list(foreground).index(found[0]) if has_regions else int(foreground[found[0]])
    return slice(channel, channel + 1)


# ---- on the host ----


def examine_masks(
    cases: Sequence[str], least_overlap: float, predicted: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ellipses (B, 5) and contour regularities (B,), both in float32, and the numbers of the cases (B,).

    Args:
        cases: of the images.
        least_overlap: see `ellipse_within`.
        predicted: where the structure is predicted, as 0/1 maps (B, 1, Y, X); its contour is rated.
        inside: where it is sure, bool (B, 1, Y, X); an ellipse is fitted to it.
    """
    regularities = [contour_regularity(mask > 0) for mask in predicted[:, 0]]
    return fit_ellipses(least_overlap, inside), np.array(regularities, dtype=np.float32), case_numbers(cases)


def fit_ellipses(least_overlap: float, inside: np.ndarray) -> np.ndarray:
    """Return the ellipse of each mask (B, 1, Y, X), bool, see `ellipse_within`: float32 (B, 5), zeros for none."""
    ellipses = np.zeros((len(inside), 5), dtype=np.float32)
    for row, mask in zip(ellipses, inside[:, 0], strict=True):
        if ellipse := ellipse_within(mask, least_overlap):
            row[:] = astuple(ellipse)
    return ellipses


# ---- on the device ----


def is_fitted(ellipses: Tensor) -> Tensor:
    """Return which of the ellipses (B, 5) there are: bool (B, 1, 1, 1)."""
    return ellipses[:, 2, None, None, None] > 0


def coordinates(ellipses: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return how far each pixel is from the center along the longer axis and along the shorter one: (B, 1, Y, X) each.

    Args:
        ellipses: (B, 5).
        shape: (Y, X).
    """
    y, x = (torch.arange(size, device=ellipses.device, dtype=torch.float32) for size in shape)
    center_x, center_y, _, _, angle = ellipses.float()[..., None, None, None].unbind(1)
    dx, dy = x - center_x, y[:, None] - center_y
    return dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()


def elliptic_distance(ellipses: Tensor, shape: Sequence[int]) -> Tensor:
    """Return d = (u / a)² + (v / b)² of each pixel, (B, 1, Y, X): 0 at the center, 1 on the ellipse; 0 without one."""
    along, across = coordinates(ellipses, shape)
    a, b = torch.where(is_fitted(ellipses), ellipses[:, 2:4, None, None], torch.inf)[:, None].unbind(2)
    return (along / a).square() + (across / b).square()


def inside_of(ellipses: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the pixels in each ellipse, bool (B, 1, Y, X): none without one."""
    return is_fitted(ellipses) & (elliptic_distance(ellipses, shape) <= 1.0)


def refined(probs: Tensor, ellipses: Tensor, threshold: float) -> Tensor:
    """Return probabilities raised towards the ellipse's center and damped outside of it; those without one as they are.

        d ≤ 1:  max(p, min(τ + (1 - d)², 1))        d > 1:  p exp(-½ (d - 1))

    Args:
        probs: p of the structure, (B, 1, Y, X) in [0, 1]; the gradient flows through.
        ellipses: (B, 5).
        threshold: τ in [0, 1], which all that is inside exceeds.
    """
    distance = elliptic_distance(ellipses, probs.shape[2:])
    inside = torch.maximum(probs, (threshold + (1.0 - distance).square()).clamp(max=1.0))
    outside = probs * (-OUTSIDE_DECAY * (distance - 1.0)).exp()
    new = torch.where(distance <= 1.0, inside, outside)
    return torch.where(is_fitted(ellipses), new, probs)


def pseudo_labels(
    space: LabelSpace, probs: Tensor, structure: slice, ellipses: Tensor, threshold: float, refines: bool
) -> Tensor:
    """Return the labels that are made of refined probabilities, as 0/1 maps (B, C, Y, X), without gradient.

    The structure is where its refined probability exceeds the threshold. Elsewhere stands the most probable of the
    other classes. The other regions, which may overlap it, are what they are without it.

    Args:
        space: what the channels mean.
        probs: (B, C, Y, X).
        structure: its channel, which is not the background.
        ellipses: fitted to it, (B, 5).
        threshold: τ in [0, 1].
        refines: whether the probabilities are drawn to the ellipses at all.
    """
    decided = probs.detach().clone()
    new = refined(decided[:, structure], ellipses, threshold) if refines else decided[:, structure]
    decided[:, structure] = torch.where(new > threshold, 2.0, -1.0)  # more, and less, than any probability
    return space.one_hot(space.pseudo_label(decided))
