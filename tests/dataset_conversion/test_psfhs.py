import numpy as np
import pytest

from nnunet_ssl.dataset_conversion.Dataset219_PSFHS import convert
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import (
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    random_labels,
    read,
    shear,
    write,
)

GRAY = random_labels(0, tuple(range(256)), (16, 18))
LABELS = random_labels(1, (0, 1, 2), (16, 18))


@pytest.fixture
def tree(source):
    for name in ("03744", "03745"):
        write(np.stack([GRAY] * 3), source / "image_mha" / f"{name}.mha")
        write(LABELS, source / "label_mha" / f"{name}.mha")
    return source


def test_one_of_three_equal_channels_is_kept(raw, tree):
    folder = convert(tree, num_processes=1)
    assert names(folder / "imagesTr") == ["03744_0000", "03745_0000"]
    np.testing.assert_array_equal(read(folder / "imagesTr" / "03744_0000.nii.gz"), GRAY)
    np.testing.assert_array_equal(read(folder / "labelsTr" / "03744.nii.gz"), LABELS)
    check_integrity(folder)


def different_channels(tree):
    write(np.stack([GRAY, GRAY, GRAY // 2]), tree / "image_mha" / "03745.mha")


def no_label(tree):
    (tree / "label_mha" / "03745.mha").unlink()


def no_image(tree):
    (tree / "image_mha" / "03745.mha").unlink()


def one_channel(tree):
    write(GRAY, tree / "image_mha" / "03745.mha")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (different_channels, "03745.mha: its three channels differ"),
        (no_label, "label_mha/03745.mha is missing"),
        (no_image, "image_mha/03745.mha is missing"),
        (one_channel, r"03745.mha has the shape \(16, 18\), expected three channels"),
    ],
)
def test_faults_are_named_and_leave_nothing(raw, tree, damage, message):
    damage(tree)
    with pytest.raises(ValueError, match=message):
        convert(tree, num_processes=1)
    assert_nothing_left(raw)


def sheared(tree):
    shear(tree / "image_mha" / "03745.mha")


def no_spacing(tree):
    file = tree / "label_mha" / "03745.mha"
    file.write_bytes(file.read_bytes().replace(b"ElementSpacing = 1 1", b"ElementSpacing = 1 0"))


def unknown_value(tree):
    write(random_labels(1, (0, 3), (16, 18)), tree / "label_mha" / "03745.mha")


def other_grid(tree):
    write(LABELS, tree / "label_mha" / "03745.mha", (1.0, 2.0))


def labels_of_three_channels(tree):
    write(np.stack([LABELS] * 3), tree / "label_mha" / "03745.mha")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_label, "label_mha/03745.mha is missing"),
        (no_image, "image_mha/03745.mha is missing"),
        (different_channels, "image_mha/03745.mha: its three channels differ"),
        (sheared, "image_mha/03745.mha: the axes in its header are not perpendicular"),
        (no_spacing, "label_mha/03745.mha: its header gives a voxel size of 0"),
        (unknown_value, "label_mha/03745.mha: label value 3 found"),
        (other_grid, "label_mha/03745.mha: the labels have the spacing (1.0, 2.0)"),
        (labels_of_three_channels, "label_mha/03745.mha has 3 dimensions, expected 2"),
    ],
)
def test_broken_pair_is_left_out_and_the_rest_converted(raw, tree, damage, reason, capsys):
    damage(tree)
    folder = assert_left_out("PSFHS", tree, raw, capsys, {"03745": reason})
    assert names(folder / "labelsTr") == ["03744"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real PSFHS data are not here")
def test_real_images(raw):
    folder = convert(SHARED_DATA / "PSFHS")
    assert len(names(folder / "labelsTr")) == 90
    for case in names(folder / "labelsTr"):
        image, labels = (read(SHARED_DATA / "PSFHS" / f"{kind}_mha" / f"{case}.mha") for kind in ("image", "label"))
        np.testing.assert_array_equal(read(folder / "imagesTr" / f"{case}_0000.nii.gz"), image[0])
        np.testing.assert_array_equal(read(folder / "labelsTr" / f"{case}.nii.gz"), labels)
