"""What the result of a training says of its outcome."""

from math import isnan
from pathlib import Path
from typing import Any

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import read_json_file
from nnunet_ssl.evaluation.folders import cases_of, evaluate_folders
from nnunet_ssl.evaluation.heads import measure
from nnunet_ssl.evaluation.structures import Structures


def outcome_of(trainer: Any, head: int | None) -> dict[str, Any]:  # noqa: ANN401 - any nnU-Net trainer
    """Return cost, time, and the metrics of each validation case, of a trainer that has validated.

    Args:
        trainer: any of nnU-Net.
        head: a label whose circumference is measured too.
    """
    summary = read_json_file(Path(trainer.output_folder, "validation", "summary.json"))
    return {
        "cost": cost_of(type(trainer)),
        "seconds": seconds_of(trainer),
        "dice": dice_of(summary, trainer.dataset_json["file_ending"]),
        **distances_of(trainer),
        **circumferences_of(trainer, head),
    }


def is_ours(trainer: type) -> bool:
    """Return whether a trainer is one of this package, or built on one, and takes its options."""
    return any(base.__module__.startswith("nnunet_ssl.") for base in trainer.__mro__)


def cost_of(trainer: type) -> float | None:
    """Return the cost of a step that our trainers state; None of others."""
    cost = getattr(trainer, "STEP_COST", 1.0)
    return round(cost, 4) if is_ours(trainer) else None


def seconds_of(trainer: Any) -> int:  # noqa: ANN401
    """Return how long its epochs took, also where it was interrupted between them."""
    start, end = (trainer.logger.get_value(f"epoch_{when}_timestamps", step=None) for when in ("start", "end"))
    return round(sum(end) - sum(start[: len(end)]))


def dice_of(summary: dict[str, Any], ending: str) -> dict[str, dict[str, float | None]]:
    """Return the Dice of each case and label; None where neither reference nor prediction has the label."""
    return {
        Path(case["prediction_file"]).name.removesuffix(ending): {
            label: None if isnan(metrics["Dice"]) else round(metrics["Dice"], 6)
            for label, metrics in case["metrics"].items()
        }
        for case in summary["metric_per_case"]
    }


def distances_of(trainer: Any) -> dict[str, dict[str, dict[str, float | None]]]:  # noqa: ANN401
    """Return 95HD (of both directions together) and ASD in mm of each case and label; None where a mask is empty."""
    folder, validation = Path(trainer.preprocessed_dataset_folder_base), Path(trainer.output_folder, "validation")
    structures = Structures.of_dataset(folder / "dataset.json", trainer.plans_manager.plans)
    cases = cases_of(validation, structures.ending)
    labels = trainer.dataset_json["labels"]
    keys = {name: str(tuple(label) if isinstance(label, list) else label) for name, label in labels.items()}
    found: dict[str, dict[str, dict[str, float | None]]] = {"hd95": {}, "asd": {}}
    for row in evaluate_folders(folder / "gt_segmentations", validation, structures, num_processes=1, cases=cases):
        for name, of_cases in found.items():
            distance = getattr(row.metrics, name)
            of_cases.setdefault(row.case, {})[keys[row.label]] = None if isnan(distance) else round(distance, 4)
    return found


def circumferences_of(trainer: Any, label: int | None) -> dict[str, dict[str, float | None]]:  # noqa: ANN401
    """Return how far the head circumference of each case is from its reference's in mm; None without an ellipse.

    Both are measured in the masks, as `nnunet_ssl hc` does; nothing where no label is a head.
    """
    if label is None:
        return {}
    ending = trainer.dataset_json["file_ending"]
    references = Path(trainer.preprocessed_dataset_folder_base, "gt_segmentations")
    predictions = sorted(Path(trainer.output_folder, "validation").glob(f"*{ending}"))
    reader = DatasetReader.of_dataset({"file_ending": ending}, predictions)
    errors = {}
    for file in predictions:
        ellipses = [measure(reader, mask, label).ellipse for mask in (file, references / file.name)]
        known = [ellipse.circumference() for ellipse in ellipses if ellipse is not None]
        errors[file.name.removesuffix(ending)] = round(abs(known[0] - known[1]), 4) if len(known) == 2 else None
    return {"circumference_error": errors}
