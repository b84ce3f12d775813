"""The trained results of a data set, as nnU-Net leaves them in nnUNet_results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.split_file import KEY, NO_ESTIMATE, read_splits
from nnunet_ssl.data.trained_cases import TrainedCases, cases_of
from nnunet_ssl.evaluation.comparison import Prediction
from nnunet_ssl.evaluation.leaving_out import reason_of
from nnunet_ssl.training.checkpoints import load_facts

BASELINE = re.compile(r"nnUNetTrainer(_\d+epochs?)?")  # nnU-Net's own, and its lengths
FOLD = re.compile(r"fold_(0|[1-9]\d*|all)")
FINAL = "checkpoint_final.pth"
NUMBERS = re.compile(r"This split has (\d+) training and (\d+) validation cases")  # in nnU-Net's log
COLLAPSE = re.compile(r"WARNING: (class .* has (?:vanished|flooded) in the pseudo-labels.*?)\. What is learned")


@dataclass(frozen=True)
class Run:
    """One finished fold of one trainer.

    Attributes:
        trainer: its name.
        configuration: for example "3d_fullres".
        fold: number, or "all".
        folder: where its files lie.
        cases: its validation cases.
        train: its training cases.
        unlabeled: its unlabeled cases; None where these are others than the split names and the checkpoint has none.
        changed_since: which of these are others in splits_final.json by now, in words; empty if none is known to be.
        train_and_val: hash of the training and validation cases.
        split: hash of the split with the unlabeled cases, from the checkpoint; None where it holds none.
        pseudo_dice: of each epoch, nnU-Net's.
        minutes: of training.
        options: those it was trained with; empty for trainers that have none.
        is_semi_supervised: whether it is a trainer of this package, and so used unlabeled cases.
        validates_itself: whether its validation cases are its training cases.
        series: the results folder, where there are several, for example one for each seed.
        numbers_then: of training and validation cases by its log, where the checkpoint has none and the split others.
    """

    trainer: str
    configuration: str
    fold: str
    folder: Path
    cases: tuple[str, ...]
    train: tuple[str, ...]
    unlabeled: tuple[str, ...] | None
    train_and_val: str
    split: str | None
    pseudo_dice: tuple[float, ...]
    minutes: float
    options: dict[str, object]
    is_semi_supervised: bool
    validates_itself: bool
    series: str = ""
    changed_since: str = ""
    numbers_then: tuple[int, int] | None = None

    @property
    def labeled(self) -> int:
        """How many training cases it had."""
        return len(self.train) if self.numbers_then is None else self.numbers_then[0]

    @property
    def training(self) -> str:
        """What trainings of several trainers have in common: the fold, and the series where there are several."""
        return f"fold {self.fold}" + (f", {self.series}" if self.series else "")

    @property
    def name(self) -> str:
        """What warnings call it."""
        return f"{self.trainer}, {self.training}"

    def prediction(self, case: str) -> Prediction:
        """Return what a case is in this training: several folds may validate on one case."""
        return Prediction(self.training, case)


@dataclass(frozen=True)
class FoundRuns:
    """The finished runs of a data set, and what was left out."""

    runs: list[Run]
    warnings: list[str]


def find_runs(results: Path, preprocessed: Path, configuration: str, plans: str, series: str = "") -> FoundRuns:
    """Return the finished runs of a data set, the baseline's first.

    Args:
        results: the data set's folder in nnUNet_results.
        preprocessed: its folder in nnUNet_preprocessed, with splits_final.json.
        configuration: for example "3d_fullres".
        plans: plans identifier.
        series: name of the results folder, where there are several.

    Raises:
        ValueError: there is no split.
    """
    file = preprocessed / "splits_final.json"
    if not file.exists():
        raise ValueError(f"there is no {file}: a report needs the split of the trainings, copy it from there")
    splits = read_splits(file)
    runs, warnings = [], []
    for folder in sorted(results.glob(f"*__{plans}__{configuration}/fold_*")):
        try:
            runs.append(read_run(folder, configuration, splits, series))
        except ValueError as problem:
            names = [folder.parent.name.partition("__")[0], folder.name.replace("fold_", "fold ", 1), series]
            warnings.append(f"{', '.join(filter(None, names))}: {problem}, left out")
    return FoundRuns(sorted(runs, key=baseline_first), warnings)


def baseline_first(run: Run) -> tuple[bool, str, str, str]:
    """Return what runs are sorted by."""
    return not BASELINE.fullmatch(run.trainer), run.trainer, run.series, run.fold


def read_run(folder: Path, configuration: str, splits: Sequence[dict], series: str) -> Run:
    """Read what the checkpoint knows of a run.

    Raises:
        ValueError: it is no fold of nnU-Net's, not finished, not readable, or not of this split.
    """
    match = FOLD.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"the folder {folder.name} is no fold of nnU-Net's")
    fold = match[1]
    if not (folder / FINAL).exists() or not (folder / "validation").is_dir():
        raise ValueError("the training is not finished")
    checkpoint = read_checkpoint(folder / FINAL)
    ours = checkpoint.get("nnunet_ssl", {})
    if fold == "all":
        raise ValueError("the split has no such fold")
    cases, changed_since = trained_cases(checkpoint, splits[int(fold)] if int(fold) < len(splits) else None)
    log = checkpoint["logging"]
    epochs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False)
    return Run(
        trainer=folder.parent.name.partition("__")[0],
        configuration=configuration,
        fold=fold,
        folder=folder,
        cases=tuple(sorted(set(cases.val))),
        train=tuple(cases.train),
        unlabeled=unlabeled_of_run(checkpoint, cases),
        train_and_val=cases.train_and_val,
        split=ours.get("split"),
        pseudo_dice=tuple(map(float, log["mean_fg_dice"])),
        minutes=sum(end - start for start, end in epochs) / 60,
        options=dict(ours.get("options", {})),
        is_semi_supervised="nnunet_ssl" in checkpoint,
        validates_itself=set(cases.train) == set(cases.val),
        series=series,
        changed_since=changed_since,
        numbers_then=None if cases_of(checkpoint) else other_numbers_in_log(folder, cases),
    )


def other_numbers_in_log(folder: Path, cases: TrainedCases) -> tuple[int, int] | None:
    """Return how many cases a run of nnU-Net's own trained and validated with by its log, if not as many as these."""
    said: list[tuple[int, int]] = []
    for log in sorted(folder.glob("training_log_*.txt")):
        text = log.read_text(encoding="utf-8", errors="replace")
        said += [(int(train), int(val)) for train, val in NUMBERS.findall(text)]
    return said[-1] if said and said[-1] != (len(cases.train), len(cases.val)) else None


