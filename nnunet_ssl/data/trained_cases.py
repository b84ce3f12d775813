"""Which cases a run was trained on, as its checkpoints hold them, and what of them validates another one."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.split_file import KEY, read_splits, split_digest

CASES = "cases"  # in our part of a checkpoint
FIRST_WEIGHTS = "init_"  # so begin the names of options that are checkpoints whose weights a run starts from


@dataclass(frozen=True)
class TrainedCases:
    """The cases of a run.

    Attributes:
        train: with their labels.
        val: that validate it.
        unlabeled: without labels, those that were left out included.
        before: with whose labels the weights were trained that it started from, see `FIRST_WEIGHTS`.
    """

    train: list[str]
    val: list[str]
    unlabeled: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, train: Iterable[str], val: Iterable[str], unlabeled: Iterable[str], before: Iterable[str] = ()
    ) -> "TrainedCases":
        """Return the cases as plain text, sorted."""
        return cls(*(sorted(map(str, cases)) for cases in (train, val, unlabeled, before)))

    def as_plain(self) -> dict[str, list[str]]:
        """Return what a checkpoint holds."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Digest of all cases of the split."""
        return split_digest(self.train, self.val, self.unlabeled)

    @property
    def train_and_val(self) -> str:
        """Digest of the training and validation cases."""
        return split_digest(self.train, self.val, ())


def cases_of(checkpoint: Mapping[str, Any]) -> TrainedCases | None:
    """Return the cases that a checkpoint of ours was trained on; None where it does not hold them, or not whole."""
    content = checkpoint.get("nnunet_ssl", {}).get(CASES)
    names = TrainedCases.__dataclass_fields__
    if not isinstance(content, dict) or not {"train", "val"} <= content.keys() <= names.keys():
        return None
    if not all(isinstance(cases, list) and all(isinstance(case, str) for case in cases) for cases in content.values()):
        return None
    return TrainedCases(**content)


def cases_of_weights(checkpoint: Mapping[str, Any], splits_file: Path) -> TrainedCases | None:
    """Return the cases that weights were trained on, of nnU-Net's own checkpoints too; None where nothing tells it.

    nnU-Net's hold the fold, not its cases: if they are of this data set, they are taken from the split as it is today.

    Args:
        checkpoint: that holds the weights.
        splits_file: splits_final.json of the data set that they are to be trained on.
    """
    if (cases := cases_of(checkpoint)) is not None:
        return cases
    arguments = checkpoint.get("init_args", {})
    plans, fold = arguments.get("plans", {}), arguments.get("fold")
    name = plans.get("dataset_name") if isinstance(plans, dict) else None
    if name != splits_file.parent.name or not isinstance(fold, int) or not splits_file.exists():
        return None
    splits = read_splits(splits_file)
    if not 0 <= fold < len(splits):
        return None
    split, ours = splits[fold], checkpoint.get("nnunet_ssl", {})
    today = TrainedCases.of(split["train"], split["val"], split.get(KEY) or ())
    return today if ours.get("train_and_val", today.train_and_val) == today.train_and_val else None


def cases_to_validate(
    kept: Mapping[str, Any], today: tuple[list[str], list[str]] | None, fold: int | str
) -> tuple[list[str], list[str], str]:
    """Return the training and validation cases with which a run is validated, those that it began with, and a warning.

    Args:
        kept: what the run knows of its split: digests and, but for checkpoints of earlier versions, cases.
        today: the training and validation cases by splits_final.json; None where it has no such fold.
        fold: for messages.

    Raises:
        ValueError: the split is another one today, and the run does not know its cases.
    """
    if today is not None and kept.get("train_and_val", digest := split_digest(*today, ())) == digest:
        return *today, ""
    cases = cases_of({"nnunet_ssl": kept})
    now = f"has other training or validation cases for fold {fold} than this run began with"
    if cases is None:
        raise ValueError(
            f"splits_final.json {now}, and may have learned what would validate it: put that file back, or train again"
        )
    return cases.train, cases.val, f"splits_final.json {now}: validating with the cases that it began with"


def refuse_learned_validation(weights: TrainedCases | None, now: TrainedCases, source: str) -> str:
    """Refuse weights that were trained with the labels of cases that validate the run; return what else to say.

    Args:
        weights: the cases of a checkpoint that the run starts from; None where they are not known.
        now: those of the run that starts from it.
        source: the option that names the checkpoint, and its file.

    Raises:
        ValueError: a case that validates, and is not trained on, was trained on before.
    """
    if weights is None:
        return f"{source} does not say on which cases it was trained: see that none validates this run"
    held_out = set(now.val) - set(now.train)
    if learned := sorted(held_out & {*weights.train, *weights.before}):
        raise ValueError(
            f"{source} was trained with the labels of cases that validate this fold: "
            f"{some(learned)}. Take the checkpoint of the same fold, or of a model that has not seen them"
        )
    if seen := sorted(held_out & set(weights.unlabeled)):
        return f"{source} had validation cases of this fold among its unlabeled ones: {some(seen)}"
    return ""
