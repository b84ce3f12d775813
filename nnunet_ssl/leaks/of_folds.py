"""What stands on two sides of a fold: cases, patients, copies; names, links and the index tell it without a voxel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from nnunet_ssl.data.identical_images import as_test_case
from nnunet_ssl.data.raw_files import RawDataset, some
from nnunet_ssl.data.split_file import NO_ESTIMATE
from nnunet_ssl.leaks.copies import known_copies, scans_of, unread
from nnunet_ssl.leaks.index import Index
from nnunet_ssl.leaks.leak import Leak
from nnunet_ssl.leaks.sides import TEST, TRAINING, UNLABELED, VALIDATION, Fold, patients_of_fold
from nnunet_ssl.splits.near_duplicates import near_to, number_of

# Sides that may have nothing in common, and whether a training refuses a copy: as it does one of equal voxels.
APART = {
    (TRAINING, VALIDATION): False,
    (UNLABELED, VALIDATION): True,
    (TRAINING, TEST): False,
    (UNLABELED, TEST): True,
    (VALIDATION, TEST): False,
    (TRAINING, UNLABELED): False,
}
CHANGED = "~ is a copy that was changed, by noise, size, shift, flip or intensities, and how alike it is, at most 1"
OF_ONE_PATIENT = (TRAINING, UNLABELED)  # which may be of one patient


@dataclass(frozen=True)
class Scans:
    """The scans of a data set and which of them are one, as far as links and the index tell it.

    Attributes:
        dataset: its name.
        files: of each scan, FOLDER/CASE.
        copies: pairs of scans that are one, and how much they are alike; None where their voxels are equal.
        unread: scans that were not compared since they were changed.
        pattern: patient_pattern of dataset.json.
        border: border_images of dataset.json: so many neighbours in number are alike.
    """

    dataset: str
    files: Mapping[str, Sequence[Path]]
    copies: Mapping[tuple[str, str], float | None]
    unread: Sequence[str]
    pattern: str | None
    border: int

    @classmethod
    def of(cls, raw: RawDataset, preprocessed: Path) -> "Scans":
        """Look at names, links and the index in the data set's folder in nnUNet_preprocessed."""
        files, index = scans_of(raw), Index.read(preprocessed)
        found = {names: None if pair.is_equal else pair.likeness for names, pair in known_copies(index, files).items()}
        copies = found | dict.fromkeys(links(files))
        border = raw.dataset_json.get("border_images", 0)
        width = border if isinstance(border, int) else 0
        return cls(raw.folder.name, files, copies, unread(index, files), raw.dataset_json.get("patient_pattern"), width)


