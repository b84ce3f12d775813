"""Finding the scans of a raw data set that are one scan under two names, changed or not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.identical_images import FOLDERS, as_test_case, twins_of_dataset
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.candidates import candidates
from nnunet_ssl.leaks.confirmation import COPY, likeness
from nnunet_ssl.leaks.index import Index, Pair, Scan, marks_of, read_small_images, write_small_images
from nnunet_ssl.leaks.signatures import one_channel, small_image

WRITTEN_EVERY = 200  # scans or pairs: what was read until an interruption is kept
FEW_VALUES = 16  # different voxel values, at most, of what may be a label map
SAMPLED = 20_000  # voxels that are looked at before all are


def scans_of(raw: RawDataset) -> dict[str, list[Path]]:
    """Return the files of all scans of a raw data set, labeled or not, by FOLDER/CASE."""
    return {f"{folder}/{case}": files for folder in FOLDERS for case, files in raw.images(folder).items()}


def compare_all(raw: RawDataset, folder: Path) -> Index:
    """Read what has changed of a raw data set, one scan at a time, compare all scans, and return what is known of them.

    Args:
        raw: the data set.
        folder: its folder in nnUNet_preprocessed, where the index is kept.
    """
    files, reader = scans_of(raw), DatasetReader.of_raw(raw)
    index = Index.read(folder)
    small = read_small_images(folder, index.scans)
    _read_scans(files, reader, index, small, folder)
    if index.compared != index.digest():
        _compare(files, reader, index, small, folder)
    return index


def known_copies(index: Index, files: Mapping[str, Sequence[Path]]) -> dict[tuple[str, str], Pair]:
    """Return the copies in an index, without reading any: by names in order, of files that have not changed since."""
    today = {before: name for name, before in _names_in(index, files).items()}
    pairs = {names: index.pair(*names) for names in index.pairs if today.keys() >= {*names}}
    copies = {names: pair for names, pair in pairs.items() if pair and is_copy(pair)}
    return {tuple(sorted(today[name] for name in names)): pair for names, pair in copies.items()}


def is_copy(pair: Pair) -> bool:
    """Return whether two scans are so much alike that they are one."""
    return pair.likeness >= COPY


def unread(index: Index, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the scans that are not in an index, or have changed since."""
    known = _names_in(index, files)
    return [name for name in files if name not in known]


def copies_for_split(raw: RawDataset, folder: Path, group_of: Mapping[str, str]) -> list[list[str]]:
    """Return groups of cases that are one image: identical ones, and copies that an audit has found; test as twins.

    Args:
        raw: the data set.
        folder: its folder in nnUNet_preprocessed.
        group_of: whose each case is; what is nearly one image of one patient, as the phases of a heart, is no copy.
    """
    groups = [set(twins) for twins in twins_of_dataset(raw, folder)]
    for pair, found in known_copies(Index.read(folder), scans_of(raw)).items():
        scans = [name.split("/", 1) for name in pair]
        names = {as_test_case(case) if place == "imagesTs" else case for place, case in scans}
        if not found.is_equal and len({group_of.get(name, name) for name in names}) == 1:
            continue
        touched = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names] + [names.union(*touched)]
    return sorted(sorted(group) for group in groups)


def _names_in(index: Index, files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Return by which name an index knows a scan as it is today: `split --hide` moves a case to another folder."""
    found = {}
    for name, of in files.items():
        case = name.partition("/")[2]
        for before in (name, *(f"{folder}/{case}" for folder in FOLDERS)):
            if (before == name or before not in files) and _is_current(index, before, of):
                found[name] = before
                break
    return found


def _is_current(index: Index, name: str, files: Sequence[Path]) -> bool:
    try:
        return name in index.scans and index.is_current(name, marks_of(files))
    except OSError:
        return False


def _read_scans(
    files: Mapping[str, Sequence[Path]], reader: DatasetReader, index: Index, small: dict[str, np.ndarray], folder: Path
) -> None:
    known = {name for name in files if name in small or (name in index.scans and index.scans[name].problem)}
    todo = [name for name, of in files.items() if name not in known or not _is_current(index, name, of)]
    for gone in [name for name in index.scans if name not in files]:
        del index.scans[gone]
        small.pop(gone, None)
    try:
        for number, name in enumerate(tqdm(todo, desc="Reading scans", disable=not todo), 1):
            small.pop(name, None)
            index.scans[name], found = _read(files[name], reader)
            if found is not None:
                small[name] = found
            if number % WRITTEN_EVERY == 0:
                _write(index, small, folder)
    finally:
        if todo:
            _write(index, small, folder)


def _write(index: Index, small: Mapping[str, np.ndarray], folder: Path) -> None:
    write_small_images(folder, small, index.scans)
    index.write(folder)


def _read(files: Sequence[Path], reader: DatasetReader) -> tuple[Scan, np.ndarray | None]:
    try:
        marks = marks_of(files)
        voxels, _ = reader.read_channels(files)
    except (ValueError, OSError) as error:
        return Scan([], problem=str(error)), None
    scan = Scan(marks, _size(voxels), [few_values(channel) for channel in voxels])
    if not np.isfinite(voxels).all():
        return replace(scan, problem="it holds values that are not finite (NaN or infinite)"), None
    small = small_image(voxels)
    return (scan, small) if small is not None else (replace(scan, problem="all its voxels are nearly alike"), None)


def _size(voxels: np.ndarray) -> list[int]:
    return [size for size in voxels.shape[1:] if size > 1]


def few_values(channel: np.ndarray) -> list[float] | None:
    """Return the different values of an image, sorted; None if there are more than a label map has."""
    for voxels in (channel.ravel()[:: max(1, channel.size // SAMPLED)], channel):
        values = np.unique(voxels)
        if len(values) > FEW_VALUES:
            return None
    return values.tolist()


def _compare(
    files: Mapping[str, Sequence[Path]],
    reader: DatasetReader,
    index: Index,
    small: Mapping[str, np.ndarray],
    folder: Path,
) -> None:
    todo = [one for one in _candidates(index, small) if index.pair(*one[:2]) is None]
    last, first = "", np.empty(0)
    try:
        for number, (one, other, flipped) in enumerate(tqdm(todo, desc="Comparing scans", disable=not todo), 1):
            if one != last:
                last, first = one, reader.read_channels(files[one])[0]
            second = reader.read_channels(files[other])[0]
            marks = [index.scans[name].marks for name in (one, other)]
            is_equal = np.array_equal(first, second)
            alike = 1.0 if is_equal else likeness(one_channel(first), one_channel(second), flipped)
            index.pairs[one, other] = Pair(marks, round(alike, 4), is_equal)
            if number % WRITTEN_EVERY == 0:
                index.write(folder)
        index.compared = index.digest()
    finally:
        index.pairs = {names: pair for names, pair in index.pairs.items() if {*names} <= index.scans.keys()}
        index.write(folder)


def _candidates(index: Index, small: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Give pairs of names in order, those of one scan together."""
    found = []
    for number in sorted({image.ndim for image in small.values()}):
        names = sorted(name for name, image in small.items() if image.ndim == number)
        stack, sizes = np.stack([small[name] for name in names]), [tuple(index.scans[name].size) for name in names]
        found += [(names[one.first], names[one.second], one.flipped) for one in candidates(stack, sizes)]
    yield from sorted(found)
