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


def run_on_cpu(place: Workplace, command: str, **settings: int) -> str:
    """Run a command of the page, a training for some steps and, by its name or these settings, one epoch."""
    if command.startswith(("nnUNetv2_train", "nnUNetv2_predict", "nnunet_ssl pseudolabel", "nnunet_ssl preview")):
        command += " -device cpu"
    command = command.replace("_250epochs", "_1epoch").replace(
        "IMAGES", str(place.root / "raw" / place.dataset / "imagesTs")
    )
    settings = {"num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1, "seed": 1} | settings
    return place.run(command, nnUNet_ssl_options=" ".join(f"{name}={value}" for name, value in settings.items()))


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


def with_two_stages(plans_file: Path) -> None:
    """Give plans a cascade, which nnU-Net plans for large scans alone: half of the resolution, then all of it."""
    plans = json.loads(plans_file.read_text())
    full = plans["configurations"]["3d_fullres"]
    coarse = {"spacing": [2 * side for side in full["spacing"]], "patch_size": [16, 16, 16]}
    names = {"data_identifier": "nnUNetPlans_3d_lowres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"} | coarse | names
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans_file.write_text(json.dumps(plans))


@pytest.mark.slow
def test_every_command_of_the_cascade(tmp_path):
    place = make_workplace(tmp_path, "Dataset182_Pancreas")
    write_synthetic_dataset(place.root / "raw" / place.dataset)
    place.run("nnUNetv2_plan_and_preprocess -d 182 -c 3d_fullres -np 1 -npfp 1")
    plans = place.root / "preprocessed" / place.dataset / "nnUNetPlans.json"
    with_tiny_network(plans)
    with_two_stages(plans)

    preprocesses, trains, trains_second_stage, *predicts = (
        command.partition("#")[0].strip() for command in commands("A cascade")
    )
    place.run(f"{preprocesses} -np 1 1")
    for fold in range(5):
        assert " 3d_lowres 0 " in trains
        run_on_cpu(place, trains.replace(" 3d_lowres 0 ", f" 3d_lowres {fold} "), num_epochs=1)
    run_on_cpu(place, trains_second_stage, num_epochs=1)
    for command in predicts:
        run_on_cpu(place, command)
    assert (place.root / "empty" / "OUT" / "ts0.nii.gz").exists()
