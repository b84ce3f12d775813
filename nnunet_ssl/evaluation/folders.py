"""Comparing a folder of predictions with a folder of references."""

import csv
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK
from tqdm import tqdm

from nnunet_ssl.data.image_files import read_image
from nnunet_ssl.evaluation.metrics import Hausdorff95, Metrics, compute_metrics

COLUMNS = ("case", "label", "dice", "jaccard", "hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml")
DISTANCES = ("hd95", "asd", "assd")
ENDING = ".nii.gz"


@dataclass(frozen=True)
class Structures:
    """What is compared: label values, or regions of several values, by name.

    Attributes:
        values: the values of each structure.
        ignore: the value of voxels that are compared in no structure; None for none.
        ending: of the files.
    """

    values: dict[str, tuple[int, ...]]
    ignore: int | None = None
    ending: str = ENDING

    @classmethod
    def of_dataset(cls, dataset_json: Path) -> "Structures":
        """Read labels or regions from nnU-Net's dataset.json."""
        content = json.loads(dataset_json.read_text())
        labels = dict(content["labels"])
        ignore = labels.pop("ignore", None)
        values = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in labels.items()}
        return cls({name: v for name, v in values.items() if v != (0,)}, ignore, content["file_ending"])

    @classmethod
    def found_in(cls, files: Iterable[Path]) -> "Structures":
        """Take every value above 0 that occurs in the files."""
        found = set()
        for file in files:
            found |= set(np.unique(SimpleITK.GetArrayFromImage(read_image(file))).tolist())
        return cls({str(int(value)): (int(value),) for value in sorted(found) if value > 0})


@dataclass(frozen=True)
class Row:
    """One structure in one case."""

    case: str
    label: str
    metrics: Metrics

    def cells(self) -> dict[str, str | float]:
        """Return the row of the CSV."""
        return {"case": self.case, "label": self.label, **asdict(self.metrics)}


def evaluate_folders(
    references: Path,
    predictions: Path,
    structures: Structures,
    tolerance: float = 1.0,
    hd95: Hausdorff95 = Hausdorff95.POOLED,
    num_processes: int = 2,
    cases: Sequence[str] | None = None,
) -> list[Row]:
    """Compare all predictions that have a reference, several at once.

    Args:
        references: folder with CASE.nii.gz.
        predictions: folder with the same names.
        structures: what is compared.
        tolerance: of the surface Dice, in mm.
        hd95: which 95 % Hausdorff distance.
        num_processes: how many cases at once.
        cases: the only ones compared; None means all references.

    Raises:
        ValueError: no reference; a reference without prediction; a damaged file; sizes that differ.
    """
    names = list(cases) if cases is not None else cases_of(references, structures.ending)
    if not names:
        raise ValueError(f"there is no reference CASE{structures.ending} in {references}")
    missing = [name for name in names if not (predictions / f"{name}{structures.ending}").is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(
            f"{len(missing)} of {len(names)} references have no prediction in {predictions} "
            f"(--chill leaves them out): {shown}"
        )
    compare = partial(compare_case, references, predictions, structures, tolerance, hd95)
    workers = min(num_processes, len(names))
    with tqdm(total=len(names), desc="Evaluating") as bar:
        rows = []
        for of_case in run_all(compare, names, workers):
            rows += of_case
            bar.update()
    return rows


def cases_of(folder: Path, ending: str) -> list[str]:
    """Return the cases that have a file in a folder."""
    return sorted(file.name.removesuffix(ending) for file in folder.glob(f"*{ending}"))


def run_all(compare: "partial[list[Row]]", names: Sequence[str], workers: int) -> Iterable[list[Row]]:
    """Compare the cases in order, in several processes if there are more than one."""
    if workers <= 1:
        yield from map(compare, names)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(compare, names)


def compare_case(
    references: Path, predictions: Path, structures: Structures, tolerance: float, hd95: Hausdorff95, case: str
) -> list[Row]:
    """Compare one case, structure by structure."""
    files = [folder / f"{case}{structures.ending}" for folder in (references, predictions)]
    image = read_image(files[0])
    reference, prediction = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(read_image(files[1]))
    if reference.shape != prediction.shape:
        raise ValueError(f"{files[1]} has the shape {prediction.shape}, its reference {reference.shape}")
    known = reference != structures.ignore if structures.ignore is not None else np.ones_like(reference, bool)
    spacing = image.GetSpacing()[::-1]
    rows = []
    for name, values in structures.values.items():
        masks = [np.isin(voxels, values) & known for voxels in (reference, prediction)]
        rows.append(Row(case, name, compute_metrics(*masks, spacing, tolerance, hd95)))
    return rows


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Write one line for each structure of each case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        for row in rows:
            cells = {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.cells().items()}
            writer.writerow(cells)


def summary(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return, for each structure, mean ± standard deviation over the cases, and how many distances are undefined."""
    lines = []
    for label in dict.fromkeys(row.label for row in rows):
        of_label = [row.cells() for row in rows if row.label == label]
        line = {"label": label, "cases": str(len(of_label))}
        for name in COLUMNS[2:8]:
            values = np.array([float(cells[name]) for cells in of_label])
            values = values[np.isfinite(values)]
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            line[name] = f"{values.mean():.3f}{spread}" if len(values) else "nan"
        empty = [(cells["volume_gt_ml"] == 0, cells["volume_pred_ml"] == 0) for cells in of_label]
        line["empty_gt"], line["empty_pred"] = (str(sum(pair[side] for pair in empty)) for side in (0, 1))
        line["distances_undefined"] = str(sum(any(pair) for pair in empty))
        lines.append(line)
    return lines
