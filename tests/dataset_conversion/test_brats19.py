import json

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.dataset_conversion.Dataset243_BraTS19 import convert
from nnunet_ssl.splits.protocols import load_benchmark
from tests.dataset_conversion.conftest import (
    PIXDIM_Z,
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    patch_nifti,
    random_labels,
    random_volume,
    read,
    shear_nifti,
    write,
)

TRAIN, TEST = load_benchmark("brats").train[0], load_benchmark("brats").test[0]
LABELS = random_labels(0, (0, 1, 2, 4))


@pytest.fixture
def tree(source):
    for grade, case, ending in (("HGG", TRAIN, ".nii.gz"), ("LGG", TEST, ".nii")):
        folder = source / "MICCAI_BraTS_2019_Data_Training" / grade / case
        for seed, kind in enumerate(("flair", "t1", "t1ce", "t2")):
            write(random_volume(seed), folder / f"{case}_{kind}{ending}")
        write(LABELS, folder / f"{case}_seg{ending}")
    return source


def test_flair_and_whole_tumor_as_in_the_literature(raw, tree):
    folder = convert(tree, num_processes=1)
    assert names(folder / "imagesTr") == [f"{TRAIN}_0000"]
    assert names(folder / "labelsTs") == [TEST]
    np.testing.assert_array_equal(read(folder / "imagesTr" / f"{TRAIN}_0000.nii.gz"), random_volume(0))
    np.testing.assert_array_equal(read(folder / "labelsTr" / f"{TRAIN}.nii.gz"), LABELS > 0)
    check_integrity(folder)


def test_regions_and_all_channels(raw, tree):
    folder = convert(tree, regions=True, all_channels=True, num_processes=1)
    assert names(folder / "imagesTr") == [f"{TRAIN}_{channel:04d}" for channel in range(4)]
    np.testing.assert_array_equal(read(folder / "imagesTr" / f"{TRAIN}_0002.nii.gz"), random_volume(2))
    labels = read(folder / "labelsTr" / f"{TRAIN}.nii.gz")
    for source, target in ((0, 0), (1, 2), (2, 1), (4, 3)):
        np.testing.assert_array_equal(labels == target, source == LABELS)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"]["tumor_core"] == [2, 3]
    assert description["regions_class_order"] == [1, 2, 3]
    assert description["channel_names"] == {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    check_integrity(folder)


def test_faults_are_named(raw, tree, source):
    folder = source / "MICCAI_BraTS_2019_Data_Training" / "HGG" / TRAIN
    write(random_labels(0, (0, 3)), folder / f"{TRAIN}_seg.nii.gz")
    with pytest.raises(ValueError, match=r"_seg.nii.gz: label value 3 found, expected only \[0, 1, 2, 4\]"):
        convert(tree, num_processes=1)
    write(LABELS, folder / f"{TRAIN}_seg.nii.gz")
    write(random_volume(1, (4, 12, 11)), folder / f"{TRAIN}_t1.nii.gz")
    with pytest.raises(
        ValueError, match=rf"{TRAIN}: its channels differ in size, \(10, 12, 4\) and \(11, 12, 4\) voxels"
    ):
        convert(tree, all_channels=True, num_processes=1)
    (folder / f"{TRAIN}_flair.nii.gz").unlink()
    with pytest.raises(ValueError, match=f"{TRAIN}_flair.nii.gz is missing"):
        convert(tree, num_processes=1)
    with pytest.raises(ValueError, match="no known layout of BraTS 2019, expected HGG"):
        convert(folder)
    assert_nothing_left(raw)


def no_labels(folder):
    (folder / f"{TRAIN}_seg.nii.gz").unlink()


def no_files(folder):
    for file in folder.iterdir():
        file.unlink()


def sheared(folder):
    shear_nifti(folder / f"{TRAIN}_flair.nii.gz")


def sheared_labels(folder):
    shear_nifti(folder / f"{TRAIN}_seg.nii.gz")


def spacing_is_no_number(folder):
    patch_nifti(folder / f"{TRAIN}_flair.nii.gz", PIXDIM_Z, float("nan"))


def unknown_value(folder):
    write(random_labels(0, (0, 3)), folder / f"{TRAIN}_seg.nii.gz")


def other_grid(folder):
    write(LABELS, folder / f"{TRAIN}_seg.nii.gz", (1.0, 1.0, 3.0))


def colored_labels(folder):
    image = SimpleITK.GetImageFromArray(np.zeros((4, 12, 10, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(folder / f"{TRAIN}_seg.nii.gz"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_labels, f"{TRAIN}_seg.nii.gz is missing"),
        (no_files, f"{TRAIN}_flair.nii.gz is missing"),
        (sheared, f"{TRAIN}_flair.nii.gz: the axes in its header are not perpendicular"),
        (sheared_labels, f"{TRAIN}_seg.nii.gz: the axes in its header are not perpendicular"),
        (spacing_is_no_number, f"{TRAIN}_flair.nii.gz: its header holds values that are not finite"),
        (unknown_value, f"{TRAIN}_seg.nii.gz: label value 3 found"),
        (other_grid, f"{TRAIN}_seg.nii.gz: the labels have the spacing (1.0, 1.0, 3.0)"),
        (colored_labels, f"{TRAIN}_seg.nii.gz holds 3 values in each voxel, expected 1"),
    ],
)
def test_broken_case_is_left_out_and_the_rest_converted(raw, tree, source, damage, reason, capsys):
    damage(source / "MICCAI_BraTS_2019_Data_Training" / "HGG" / TRAIN)
    folder = assert_left_out("BraTS19", tree, raw, capsys, {TRAIN: reason})
    assert names(folder / "labelsTs") == [TEST]


def test_channel_that_is_not_used_may_be_broken(raw, tree, source):
    (source / "MICCAI_BraTS_2019_Data_Training" / "HGG" / TRAIN / f"{TRAIN}_t1.nii.gz").write_bytes(b"")
    assert names(convert(tree, num_processes=1) / "labelsTr") == [TRAIN]
    with pytest.raises(ValueError, match=f"{TRAIN}: .*{TRAIN}_t1.nii.gz is damaged.*; --allow-missing leaves"):
        convert(tree, dataset_id=244, all_channels=True, num_processes=1)


def test_channel_on_another_grid_is_refused(raw, tree, source):
    write(
        random_volume(1), source / "MICCAI_BraTS_2019_Data_Training" / "HGG" / TRAIN / f"{TRAIN}_t1.nii.gz", (1, 1, 2)
    )
    with pytest.raises(ValueError, match=r"channel 1 has the spacing \(1.0, 1.0, 2.0\), channel 0 \(1.0, 1.0, 1.0\)"):
        convert(tree, all_channels=True, num_processes=1)
