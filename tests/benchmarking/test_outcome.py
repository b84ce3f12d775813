"""What a result says of a training that is over."""

import argparse
import json

import numpy as np
import SimpleITK

from nnunet_ssl.benchmarking import outcome


def test_outcome_of_a_training():
    cases = {"a.1": {"1": 0.12345678, "2": float("nan")}, "b": {"1": 0.0, "2": 1.0}}
    summary = [
        {"prediction_file": f"/x/{case}.nii.gz", "metrics": {label: {"Dice": value} for label, value in dice.items()}}
        for case, dice in cases.items()
    ]
    found = outcome.dice_of({"metric_per_case": summary}, ".nii.gz")
    assert found == {"a.1": {"1": 0.123457, "2": None}, "b": {"1": 0.0, "2": 1.0}}

    class Logger:
        def get_value(self, key, step):
            return {"epoch_start_timestamps": [10.0, 100.0, 200.0], "epoch_end_timestamps": [20.0, 130.0]}[key]

    assert outcome.seconds_of(argparse.Namespace(logger=Logger())) == 40


def test_distances_by_hand(tmp_path):
    """Two rows of three voxels of 2 mm, one voxel apart: each end is 2 mm from one of the other; the core is missed."""
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    content = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"regions_class_order": [1, 2]}))
    reference, prediction = np.zeros((2, 1, 1, 8), np.uint8)
    reference[..., 2:4], reference[..., 4] = 1, 2
    prediction[..., 3:6] = 1
    for folder, array in (("gt_segmentations", reference), ("validation", prediction)):
        (tmp_path / folder).mkdir()
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((2.0, 1.0, 1.0))
        SimpleITK.WriteImage(image, str(tmp_path / folder / "a.nii.gz"))
    (tmp_path / "gt_segmentations" / "not_validated.nii.gz").touch()
    trainer = argparse.Namespace(
        preprocessed_dataset_folder_base=str(tmp_path),
        output_folder=str(tmp_path),
        plans_manager=argparse.Namespace(plans={"image_reader_writer": "SimpleITKIO"}),
        dataset_json=content,
    )
    assert outcome.distances_of(trainer) == {
        "hd95": {"a": {"(1, 2)": 2.0, "2": None}},
        "asd": {"a": {"(1, 2)": 2.0, "2": None}},
    }


def test_cost_is_that_of_our_trainers_and_of_those_built_on_them():
    ours = type("Base", (), {"__module__": "nnunet_ssl.training.base", "STEP_COST": 7 / 3})
    renamed = type("nnUNetTrainerMine", (ours,), {"__module__": "mine", "STEP_COST": 2.0})
    assert (outcome.cost_of(ours), outcome.cost_of(renamed), outcome.cost_of(dict)) == (2.3333, 2.0, None)
