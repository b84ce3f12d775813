"""What is checked of a case before it is written: its headers, its values, the grid of its labels."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from nibabel.nifti1 import Nifti1Header
from nibabel.openers import ImageOpener

from nnunet_ssl.data.image_files import read_image

LARGEST_COSINE = 1e-3  # between two axes of a header; what single precision leaves of a right angle is below 1e-6
NOT_PERPENDICULAR = "the axes in its header are not perpendicular (sheared), which nnU-Net cannot use"
NO_NUMBERS = "its header holds values that are not finite (NaN or infinite)"
NO_NUMBERS_INSIDE = "the image holds values that are not finite (NaN or infinite)"
PROBLEM_OF_ITK = {
    "Zero-valued spacing": "its header gives a voxel size of 0",
    "Bad direction": NOT_PERPENDICULAR,
    "orthonormal direction": NOT_PERPENDICULAR,
}


def read_checked(file: Path, dimensions: int | None = None) -> SimpleITK.Image:
    """Return an image whose header says where its voxels lie.

    Args:
        file: of any format that ITK reads.
        dimensions: that it must have, with one value in each voxel; None where that is checked elsewhere.

    Raises:
        ValueError: the file is missing or damaged; in its header a voxel size is not above 0, a value not finite, or
            the axes are not perpendicular; it has other dimensions, or several values in each voxel.
    """
    header = nifti_header(file)
    if header is not None:
        check_nifti_header(header, file)
    try:
        image = read_image(file)
    except ValueError as error:
        for words, problem in PROBLEM_OF_ITK.items():
            if words in str(error.__cause__):
                raise ValueError(f"{file}: {problem}") from error
        raise
    check_header(image, file)
    if dimensions:
        check_gray(image, file, dimensions)
    is_float = header is not None and header.get_data_dtype().kind == "f"
    if is_float and not np.isfinite(nibabel.load(file).dataobj).all():  # which ITK takes for 0
        raise ValueError(f"{file}: {NO_NUMBERS_INSIDE}")
    return image


def check_header(image: SimpleITK.Image, source: Path) -> None:
    """Raise a ValueError when an image does not say where its voxels lie."""
    spacing, dimensions = image.GetSpacing(), image.GetDimension()
    axes = np.reshape(image.GetDirection(), (dimensions, dimensions))
    if not np.isfinite([*spacing, *image.GetOrigin(), *axes.flat]).all():
        raise ValueError(f"{source}: {NO_NUMBERS}")
    if min(spacing) <= 0:
        raise ValueError(f"{source}: its header gives the voxel size {in_mm(spacing)}, expected lengths above 0")
    if np.abs(axes.T @ axes - np.eye(dimensions)).max() > LARGEST_COSINE:
        raise ValueError(f"{source}: {NOT_PERPENDICULAR}")


def check_nifti_header(header: Nifti1Header, file: Path) -> None:
    """Raise a ValueError for a header that ITK corrects without a word: a size of 0 or NaN would become 1 mm.

    The scales of the sform may differ from the voxel size, as they do in ACDC: the qform holds then.
    """
    size = header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))]
    sform = np.array([header[name] for name in ("srow_x", "srow_y", "srow_z")])
    qform = [header[name] for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")]
    in_use = ((size, True), (sform, header["sform_code"] > 0), (qform, header["qform_code"] > 0))
    if not all(np.isfinite(numbers).all() for numbers, is_used in in_use if is_used):
        raise ValueError(f"{file}: {NO_NUMBERS}")
    if (size <= 0).any():
        raise ValueError(f"{file}: its header gives the voxel size {in_mm(size)}, expected lengths above 0")
    lengths = np.linalg.norm(sform[:, :3], axis=0)
    axes = sform[:, :3] / np.where(lengths > 0, lengths, 1)
    if header["sform_code"] > 0 and np.abs(np.triu(axes.T @ axes, 1)).max() > LARGEST_COSINE:
        raise ValueError(f"{file}: {NOT_PERPENDICULAR}")


def in_mm(lengths: Iterable[float]) -> str:
    """Return lengths as a text."""
    return " x ".join(f"{length:g}" for length in lengths) + " mm"


def nifti_header(file: Path) -> Nifti1Header | None:
    """Return the header as it stands in a file; None where there is no NIfTI file or it cannot be read."""
    if not file.name.endswith((".nii", ".nii.gz")):
        return None
    try:
        with ImageOpener(file) as opened:
            start = opened.read(Nifti1Header.template_dtype.itemsize)
    except (OSError, EOFError, zlib.error):  # reading the image says what is wrong
        return None
    return Nifti1Header(start, check=False) if Nifti1Header.may_contain_header(start) else None


def check_images(channels: list[SimpleITK.Image], source: Path, dimensions: int) -> None:
    """Raise a ValueError when channels are no gray images on one grid, or a value is not finite."""
    first = channels[0]
    for number, image in enumerate(channels):
        check_gray(image, source, dimensions)
        check_header(image, source)
        if image.GetSize() != first.GetSize():
            sizes = sorted({image.GetSize() for image in channels})
            raise ValueError(f"{source}: its channels differ in size, {' and '.join(map(str, sizes))} voxels")
        if different := difference_of_grids(image, first):
            name, found, expected = different
            raise ValueError(f"{source}: channel {number} has the {name} {found}, channel 0 {expected}")
        if not np.isfinite(SimpleITK.GetArrayViewFromImage(image)).all():
            raise ValueError(f"{source}: {NO_NUMBERS_INSIDE}")


def check_labels(labels: SimpleITK.Image, image: SimpleITK.Image, source: Path, label_values: set[int]) -> None:
    """Raise a ValueError when labels are not on the image's grid, or hold other values than expected."""
    if labels.GetSize() != image.GetSize():
        raise ValueError(f"{source}: the labels have {labels.GetSize()} voxels, the image {image.GetSize()}")
    check_gray(labels, source, image.GetDimension())
    if different := difference_of_grids(labels, image):
        name, found, expected = different
        raise ValueError(f"{source}: the labels have the {name} {found}, the image {expected}")
    unexpected = set(np.unique(SimpleITK.GetArrayViewFromImage(labels)).tolist()) - label_values
    if unexpected:
        raise ValueError(f"{source}: label value {min(unexpected)} found, expected only {sorted(label_values)}")


def check_gray(image: SimpleITK.Image, source: Path, dimensions: int) -> None:
    """Raise a ValueError when an image has other dimensions than the data set, or several values in each voxel."""
    if image.GetDimension() != dimensions:
        raise ValueError(f"{source} has {image.GetDimension()} dimensions, expected {dimensions}")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{source} holds {image.GetNumberOfComponentsPerPixel()} values in each voxel, expected 1")


def difference_of_grids(
    image: SimpleITK.Image, reference: SimpleITK.Image
) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Return in what two images of one size differ, spacing or direction, with both values; None if in neither."""
    for name, found, expected in (
        ("spacing", image.GetSpacing(), reference.GetSpacing()),
        ("direction", image.GetDirection(), reference.GetDirection()),
    ):
        if not np.allclose(found, expected, rtol=1e-2, atol=1e-2):
            return name, found, expected
    return None
