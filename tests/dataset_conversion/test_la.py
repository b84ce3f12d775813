import h5py
import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.dataset_conversion.Dataset128_LA import convert
from nnunet_ssl.splits.protocols import load_benchmark
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import (
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    random_labels,
    random_volume,
    read,
    shear,
    spacing_of,
    write,
)

TRAIN, TEST = load_benchmark("la").train[0], load_benchmark("la").test[0]
SPACING = (0.625,) * 3


@pytest.fixture
def challenge(source):
    for seed, case in enumerate((TRAIN, TEST)):
        folder = source / "Training Set" / case
        write(random_labels(seed, tuple(range(256))), folder / "lgemri.nrrd")
        write(random_labels(seed, (0, 255)), folder / "laendo.nrrd")
    write(random_volume(9), source / "Testing Set" / "XYZ" / "lgemri.nrrd")
    return source


def test_challenge_folders(raw, challenge):
    folder = convert(challenge, num_processes=1)
    assert names(folder / "labelsTr") == [TRAIN]
    assert names(folder / "labelsTs") == [TEST]
    np.testing.assert_array_equal(read(folder / "labelsTr" / f"{TRAIN}.nii.gz"), random_labels(0, (0, 255)) // 255)
    np.testing.assert_array_equal(
        read(folder / "imagesTr" / f"{TRAIN}_0000.nii.gz"), random_labels(0, tuple(range(256)))
    )
    assert spacing_of(folder / "labelsTr" / f"{TRAIN}.nii.gz") == pytest.approx(SPACING)
    check_integrity(folder)


def test_hdf5_axes_are_x_y_z(raw, source):
    image, label = random_volume(1, (12, 10, 4)), random_labels(1, (0, 1), (12, 10, 4))
    (source / TRAIN).mkdir()
    with h5py.File(source / TRAIN / "mri_norm2.h5", "w") as opened:
        opened["image"], opened["label"] = image, label
    folder = convert(source, num_processes=1)
    voxels = read(folder / "imagesTr" / f"{TRAIN}_0000.nii.gz")
    assert voxels.shape == (4, 10, 12)
    assert voxels[3, 2, 1] == image[1, 2, 3]
    np.testing.assert_array_equal(read(folder / "labelsTr" / f"{TRAIN}.nii.gz").T, label)
    assert spacing_of(folder / "imagesTr" / f"{TRAIN}_0000.nii.gz") == pytest.approx(SPACING)


def test_challenges_files_are_taken_where_both_are(raw, challenge):
    with h5py.File(challenge / "Training Set" / TRAIN / "mri_norm2.h5", "w") as opened:
        opened["image"], opened["label"] = random_volume(1), random_labels(1, (0, 1))
    folder = convert(challenge, num_processes=1)
    np.testing.assert_array_equal(read(folder / "labelsTr" / f"{TRAIN}.nii.gz"), random_labels(0, (0, 255)) // 255)


def test_faults_are_named(raw, challenge, source):
    labels = source / "Training Set" / TRAIN / "laendo.nrrd"
    write(random_labels(0, (0, 7)), labels)
    with pytest.raises(ValueError, match=r"laendo.nrrd: label values \[0, 7\], expected 0 and 255"):
        convert(challenge, num_processes=1)
    labels.unlink()
    with pytest.raises(ValueError, match="laendo.nrrd is missing"):
        convert(challenge, num_processes=1)
    with pytest.raises(ValueError, match="no known layout of LA, expected Training Set"):
        convert(source / "Testing Set")
    assert_nothing_left(raw)


def no_labels(folder):
    (folder / "laendo.nrrd").unlink()


def no_image(folder):
    (folder / "lgemri.nrrd").unlink()


def neither(folder):
    no_labels(folder)
    no_image(folder)


def sheared(folder):
    shear(folder / "lgemri.nrrd")


def sheared_labels(folder):
    shear(folder / "laendo.nrrd")


def no_spacing(folder):
    file = folder / "lgemri.nrrd"
    file.write_bytes(file.read_bytes().replace(b"(0,0,1)", b"(0,0,0)"))


def flat(folder):
    write(random_volume(0)[0], folder / "lgemri.nrrd")


def cut_off(folder):
    file = folder / "lgemri.nrrd"
    file.write_bytes(file.read_bytes()[:-200])


def other_grid(folder):
    write(random_labels(0, (0, 255), (4, 12, 11)), folder / "laendo.nrrd")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_labels, "laendo.nrrd is missing, the other half of a pair"),
        (no_image, "lgemri.nrrd is missing, the other half of a pair"),
        (neither, f"{TRAIN} has neither lgemri.nrrd nor mri_norm2.h5"),
        (sheared, "lgemri.nrrd: the axes in its header are not perpendicular"),
        (sheared_labels, "laendo.nrrd: the axes in its header are not perpendicular"),
        (no_spacing, "lgemri.nrrd: its header gives a voxel size of 0"),
        (flat, "lgemri.nrrd has 2 dimensions, expected 3"),
        (cut_off, "lgemri.nrrd is damaged, or no image"),
        (other_grid, "laendo.nrrd: the labels have (11, 12, 4) voxels, the image (10, 12, 4)"),
    ],
)
def test_broken_case_is_left_out_and_the_rest_converted(raw, challenge, damage, reason, capsys):
    damage(challenge / "Training Set" / TRAIN)
    folder = assert_left_out("LA", challenge, raw, capsys, {TRAIN: reason})
    assert names(folder / "labelsTs") == [TEST]


