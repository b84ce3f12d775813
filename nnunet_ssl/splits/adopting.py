"""Adopting cases: images of imagesUn that an expert has labeled become training cases, in every fold.

Labels move first, then images, so that imagesTr never holds one without a label. `adopted.json` names the cases before
the first file moves, and says when all is done: interrupted anywhere, the same words finish it.
"""

import filecmp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from nnunet_ssl.data import json_schemas as schemas
from nnunet_ssl.data.dataset_reader import DatasetReader, refuse_unusable
from nnunet_ssl.data.identical_images import as_test_case, twins_of_dataset
from nnunet_ssl.data.json_schemas import refuse_unfit
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically
from nnunet_ssl.data.raw_files import RawDataset, sidecar, some
from nnunet_ssl.data.split_file import KEY
from nnunet_ssl.data.whole_files import copy
from nnunet_ssl.evaluation.folders import refuse_other_space
from nnunet_ssl.evaluation.structures import Structures
from nnunet_ssl.splits.hiding import Move, carry_out, checked_moves, moves_of_case, refuse_elsewhere

JOURNAL = "adopted.json"  # in the raw data set: {case: {"on": day, "finished": whether all is done}}
LABELS, HIDDEN = "labelsUn", "labelsHidden"  # folders of the data set out of which labels move; out of others: copies


@dataclass(frozen=True)
class Adoption:
    """Cases to adopt, and the folder that holds their labels."""

    raw: RawDataset
    cases: Sequence[str]
    labels: Path

    def images_of(self, case: str) -> list[Path]:
        """Return the image files of a case, channels in order; on its way some are in imagesTr already."""
        files = [file for name in ("imagesTr", "imagesUn") for file in self.raw.images(name).get(case, [])]
        return sorted({file.name: file for file in files}.values(), key=lambda file: file.name)

    def label_of(self, case: str) -> Path:
        """Return the label file of a case: in labelsTr, where it is there already."""
        name = f"{case}{self.raw.ending}"
        there = self.raw.folder / "labelsTr" / name
        return there if there.is_file() else self.labels / name

    def begin(self) -> None:
        """Note which cases are on their way."""
        self._note(is_finished=False)

    def carry_out(self) -> None:
        """Bring labels and images to labelsTr and imagesTr, and count the training cases anew."""
        moves, copies = self.moves()
        for one in copies:
            copy(one.source, one.target)
        carry_out(self.raw, moves)

    def finish(self) -> None:
        """Note that all is done."""
        self._note(is_finished=True)

    def _note(self, is_finished: bool) -> None:
        new = {case: {"on": f"{date.today()}", "finished": is_finished} for case in self.cases}
        write_json_atomically(read_journal(self.raw) | new, self.raw.folder / JOURNAL)

    def moves(self) -> tuple[list[Move], list[Move]]:
        """Return what moves within the data set, and what is copied from elsewhere.

        Raises:
            ValueError: another file has the place of one.
        """
        folder = self.raw.folder
        inside = next((name for name in (LABELS, HIDDEN) if _same_folder(self.labels, folder / name)), None)
        moves, copies = [], []
        for case in self.cases:
            name = f"{case}{self.raw.ending}"
            if inside is not None:
                moves += moves_of_case(self.raw, case, [name], inside, "labelsTr")
            elif (label := self.labels / name).is_file():
                beside = sidecar(label, is_label=True)
                files = [label] if beside is None else [beside, label]
                copies += [Move(case, file, folder / "labelsTr" / file.name) for file in files]
            names = [file.name for file in self.raw.images("imagesUn").get(case, [])]
            moves += reversed(moves_of_case(self.raw, case, names, "imagesUn", "imagesTr"))
        new = [one for one in copies if not one.target.is_file() or not filecmp.cmp(one.source, one.target, False)]
        return checked_moves(moves), checked_moves(new)


def read_journal(raw: RawDataset) -> dict[str, dict]:
    """Return what is noted of adopted cases."""
    file = raw.folder / JOURNAL
    journal = read_json(file) or {}
    try:
        refuse_unfit(journal, schemas.JOURNAL, file)
    except ValueError as error:
        raise ValueError(f"{error}; remove the file") from None
    return journal


