import json

import numpy as np
import pytest

from nnunet_ssl.dataset_conversion.Dataset243_BraTS19 import convert
from nnunet_ssl.splits.protocols import load_benchmark
from tests.dataset_conversion.conftest import (
    assert_nothing_left,
    check_integrity,
    names,
    random_labels,
    random_volume,
    read,
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
