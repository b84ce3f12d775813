import locale

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.data.image_files import kept_locale
from nnunet_ssl.dataset_conversion.Dataset182_PancreasCT import convert
from tests.dataset_conversion.conftest import (
    PIXDIM_Z,
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    patch_nifti,
    read,
    shear_nifti,
    spacing_of,
    write,
)

SPACING = (0.8, 0.8, 2.0)
SHAPE = (6, 20, 24)
TRAIN, TEST = "0002", "0001"  # of the published lists


def abdomen() -> tuple[np.ndarray, np.ndarray]:
    """Return air in HU, with soft tissue where the label is and nowhere else near its mirror images."""
    image = np.full(SHAPE, -800, np.int16)
    image += np.arange(SHAPE[0], dtype=np.int16)[:, None, None]
    label = np.zeros(SHAPE, np.uint8)
    label[1, 3:8, 4:12] = 1
    image[label > 0] = 60
    return image, label


def write_dicom(image: np.ndarray, folder, step: float = SPACING[2]) -> None:
    """Write a series whose files are in no order of position."""
    folder.mkdir(parents=True)
    for index, plane in enumerate(image):
        slice_ = SimpleITK.GetImageFromArray(plane)
        slice_.SetSpacing(SPACING[:2])
        for tag, value in (
            ("0008|0060", "CT"),
            ("0020|000e", "1.2.826.0.1.3680043.2.1125.1"),
            ("0020|000d", "1.2.826.0.1.3680043.2.1125"),
            ("0008|0018", f"1.2.826.0.1.3680043.2.1125.1.{index + 1}"),
            ("0020|0032", f"0\\0\\{index * step}"),
            ("0020|0037", "1\\0\\0\\0\\1\\0"),
            ("0020|0013", str(index)),
            ("0018|0050", str(SPACING[2])),
        ):
            slice_.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{(7 * index) % 10}.dcm"))
        with kept_locale():
            writer.Execute(slice_)


@pytest.fixture
def archive(source):
    image, label = abdomen()
    for number in (TRAIN, TEST):
        write_dicom(image, source / "Pancreas-CT" / f"PANCREAS_{number}" / "study" / "series")
        write(label, source / "TCIA_pancreas_labels" / f"label{number}.nii.gz", SPACING)
    return source


def test_dicom_folders(raw, archive):
    before = locale.setlocale(locale.LC_ALL)
    folder = convert(archive, num_processes=1)
    assert locale.setlocale(locale.LC_ALL) == before  # which GDCM changes
    assert names(folder / "labelsTr") == [f"PANCREAS_{TRAIN}"]
    assert names(folder / "labelsTs") == [f"PANCREAS_{TEST}"]
    image, label = abdomen()
    np.testing.assert_array_equal(read(folder / "imagesTr" / f"PANCREAS_{TRAIN}_0000.nii.gz"), image)
    np.testing.assert_array_equal(read(folder / "labelsTr" / f"PANCREAS_{TRAIN}.nii.gz"), label)
    assert spacing_of(folder / "imagesTr" / f"PANCREAS_{TRAIN}_0000.nii.gz") == pytest.approx(SPACING)
    check_integrity(folder)


@pytest.mark.parametrize(("axes", "said"), [((), None), ((1,), "y"), ((0,), "z"), ((0, 1), "y and z")])
@pytest.mark.parametrize("name", ["PANCREAS_0002", "image0002"])
def test_nifti_with_labels_in_any_direction(raw, source, axes, said, name, capsys):
    image, label = abdomen()
    write(image, source / f"{name}.nii.gz", SPACING)
    write(np.ascontiguousarray(np.flip(label, axes)), source / "label0002.nii.gz", SPACING)
    folder = convert(source, num_processes=1)
    np.testing.assert_array_equal(read(folder / "labelsTr" / "PANCREAS_0002.nii.gz"), label)
    expected = f"label0002.nii.gz: turned over along {said} to fit its image\n" if said else ""
    assert capsys.readouterr().out == expected


def no_label(tree):
    (tree / "TCIA_pancreas_labels" / f"label{TRAIN}.nii.gz").unlink()


def no_image(tree):
    write(abdomen()[1], tree / "TCIA_pancreas_labels" / "label0007.nii.gz", SPACING)


def second_image(tree):
    write(abdomen()[0], tree / f"image{TRAIN}.nii.gz", SPACING)


def other_size(tree):
    write(np.ones((6, 20, 23), np.uint8), tree / "TCIA_pancreas_labels" / f"label{TRAIN}.nii.gz", SPACING)


def empty_label(tree):
    write(np.zeros(SHAPE, np.uint8), tree / "TCIA_pancreas_labels" / f"label{TRAIN}.nii.gz", SPACING)


