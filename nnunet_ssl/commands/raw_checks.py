"""What the doctor looks at in the raw files of a data set."""

import os
from collections.abc import Iterator
from contextlib import suppress
from shlex import quote

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.data.dataset_names import planning_command
from nnunet_ssl.data.image_fit import checked_header, refuse_unfit
from nnunet_ssl.data.image_headers import has_directions, header_of
from nnunet_ssl.data.older_conversions import older_conversion
from nnunet_ssl.data.raw_files import (
    CHANNEL,
    RawDataset,
    channel_names,
    files_in,
    images_in,
    misspelled,
    some,
    unused_files,
)

FORMAT = "https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md"


def check_dataset_json(raw: RawDataset) -> Iterator[Finding]:
    """Look at the labels that dataset.json names, and at the converter that wrote it."""
    content, file = raw.dataset_json, raw.folder / "dataset.json"
    if problem := label_problem(content):
        yield Finding("dataset.json", f"{file}: {problem}", f"write it as {FORMAT} says", is_problem=True)
    if sentence := older_conversion(content):
        state, _, remedy = sentence.partition("; fix it with ")
        yield Finding("conversion", state, remedy)


def label_problem(dataset_json: dict) -> str | None:
    """Return what nnU-Net would refuse in the labels, or None."""
    labels = dataset_json["labels"]
    if labels.get("background") != 0:
        return 'labels have no "background": 0'
    groups = [value if isinstance(value, list) else [value] for name, value in labels.items() if name != "ignore"]
    values = sorted({value for group in groups for value in group})
    ignore = [labels["ignore"]] if "ignore" in labels else []
    values += ignore
    if values != list(range(len(values))):
        last = ", ignore last" if ignore else ""
        return f"the values of labels are {', '.join(map(str, values))}: number them 0, 1, 2 without gaps{last}"
    if any(len(group) > 1 for group in groups) and not isinstance(dataset_json.get("regions_class_order"), list):
        return "labels are regions, which need the key 'regions_class_order'"
    return None


def check_raw_files(raw: RawDataset, is_planned: bool) -> Iterator[Finding]:
    """Look whether images, labels and their number fit together, by the names of the files."""
    if raw.lies_elsewhere:
        yield from _check_elsewhere(raw)
    else:
        yield from _check_names(raw, "imagesTr")
        yield from _check_labels(raw, is_planned)
    yield from _check_names(raw, "imagesUn")
    for name in ("imagesTr", "imagesUn"):
        found = {case: raw.channel_problem(files) for case, files in raw.images(name).items()}
        problems = [f"{case}: {problem}" for case, problem in found.items() if problem]
        if problems:
            remedy = f"give the images in {raw.folder / name} the data set's channels, or take them out"
            yield Finding(f"channels in {name}", some(problems, most=2), remedy, is_problem=True)
    if near := misspelled(raw.folder / "imagesUn"):
        remedy = f"mv {quote(str(near))} {quote(str(near.with_name('imagesUn')))}"
        yield Finding("imagesUn", f"there is none, but {near.name}", remedy, is_problem=True)
    elif unused := unused_files(raw.folder / "imagesUn", raw.ending):
        yield Finding("imagesUn", unused, f"convert images among them to {raw.ending}, or take them out")


def check_headers(
    raw: RawDataset, plans: PlansManager | None, configuration: ConfigurationManager | None
) -> Iterator[Finding]:
    """Look at the headers of labeled images: what makes one of no use and, with plans, what does not fit them."""
    if plans is None and raw.ending in NaturalImage2DIO.supported_file_endings:  # which may be in colour
        return
    problems = []
    for case, files in raw.images().items():
        if not all(map(os.path.lexists, files)):  # which is said already
            continue
        try:
            if plans is None:
                for file in files:
                    checked_header(file, len(channel_names(raw.dataset_json)))
            else:
                refuse_unfit(files, plans, configuration, raw.dataset_json)
        except (ValueError, OSError) as error:
            problems.append(f"{case} ({error})")
    if problems:
        state = f"{len(problems)} of no use: {some(problems, most=2)}"
        remedy = f"put whole ones into {raw.folder / 'imagesTr'}, or take these cases out, with their labels"
        yield Finding("images in imagesTr", state, remedy, is_problem=True)


