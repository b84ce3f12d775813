"""docs/getting-started.md word by word, on synthetic scans and with a tiny network."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.test_end_to_end import Workplace, make_workplace, write_synthetic_dataset

PAGE = (Path(__file__).parent.parent / "docs" / "getting-started.md").read_text()
FEATURES = [4, 8, 8]


def commands(heading: str) -> list[str]:
    """Return the commands below a heading of the page."""
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).splitlines()
    assert lines, f"there is no command below {heading}"
    return lines


def with_tiny_network(plans_file: Path) -> None:
    """Give the 3-D configuration three stages of few features, and batches of two."""
    plans = json.loads(plans_file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    arguments, stages = configuration["architecture"]["arch_kwargs"], len(FEATURES)
    for name, value in arguments.items():
        if isinstance(value, list):
            arguments[name] = value[: stages - 1 if name.endswith("decoder") else stages]
    arguments |= {"n_stages": stages, "features_per_stage": FEATURES}
    configuration["batch_size"] = 2
    plans_file.write_text(json.dumps(plans))


def run_on_cpu(place: Workplace, command: str) -> str:
    """Run a command of the page, a training for one epoch."""
    if command.startswith(("nnUNetv2_train", "nnUNetv2_predict", "nnunet_ssl pseudolabel", "nnunet_ssl preview")):
        command += " -device cpu"
    command = command.replace("_250epochs", "_1epoch").replace(
        "IMAGES", str(place.root / "raw" / place.dataset / "imagesTs")
    )
    return place.run(command, nnUNet_ssl_options="num_iterations_per_epoch=4 num_val_iterations_per_epoch=1 seed=1")


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path):
    place = make_workplace(tmp_path, "Dataset004_Hippocampus")
    raw = place.root / "raw" / place.dataset
    write_synthetic_dataset(raw, labeled=10)

    exports, converts, *of_data = commands("The data")
    assert exports.startswith("export nnUNet_raw=")
    assert converts == "nnUNetv2_convert_MSD_dataset -i Task04_Hippocampus"
    for command in of_data:
        output = run_on_cpu(place, command)
    assert "can start" in output
    assert len(list((raw / "labelsTr").iterdir())) == 4 + 2  # nnU-Net's fold 0 of ten cases validates two
    with_tiny_network(place.root / "preprocessed" / place.dataset / "nnUNetPlans.json")

    for command in [*commands("Two trainings"), *commands("Which one is better")]:
        run_on_cpu(place, command)
    assert (place.root / "empty" / "report" / "report.html").exists()

    ranks, adopts = commands("What to label next")
    run_on_cpu(place, ranks)
    with (place.root / "empty" / "pool" / "ranking.csv").open(newline="") as opened:
        ranked = [row["case"] for row in csv.DictReader(opened)]
    first = [case for case in ranked if (raw / "labelsHidden" / f"{case}.nii.gz").is_file()][:2]
    assert "CASE CASE" in adopts
    run_on_cpu(place, adopts.replace("CASE CASE", " ".join(first)))
    assert len(list((raw / "labelsTr").iterdir())) == 8

    for command in commands("Hand it on"):
        run_on_cpu(place, command)
    assert (place.root / "empty" / "hippocampus.zip").exists()
