import json

import numpy as np
import pytest
import SimpleITK
from skimage import io

from nnunet_ssl.evaluation.data_notes import notes_about
from nnunet_ssl.evaluation.structures import Structures

CONTENT = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]


@pytest.fixture
def dataset(tmp_path):
    """Return a raw data set of three cases with two folds, and its references."""
    raw, preprocessed = tmp_path / "raw" / "Dataset001_A", tmp_path / "preprocessed"
    for folder in (raw / "imagesTr", preprocessed / "gt_segmentations"):
        folder.mkdir(parents=True)
    for seed, case in enumerate("abc"):
        write_image(raw, case, seed)
        labels = SimpleITK.GetImageFromArray(np.ones((2, 3, 4), np.uint8))
        SimpleITK.WriteImage(labels, str(preprocessed / "gt_segmentations" / f"{case}.nii.gz"))
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(CONTENT))
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    return raw, preprocessed


def write_image(raw, case: str, seed: int) -> None:
    voxels = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(raw / "imagesTr" / f"{case}_0000.nii.gz"))


def notes(raw, preprocessed, folds=("0", "1")) -> list[str]:
    structures = Structures.of_dataset(preprocessed / "dataset.json", None, preprocessed / "gt_segmentations")
    return notes_about(raw, preprocessed, [preprocessed / "gt_segmentations"], structures, folds)


def test_nothing_is_said_of_plain_data(dataset):
    assert notes(*dataset) == []


@pytest.mark.parametrize(("pair", "folds"), [("ac", ("0", "1")), ("bc", ("0",)), ("ab", ("1",))])
def test_one_image_in_training_and_validation_is_said_of_each_fold(dataset, pair, folds):
    for case in pair:
        write_image(dataset[0], case, 7)
    found = notes(*dataset)
    assert [note.partition(":")[0] for note in found] == [f"fold {fold}" for fold in folds]
    assert all(f"{pair[0]} = {pair[1]}" in note for note in found)
    assert all("nnunet_ssl split Dataset001_A --labeled 100% --overwrite" in note for note in found)
    assert notes(*dataset, folds=()) == []
    (dataset[0] / "dataset.json").unlink()
    assert notes(*dataset) == []


@pytest.mark.parametrize("content", ["{", '{"file_ending": ".nii.gz"}', '{"labels": {}, "file_ending": ".xyz"}'])
def test_what_cannot_be_looked_at_is_said_and_costs_nothing(dataset, content):
    (dataset[0] / "dataset.json").write_text(content)
    (note,) = notes(*dataset)
    assert note.startswith("identical images could not be looked at: ")


def test_a_damaged_reference_is_no_reason_to_stop(dataset):
    for file in (dataset[1] / "gt_segmentations").iterdir():
        if file.name == "a.nii.gz":
            file.write_bytes(b"")
    assert notes(*dataset) == []


def test_an_older_conversion_is_named(dataset):
    file = dataset[1] / "dataset.json"
    file.write_text(json.dumps(CONTENT | {"name": "HC18", "converted_by": "nnunet_ssl"}))
    (note,) = notes(*dataset)
    assert note.startswith("HC18 was converted by an older version")


def test_distances_of_a_format_without_spacing_are_in_voxels(dataset):
    folder = dataset[1] / "gt_segmentations"
    for file in folder.iterdir():
        file.unlink()
    io.imsave(folder / "a.png", np.ones((4, 5), np.uint8), check_contrast=False)
    (dataset[1] / "dataset.json").write_text(json.dumps(CONTENT | {"file_ending": ".png"}))
    (note,) = notes(*dataset)
    assert note == ".png files do not say how large a voxel is: distances are in voxels, and there is no volume"


def test_groups_that_are_no_patients_are_said(dataset):
    raw, preprocessed = dataset
    for changes, expected in (
        ({}, 0),
        ({"unit": "patients", "patient_pattern": "."}, 0),
        ({"unit": "blocks of ten consecutive images", "patient_pattern": "."}, 1),
    ):
        (preprocessed / "dataset.json").write_text(json.dumps(CONTENT | changes))
        said = [note for note in notes(raw, preprocessed) if "what counts as a patient here is blocks of ten" in note]
        assert len(said) == expected
