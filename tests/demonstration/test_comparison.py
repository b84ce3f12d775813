import json

import matplotlib.image
import numpy as np
import pytest
import torch

from nnunet_ssl.demonstration.comparison import Comparison
from nnunet_ssl.demonstration.picture import draw
from nnunet_ssl.demonstration.synthetic_scans import Counts, synthetic_scan, write_dataset, write_nifti

TRAINERS = ("nnUNetTrainer_5epochs", "nnUNetTrainerMeanTeacher_5epochs")
DICE = {TRAINERS[0]: [[0.5, 0.3], [0.6, 0.6], [0.9, 0.7]], TRAINERS[1]: [[0.7, 0.5], [0.6, 0.5], [0.9, 0.9]]}


@pytest.fixture
def comparison(tmp_path):
    """Return what is read from files as nnU-Net leaves them."""
    raw = tmp_path / "raw"
    write_dataset(raw, Counts(labeled=1, unlabeled=1, held_out=3), seed=0)
    models, predictions = {}, {}
    for trainer, dice in DICE.items():
        models[trainer], predictions[trainer] = tmp_path / "models" / trainer, tmp_path / "predictions" / trainer
        (models[trainer] / "fold_0").mkdir(parents=True)
        checkpoint = {"network_weights": {}, "logging": {"mean_fg_dice": [np.float32(0.1), np.float32(0.4)]}}
        torch.save(checkpoint, models[trainer] / "fold_0" / "checkpoint_final.pth")
        rows = []
        for index, values in enumerate(dice):
            file = predictions[trainer] / f"heldout_{index:03d}.nii.gz"
            write_nifti(synthetic_scan(np.random.default_rng(index))[1], file)
            metrics = {str(label): {"Dice": value} for label, value in enumerate(values, start=1)}
            rows.append({"metrics": metrics, "prediction_file": str(file)})
        (predictions[trainer] / "summary.json").write_text(json.dumps({"metric_per_case": rows}))
    return Comparison.read(raw, models, predictions)


def test_differences_are_of_the_same_scan(comparison):
    assert comparison.differences() == pytest.approx([0.2, -0.05, 0.1])
    assert comparison.typical_case() == "heldout_002"


def test_text_has_mean_and_spread_of_every_structure(comparison):
    """By hand: organ 0.5, 0.6, 0.9 has mean 0.667 and sd 0.208; the differences 0.2, -0.05, 0.1: 0.083 and 0.126."""
    lines = comparison.text().splitlines()
    assert lines[0].split() == ["Dice,", "3", "held-out", "organ", "second", "mean", "of", "both"]
    assert [cell.strip() for cell in lines[1].split("  ") if cell][1:] == [
        "0.667 ± 0.208",
        "0.533 ± 0.208",
        "0.600 ± 0.200",
    ]
    assert lines[3] == "difference per scan: +0.083 ± 0.126, better in 2 of 3"


def test_curves_are_those_of_the_checkpoints(comparison):
    assert comparison.epoch_dice[TRAINERS[0]] == pytest.approx([0.1, 0.4])


def test_picture_shows_something(comparison, tmp_path):
    draw(comparison, tmp_path / "demo.png")
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert pixels.shape[0] > 800
    assert pixels[..., :3].std() > 0.05
