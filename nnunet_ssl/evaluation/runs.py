"""The trained results of a data set, as nnU-Net leaves them in nnUNet_results."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_ssl.data.unlabeled_pool import split_digest
from nnunet_ssl.evaluation.folders import Row, Structures, cases_of, evaluate_folders
from nnunet_ssl.training.checkpoints import load_checkpoint_file

BASELINE = re.compile(r"nnUNetTrainer(_\d+epochs?)?")  # nnU-Net's own, and its lengths
FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Run:
    """One finished fold of one trainer.

    Attributes:
        trainer: its name.
        configuration: for example "3d_fullres".
        fold: number, or "all".
        folder: where its files lie.
        cases: its validation cases, by the split.
        labeled: how many training cases.
        unlabeled: the cases named as unlabeled by the split.
        digest: hash of the split.
        pseudo_dice: of each epoch, nnU-Net's.
        minutes: of training.
        options: those it was trained with; empty for trainers that have none.
        is_semi_supervised: whether it is a trainer of this package, and so used unlabeled cases.
        series: the results folder, where there are several, for example one for each seed.
    """

    trainer: str
    configuration: str
    fold: str
    folder: Path
    cases: tuple[str, ...]
    labeled: int
    unlabeled: tuple[str, ...]
    digest: str
    pseudo_dice: tuple[float, ...]
    minutes: float
    options: dict[str, object]
    is_semi_supervised: bool
    series: str = ""

    @property
    def training(self) -> str:
        """What trainings of several trainers have in common: the fold, and the series where there are several."""
        return f"fold {self.fold}" + (f", {self.series}" if self.series else "")

    def key(self, case: str) -> str:
        """Return a name of a case that is its own in every training: several folds may validate on one case."""
        return f"{case} ({self.training})"


@dataclass(frozen=True)
class FoundRuns:
    """All runs of a data set, and what a reader of the report should be warned of."""

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
        ValueError: there is no finished run, or no split.
    """
    file = preprocessed / "splits_final.json"
    if not file.exists():
        raise ValueError(f"there is no {file}: a report needs the split that the trainings used")
    splits = json.loads(file.read_text())
    runs, warnings = [], []
    for folder in sorted(results.glob(f"*__{plans}__{configuration}/fold_*")):
        trainer, fold = folder.parent.name.partition("__")[0], folder.name.removeprefix("fold_")
        if not (folder / FINAL).exists() or not (folder / "validation").is_dir():
            warnings.append(f"{trainer}, fold {fold}: the training is not finished, left out")
        elif fold == "all" or int(fold) >= len(splits):
            warnings.append(f"{trainer}, fold {fold}: the split has no such fold, left out")
        else:
            found = read_run(folder, trainer, configuration, fold, splits[int(fold)])
            runs.append(replace(found, series=series))
    if not runs:
        raise ValueError(f"there is no finished training of {configuration}, {plans} in {results}")
    runs.sort(key=baseline_first)
    runs, left_out = in_common_folds(runs)
    warnings += left_out + warnings_about(runs)
    return FoundRuns(runs, [f"{series}: {warning}" for warning in warnings] if series else warnings)


def baseline_first(run: Run) -> tuple[bool, str, str, str]:
    """Return what runs are sorted by."""
    return not BASELINE.fullmatch(run.trainer), run.trainer, run.series, run.fold


def read_run(folder: Path, trainer: str, configuration: str, fold: str, split: dict) -> Run:
    """Read what the checkpoint knows of a run."""
    import torch

    checkpoint = load_checkpoint_file(folder / FINAL, torch.device("cpu"))
    log = checkpoint["logging"]
    epochs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False)
    unlabeled = tuple(split.get("unlabeled") or ())
    return Run(
        trainer=trainer,
        configuration=configuration,
        fold=fold,
        folder=folder,
        cases=tuple(sorted(split["val"])),
        labeled=len(split["train"]),
        unlabeled=unlabeled,
        digest=split_digest(split["train"], split["val"], unlabeled),
        pseudo_dice=tuple(map(float, log["mean_fg_dice"])),
        minutes=sum(end - start for start, end in epochs) / 60,
        options=dict(checkpoint.get("nnunet_ssl", {}).get("options", {})),
        is_semi_supervised="nnunet_ssl" in checkpoint,
    )


def in_common_folds(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs of the folds that all trainers have finished, and what was left out; all runs if there are none.

    Another fold may have other labeled cases or more of them, and would tilt every mean.
    """
    folds = [{run.fold for run in runs if run.trainer == trainer} for trainer in {run.trainer for run in runs}]
    common = set.intersection(*folds)
    if not common:
        return runs, ["the trainers have no fold in common, so that their numbers are of different cases"]
    left_out = [run for run in runs if run.fold not in common]
    lines = [f"{run.trainer}, fold {run.fold}: left out, not every trainer has finished it" for run in left_out]
    return [run for run in runs if run.fold in common], lines


def warnings_about(runs: list[Run]) -> list[str]:
    """Return what makes runs hard to compare."""
    found = []
    for run in runs:
        if both := sorted(set(run.cases) & set(run.unlabeled)):
            found.append(f"{run.trainer}, fold {run.fold}: validation cases were unlabeled cases: {', '.join(both)}")
    if not any(BASELINE.fullmatch(run.trainer) for run in runs):
        found.append("there is no finished nnUNetTrainer, so that nothing can be compared with labeled-only training")
    lengths = {len(run.pseudo_dice) for run in runs}
    if len(lengths) > 1:
        found.append(f"the trainings have different numbers of epochs: {', '.join(map(str, sorted(lengths)))}")
    return found


def predictions_of(run: Run) -> dict[str, Path]:
    """Return the folders of validation predictions by whose they are.

    The trainer's name stands for the network that it predicts with; "trainer, student" for another one, which a
    training with the option `validate_all_networks` leaves beside it.
    """
    others = sorted(file.parent for file in run.folder.glob("*/validation/summary.json"))
    return {run.trainer: run.folder / "validation"} | {f"{run.trainer}, {one.parent.name}": one for one in others}


def evaluate_run(
    run: Run, predictions: Path, references: Path, structures: Structures, num_processes: int
) -> list[Row]:
    """Compare a folder of validation predictions, the split's cases only; the rows carry the run's own keys."""
    there = set(cases_of(predictions, structures.ending))
    missing = sorted(set(run.cases) - there)
    if missing:
        raise ValueError(f"{predictions} lacks {missing[0]}: nnUNetv2_train ... {run.fold} --val")
    rows = evaluate_folders(references, predictions, structures, num_processes=num_processes, cases=run.cases)
    return [replace(row, case=run.key(row.case)) for row in rows]
