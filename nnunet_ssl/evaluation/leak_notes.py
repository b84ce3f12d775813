"""What a report says of leaks: of the cases that its trainings had, as far as names and the audit's index tell it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation.runs import Run
from nnunet_ssl.leaks.leak import Leak
from nnunet_ssl.leaks.of_folds import Scans, leaks_of_fold
from nnunet_ssl.leaks.of_training import not_compared
from nnunet_ssl.leaks.sides import Fold


def leaks_in_runs(raw: Path, preprocessed: Path, runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each leak, with the trainings that have it.

    Args:
        raw: the data set's folder in nnUNet_raw; without it nothing is said.
        preprocessed: its folder in nnUNet_preprocessed.
        runs: the trainings, with the cases that they had.
    """
    if not runs or not (raw / "dataset.json").is_file():
        return []
    try:
        opened = RawDataset.open(raw)
        scans = Scans.of(opened, preprocessed)
    except (ValueError, OSError) as error:
        return [f"leaks could not be looked for: {error}"]
    of_leak: dict[Leak, list[str]] = {}
    for run in runs:
        for leak in _leaks(run, opened, scans):
            of_leak.setdefault(leak, []).append(run.name)
    return [f"{'; '.join(names)}: {leak.name}: {leak.state}. {leak.remedy}" for leak, names in of_leak.items()]


def audit_of(raw: Path, preprocessed: Path) -> str:
    """Return a sentence about what the audit has compared; empty where the raw data are not at hand."""
    try:
        scans = Scans.of(RawDataset.open(raw), preprocessed)
    except (ValueError, OSError):
        return ""
    if line := not_compared(scans):
        return f"Of the audit: {line}."
    return f"An audit has compared all {len(scans.files)} scans; what it has found stands among the warnings."


def _leaks(run: Run, raw: RawDataset, scans: Scans) -> Iterator[Leak]:
    named = (run.unlabeled or None) if run.is_semi_supervised else ()
    fold = Fold.of(run.fold, run.train, run.cases, named, raw)
    leaks = leaks_of_fold(fold, scans, raw.folder.name, raw.dataset_json.get("patient_pattern"))
    yield from (leak for leak in leaks if not leak.is_note)