def trained_cases(checkpoint: dict, split: dict | None) -> tuple[TrainedCases, str]:
    """Return the cases of a run, and which of them are others in the split by now, in words.

    They are those of its checkpoint; of one that holds none, nnU-Net's or of an earlier version, those of the split.

    Args:
        checkpoint: of the run.
        split: its fold in splits_final.json; None if there is none.

    Raises:
        ValueError: neither tells them.
    """
    kept, digest = cases_of(checkpoint), checkpoint.get("nnunet_ssl", {}).get("train_and_val")
    today = None if split is None else TrainedCases.of(split["train"], split["val"], split.get(KEY) or ())
    if kept is not None:
        if today is None or today.train_and_val != kept.train_and_val:
            return kept, "training or validation cases"
        return kept, "unlabeled cases" if today.unlabeled and today.unlabeled != kept.unlabeled else ""
    if today is None:
        raise ValueError("the split has no such fold")
    if digest not in (None, today.train_and_val):
        raise ValueError("splits_final.json has other cases in train or val now than it was trained with")
    return today, ""


def unlabeled_of_run(checkpoint: dict, cases: TrainedCases) -> tuple[str, ...] | None:
    """Return the unlabeled cases of a run; none where the split names none, None if it names others than those."""
    digest, is_kept = checkpoint.get("nnunet_ssl", {}).get("split"), cases_of(checkpoint) is not None
    is_changed = cases.unlabeled and not is_kept and digest not in (None, cases.digest)
    return None if is_changed else tuple(cases.unlabeled)


def read_checkpoint(file: Path) -> dict:
    """Load a finished checkpoint.

    Raises:
        ValueError: it cannot be read, or has no log of its epochs.
    """
    try:
        checkpoint = load_facts(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({reason_of(error)})") from error
    log = checkpoint.get("logging")
    lists = {name for name, values in log.items() if isinstance(values, list)} if isinstance(log, dict) else set()
    if missing := {"epoch_start_timestamps", "epoch_end_timestamps", "mean_fg_dice"} - lists:
        raise ValueError(f"{file} has no {', '.join(sorted(missing))} in its log")
    return checkpoint


def warnings_about(runs: Sequence[Run]) -> list[str]:
    """Return what makes runs hard to compare."""
    found = []
    for run in runs:
        if both := sorted(set(run.cases) & set(run.unlabeled or ())):
            found.append(f"{run.name}: validation cases were unlabeled cases: {some(both)}")
        if run.validates_itself:
            found.append(f"{run.name}: {NO_ESTIMATE}")
        found += [f"{run.name}, by its log: {collapse}" for collapse in collapses_in_log(run.folder)]
        if run.changed_since:
            found.append(
                f"{run.name}: splits_final.json has other {run.changed_since} now than it was trained with; what is "
                "said of it here is from its checkpoint"
            )
        if run.numbers_then is not None:
            then, now = run.numbers_then, (len(run.train), len(run.cases))
            found.append(
                f"{run.name}: by its log it had {then[0]} training and {then[1]} validation cases, and "
                f"splits_final.json has {now[0]} and {now[1]} now: it is compared with trainings of other labels"
            )
        if run.unlabeled is None:
            found.append(f"{run.name}: splits_final.json names other unlabeled cases now than it was trained with")
    if not any(BASELINE.fullmatch(run.trainer) for run in runs):
        found.append("there is no finished nnUNetTrainer, so that nothing can be compared with labeled-only training")
    lengths = {len(run.pseudo_dice) for run in runs}
    if len(lengths) > 1:
        found.append(f"the trainings have different numbers of epochs: {', '.join(map(str, sorted(lengths)))}")
    return found


def collapses_in_log(folder: Path) -> list[str]:
    """Return the last warning of each class that vanishes from a training's pseudo-labels or floods them."""
    found: dict[str, str] = {}
    for log in sorted(folder.glob("training_log_*.txt")):  # one for each start
        text = log.read_text(encoding="utf-8", errors="replace")
        found |= {warning.partition(":")[0]: warning for warning in COLLAPSE.findall(text)}
    return list(found.values())


def predictions_of(run: Run) -> dict[str, Path]:
    """Return the folders of validation predictions by whose they are.

    The trainer's name stands for the network that it predicts with; "trainer, student" for another one, which a
    training with the option `validate_all_networks` leaves beside it.
    """
    others = sorted(file.parent for file in run.folder.glob("*/validation/summary.json"))
    return {run.trainer: run.folder / "validation"} | {f"{run.trainer}, {one.parent.name}": one for one in others}
