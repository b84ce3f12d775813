"""How the trainers of the demo compare on its held-out scans."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_ssl.training.checkpoints import load_facts


@dataclass(frozen=True)
class Comparison:
    """Dice of every held-out scan for two trainers, the baseline first, and where their files lie.

    Attributes:
        dice: per trainer an array `(cases, labels)`, fractions in [0, 1].
        cases: ids of the held-out scans.
        labels: names of the structures by label value, without background.
        epoch_dice: per trainer nnU-Net's pseudo-Dice of each epoch, fractions.
        raw: the data set in nnU-Net's raw format.
        predictions: per trainer the folder of its predictions.
    """

    dice: dict[str, np.ndarray]
    cases: list[str]
    labels: dict[int, str]
    epoch_dice: dict[str, list[float]]
    raw: Path
    predictions: dict[str, Path]

    @classmethod
    def read(cls, raw: Path, model_folders: dict[str, Path], predictions: dict[str, Path]) -> "Comparison":
        """Read what nnU-Net's training and evaluation left."""
        labels = {value: name for name, value in load_json(str(raw / "dataset.json"))["labels"].items() if value > 0}
        dice, epoch_dice, cases = {}, {}, []
        for trainer, folder in predictions.items():
            rows = load_json(str(folder / "summary.json"))["metric_per_case"]
            cases = [Path(row["prediction_file"]).name.removesuffix(".nii.gz") for row in rows]
            dice[trainer] = np.array([[row["metrics"][str(label)]["Dice"] for label in labels] for row in rows])
            file = model_folders[trainer] / "fold_0" / "checkpoint_final.pth"
            checkpoint = load_facts(file)
            epoch_dice[trainer] = [float(value) for value in checkpoint["logging"]["mean_fg_dice"]]
        return cls(dice, cases, labels, epoch_dice, raw, predictions)

    @property
    def trainers(self) -> list[str]:
        """The two trainers, the baseline first."""
        return list(self.dice)

    def differences(self) -> np.ndarray:
        """Return the second trainer's mean Dice minus the baseline's, `(cases,)`."""
        baseline, ours = (self.dice[trainer].mean(axis=1) for trainer in self.trainers)
        return ours - baseline

    def typical_case(self) -> str:
        """Return the case whose difference is the median one (of an even number, the lower of the two)."""
        return self.cases[np.argsort(self.differences(), kind="stable")[(len(self.cases) - 1) // 2]]

    def text(self) -> str:
        """Return a table of mean and standard deviation over the held-out scans, and the paired difference."""
        columns = [*self.labels.values(), "mean of both"]
        width = max(map(len, self.trainers))
        title = f"Dice, {len(self.cases)} held-out"
        lines = [f"{title:{width}}" + "".join(f"  {column:>13}" for column in columns)]
        for trainer, dice in self.dice.items():
            values = np.column_stack([dice, dice.mean(axis=1)])
            cells = [f"  {v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in values.T]
            lines.append(f"{trainer:{width}}" + "".join(cells))
        difference = self.differences()
        lines.append(
            f"difference per scan: {difference.mean():+.3f} ± {difference.std(ddof=1):.3f}, "
            f"better in {int((difference > 0).sum())} of {len(difference)}"
        )
        return "\n".join(lines)
