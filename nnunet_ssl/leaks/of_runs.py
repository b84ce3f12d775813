"""What trainings of a data set have learned that validates them by the split of today."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.split_file import split_digest
from nnunet_ssl.data.trained_cases import FIRST_WEIGHTS, cases_of, cases_of_weights
from nnunet_ssl.leaks.leak import Leak
from nnunet_ssl.leaks.sides import TRAINING, VALIDATION, Fold
from nnunet_ssl.training.checkpoints import load_facts

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def leaks_of_runs(results: Path, preprocessed: Path, folds: Sequence[Fold]) -> Iterator[Leak]:
    """Give the runs whose split has changed since they began, and those from weights that saw their validation.

    Args:
        results: the data set's folder in nnUNet_results.
        preprocessed: its folder in nnUNet_preprocessed.
        folds: as they are today.
    """
    of_name = {f"fold_{fold.name}": fold for fold in folds}
    for folder in sorted(results.glob("*__*__*/fold_*")):
        files = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
        if folder.name not in of_name or not files:
            continue
        name = f"{folder.parent.name.partition('__')[0]}, {folder.name.replace('_', ' ')}"
        try:
            checkpoint = load_facts(files[0])
        except (ValueError, OSError, RuntimeError) as error:
            yield Leak("a run that cannot be read", f"{name}: {error}", "train it again", is_note=True)
            continue
        fold = of_name[folder.name]
        yield from _changed_split(name, checkpoint, fold, preprocessed / "splits_final.json")
        yield from _first_weights(name, checkpoint, fold, preprocessed / "splits_final.json")


def _changed_split(name: str, checkpoint: dict, fold: Fold, file: Path) -> Iterator[Leak]:
    ours, cases = checkpoint.get("nnunet_ssl", {}), cases_of(checkpoint)
    today = split_digest(fold.sides[TRAINING], fold.sides[VALIDATION], ())
    if ours.get("train_and_val", today) == today:
        return
    learned = sorted(set(cases.train) & set(fold.sides[VALIDATION])) if cases else []
    which = f", and learned the labels of {some(learned)}, which validate it now" if learned else ""
    state = f"{name} began with other training or validation cases than {file.name} has today{which}"
    copies = sorted(file.parent.glob("splits_final_until_*.json"))
    back = f"mv {quote(str(copies[-1]))} {quote(str(file))}, or " if copies else "put that file back, or "
    yield Leak("a split that changed since a run began", state, f"{back}train it again")


def _first_weights(name: str, checkpoint: dict, fold: Fold, splits_file: Path) -> Iterator[Leak]:
    options = checkpoint.get("nnunet_ssl", {}).get("options", {})
    given = [str(value) for option, value in options.items() if option.startswith(FIRST_WEIGHTS) and value]
    if not given:
        return
    cases, held_out = cases_of(checkpoint), set(fold.sides[VALIDATION]) - set(fold.sides[TRAINING])
    before = set(cases.before) if cases else set()
    if not before:
        before = {case for file in given if Path(file).is_file() for case in _labels_seen_by(file, splits_file)}
    if learned := sorted(before & held_out):
        files = " and ".join(given)
        state = f"{name} began from {files}, trained with the labels of validation cases: {some(learned)}"
        yield Leak(
            "weights that saw the validation", state, "train it again from a checkpoint of the same fold, or none"
        )


def _labels_seen_by(file: str, splits_file: Path) -> list[str]:
    try:
        weights = cases_of_weights(load_facts(file), splits_file)
    except (ValueError, OSError, RuntimeError):
        return []
    return [*weights.train, *weights.before] if weights else []
