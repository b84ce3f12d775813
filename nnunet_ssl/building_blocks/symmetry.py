"""Images of a structure made symmetric: one half of it takes the mirror image of the other half.

ERSR, https://arxiv.org/abs/2508.19815, and its code, https://github.com/BioMedIA-repo/ERSR
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.consistency import masked_mean_squared_error
from nnunet_ssl.building_blocks.ellipse_refinement import coordinates

PROBABILITY = 0.2  # of each perturbation of an image; authors' code
NOISE = 0.05  # standard deviation; this and what follows in units of the image's range; authors' code
GAMMAS = (1.2, 1.8)  # authors' code
LARGEST_SHIFT = 0.1  # authors' code
BLURS = (0.5, 1.5)  # standard deviation in pixels; authors' code
BLUR_REACH = 4  # pixels, beyond which less than 1 % of the widest blur's weight lies


class Mirror(NamedTuple):
    """Reflection of each image at an axis of its own.

    Attributes:
        places: of each pixel's mirror image, the nearest pixel, as numbers in (B, 1, Y X), int64.
        is_inside: whether that lies in the patch, bool (B, 1, Y, X).
        is_left: which pixels lie to one side of the axis, bool (B, 1, Y, X).
    """

    places: Tensor
    is_inside: Tensor
    is_left: Tensor

    def of(self, maps: Tensor) -> Tensor:
        """Return the mirror images of maps (B, C, Y, X); what lies outside the patch comes from its border."""
        flat = maps.flatten(2)
        return flat.gather(2, self.places.expand(-1, flat.shape[1], -1)).view(maps.shape)


def mirror_at_long_axis(ellipses: Tensor, shape: tuple[int, int]) -> Mirror:
    """Return the reflection at the line through the center of each ellipse (B, 5) along its longer axis.

    Args:
        ellipses: see `ellipse_refinement`; without one it is some line through the first pixel.
        shape: (Y, X).
    """
    _, across = coordinates(ellipses, shape)
    y, x = (torch.arange(size, device=across.device) for size in shape)
    angle = ellipses.float()[:, 4, None, None, None]
    mirrored_x = (x + 2 * across * angle.sin()).round()
    mirrored_y = (y[:, None] - 2 * across * angle.cos()).round()
    clamped_x, clamped_y = mirrored_x.clamp(0, shape[1] - 1), mirrored_y.clamp(0, shape[0] - 1)
    is_inside = (clamped_x == mirrored_x) & (clamped_y == mirrored_y)
    return Mirror((clamped_y.long() * shape[1] + clamped_x.long()).flatten(2), is_inside, across < 0)


class Symmetric(NamedTuple):
    """An image in which one half of a structure is the mirror image of the other.

    Attributes:
        image: (B, C, Y, X).
        is_mirrored: on which side of the axis the structure is a mirror image, bool (B, 1, Y, X).
        is_known: false where the image shows something else than that: a part of the structure whose mirror image is
            not of it, or where the mirror image lies outside the patch; bool (B, 1, Y, X).
    """

    image: Tensor
    is_mirrored: Tensor
    is_known: Tensor


def symmetric_image(
    image: Tensor, structure: Tensor, mirror: Mirror, side: str, probability: float = PROBABILITY
) -> Symmetric:
    """Return images whose structure is one of its halves and the mirror image of that half, each perturbed for itself.

    Args:
        image: (B, C, Y, X).
        structure: where it is, as a 0/1 map (B, 1, Y, X).
        mirror: at its axis.
        side: "left" or "right": the half that stays; the other one is replaced.
        probability: of each perturbation, see `perturbed`.
    """
    is_own, structure = mirror.is_left if side == "left" else ~mirror.is_left, structure > 0
    is_copied = ~is_own & mirror.is_inside & mirror.of(structure)
    new = torch.where(is_own & structure, perturbed(image, probability), image)
    new = torch.where(is_copied, perturbed(mirror.of(image), probability), new)
    is_known = is_own | (mirror.is_inside & (is_copied | ~structure))
    return Symmetric(new, ~is_own, is_known)


def symmetric_losses(
    probs: Tensor, whole: Tensor, mirror: Mirror, shown: Symmetric, is_used: Tensor
) -> dict[str, Tensor]:
    """Return how far the prediction of a symmetric image is from what it shows, and from being symmetric, as scalars.

    Both are squared differences, means over what is known: to the prediction of the whole image in the half that
    stayed, mirrored into the other half; and of each pixel to its mirror image.

    Args:
        probs: of the structure in the symmetric image, (B, 1, Y, X) in [0, 1]; the gradient flows here.
        whole: in the image that it was made of, (B, 1, Y, X); taken as constant, as are mirror images.
        mirror: at the structure's axis.
        shown: the symmetric image.
        is_used: which images count, bool (B, 1, 1, 1).

    Returns:
        The first as "perturbed", the second as "mirrored".
    """
    target = torch.where(shown.is_mirrored, mirror.of(whole), whole)
    is_known = shown.is_known & is_used
    has_pair = is_known & mirror.is_inside & mirror.of(is_known)
    return {
        "perturbed": masked_mean_squared_error(probs, target, is_known),
        "mirrored": masked_mean_squared_error(probs, mirror.of(probs.detach()), has_pair),
    }


@torch.no_grad()
def perturbed(image: Tensor, probability: float = PROBABILITY) -> Tensor:
    """Return images with noise, another gamma, another brightness and blur, each at random, in float32.

    The strengths are of the range between the least and the largest value of each image, which is not stretched.

    Args:
        image: (B, C, Y, X).
        probability: of each of the four for each image, in [0, 1].
    """
    image = image.float()
    lowest, highest = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    span = (highest - lowest).clamp_min(torch.finfo(image.dtype).tiny)
    drawn = torch.rand(7, len(image), 1, 1, 1).to(image.device, non_blocking=True)  # where, and how strong
    noisy, curved, shifted, blurred = drawn[:4] < probability
    gamma, shift, blur = drawn[4:]
    new = (image - lowest) / span
    new = torch.where(noisy, new + NOISE * torch.randn_like(new), new)
    new = torch.where(curved, new.clamp(0.0, 1.0) ** (GAMMAS[0] + (GAMMAS[1] - GAMMAS[0]) * gamma), new)
    new = torch.where(shifted, new + LARGEST_SHIFT * (2 * shift - 1), new)
    widths = BLURS[0] + (BLURS[1] - BLURS[0]) * blur.flatten()
    return lowest + span * torch.where(blurred, gaussian_blur(new, widths), new)


def gaussian_blur(image: Tensor, deviations: Tensor) -> Tensor:
    """Return images (B, C, Y, X) blurred by a Gaussian, each with a standard deviation of its own (B,), in pixels."""
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=image.device)
    weights = (-0.5 * (offsets / deviations[:, None]).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True))[:, None, None]
    with torch.autocast(image.device.type, enabled=False):
        by_image = F.pad(image.transpose(0, 1), [BLUR_REACH] * 4, mode="replicate")
        along_x = F.conv2d(by_image, weights, groups=len(image))
        return F.conv2d(along_x, weights.transpose(2, 3), groups=len(image)).transpose(0, 1)