def label_in_air(tree):
    label = np.zeros(SHAPE, np.uint8)
    label[3, 9:11, 20:22] = 1
    write(label, tree / "TCIA_pancreas_labels" / f"label{TRAIN}.nii.gz", SPACING)


def second_series(tree):
    image = abdomen()[0]
    write_dicom(image, tree / "Pancreas-CT" / f"PANCREAS_{TRAIN}" / "study" / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_image, "PANCREAS_0007 is missing, the image of .*label0007.nii.gz"),
        (second_image, "image0002.nii.gz are both number 0002: keep one of them"),
        (no_label, "label0002.nii.gz is missing, the label of .*PANCREAS_0002"),
        (other_size, r"label0002.nii.gz has \(23, 20, 6\) voxels, its image .* \(24, 20, 6\)"),
        (empty_label, "label0002.nii.gz is empty"),
        (label_in_air, "label0002.nii.gz fits its image in no direction: 0% of it is soft tissue"),
        (second_series, "PANCREAS_0002 holds 2 DICOM series, expected 1"),
    ],
)
def test_faults_are_named_and_leave_nothing(raw, archive, damage, message):
    damage(archive)
    with pytest.raises(ValueError, match=message):
        convert(archive, num_processes=1)
    assert_nothing_left(raw)


def series_of(tree):
    return tree / "Pancreas-CT" / f"PANCREAS_{TRAIN}" / "study" / "series"


def no_slices(tree):
    for file in series_of(tree).iterdir():
        file.unlink()


def missing_slice_in_between(tree):
    (series_of(tree) / "1.dcm").unlink()  # the fourth of six
    write(abdomen()[1][:5], tree / "TCIA_pancreas_labels" / f"label{TRAIN}.nii.gz", SPACING)


def missing_last_slice(tree):
    (series_of(tree) / "5.dcm").unlink()


def damaged_slice(tree):
    file = series_of(tree) / "1.dcm"
    file.write_bytes(file.read_bytes()[:200])


def pixels_of_no_size(tree):
    for file in series_of(tree).iterdir():
        file.write_bytes(file.read_bytes().replace(b".8\\.8 ", b"0\\0   "))


def pixels_of_any_size(tree):
    file = series_of(tree) / "4.dcm"
    file.write_bytes(file.read_bytes().replace(b".8\\.8 ", b"nan\\1 "))


def slices_in_one_place(tree):
    no_slices(tree)
    write_dicom(abdomen()[0], series_of(tree).with_name("again"), step=0.0)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_label, f"label{TRAIN}.nii.gz is missing, the label of "),
        (second_image, f"are both number {TRAIN}: keep one of them"),
        (other_size, f"label{TRAIN}.nii.gz has (23, 20, 6) voxels"),
        (empty_label, f"label{TRAIN}.nii.gz is empty"),
        (second_series, f"PANCREAS_{TRAIN} holds 2 DICOM series, expected 1"),
        (no_slices, f"PANCREAS_{TRAIN} holds 0 DICOM series, expected 1"),
        (
            missing_slice_in_between,
            "slices are 2 to 4 mm apart: one is missing, or is there twice, near 4.dcm and 8.dcm",
        ),
        (missing_last_slice, f"label{TRAIN}.nii.gz has (24, 20, 6) voxels, its image "),
        (damaged_slice, "1.dcm is damaged, or no DICOM file, one of 1 beside 5 slices"),
        (pixels_of_no_size, "dcm: its header gives the pixel size 0 x 0 mm, expected lengths above 0"),
        (pixels_of_any_size, "4.dcm: its tag (0028,0030) holds 'nan\\\\1', expected 2 numbers"),
        (slices_in_one_place, "slices are 0 to 0 mm apart"),
    ],
)
def test_broken_scan_is_left_out_and_the_rest_converted(raw, archive, damage, reason, capsys):
    damage(archive)
    folder = assert_left_out("PancreasCT", archive, raw, capsys, {f"PANCREAS_{TRAIN}": reason})
    assert names(folder / "labelsTs") == [f"PANCREAS_{TEST}"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shear_nifti, "PANCREAS_0002.nii.gz: the axes in its header are not perpendicular"),
        (lambda file: patch_nifti(file, PIXDIM_Z, 0.0), "PANCREAS_0002.nii.gz: its header gives the voxel size"),
        (lambda file: write(abdomen()[0][0], file), "PANCREAS_0002.nii.gz has 2 dimensions, expected 3"),
    ],
)
def test_broken_nifti_scan_is_left_out(raw, source, damage, reason, capsys):
    image, label = abdomen()
    for number in (TRAIN, TEST):
        write(image, source / f"PANCREAS_{number}.nii.gz", SPACING)
        write(label, source / f"label{number}.nii.gz", SPACING)
    damage(source / f"PANCREAS_{TRAIN}.nii.gz")
    assert_left_out("PancreasCT", source, raw, capsys, {f"PANCREAS_{TRAIN}": reason})