def test_broken_hdf5_file_is_left_out(raw, source, capsys):
    for case, shape in ((TRAIN, (12, 10)), (TEST, (12, 10, 4))):
        (source / case).mkdir()
        with h5py.File(source / case / "mri_norm2.h5", "w") as opened:
            opened["image"], opened["label"] = random_volume(1, shape), random_labels(1, (0, 1), shape)
    assert_left_out("LA", source, raw, capsys, {TRAIN: "mri_norm2.h5 has 2 dimensions, expected 3"})


def test_folder_of_one_case_is_that_case(raw, challenge):
    folder = convert(challenge / "Training Set" / TRAIN, num_processes=1)
    assert [names(folder / f"images{role}") for role in ("Tr", "Ts")] == [[f"{TRAIN}_0000"], []]


def test_cases_of_the_lists_that_are_not_here_are_said(raw, challenge, capsys):
    (challenge / "train.list").write_text("\n".join(load_benchmark("la").train))
    (challenge / "test.list").write_text("\n".join(load_benchmark("la").test))
    convert(challenge, num_processes=1)
    assert "note: cases of test.list and train.list that are not here: 98 (" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real LA data are not here")
def test_real_volumes(raw):
    folder = convert(SHARED_DATA / "LA")
    cases = names(folder / "labelsTr")
    assert cases == sorted(load_benchmark("la").train[:20])
    for case in cases:
        with h5py.File(SHARED_DATA / "LA" / "2018LA_Seg_Training Set" / case / "mri_norm2.h5") as opened:
            np.testing.assert_array_equal(read(folder / "imagesTr" / f"{case}_0000.nii.gz").T, opened["image"][()])
            np.testing.assert_array_equal(read(folder / "labelsTr" / f"{case}.nii.gz").T, opened["label"][()])


def test_the_header_says_how_large_voxels_are(raw, challenge):
    """Of scans that somebody has resampled; 1 mm is what a header says that knows nothing."""
    for name in ("lgemri.nrrd", "laendo.nrrd"):
        file = challenge / "Training Set" / TRAIN / name
        image = SimpleITK.ReadImage(str(file))
        image.SetSpacing((1.25, 1.25, 2.5))
        SimpleITK.WriteImage(image, str(file))
    folder = convert(challenge, num_processes=1)
    assert spacing_of(folder / "imagesTr" / f"{TRAIN}_0000.nii.gz") == pytest.approx((1.25, 1.25, 2.5))
    assert spacing_of(folder / "labelsTr" / f"{TRAIN}.nii.gz") == pytest.approx((1.25, 1.25, 2.5))
