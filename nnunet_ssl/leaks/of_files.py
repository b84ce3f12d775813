"""What in the folders of a data set gives labels away: label files beside images, and label maps in place of images."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.identical_images import FOLDERS
from nnunet_ssl.data.raw_files import CHANNEL, RawDataset, files_in, images_among, some
from nnunet_ssl.leaks.copies import scans_of
from nnunet_ssl.leaks.index import Index
from nnunet_ssl.leaks.leak import Leak

LABEL_NAME = re.compile(r"(?i)(^|[_.-])(seg|segmentation|gt|ground_?truth|labels?|mask|annotation)s?([_.-]|$)")


def labels_beside_images(raw: RawDataset) -> Iterator[Leak]:
    """Give label files that lie among images, and labels that are hidden and visible at once, by their names."""
    hidden, labels = raw.labels("labelsHidden"), raw.labels()
    listed = {folder: files_in(raw.folder / folder, raw.ending) for folder in FOLDERS}
    images = {folder: images_among(files, raw.ending) for folder, files in listed.items()}
    if raw.lies_elsewhere:
        images["imagesTr"] = raw.images()
    cases = {case for of_folder in images.values() for case in of_folder} | labels.keys() | hidden.keys()
    for folder, files in listed.items():
        found = [file for file in files if _is_label_name(file.name.removesuffix(raw.ending), cases)]
        if found:
            aside = f"mkdir -p {quote(str(raw.folder / 'labelsHidden'))} && mv {quote(str(found[0]))} "
            aside += quote(str(raw.folder / "labelsHidden")) + "/"
            state = f"by their names these are labels: {some([file.name for file in found])}"
            yield Leak(f"labels in {folder}", state, f"{aside}   # named CASE{raw.ending}, and so on")
    if files := files_in(raw.folder / "labelsUn", raw.ending):
        state = (
            f"labels of {len(files)} unlabeled cases, where no verb looks after them: {some([f.name for f in files])}"
        )
        remedy = f"mv {quote(str(raw.folder / 'labelsUn'))} {quote(str(raw.folder / 'labelsHidden'))}"
        yield Leak("labels in labelsUn", state, remedy)
    if both := sorted(hidden.keys() & labels.keys()):
        state = f"in labelsHidden and in labelsTr, where planning reads them: {some(both)}"
        yield Leak("hidden labels that are visible", state, _hiding(raw))
    if on_the_way := sorted((hidden.keys() & images["imagesTr"].keys()) - labels.keys()):
        state = f"--hide was interrupted, their images are still in imagesTr: {some(on_the_way)}"
        yield Leak("hidden labels beside images", state, f"nnunet_ssl split {quote(raw.folder.name)} --unhide")


def label_maps_as_images(raw: RawDataset, index: Index) -> Iterator[Leak]:
    """Give scans that hold what a label map holds: as few values, where other scans have many, or a label's regions.

    Args:
        raw: the data set.
        index: of all its scans. Labels are read of scans of few values alone.
    """
    files = scans_of(raw)
    few = {
        (name, channel)
        for name, scan in index.scans.items()
        for channel, values in enumerate(scan.values)
        if values is not None and len(values) > 1
    }
    usual, channels = Counter(channel for _, channel in few), Counter()
    for scan in index.scans.values():
        channels.update(range(len(scan.values)))
    odd = {(name, channel) for name, channel in few if usual[channel] <= channels[channel] / 2}
    odd |= {one for one in few - odd if _shows_its_label(raw, *one, files)}
    if odd:
        names = sorted(f"{name} ({len(index.scans[name].values[channel])} values)" for name, channel in odd)
        remedy = f"mv {quote(str(files[min(odd)[0]][0]))} /elsewhere   # and so on, and put the image there"
        yield Leak("a label map as an image", some(names), remedy)


def _is_label_name(name: str, cases: set[str]) -> bool:
    """Return whether a file among images is called as the label of a case: CASE, CASE_seg or CASE_seg_0000."""
    match = CHANNEL.fullmatch(name)
    if match is None and name in cases:
        return True
    word = LABEL_NAME.search(match["case"] if match else name)
    return word is not None and (match is None or name[: word.start()] in cases)


def _shows_its_label(raw: RawDataset, name: str, channel: int, files: dict[str, list[Path]]) -> bool:
    """Return whether each value of a scan stands for one value of the label of its case."""
    case, reader = name.partition("/")[2], DatasetReader.of_raw(raw)
    label = (raw.labels("labelsHidden") | raw.labels()).get(case)
    if label is None:
        return False
    try:
        labels, voxels = reader.read_labels(label).array, reader.read_channels(files[name])[0][channel]
    except ValueError:
        return False
    if labels.size != voxels.size or labels.min() == labels.max():
        return False
    pairs = np.unique(np.stack([voxels.ravel(), labels.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(pairs[0]))


def _hiding(raw: RawDataset) -> str:
    return f"nnunet_ssl split {quote(raw.folder.name)} --unhide   # then the words of the split with --hide again"
