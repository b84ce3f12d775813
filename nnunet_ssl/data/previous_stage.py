"""What the first stage of a cascade has segmented of labeled cases, in nnU-Net's own folder, and who makes the rest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from nnunet_ssl.data.preprocessed_images import open_array, open_image
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.split_file import read_splits

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError)


@dataclass(frozen=True)
class PreviousStage:
    """The first stage of a cascade, as the trainings of its second one need it.

    Attributes:
        dataset: name of the data set.
        trainer: name of the trainer, of both stages.
        plans: identifier of the plans.
        configuration: of the first stage, for example "3d_lowres".
        segmentations: nnU-Net's `predicted_next_stage/3d_cascade_fullres` of the first stage's model.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    segmentations: Path

    def run_folder(self, fold: int | str) -> Path:
        """Return the folder of the first stage's training of a fold."""
        return self.segmentations.parents[1] / f"fold_{fold}"

    def final_checkpoint(self, fold: int | str) -> Path:
        """Return where the first stage's training of a fold leaves its model."""
        return self.run_folder(fold) / "checkpoint_final.pth"

    def command(self, fold: int | str) -> str:
        """Return the command that trains and validates the first stage; validates, where it is trained already."""
        names = map(quote, (self.dataset, self.configuration, str(fold), "-tr", self.trainer, "-p", self.plans))
        validates = " --val" if self.final_checkpoint(fold).is_file() else ""
        return f"nnUNetv2_train {' '.join(names)}{validates}"

    def refuse_untrained(self, fold: int | str) -> None:
        """Raise a ValueError if the first stage is not trained to its end, so that no unlabeled case is segmented."""
        if not (file := self.final_checkpoint(fold)).is_file():
            raise ValueError(
                f"the previous stage, {self.configuration}, has to segment the unlabeled cases, and there is no "
                f"{file}: {self.command(fold)}"
            )

    def refuse_missing(self, cases: Iterable[str], images: Path, splits: Path, fold: int | str) -> None:
        """Raise a ValueError if labeled cases have no segmentation by the first stage, or one of another shape.

        Args:
            cases: the labeled cases that are needed.
            images: the folder of their preprocessed images, of the second stage.
            splits: splits_final.json, whose folds each validate some cases.
            fold: of the second stage, a number or "all".
        """
        missing = [case for case in sorted(cases) if not self._fits(case, images)]
        if not missing:
            return
        folds, nowhere = folds_that_validate(missing, splits, fold)
        how = f"It writes those of the cases that it validates: {'; '.join(map(self.command, folds))}"
        if nowhere:
            how = (
                f"It writes those of the cases that it validates, and no fold of {splits} validates {some(nowhere)}: "
                "make one whose folds do, of N labeled patients each, "
                f"nnunet_ssl split {quote(self.dataset)} --labeled N --overwrite"
            )
        raise ValueError(
            f"{len(missing)} labeled cases have no segmentation by {self.configuration}, the previous stage, that fits "
            f"them, in {self.segmentations}: {some(missing)}. {how}"
        )

    def _fits(self, case: str, images: Path) -> bool:
        """Return whether there is a segmentation of the preprocessed image of a case; headers alone are read."""
        try:
            return tuple(self._open(case).shape) == tuple(open_image(images, case).shape[1:])
        except UNREADABLE:
            return False

    def _open(self, case: str):  # noqa: ANN202 - an array of either of nnU-Net's formats
        files = [self.segmentations / f"{case}{ending}" for ending in (".b2nd", ".npy", ".npz")]
        return open_array(next((file for file in files if file.exists()), files[0]), "seg")


def folds_that_validate(cases: Iterable[str], splits: Path, fold: int | str) -> tuple[list[int | str], list[str]]:
    """Return the folds whose validation cases are among some cases, and which of these no fold validates.

    Args:
        cases: some labeled cases.
        splits: splits_final.json; where there is none, nnU-Net's own folds validate each case.
        fold: of a training; that of "all" validates each case.
    """
    if fold == "all" or not splits.exists():
        return [fold], []
    folds, nowhere = set(), []
    for case in cases:
        found = [number for number, one in enumerate(read_splits(splits)) if case in one["val"]]
        folds.update(found[:1])
        nowhere += [] if found else [case]
    return sorted(folds), nowhere
