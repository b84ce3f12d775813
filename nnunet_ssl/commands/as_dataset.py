"""`nnunet_ssl pseudolabel --as-dataset`: what it looks at before hours of prediction, and what it writes afterwards."""

import argparse
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from nnunet_ssl.commands.going_on import DEFAULT_PLANS
from nnunet_ssl.commands.trained_models import with_first_stages

if TYPE_CHECKING:
    from nnunet_ssl.conversion.pseudolabeled_dataset import LabeledFold
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.evaluation.label_priority import Uncertainty

ALL = "100%"
PLANNED, CASCADE = ("2d", "3d_lowres", "3d_fullres"), "3d_cascade_fullres"  # configurations that nnU-Net plans itself


@dataclass(frozen=True)
class NewDataset:
    """A data set to be written.

    Attributes:
        folder: in nnUNet_raw.
        raw: the original.
        fold: its labeled cases.
        accept: how many scans, or which share of them.
        words: what decides about its content, as origin.json holds it.
    """

    folder: Path
    raw: "RawDataset"
    fold: "LabeledFold"
    accept: int | float
    words: dict[str, Any]

    def write(
        self,
        predictions: Path,
        files: Mapping[str, Sequence[Path]],
        found: Mapping[str, "Uncertainty"],
        corrected: Collection[str],
    ) -> None:
        """Write it from a folder of predictions.

        Args:
            predictions: with one label file for each scan.
            files: the image files of each scan.
            found: the scans that are predicted, in the order of the ranking.
            corrected: those of them whose label somebody has changed: they are taken in any case.
        """
        from nnunet_ssl.conversion.pseudolabeled_dataset import Scan, accepted_scans, write_dataset

        predicted = {case: one.entropy for case, one in found.items() if case not in corrected}
        chosen = sorted(corrected)
        if predicted or not chosen:
            accept = self.accept if isinstance(self.accept, float) else max(0, self.accept - len(chosen))
            chosen += accepted_scans(list(predicted), predicted, accept, needs_one=not chosen)
        scores = {case: {"rank": rank, **score(one)} for rank, (case, one) in enumerate(found.items(), start=1)}
        accepted = {}
        for case in chosen:
            label = "corrected" if case in corrected else "predicted"
            origin = {"label": label, "model": self.words["model"], **scores[case]}
            accepted[case] = Scan(files[case], predictions / f"{case}{self.raw.ending}", origin)
        others = {case: scores[case] for case in found if case not in accepted}
        write_dataset(self.folder, self.raw, self.fold, accepted, others, self.words)
        labeled = {*self.fold.train, *self.fold.val} - {*found}  # without what was predicted before, and is anew
        empty = [case for case in others if math.isnan(found[case].entropy)]
        print(
            f"{self.folder}: {len(chosen)} of {len(found)} scans with their pseudo-label"
            + (f", of which {len(corrected)} corrected by somebody" if corrected else "")
            + (f" (nothing is predicted in {len(empty)})" if empty else "")
            + f", {len(labeled)} labeled cases, of which {len(self.fold.val)} validate"
        )

    def next_commands(self, plans: str, configuration: str) -> Iterator[str]:
        """Give nnU-Net's commands that train with it."""
        from nnunet_ssl.data.dataset_names import RESIDUAL_ENCODER_PLANS, id_of, planning_command

        name, number = self.folder.name, id_of(self.folder.name)
        if configuration == CASCADE:
            yield "a cascade needs folds that validate each labeled case, and this data set has one: train without it"
            configuration = "3d_fullres"
        is_known = plans == DEFAULT_PLANS or RESIDUAL_ENCODER_PLANS.fullmatch(plans) is not None
        if is_known and configuration in PLANNED:
            yield f"next: {planning_command(name, plans)}"
        else:
            source, moved = id_of(self.words["dataset"]), quote(plans)
            yield f"next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity --no_pp"
            yield f"then: nnUNetv2_move_plans_between_datasets -s {source} -t {number} -sp {moved} -tp {moved}"
            yield f"then: nnUNetv2_preprocess -d {number} -plans_name {moved} -c {quote(configuration)}"
        more = "" if plans == DEFAULT_PLANS else f" -p {quote(plans)}"
        yield f"then: nnUNetv2_train {number} {quote(configuration)} 0{more}"


def score(one: "Uncertainty") -> dict[str, Any]:
    """Return what is measured of a prediction, with None for what json has no number for."""
    measured = {"entropy": one.entropy, "disagreement": one.disagreement}
    return {name: finite(value) for name, value in measured.items()} | {
        "confidence": {name: finite(value) for name, value in one.confidence.items()}
    }


def finite(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if math.isnan(value) else value


def new_dataset(
    options: argparse.Namespace, name: str, checkpoint: Path, files: Mapping[str, Sequence[Path]]
) -> NewDataset | None:
    """Return the data set that is to be written, None without --as-dataset; whatever is in its way is said here.

    Raises:
        ValueError: --accept without --as-dataset, no number or share, or of more scans than there are; the id is taken;
            the fold has no split or lacks labels; an unlabeled scan is a labeled or test case.
    """
    if options.as_dataset is None:
        if options.accept is not None:
            raise ValueError("--accept goes with --as-dataset")
        return None

    from nnunet_ssl.conversion.pseudolabeled_dataset import dataset_folder, labeled_fold, refuse_labeled_scans
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.data.split_file import NO_ESTIMATE
    from nnunet_ssl.data.stamps import file_digest
    from nnunet_ssl.splits.make_splits import number_or_share

    accept = number_or_share(options.accept or ALL, "--accept is a number of scans")
    if isinstance(accept, int) and accept > len(files):
        raise ValueError(f"--accept {accept}, but there are {len(files)} unlabeled scans")
    model = {
        "trainer": options.tr,
        "plans": options.p,
        "configuration": options.c,
        "fold": options.f,
        "checkpoint": checkpoint.name,
        "sha256": file_digest(checkpoint),
    }
    for first in with_first_stages(checkpoint)[1:]:
        if not first.is_file():
            raise ValueError(f"there is no {first}: the first stage of the cascade predicts too")
        model["first_stage_sha256"] = file_digest(first)
    words = {"dataset": name, "model": model, "accept": options.accept or ALL}
    raw = RawDataset.open(Path(os.environ["nnUNet_raw"], name))
    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    folder = dataset_folder(options.as_dataset, name, words)
    if not os.access(folder.parent, os.W_OK):
        raise ValueError(f"{folder.parent} cannot be written: --as-dataset makes {folder.name} in it")
    fold = labeled_fold(raw, preprocessed / "splits_final.json", options.f)
    refuse_labeled_scans(raw, preprocessed, list(files), fold)
    warn_of_changed_split(checkpoint, fold)
    if {*fold.train} == {*fold.val}:
        print(f"WARNING: {NO_ESTIMATE}")
    return NewDataset(folder, raw, fold, accept, words)


def warn_of_changed_split(checkpoint: Path, fold: "LabeledFold") -> None:
    """Warn where the checkpoint tells of another split than there is now: the model may have seen what validates."""
    from nnunet_ssl.data.split_file import split_digest
    from nnunet_ssl.training.checkpoints import load_facts

    now = split_digest(fold.train, fold.val, ())
    ours = load_facts(checkpoint).get("nnunet_ssl", {})
    if ours.get("train_and_val", now) != now:
        print(
            "WARNING: splits_final.json has other cases in train or val now than this model was trained with. If it "
            "has seen cases that validate, their scores are too good, in trainings with its pseudo-labels too"
        )
