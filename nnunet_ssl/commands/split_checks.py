"""What the doctor looks at in the split of a data set: splits_final.json, or what it will be."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.commands.preprocessed_checks import Cases
from nnunet_ssl.data.preprocessed_images import image_file
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.split_file import FOLDS, KEY, NO_ESTIMATE, read_splits


def check_number(cases: Cases) -> Iterator[Finding]:
    """Count cases and patients."""
    patients = len(set(cases.patient_of.values()))
    state = f"{len(cases.labeled)} labeled of {patients} patient(s), {len(cases.unlabeled)} in imagesUn"
    yield Finding("cases", state + (f", {len(cases.hidden)} of them with a hidden label" if cases.hidden else ""))


def check_split(dataset_folder: Path, preprocessed: Sequence[Path], cases: Cases) -> Iterator[Finding]:
    """Look at every fold: its size, cases that are nowhere, and cases on two sides.

    Args:
        dataset_folder: the data set's folder in nnUNet_preprocessed.
        preprocessed: where nnU-Net's preprocessed cases lie.
        cases: of the data set.
    """
    file = dataset_folder / "splits_final.json"
    verb = f"nnunet_ssl split {quote(dataset_folder.name)}"
    again = f"correct it in {file}; or, with other validation cases: {verb} --labeled 100% --overwrite"
    if not file.exists():
        yield from _without_file(cases, verb)
        return
    try:
        folds = read_splits(file)
    except ValueError as error:
        yield Finding("split", str(error), again, is_problem=True)
        return
    sizes = [
        f"fold {n}: {len(fold['train'])} labeled, {len(fold['val'])} validation, {len(_pool(fold, cases))} unlabeled"
        for n, fold in enumerate(folds)
    ]
    yield Finding("split", some(sizes) or f"{file} has no fold", None if folds else again, is_problem=not folds)
    found: dict[tuple[str, str, bool], list[int]] = {}
    for number, fold in enumerate(folds):
        for problem, remedy in _problems(fold, preprocessed, cases, verb):
            found.setdefault((problem, remedy or again, True), []).append(number)
        for note in _notes(fold, cases):
            found.setdefault((note, again, False), []).append(number)
    for (state, remedy, is_problem), numbers in found.items():
        yield Finding(f"split, fold {some([*map(str, numbers)])}", state, remedy, is_problem)


def _without_file(cases: Cases, verb: str) -> Iterator[Finding]:
    patients = len(set(cases.patient_of.values()))
    if patients == 1:
        yield Finding("split", f"none yet; of one patient there is fold 0: {NO_ESTIMATE}", "label a second patient")
    elif patients < FOLDS:
        state = f"none yet; of {patients} patients there are folds 0 to {patients - 1}, one validates in each"
        yield Finding("split", state)
    else:
        yield Finding("split", f"none yet; nnU-Net makes folds 0 to {FOLDS - 1}")
    if both := sorted({*cases.unlabeled} & {*cases.labeled}):
        yield Finding("split", _shared(both), "take them out of imagesUn or of imagesTr and labelsTr", is_problem=True)
    if not cases.unlabeled:
        yield Finding("unlabeled cases", "none: only nnUNetTrainer can train", _more(verb), is_problem=True)


def _pool(fold: dict, cases: Cases) -> Sequence[str]:
    return fold.get(KEY, cases.unlabeled)


def _problems(fold: dict, preprocessed: Sequence[Path], cases: Cases, verb: str) -> Iterator[tuple[str, str | None]]:
    """Give what keeps a fold from training, with a remedy where it is not another split."""
    labeled, pool = [*fold["train"], *fold["val"]], _pool(fold, cases)
    for key in ("train", "val"):
        if not fold[key]:
            yield f"{key} is empty", None
    if hidden := sorted({*labeled} & {*cases.hidden}):
        yield f"needed with a label that is hidden: {some(hidden)}", f"{verb} --unhide"
    known = {*cases.labeled, *cases.hidden}
    if lost := [case for case in dict.fromkeys(labeled) if case not in known]:
        yield f"cases in train or val have no label in labelsTr: {some(lost)}", None
    in_raw = {*cases.unlabeled, *cases.labeled}
    elsewhere = [case for case in pool if case not in in_raw]
    if lost := [case for case in elsewhere if not _is_in(preprocessed, case)]:
        yield f"unlabeled cases are neither in imagesUn nor preprocessed: {some(lost)}", None
    if both := sorted({*labeled} & {*pool}):
        yield _shared(both), "take them out of imagesUn" if KEY not in fold else None
    if not pool:
        yield "it has no unlabeled cases: only nnUNetTrainer can train", _more(verb) if KEY not in fold else None


def _notes(fold: dict, cases: Cases) -> Iterator[str]:
    train, validation = {*fold["train"]}, {*fold["val"]}
    if train and train == validation:
        yield NO_ESTIMATE
    elif both := sorted(train & validation):
        yield f"cases are trained with and validated on, their scores are too good: {some(both)}"
    elif train:
        of = cases.patient_of
        sides = [{of[case] for case in side if case in of} for side in (train, validation)]
        if both := sorted(sides[0] & sides[1]):
            yield f"patients are in training and in validation, whose scores are too good: {some(both)}"


def _is_in(folders: Sequence[Path], case: str) -> bool:
    return any(image_file(folder, case) is not None for folder in folders)


def _shared(cases: Sequence[str]) -> str:
    return f"unlabeled and at the same time a training or validation case: {some(cases)}"


def _more(verb: str) -> str:
    return f"put images into imagesUn, or take labeled cases for unlabeled: {verb} --labeled 50% --overwrite"