def links(files: Mapping[str, Sequence[Path]]) -> list[tuple[str, str]]:
    """Return the pairs of scans that are one file under two names."""
    first_of: dict[tuple[int, int], str] = {}
    pairs = []
    for name in sorted(files):
        try:
            state = files[name][0].stat()
        except OSError:
            continue
        first = first_of.setdefault((state.st_dev, state.st_ino), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def leaks_of_fold(fold: Fold, scans: Scans | None, dataset: str, pattern: str | None) -> Iterator[Leak]:
    """Give what stands on two sides of a fold.

    Args:
        fold: its cases.
        scans: of the raw data set; None where it is not at hand.
        dataset: its name.
        pattern: patient_pattern of dataset.json.
    """
    yield from _cases(fold, scans, dataset)
    yield from _patients(fold, dataset, pattern)
    if scans is not None:
        yield from _copies(fold, scans)


def _cases(fold: Fold, scans: Scans | None, dataset: str) -> Iterator[Leak]:
    sides = {side: set(cases) for side, cases in fold.sides.items()}
    if fold.validates_itself:
        yield Leak("validation", NO_ESTIMATE, "score the model on imagesTs only", is_note=True)
    elif both := sorted(sides[TRAINING] & sides[VALIDATION]):
        yield Leak("a validation case in training", some(both), _split(dataset, "or the words that wrote it"))
    if both := sorted(sides[UNLABELED] & (sides[TRAINING] | sides[VALIDATION])):
        state = f"unlabeled and at the same time a training or validation case: {some(both)}"
        remedy = f"take them out of imagesUn, or: {_split(dataset, 'or the words that wrote it')}"
        yield Leak("a labeled case among the unlabeled", state, remedy, stops_training=True)
    if scans is not None:
        here = {scan.partition("/")[2] for scan in scans.files if not scan.startswith("imagesTs/")}
        for side in (TRAINING, VALIDATION, UNLABELED):
            if tested := sorted((sides[side] & sides[TEST]) - here):
                state = f"{side} cases whose image lies in imagesTs alone: {some(tested)}"
                yield Leak("a test case in the split", state, _split(dataset, "which takes no case of imagesTs"))


def _patients(fold: Fold, dataset: str, pattern: str | None) -> Iterator[Leak]:
    if pattern is None:  # every case is a patient, and a name in imagesTs may stand elsewhere for another scan
        return
    of = patients_of_fold(fold, pattern)
    for first, second in APART:
        one, other = (set(fold.sides[side]) for side in (first, second))
        if (first, second) == OF_ONE_PATIENT:
            continue
        in_both = {of[case] for case in one & other} if TEST not in (first, second) else set()  # is said of the case
        if both := sorted(({of[case] for case in one} & {of[case] for case in other}) - in_both):
            state = f"{some(both)}, by patient_pattern {pattern}"
            yield Leak(f"a patient in {first} and in {second}", state, _remedy(first, second, dataset))


def copies_on_one_side(folds: Sequence[Fold], scans: Scans) -> Iterator[Leak]:
    """Give the copies that stand on two sides of no fold: no leak, but another split may make them one."""
    kept = [pair for pair in scans.copies if not any(_sides_apart(fold, pair, scans) for fold in folds)]
    if kept:
        state = some([_as_text(pair, scans) for pair in kept])
        yield Leak("copies on one side", state, "keep them there, or take one of each out", is_note=True)


def _copies(fold: Fold, scans: Scans) -> Iterator[Leak]:
    of = patients_of_fold(fold, scans.pattern)
    found: dict[tuple[str, str], list[str]] = {}
    of_one_patient = []
    for pair in scans.copies:
        sides = _sides_apart(fold, pair, scans)
        if sides and _are_one_patient(pair, of, scans):
            of_one_patient.append(_as_text(pair, scans))
        else:
            for both in sides:
                found.setdefault(both, []).append(_as_text(pair, scans))
    for (first, second), pairs in found.items():
        state = some(pairs) + (f"; {CHANGED}" if any(" ~ " in pair for pair in pairs) else "")
        remedy = _remedy(first, second, scans.dataset)
        yield Leak(f"one image in {first} and in {second}", state, remedy, stops_training=APART[first, second])
    if of_one_patient:
        state = f"of one patient, and nearly one image, on two sides: {some(of_one_patient)}"
        yield Leak("neighbouring images", state, "look whether patient_pattern is right", is_note=True)


def _sides_apart(fold: Fold, pair: tuple[str, str], scans: Scans) -> list[tuple[str, str]]:
    """Return the sides of a fold between which two scans stand, and may not."""
    first, second = (fold.sides_of_scan(name, scans.files) for name in pair)
    return [(a, b) for a, b in APART if (a in first and b in second) or (b in first and a in second)]


def _are_one_patient(pair: tuple[str, str], of: Mapping[str, str], scans: Scans) -> bool:
    if scans.pattern is None:
        return False
    cases = [name.partition("/")[2] for name in pair]
    place, other = map(number_of, cases)
    return of.get(cases[0], cases[0]) == of.get(cases[1], cases[1]) or near_to(place, {other}, 2 * scans.border)


def _as_text(pair: tuple[str, str], scans: Scans) -> str:
    places = [name.partition("/") for name in pair]
    names = [as_test_case(case) if folder == "imagesTs" else case for folder, _, case in places]
    likeness = scans.copies[pair]
    return " = ".join(names) if likeness is None else f"{' ~ '.join(names)} ({likeness:.2f})"


def _remedy(first: str, second: str, dataset: str) -> str:
    if (first, second) == (TRAINING, VALIDATION):
        return _split(dataset, "which keeps patients and copies on one side")
    if UNLABELED in (first, second):
        return f"take the unlabeled ones out of imagesUn, or: {_split(dataset, 'which leaves them out')}"
    return "take them out of imagesTs, or out of imagesTr and labelsTr, and split again"


def _split(dataset: str, why: str) -> str:
    return f"nnunet_ssl split {quote(dataset)} --labeled 100% --overwrite   # {why}; --labeled as many as you want"
