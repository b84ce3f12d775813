"""A header that does not say where the voxels lie is refused with the file's name: ITK corrects it without a word."""

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.conversion.checks import check_images, check_labels, read_checked
from tests.dataset_conversion.conftest import (
    PIXDIM_Z,
    QOFFSET_X,
    SROW_X_Y,
    patch_nifti,
    random_labels,
    random_volume,
    shear,
    shear_nifti,
    write,
)

SPACING = (1.5, 1.5, 8.0)
NOT_ABOVE_0, NOT_FINITE, SHEARED = "expected lengths above 0", "not finite", "not perpendicular"


def nifti(folder, affine):
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 12, 4), np.float32), affine), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (PIXDIM_Z, 0.0, NOT_ABOVE_0),
        (PIXDIM_Z, -8.0, NOT_ABOVE_0),
        (PIXDIM_Z, float("nan"), NOT_FINITE),
        (PIXDIM_Z, float("inf"), NOT_FINITE),
        (SROW_X_Y, float("nan"), NOT_FINITE),
        (SROW_X_Y, 0.5, SHEARED),  # of the sform, with a qform beside it
        (QOFFSET_X, float("nan"), NOT_FINITE),
    ],
)
def test_odd_nifti_header_is_refused(tmp_path, name, offset, value, problem):
    write(random_volume(0), tmp_path / name, SPACING)
    patch_nifti(tmp_path / name, offset, value)
    with pytest.raises(ValueError, match=rf"{name}: .*{problem}"):
        read_checked(tmp_path / name)


def test_sheared_nifti_is_refused(tmp_path):
    write(random_volume(0), tmp_path / "scan.nii.gz", SPACING)
    shear_nifti(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=rf"scan.nii.gz: .*{SHEARED}"):
        read_checked(tmp_path / "scan.nii.gz")


def rewritten(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))
    return file


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("scan.mha", b"ElementSpacing = 1.5 1.5 8", b"ElementSpacing = 1.5 1.5 0", "voxel size of 0"),
        ("scan.mha", b"ElementSpacing = 1.5 1.5 8", b"ElementSpacing = 1.5 1.5 nan", "voxel size of 0"),
        ("scan.mha", b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 1 0 0", SHEARED),
        ("scan.mha", b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 .4 1 0", SHEARED),
        ("scan.nrrd", b"(0,0,8)", b"(0,0,0)", "voxel size of 0"),
        ("scan.nrrd", b"(0,1.5,0)", b"(1,1.5,0)", SHEARED),
        ("scan.nrrd", b"(0,1.5,0)", b"(1.5,0,0)", SHEARED),
    ],
)
def test_odd_mha_and_nrrd_headers_are_refused(tmp_path, name, old, new, problem):
    write(random_volume(0), tmp_path / name, SPACING)
    with pytest.raises(ValueError, match=rf"{name}: .*{problem}"):
        read_checked(rewritten(tmp_path / name, old, new))


def turned(degrees):
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    affine = np.diag([*SPACING, 1.0])
    affine[:2, :2] = 1.5 * np.array([[cosine, -sine], [sine, cosine]])
    return affine


@pytest.mark.parametrize("affine", [turned(0), turned(17.3), turned(90), np.diag([-1.5, -1.5, 8, 1])])
def test_turned_and_mirrored_images_are_read(tmp_path, affine):
    image = read_checked(nifti(tmp_path, affine), 3)
    assert image.GetSpacing() == pytest.approx(SPACING)


def test_sform_without_the_scales_of_the_qform_is_read(tmp_path):
    """As ACDC has it: the qform has the voxel size, the sform is of 1 mm."""
    write(random_volume(0), tmp_path / "scan.nii.gz", SPACING)
    for offset, value in ((280, -1.0), (300, -1.0), (320, 1.0)):  # the sform's diagonal
        patch_nifti(tmp_path / "scan.nii.gz", offset, value)
    assert nibabel.load(tmp_path / "scan.nii.gz").affine[2, 2] == 1.0
    assert read_checked(tmp_path / "scan.nii.gz").GetSpacing() == pytest.approx(SPACING)


def test_time_without_a_step_is_no_fault(tmp_path):
    """The fourth length of a sequence is none in space."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 12, 4, 5), np.float32), np.eye(4)), tmp_path / "scan.nii")
    patch_nifti(tmp_path / "scan.nii", PIXDIM_Z + 4, 0.0)
    assert read_checked(tmp_path / "scan.nii", 4).GetSize() == (10, 12, 4, 5)


@pytest.mark.parametrize(
    ("shape", "problem"), [((12, 10), "2 dim"), ((3, 4, 12, 10), "4 dim"), ((4, 12, 10, 3), "3 val")]
)
def test_other_dimensions_and_colors_are_refused(tmp_path, shape, problem):
    image = SimpleITK.GetImageFromArray(np.zeros(shape, np.uint8), isVector=shape[-1] == 3)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    with pytest.raises(ValueError, match=f"scan.nii.gz .*{problem}"):
        read_checked(tmp_path / "scan.nii.gz", 3)


def image_of(array, spacing=SPACING, direction=None):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    if direction:
        image.SetDirection(direction)
    return image


@pytest.mark.parametrize(
    ("spacing", "direction", "problem"),
    [
        ((1.5, 1.5, 4.0), None, r"the spacing \(1.5, 1.5, 4.0\)"),
        (SPACING, (-1, 0, 0, 0, -1, 0, 0, 0, 1), r"the direction \(-1.0"),
        ((1.5, 1.8, 8.0), None, r"the spacing \(1.5, 1.8, 8.0\)"),
    ],
)
def test_channels_and_labels_on_another_grid_are_refused(tmp_path, spacing, direction, problem):
    image = image_of(random_volume(0))
    with pytest.raises(ValueError, match=f"case: channel 1 has {problem}"):
        check_images([image, image_of(random_volume(1), spacing, direction)], tmp_path / "case", 3)
    with pytest.raises(ValueError, match=f"case: the labels have {problem}"):
        check_labels(image_of(random_labels(1, (0, 1)), spacing, direction), image, tmp_path / "case", {0, 1})


def test_sheared_file_of_another_format_is_refused(tmp_path):
    for name in ("scan.mha", "scan.nrrd"):
        write(random_volume(0), tmp_path / name, SPACING)
        shear(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: .*{SHEARED}"):
            read_checked(tmp_path / name)