def refuse_unadoptable(adoption: Adoption, folds: Sequence[Mapping], preprocessed: Path) -> None:
    """Check which cases they are, before anything is read of their labels.

    Args:
        adoption: the cases.
        folds: of splits_final.json; empty where there is none.
        preprocessed: the data set's folder in nnUNet_preprocessed.

    Raises:
        ValueError: a case was adopted already, is a validation or test case (by name, or the same image as one), has no
            image in imagesUn, a label that is hidden, a patient who validates in every fold, or an image that another
            case has which stays unlabeled.
    """
    raw = adoption.raw
    refuse_elsewhere(raw)
    journal, unlabeled, labels = read_journal(raw), raw.images("imagesUn"), raw.labels()
    validation, test = {case for fold in folds for case in fold["val"]}, raw.images("imagesTs")
    for case in adoption.cases:
        entry = journal.get(case)
        if entry is not None and entry.get("finished"):
            raise ValueError(f"{case} was adopted already (on {entry.get('on')}): leave it out")
        if case in validation:
            raise ValueError(f"{case} is a validation case: it stays one, adopt others")
        if case in test:
            raise ValueError(f"{case} is a test case, with an image in imagesTs: adopt others")
        if case not in unlabeled and entry is None:
            known = "it is a labeled case" if case in labels else f"there are {some(sorted(unlabeled)) or 'none'}"
            raise ValueError(f"{case} has no image in {raw.folder / 'imagesUn'} ({known})")
        hidden = raw.labels(HIDDEN)
        if case in hidden and not _same_folder(adoption.labels, raw.folder / HIDDEN):
            raise ValueError(
                f"{case} has a hidden label, {hidden[case]}: take that one with --labels {hidden[case].parent}, or "
                "remove it"
            )
    of_patient = patients_of(adoption.cases, raw.dataset_json.get("patient_pattern"))
    if folds and (nowhere := [case for case in adoption.cases if not folds_that_train(folds, case, raw)]):
        raise ValueError(
            f"{nowhere[0]} is of patient {of_patient[nowhere[0]]}, who validates in every fold, so that none may train "
            "with it: leave it out"
        )
    held_out = {*validation, *map(as_test_case, test)}
    stay = {*unlabeled, *(case for fold in folds for case in fold.get(KEY, ()))} - {*adoption.cases}
    for names in twins_of_dataset(raw, preprocessed):
        if not {*names} & {*adoption.cases}:
            continue
        same = f"{' = '.join(names)}: the same image"
        if {*names} & held_out:
            raise ValueError(f"{same}, and one is a validation or test case: leave it out")
        if left := sorted({*names} & stay):
            raise ValueError(f"{same}, and {left[0]} would stay an unlabeled case: take it out of them")


def refuse_bad_labels(adoption: Adoption) -> None:
    """Check the label of each case against its image and dataset.json.

    Raises:
        ValueError: a label is missing, damaged, elsewhere than its image, or holds a value that dataset.json does not
            know; an image is damaged, has other channels, or is all equal.
    """
    raw = adoption.raw
    reader = DatasetReader.of_raw(raw)
    structures = replace(Structures.of_dataset(raw.folder / "dataset.json"), reader=reader)
    for case in adoption.cases:
        label, images = adoption.label_of(case), adoption.images_of(case)
        if not label.is_file():
            raise ValueError(f"{case} has no label: put it into {label}, or name its folder with --labels")
        if problem := raw.channel_problem(images) if images else "it has no image file":
            raise ValueError(f"{case}: {problem}")
        try:
            channels, properties = reader.read_channels(images)
            refuse_unusable(channels, raw.dataset_json)
            space = reader.space_of_image(images, properties, channels.shape[1:])
            refuse_other_space(images[0], label, space, structures.read_labels(label), "image")
        except ValueError as error:
            raise ValueError(f"{case}: {error}: correct the file and adopt it again") from error


def folds_that_train(folds: Sequence[Mapping], case: str, raw: RawDataset) -> list[int]:
    """Return the folds that may train with a case: those in which its patient does not validate."""
    pattern = raw.dataset_json.get("patient_pattern")
    patient = patients_of([case], pattern)[case]
    return [n for n, fold in enumerate(folds) if patient not in patients_of(fold["val"], pattern).values()]


def with_adopted(folds: Sequence[Mapping], cases: Iterable[str], raw: RawDataset) -> list[dict]:
    """Return folds that train with the cases where they may, and name them as unlabeled nowhere.

    Validation cases stay as they are.
    """
    cases = list(cases)
    where = {case: set(folds_that_train(folds, case, raw)) for case in cases}
    changed = []
    for number, fold in enumerate(folds):
        new = [case for case in cases if number in where[case] and case not in fold["train"]]
        named = {KEY: [case for case in fold[KEY] if case not in where]} if KEY in fold else {}
        changed.append({**fold, "train": [*fold["train"], *new], **named})
    return changed


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
