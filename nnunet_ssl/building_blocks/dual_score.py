"""Dual score: how uncertain the boundary of a predicted structure is, and how irregular its contour; lower is better.

Scores are kept by case, so that an image is compared with all images and not with those of its batch alone.

ERSR, https://arxiv.org/abs/2508.19815, and its code, https://github.com/BioMedIA-repo/ERSR
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

CAPACITY = 4096  # cases of a table; of more, those seen last; ours
NO_CASE = 0
BOUNDARY_SHARE = 0.5  # α; authors' code
LEAST_KEPT = 0.8  # of a batch; authors' code
SMALLEST_MASK = 0.01  # of an image; ours: of 74 heads of HC18 and 90 of PSFHS the smallest has 0.05
# Pixels in which a contour is rated; ours, measured: notches and leaks, simulated, are told from smooth contours in 77
# and 95 % of pairs of heads of HC18 and PSFHS; with four times as many pixels in 75 and 93 %.
LARGEST_IMAGE = 2**14


@torch.no_grad()
def boundary_consistency(probs: Tensor) -> Tensor:
    """Return the mean length of the gradient of each image's probabilities, (B,) in float32, without gradient.

    The gradient is Sobel's, divided by 8; beyond the border stands what is at the border.

    Args:
        probs: of one structure, (B, 1, Y, X) in [0, 1].
    """
    padded = F.pad(probs.float(), (1, 1, 1, 1), mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    along_x = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 8
    along_y = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 8
    return torch.hypot(along_x, along_y).flatten(1).mean(1)


def contour_regularity(mask: np.ndarray) -> float:
    """Return the mean absolute Laplacian of the distance to a mask; infinite for a small one.

    The distance of a pixel outside is Euclidean, in pixels, and 0 inside. Around a smooth convex contour it is nearly
    flat; each notch of the contour makes a ridge in it. An empty mask would be the most regular of all. Beyond the
    border stands what is at the border: with zeros there, as in the authors' code, the distances at the border decide,
    and noise all over the image scores best (measured on masks of HC18 and PSFHS). Of images with more than 128 x 128
    pixels only some count, on a lattice.

    Args:
        mask: of one structure, bool (Y, X).
    """
    if not mask.any() or mask.mean() < SMALLEST_MASK:
        return np.inf
    spacing = math.ceil(math.sqrt(mask.size / LARGEST_IMAGE))
    distance = np.pad(distance_transform_edt(~mask[::spacing, ::spacing]), 1, mode="edge")
    neighbors = distance[:-2, 1:-1] + distance[2:, 1:-1] + distance[1:-1, :-2] + distance[1:-1, 2:]
    return float(np.abs(neighbors - 4 * distance[1:-1, 1:-1]).mean())


def dual_scores(probs: Tensor, contours: Tensor) -> Tensor:
    """Return α boundary + (1 - α) contour of each image, (B,) in float32, without gradient; infinite for small masks.

    Args:
        probs: of one structure, (B, 1, Y, X) in [0, 1].
        contours: `contour_regularity` of each image, (B,).
    """
    scores = BOUNDARY_SHARE * boundary_consistency(probs) + (1.0 - BOUNDARY_SHARE) * contours
    return torch.where(scores.isfinite(), scores, torch.inf)


def case_numbers(cases: Sequence[str]) -> np.ndarray:
    """Return a number of 64 bits for each case, (N,): the same in all processes and runs, and never `NO_CASE`."""
    digests = [hashlib.blake2b(case.encode(), digest_size=8).digest() for case in cases]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64) | 1


class ScoreTable(nn.Module):
    """The last score of each case, an infinite one included.

    It has to be given the same in all processes.
    """

    cases: Tensor
    scores: Tensor

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Start with no case.

        Args:
            capacity: how many cases it remembers; then the one that was seen the longest time ago is forgotten.
        """
        super().__init__()
        self.register_buffer("cases", torch.full((capacity,), NO_CASE, dtype=torch.int64))
        self.register_buffer("scores", torch.full((capacity,), torch.inf))
        self._new: tuple[Tensor, Tensor] | None = None

    def is_kept(self, scores: Tensor, all_cases: Tensor, all_scores: Tensor, kept_fraction: float) -> Tensor:
        """Return which images of a batch are kept: bool (B, 1, 1, 1); their scores wait for `store`.

        Those whose score is among the best of all; where these are less than 80 % of the batch, the best of the others
        too, and one at least. An infinite score is never kept, and none of those that the best are a share of.

        Args:
            scores: of the batch, (B,).
            all_cases: of the batches of all processes, see `with_scores`.
            all_scores: of them.
            kept_fraction: K in [0, 1] of all scores.
        """
        self._new = self.with_scores(all_cases, all_scores)
        stored = self._new[1]
        better = (stored < scores[:, None]).sum(1)
        limit = kept_fraction * stored.isfinite().sum() if kept_fraction < 1.0 else torch.inf
        is_among_best = better < limit  # of a case that a batch has twice, one score is not among the stored ones
        place = scores.argsort(stable=True).argsort()
        is_filled_up = place < max(1, int(LEAST_KEPT * len(scores)))
        return (scores.isfinite() & (is_among_best | is_filled_up))[:, None, None, None]

    def store(self) -> None:
        """Keep the scores that wait, if any do: those of the last `is_kept`."""
        if self._new is not None:
            self.cases, self.scores = self._new
        self._new = None

    @torch.no_grad()
    def with_scores(self, cases: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return cases and scores of a table to which some are added, those seen last at the end.

        Args:
            cases: as `case_numbers` returns them, (N,); of one that occurs twice the last score counts.
            scores: of them, (N,).
        """
        cases, scores = torch.cat([self.cases, cases]), torch.cat([self.scores, scores])
        places = torch.arange(len(cases), device=cases.device)
        added = slice(len(self.cases), None)
        has_later = ((cases[:, None] == cases[added]) & (places[:, None] < places[added])).any(1)
        cases, scores = cases.masked_fill(has_later, NO_CASE), scores.masked_fill(has_later, torch.inf)
        by_age = (cases != NO_CASE).byte().argsort(stable=True)[-len(self.cases) :]
        return cases[by_age], scores[by_age]
