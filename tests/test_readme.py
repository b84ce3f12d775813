"""The commands with which README.md begins, word by word, on synthetic scans and with a tiny network."""

import re
from pathlib import Path

import pytest

from tests.test_end_to_end import make_workplace, write_synthetic_dataset
from tests.test_getting_started import run_on_cpu, with_tiny_network

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_from_the_beginning_to_a_prediction(tmp_path):
    place = make_workplace(tmp_path, "Dataset004_Hippocampus")
    write_synthetic_dataset(place.root / "raw" / place.dataset)
    block = re.search(r"From the beginning:\n\n```\n(.*?)```", README, re.DOTALL)[1]
    variables, *lines = (line.partition("#")[0].strip() for line in block.splitlines())
    plans, *others = filter(None, lines)
    assert variables.startswith("export nnUNet_raw=")
    assert plans.startswith("nnUNetv2_plan_and_preprocess")
    assert any("-tr nnUNetTrainerSSL" in command for command in others)
    for checks in ("nnunet_ssl doctor -d 4", "nnunet_ssl audit -d 4"):
        assert f"`{checks}`" in README
        others.insert(1, checks)

    place.run(f"{plans} -np 1 -npfp 1")
    with_tiny_network(place.root / "preprocessed" / place.dataset / "nnUNetPlans.json")
    for command in others:
        of_nnunet = command == "nnUNetv2_train 4 3d_fullres 0"
        run_on_cpu(place, command + " -tr nnUNetTrainer_1epoch" * of_nnunet, num_epochs=1)
    assert (place.root / "empty" / "OUT" / "ts0.nii.gz").exists()
