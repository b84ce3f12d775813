"""Finding images that stand in a data set under two names, by their voxels."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import nibabel
import SimpleITK
import tifffile
from tqdm import tqdm
from typing_extensions import TypedDict

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.json_schemas import read_if_fit
from nnunet_ssl.data.locks import one_after_the_other
from nnunet_ssl.data.preprocessed_images import Content, content_of, write_json_atomically
from nnunet_ssl.data.raw_files import TIFF_ENDINGS, RawDataset

CACHE = "raw_image_contents.json"  # in the data set's folder in nnUNet_preprocessed
FOLDERS = ("imagesTr", "imagesUn", "imagesTs")


class KnownImage(TypedDict):
    """What a cache remembers of an image: size and time of change of its files, their shapes, SHA-256 of its voxels."""

    marks: list[list[int]]
    shape: list[list[int]] | None
    digest: str | None


def twins_of_dataset(raw: RawDataset, cache_folder: Path) -> list[list[str]]:
    """Return the groups of cases of a raw data set whose images are identical, each sorted.

    A case of imagesTs is called "NAME (imagesTs)".
    """
    files: dict[str, Sequence[Path]] = {}
    for name in FOLDERS:
        for case, channels in raw.images(name).items():
            files[as_test_case(case) if name == "imagesTs" else case] = channels
    return identical_images(files, DatasetReader.of_raw(raw), cache_folder / CACHE)


def as_test_case(case: str) -> str:
    """Return what a case of imagesTs is called among identical images: its name may stand elsewhere too."""
    return f"{case} (imagesTs)"


def identical_images(
    files: Mapping[str, Sequence[Path]],
    reader: DatasetReader,
    cache: Path,
    contents: Mapping[str, Content] = MappingProxyType({}),
    wanted: Container[str] | None = None,
) -> list[list[str]]:
    """Return the groups of cases whose images have the same voxels, each sorted; an unreadable image is in none.

    Args:
        files: the image files of each case, channels in order.
        reader: of the data set.
        cache: a json file that remembers shapes and voxels by name, size and time of change of the files.
        contents: of cases of which nothing is read, as the reader reads them.
        wanted: cases; groups without any of them are not looked for. None: all are.
    """
    with one_after_the_other(cache.with_suffix(".lock"), "compares the same images"):
        known = read_if_fit(cache, dict[str, KnownImage]) or {}
        current = {case: _entry(channels, known) for case, channels in files.items() if case not in contents}
        current = {case: entry for case, entry in current.items() if entry["shape"] is not None}
        extents = {case: _extent(entry["shape"]) for case, entry in current.items()}
        extents |= {case: _extent([contents[case].shape]) for case in files if case in contents}
        alike = _of_equal_extent(extents, wanted)
        unread = [case for case in alike if case in current and current[case]["digest"] is None]
        for case in tqdm(unread, desc="Comparing images", disable=not unread):
            with suppress(ValueError):  # a damaged image is named by whoever needs it
                current[case]["digest"] = content_of(reader.read_channels(files[case])[0]).digest
        entries = {_key(files[case]): entry for case, entry in current.items()}
        if any(known.get(key) != entry for key, entry in entries.items()):
            with suppress(OSError):  # where nothing can be written, images are read again each time
                write_json_atomically(known | entries, cache)
    digests = {case: entry["digest"] for case, entry in current.items()}
    digests |= {case: content.digest for case, content in contents.items()}
    return groups_of_equals({case: (extents[case], digests[case]) for case in alike})


def groups_of_equals(contents: Mapping[str, Sequence]) -> list[list[str]]:
    """Return the groups of names that have equal contents, those alone or ending in None left out; sorted."""
    of_content = defaultdict(list)
    for name, content in contents.items():
        if content[-1] is not None:
            of_content[tuple(content)].append(name)
    return sorted(sorted(names) for names in of_content.values() if len(names) > 1)


def shape_in_header(file: Path) -> list[int] | None:
    """Return an image's shape without reading its voxels; None where the header cannot be read."""
    if not file.is_file():
        return None
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            return list(nibabel.load(file).shape)
        if file.suffix.lower() in TIFF_ENDINGS:
            with tifffile.TiffFile(file) as opened:
                return list(opened.series[0].shape)
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        return [*header.GetSize(), header.GetNumberOfComponents()]
    except Exception:  # noqa: BLE001 - readers raise anything; an image that cannot be read has no twin
        return None


def united(groups: Mapping[str, str], twins: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the group of each case, with groups that hold identical images made one, called by the first name."""
    groups = dict(groups)
    for names in twins:
        one = sorted({groups[name] for name in names if name in groups})
        groups = {case: one[0] if group in one else group for case, group in groups.items()}
    return groups


def across(twins: Iterable[Sequence[str]], train: Iterable[str], validation: Iterable[str]) -> list[str]:
    """Return the identical images in training and validation, "a = b"; none where both are the same cases."""
    sides = {*train}, {*validation}
    if sides[0] == sides[1]:
        return []
    return [" = ".join(names) for names in twins if all({*names} & side for side in sides)]


def _extent(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the sizes of an image along its axes and channels, sorted: headers and readers have other orders."""
    return tuple(sorted(size for size in (len(shapes), *shapes[0]) if size > 1))


def _of_equal_extent(extents: Mapping[str, tuple[int, ...]], wanted: Container[str] | None) -> list[str]:
    of_extent = defaultdict(list)
    for case, extent in extents.items():
        of_extent[extent].append(case)
    several = [cases for cases in of_extent.values() if len(cases) > 1]
    return [case for cases in several if wanted is None or any(one in wanted for one in cases) for case in cases]


def _entry(files: Sequence[Path], known: dict) -> dict:
    """Return marks, shape and, where it is known, digest of an image; a shape of None if it cannot be read."""
    try:
        marks = [[there.st_size, there.st_mtime_ns] for there in (file.stat() for file in files)]
    except OSError:
        return {"marks": [], "shape": None, "digest": None}
    entry = known.get(_key(files))
    if entry is not None and entry["marks"] == marks:
        return dict(entry)
    shapes = [shape_in_header(file) for file in files]
    return {"marks": marks, "shape": None if None in shapes else shapes, "digest": None}


def _key(files: Sequence[Path]) -> str:
    return f"{files[0].parent.name}/{files[0].name}"
