"""Comparing a folder of predictions with a folder of references."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_ssl.data.dataset_reader import Voxels
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.raw_files import files_in, some, unused_files
from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.evaluation.cells import csv_cells
from nnunet_ssl.evaluation.metrics import Hausdorff95, Metrics, compute_metrics
from nnunet_ssl.evaluation.structures import Structures

COLUMNS = ("case", "label", "dice", "jaccard", "hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml")
GEOMETRY_TOLERANCE = 1e-3  # of spacing, relative, and of direction cosines: what formats round
ORIGIN_TOLERANCE = 0.5  # voxels


@dataclass(frozen=True)
class Row:
    """One structure in one case."""

    case: str
    label: str
    metrics: Metrics

    def cells(self) -> dict[str, str | float]:
        """Return the row of the CSV."""
        return {"case": self.case, "label": self.label} | {name: getattr(self.metrics, name) for name in COLUMNS[2:]}


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
        references: folder with one label file for each case.
        predictions: folder with the same names.
        structures: what is compared.
        tolerance: of the surface Dice, in mm.
        hd95: which 95 % Hausdorff distance.
        num_processes: how many cases at once.
        cases: the only ones compared; None means all references.

    Raises:
        ValueError: no reference; a reference without prediction; a damaged file; a value that is not known; a size,
            spacing, direction or origin that differs.
    """
    names = list(cases) if cases is not None else cases_of(references, structures.ending)
    if not names:
        raise ValueError(no_reference(references, structures.ending))
    missing = [name for name in names if not (predictions / f"{name}{structures.ending}").is_file()]
    if missing:
        unused = unused_files(predictions, structures.ending)
        chill = " (--chill leaves them out)" if len(missing) < len(names) else ""  # otherwise nothing would be left
        raise ValueError(
            f"{len(missing)} of {len(names)} references have no prediction in {predictions}{chill}: {some(missing)}"
            + (f"; {unused}" if unused else "")
        )
    compare = partial(compare_case, references, predictions, structures, tolerance, hd95)
    return [row for of_case in in_processes(compare, names, num_processes, "Evaluating") for row in of_case]


def no_reference(references: Path, ending: str) -> str:
    """Return a sentence about a folder without references, and what it holds instead."""
    unused = unused_files(references, ending) if references.is_dir() else "it is no folder"
    return f"there is no reference CASE{ending} in {references}" + (f" ({unused})" if unused else "")


def cases_of(folder: Path, ending: str) -> list[str]:
    """Return the cases that have a file in a folder."""
    return [file.name.removesuffix(ending) for file in files_in(folder, ending)]


def compare_case(
    references: Path, predictions: Path, structures: Structures, tolerance: float, hd95: Hausdorff95, case: str
) -> list[Row]:
    """Compare one case, structure by structure; in one with ignored voxels nobody knows where surfaces are."""
    files = [folder / f"{case}{structures.ending}" for folder in (references, predictions)]
    reference, prediction = (structures.read_labels(file) for file in files)
    refuse_other_space(*files, reference, prediction)
    counted = reference.array != structures.ignore if structures.ignore is not None else np.True_
    # nnU-Net's copies of TIFF references have no spacing beside them; its predictions do.
    space = reference if reference.has_spacing else prediction
    rows = []
    for name, values in structures.values.items():
        masks = [np.isin(labels.array, values) & counted for labels in (reference, prediction)]
        metrics = compute_metrics(*masks, space.spacing, tolerance, hd95, space.voxel_ml)
        rows.append(Row(case, name, metrics if np.all(counted) else metrics.of_overlap_alone()))
    return rows


def refuse_other_space(
    reference_file: Path, prediction_file: Path, reference: Voxels, prediction: Voxels, called: str = "reference"
) -> None:
    """Raise a ValueError where a prediction lies elsewhere than its reference; formats without geometry always pass.

    Messages have for the reference the word `called`.
    """
    if reference.array.shape != prediction.array.shape:
        raise ValueError(
            f"{prediction_file} has the shape {prediction.array.shape}, its {called} {reference.array.shape}"
        )
    both = reference, prediction
    if all(one.has_spacing for one in both):
        found, expected = (np.array(one.spacing) for one in (prediction, reference))
        if not np.allclose(found, expected, rtol=GEOMETRY_TOLERANCE, atol=0):
            raise ValueError(
                f"{prediction_file} has the spacing {shown(found)} mm, its {called} {reference_file} {shown(expected)}"
            )
    if any(one.affine is None for one in both):
        return
    size = len(reference.affine) - 1
    axes = [one.affine[:size, :size] for one in both]
    directions = [matrix / np.linalg.norm(matrix, axis=0) for matrix in axes]
    if not np.allclose(*directions, rtol=0, atol=GEOMETRY_TOLERANCE):
        raise ValueError(
            f"{prediction_file} has the direction {shown(directions[1].ravel())}, its {called} {reference_file} "
            f"{shown(directions[0].ravel())}"
        )
    moved = np.linalg.solve(axes[0], prediction.affine[:size, size] - reference.affine[:size, size])
    if np.abs(moved).max() > ORIGIN_TOLERANCE:
        raise ValueError(
            f"{prediction_file} lies {shown(moved)} voxels (x, y, z) beside its {called} {reference_file}: "
            "their origins differ"
        )


def shown(values: np.ndarray) -> str:
    """Return numbers as a reader wants them."""
    return f"({', '.join(f'{value:.4g}' for value in np.round(values, 6) + 0.0)})"


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Write one line for each structure of each case."""
    with replacing(file) as unfinished, unfinished.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        for row in rows:
            cells = {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.cells().items()}
            writer.writerow(csv_cells(cells))


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
        empty = [(row.metrics.voxels_gt == 0, row.metrics.voxels_pred == 0) for row in rows if row.label == label]
        line["empty_gt"], line["empty_pred"] = (str(sum(pair[side] for pair in empty)) for side in (0, 1))
        line["distances_undefined"] = str(sum(np.isnan(row.metrics.hd95) for row in rows if row.label == label))
        lines.append(line)
    return lines
