"""Predictions of all unlabeled cases, on disk: one file for each, with what a loader and the next round need of it.

They lie in the folder of a training, `pool_predictions/epoch_0400/CASE.b2nd`, with the checksum of each in
`CASE.b2nd.json`: a file that has changed is not opened, as the library may end the process over it. `round.json` beside
them says what they were made by, so that those of another round or run are never taken for this one's.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_ssl.data.checksums import checksum_of
from nnunet_ssl.data.disk_faults import blaming_the_disk
from nnunet_ssl.data.preprocessed_images import Image, open_array, read_json, write_json_atomically
from nnunet_ssl.data.whole_files import replacing

MOST_LOCATIONS = 1000  # of each class, to draw patches around; nnU-Net keeps 10 000 and more, of labels that stay
ROUND = "round.json"
NOTES = "nnunet_ssl"  # the name under which a file holds what is not voxels

Class = int | tuple[int, ...]  # a label, or the labels of a region


@dataclass(frozen=True)
class PoolPredictions:
    """The label maps of one round, those that are finished.

    Attributes:
        folder: holds CASE.b2nd of each of them.
    """

    folder: Path

    def has(self, case: str, image_file: Path) -> bool:
        """Return whether a case is finished and undamaged, and of the image as it is now."""
        try:
            return read_json(self._finished(case)) == {
                "image": _mark(image_file),
                "checksum": checksum_of(self._file(case)),
            }
        except OSError:
            return False

    def write(
        self,
        case: str,
        labels: np.ndarray,
        image_file: Path,
        classes: Sequence[Class],
        patch_size: Sequence[int],
        changes: Sequence[float] = (),
    ) -> None:
        """Write a case, compressed; its file appears whole or not at all, and counts once its checksum is there.

        Args:
            case: its name.
            labels: unsigned integers (*spatial) of the preprocessed image.
            image_file: of which they were made.
            classes: around whose voxels patches may be drawn.
            patch_size: of the patches that will be read from it.
            changes: how much it has changed from each round to the next one so far.
        """
        blocks, chunks = comp_blosc2_params((1, *labels.shape), patch_size, labels.itemsize)
        mark = _mark(image_file)
        notes = {
            "locations": [found.tobytes() for found in _locations(labels, classes)],
            "changes": np.array(changes, float).tobytes(),  # a list that may be empty: blosc2 3.3 cannot read such ones
        }
        shape = {"chunks": chunks[1:], "blocks": blocks[1:]}
        with replacing(self._file(case)) as unfinished, blaming_the_disk(unfinished.parent):
            array = blosc2.asarray(labels, urlpath=str(unfinished), **shape, cparams={"clevel": 5, "nthreads": 1})
            array.schunk.vlmeta[NOTES] = notes
            del array
        finished = {"image": mark, "checksum": checksum_of(self._file(case))}
        write_json_atomically(finished, self._finished(case))

    def labels(self, case: str) -> Image:
        """Open the label map (*spatial) of a case for reading in parts."""
        return open_array(self._file(case))

    def class_locations(self, case: str) -> dict[int, np.ndarray]:
        """Return voxels of each class, by its place among the classes, as nnU-Net's loader takes them: (N, 4)."""
        found = [np.frombuffer(one, np.uint16).reshape(-1, 4) for one in self._notes(case)["locations"]]
        return {index: one.astype(int) for index, one in enumerate(found)}

    def changes(self, case: str) -> list[float]:
        """Return how much a case has changed from each round to the next one; see `change`."""
        return np.frombuffer(self._notes(case)["changes"], float).tolist()

    def _file(self, case: str) -> Path:
        return self.folder / f"{case}.b2nd"

    def _finished(self, case: str) -> Path:
        return self.folder / f"{case}.b2nd.json"

    def _notes(self, case: str) -> dict[str, Any]:
        array = self.labels(case)  # named: its notes do not keep it alive
        return array.schunk.vlmeta[NOTES]


def open_round(root: Path, made_by: Mapping[str, Any]) -> PoolPredictions | None:
    """Return the predictions that were made by an epoch and a model; None if there are no such ones."""
    folder = _folder_of(root, made_by)
    return PoolPredictions(folder) if read_json(folder / ROUND) == dict(made_by) else None


def begin_round(root: Path, made_by: Mapping[str, Any], before: Mapping[str, Any]) -> PoolPredictions:
    """Make the folder of a round, or find it with the cases that are finished; all others are deleted.

    Args:
        root: the folder of all rounds.
        made_by: "epoch", and what else tells the round from others, as json holds it.
        before: the round before, which stays; empty if there is none.
    """
    kept = [made_by, before]
    for folder in root.glob("epoch_*"):
        if not any(folder == _folder_of(root, one) and open_round(root, one) for one in kept):
            shutil.rmtree(folder)
    predictions = PoolPredictions(_folder_of(root, made_by))
    write_json_atomically(dict(made_by), predictions.folder / ROUND)
    for unfinished in predictions.folder.glob("*.tmp"):  # of a run that was killed: of a case, or of the note above
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    return predictions


def change(labels: np.ndarray, before: Image, classes: Sequence[Class]) -> float:
    """Return how much a prediction has changed: the mean over the classes in either map of 1 - Dice, in [0, 1].

    Small structures count as much as large ones. Of a case in which nothing is predicted at all it is 1: there is
    nothing that could be stable.

    Args:
        labels: (*spatial).
        before: the same of the round before.
        classes: that count.
    """
    size = 1 + max(int(label) for one in classes for label in np.atleast_1d(one))
    counts = np.zeros((size, size), np.int64)  # of voxels by both labels
    for now, then in ((labels[i], before[i]) for i in range(len(labels))):  # slices: no more memory than that
        pairs = now.astype(np.int64) * size + then
        counts += np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)
    found = []
    for one in classes:
        here = np.atleast_1d(one)
        both, total = counts[np.ix_(here, here)].sum(), counts[here].sum() + counts[:, here].sum()
        if total:
            found.append(1.0 - 2.0 * both / total)
    return float(np.mean(found)) if found else 1.0


def stable_cases(changes: Mapping[str, Sequence[float]], unstable_fraction: float) -> list[str]:
    """Return the cases without the share of them that has changed most, by the mean over all rounds; at least one.

    Without any round before, all of them.
    """
    mean = {case: float(np.mean(found)) for case, found in changes.items() if len(found)}
    dropped = min(int(unstable_fraction * len(changes)), len(changes) - 1)
    worst = sorted(mean, key=lambda case: (-mean[case], case))[:dropped]
    return sorted(set(changes) - set(worst))


def _folder_of(root: Path, made_by: Mapping[str, Any]) -> Path:
    return root / f"epoch_{made_by.get('epoch', 0):04d}"


def _locations(labels: np.ndarray, classes: Sequence[Class]) -> list[np.ndarray]:
    """Return voxels of each class, drawn by nnU-Net: (N, 4), of which the first column is the channel's, 0."""
    found = DefaultPreprocessor._sample_foreground_locations(labels[None], list(classes)).values()
    return [np.array(voxels, np.uint16).reshape(-1, 4)[:MOST_LOCATIONS] for voxels in found]


def _mark(image_file: Path) -> list[int]:
    found = image_file.stat()
    return [found.st_size, found.st_mtime_ns]
