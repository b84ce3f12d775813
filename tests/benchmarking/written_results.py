"""Files of finished trainings, of which tables are made."""

import json
from pathlib import Path

from nnunet_ssl.benchmarking.result_files import Run
from nnunet_ssl.benchmarking.rows import Table, rows_of
from nnunet_ssl.benchmarking.tables import table_of

COLUMNS = ("trainer", "seeds", "difference", "cost", "commit")
TABLE = Table("mine", (1, 2), title="Mine", text="Of two seeds.", columns=COLUMNS)
SETTING = {
    "dataset": "Dataset001_Mine",
    "patient_pattern": None,
    "configuration": "2d",
    "features": [8, 16],
    "patch_size": [56, 40],
    "batch_size": 4,
    "steps": 20,
    "fold": "report",
}


def write(place: Path, trainer: str, seed: int, dice: dict, variant: str = "default", **changes) -> dict:
    result = {
        "trainer": trainer,
        "variant": variant,
        "options": dict(option.split("=") for option in variant.split(",") if "=" in option),
        "seed": seed,
        "device": "cpu",
        "setting": SETTING,
        "split": {"labeled": 2, "unlabeled": 80, "validation": len(dice), "digest": f"of {seed}"},
        "versions": {"nnunet_ssl": "0.1.0", "python": "3.11.7"},
        "code": {"commit": "0123456789ab", "dirty": False, "trainer": "0" * 64, "step": None},
        "cost": 7 / 3,
        "seconds": 90,
        "dice": {case: value if isinstance(value, dict) else {"1": value} for case, value in dice.items()},
    } | changes
    file = Run("mine", trainer, variant, seed).file(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return result


def write_finished(place: Path) -> Path:
    """Two seeds of the baseline, of a better trainer and of the upper bound, and one seed of a third trainer."""
    cases = [f"case{number}" for number in range(6)]
    for seed in (1, 2):
        write(place, "nnUNetTrainer", seed, dict.fromkeys(cases, 0.5))
        gains = {case: 0.5 + (number + seed) / 100 for number, case in enumerate(cases)}
        write(place, "nnUNetTrainerBCP", seed, gains)
        split = {"labeled": 96, "unlabeled": 0, "validation": 6, "digest": "all"}
        write(place, "nnUNetTrainer", seed, dict.fromkeys(cases, 0.9), "all", split=split)
    write(place, "nnUNetTrainerURPC", 1, dict.fromkeys(cases, 0.6))
    return place


def lines(place, table=TABLE):
    return table_of(table, rows_of(table, place)).splitlines()