def check_orientations(raw: RawDataset) -> Iterator[Finding]:
    """Look whether all scans lie the same way by their headers."""
    ways: dict[tuple[float, ...], list[str]] = {}
    for case, files in (raw.images() | raw.images("imagesUn")).items():
        with suppress(ValueError, OSError):  # which are said already, or when it is preprocessed
            header = header_of(files[0])
            if header is not None and header.axes is not None and has_directions(header.axes):
                ways.setdefault(_way(header.axes), []).append(case)
    if len(ways) > 1:
        usual, *others = sorted(ways.values(), key=len, reverse=True)
        odd = [case for cases in others for case in cases]
        state = (
            f"{len(odd)} of {len(usual) + len(odd)} scans lie, by their headers, not as the largest group: {some(odd)}"
        )
        yield Finding("orientation", state, "turn them the same way: nnU-Net takes voxels as they lie in the file")


def _way(axes: np.ndarray) -> tuple[float, ...]:
    """Return for each axis of an image the axis of the body that it runs along, from 1, negative if backwards."""
    along = np.abs(axes).argmax(0)
    return tuple((along + 1) * np.sign(np.take_along_axis(axes, along[None], 0)[0]))


def _check_elsewhere(raw: RawDataset) -> Iterator[Finding]:
    files = [*raw.labels().values(), *(file for files in raw.images().values() for file in files)]
    if missing := [str(file) for file in files if not file.is_file()]:
        remedy = f"fix the key 'dataset' of {raw.folder / 'dataset.json'}"
        yield Finding("files that dataset.json names", f"missing: {some(missing)}", remedy, is_problem=True)


def _check_names(raw: RawDataset, name: str) -> Iterator[Finding]:
    folder = raw.folder / name
    wrong = [file for file in files_in(folder, raw.ending) if not CHANNEL.fullmatch(file.name.removesuffix(raw.ending))]
    if wrong:
        renamed = wrong[0].with_name(f"{wrong[0].name.removesuffix(raw.ending)}_0000{raw.ending}")
        state = f"not named as channel CASE_0000{raw.ending}: {some([file.name for file in wrong])}"
        remedy = f"mv {quote(str(wrong[0]))} {quote(str(renamed))}" + ("   # and so on" if len(wrong) > 1 else "")
        yield Finding(f"names in {name}", state, remedy, is_problem=True)


def _check_labels(raw: RawDataset, is_planned: bool) -> Iterator[Finding]:
    verb = f"nnunet_ssl split {quote(raw.folder.name)}"
    images, labels = raw.images(), raw.labels()
    hidden, unlabeled = raw.labels("labelsHidden"), images_in(raw.folder / "imagesUn", raw.ending)
    if not images or not labels:
        lacking = "imagesTr" if labels else "labelsTr"
        state = f"there is no {'CASE_0000' if labels else 'CASE'}{raw.ending} in {raw.folder / lacking}"
        if unused := unused_files(raw.folder / lacking, raw.ending):
            state += f" ({unused})"
        yield Finding("labeled cases", state, "put some there, or fix file_ending in dataset.json", is_problem=True)
        return
    if on_the_way := sorted((images.keys() & hidden.keys()) - labels.keys()):
        state = f"--hide was interrupted: hidden labels of cases in imagesTr: {some(on_the_way)}"
        yield Finding("hidden labels", state, f"{verb} --unhide   # or the words of that split again", is_problem=True)
    if without_label := [case for case in images if case not in labels and case not in hidden]:
        state = f"{len(without_label)} without a label: {some(without_label)}"
        yield Finding("images in imagesTr", state, f"{verb} --move-unlabeled", is_problem=True)
    if lost := [case for case in labels if case not in images]:
        state = f"{len(lost)} whose image is not in imagesTr: {some(lost)}"
        where = " from imagesUn" if all(case in unlabeled for case in lost) else ""
        remedy = f"bring their images{where} to imagesTr, or take these labels out"
        yield Finding("labels in labelsTr", state, remedy, is_problem=len(lost) == len(labels))
    stated = raw.dataset_json.get("numTraining")
    if stated != len(images) and not without_label:
        state = f"says {stated}, imagesTr has {len(images)} cases: {planning_command(raw.folder.name)} fails"
        remedy = f"{verb} --move-unlabeled   # counts them anew"
        yield Finding("numTraining in dataset.json", state, remedy, is_problem=not is_planned)
