"""Where the patches of a batch lie, and how unlabeled ones are spread over the positions in their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


@dataclass(frozen=True)  # no named tuple: nnU-Net's loader makes plain tuples of those when it pins memory
class Place:
    """Where a patch lies in its preprocessed image, before nnU-Net rotates and scales it.

    There are three axes in 2d too: the first one is that of the slices then.

    Attributes:
        case: the case.
        start: the first voxel along each axis; may lie outside of the image.
        size: of the patch.
        shape: of the image.
    """

    case: str
    start: tuple[int, ...]
    size: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def position(self) -> float:
        """How far along the first axis it lies among all places that there are, in (0, 1); ½ if there is only one.

        Of slice i of n it is (i + ½) / n.
        """
        places = number_of_places(self.shape, self.size)
        return (min(max(self.start[0], 0), places - 1) + 0.5) / places


def number_of_places(shape: Sequence[int], size: Sequence[int]) -> int:
    """Return how many places a patch has along the first axis of an image; one in an image that is no larger."""
    return max(int(shape[0]) - int(size[0]), 0) + 1


def position_bin(position: float, bins: int) -> int:
    """Return in which of so many bins of equal width a position in (0, 1) lies, 0 for the first."""
    return int(position * bins)


class NotesPlaces(nnUNetDataLoader):
    """nnU-Net's loader, drawing the same patches, whose batches also say where each lies: {"places": (Place, ...)}."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - nnU-Net's
        super().__init__(*args, **kwargs)
        self.boxes: list[tuple[list[int], tuple[int, ...]]] = []  # of the batch: where each begins, in which image

    def get_bbox(self, data_shape: Sequence[int], *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401
        """Return nnU-Net's box, and note it."""
        lower, upper = super().get_bbox(data_shape, *args, **kwargs)
        self.boxes.append((lower, tuple(map(int, data_shape))))
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        """Return nnU-Net's batch, with places."""
        self.boxes = []
        batch = super().generate_train_batch()
        places = zip(batch["keys"], self.boxes, strict=True)
        return batch | {"places": tuple(self._place(str(case), *box) for case, box in places)}

    def _place(self, case: str, lower: Sequence[int], shape: tuple[int, ...]) -> Place:
        """Return the place of what nnU-Net cuts out of the middle of a larger box once that is rotated."""
        start = (int(at) + margin for at, margin in zip(lower, self.margins(), strict=True))
        return Place(case, tuple(start), tuple(map(int, self.final_patch_size)), shape)

    def margins(self) -> list[int]:
        """Return by how much the box that is rotated reaches over the patch, at the beginning of each axis."""
        return [(int(box) - int(patch)) // 2 for box, patch in zip(self.patch_size, self.final_patch_size, strict=True)]


class SpreadDraws:
    """Which cases and positions a batch takes, so that it has images of one position, and of one case.

    A batch of two or more times the number of bins has a patch in each bin of each case: case a in all bins, case b in
    all bins, ...; the last case has the bins that there is room for. Fewer patches would be of one case or two, so that
    each is of a case and of a bin of its own choice then.
    """

    def __init__(self, bins: int) -> None:
        """Spread over so many bins of the first axis."""
        self.bins = bins
        self.of_batch: list[int] = []

    def cases(self, available: Sequence[str], batch_size: int) -> np.ndarray:
        """Draw the cases of a batch and, for later, the bin of each patch."""
        if batch_size < 2 * self.bins:
            self.of_batch = np.random.randint(self.bins, size=batch_size).tolist()
            return np.random.choice(available, batch_size)
        number = -(-batch_size // self.bins)
        cases = np.random.choice(available, number, replace=number > len(available))
        bins = [one for _ in range(number) for one in np.random.permutation(self.bins)]
        self.of_batch = bins[:batch_size]
        return np.repeat(cases, self.bins)[:batch_size]

    def start(self, sample: int, places: int) -> int | None:
        """Draw the place of a patch in its bin, as an index; None where its bin has none, or there is but one."""
        if places == 1:
            return None
        bins = [position_bin((place + 0.5) / places, self.bins) for place in range(places)]
        found = np.flatnonzero(np.array(bins) == self.of_batch[sample])
        return int(np.random.choice(found)) if len(found) else None


def places_of(batch: Mapping[str, Any]) -> tuple[Place, ...]:
    """Return the places of a batch; none of one that was not made by our loaders."""
    return tuple(batch.get("places", ()))
