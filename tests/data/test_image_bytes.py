"""Whether image files are whole: each format that nnU-Net reads, packed and not."""

import bz2
import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from skimage import io

from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.image_bytes import CHUNK_BYTES, voxels_are_finite
from nnunet_ssl.data.image_files import refuse_damaged

VOXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 10))


def itk(file, voxels=VOXELS, packed=False) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.astype(np.int16)), str(file), packed)


def floats(file, value) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[5, 8, 9] = value
    if file.suffix == ".tif":
        tifffile.imwrite(file, voxels)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file), "packed" in file.name)


def bzipped(file) -> None:
    itk(file)
    header, voxels = file.read_bytes().split(b"\n\n", 1)
    file.write_bytes(header.replace(b"encoding: raw", b"encoding: bzip2") + b"\n\n" + bz2.compress(voxels))


WRITERS = {
    "gz.nii.gz": itk,
    "plain.nii": itk,
    "plain.mha": itk,
    "packed.mha": lambda file: itk(file, packed=True),
    "plain.nrrd": itk,
    "packed.nrrd": lambda file: itk(file, packed=True),
    "bzip2.nrrd": bzipped,
    "plain.gipl": itk,
    "picture.png": lambda file: io.imsave(file, VOXELS[0].astype(np.uint8), check_contrast=False),
}
HAVE_CHECKSUMS = ("gz.nii.gz", "packed.mha", "packed.nrrd", "bzip2.nrrd", "picture.png")
MAY_HAVE_MORE = ("picture.png", "bzip2.nrrd")  # what follows the end is no part of the image


@pytest.fixture(params=WRITERS)
def file(tmp_path, request):
    file = tmp_path / request.param
    WRITERS[request.param](file)
    assert refuse_damaged(file)
    return file


def test_a_file_that_is_cut_off_is_refused(file):
    whole = file.read_bytes()
    for missing in (1, 40, len(whole) // 2, len(whole) - 10, len(whole)):
        file.write_bytes(whole[: len(whole) - missing])
        with pytest.raises(ValueError, match=f"^{file.name} is cut off or damaged"):
            refuse_damaged(file)


@pytest.mark.parametrize("file", [name for name in WRITERS if name not in MAY_HAVE_MORE], indirect=True)
def test_a_file_with_more_bytes_than_its_image_is_refused(file):
    whole = file.read_bytes()
    for more in (b"x", whole, whole[-30:]):
        file.write_bytes(whole + more)
        with pytest.raises(ValueError, match=f"^{file.name} is cut off or damaged"):
            refuse_damaged(file)


@pytest.mark.parametrize("file", HAVE_CHECKSUMS, indirect=True)
def test_each_flipped_bit_of_what_is_packed_is_noticed(file):
    whole = file.read_bytes()
    for byte in range(max(0, len(whole) - 400), len(whole), 7):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << byte % 8
        file.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=f"^{file.name} is cut off or damaged") as raised:
            refuse_damaged(file)
        assert "CRC" not in str(raised.value)


def test_gzip_in_several_members_and_padded_with_zeros_is_whole(tmp_path):
    file = tmp_path / "a.nii.gz"
    itk(file)
    whole = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]) + bytes(100))
    assert refuse_damaged(file)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))), VOXELS)


@pytest.mark.parametrize("size", [(9, 10, 5), (9, 10, 7), (9, 11, 6), (9, 10)])
def test_a_header_that_describes_another_image_is_refused(tmp_path, size):
    nibabel.save(nibabel.Nifti1Image(VOXELS.T.astype(np.int16), np.eye(4)), tmp_path / "a.nii")
    header = nibabel.load(tmp_path / "a.nii").header
    header.set_data_shape(size)
    content = (tmp_path / "a.nii").read_bytes()
    for name, compress in (("a.nii", bytes), ("a.nii.gz", gzip.compress)):
        (tmp_path / name).write_bytes(compress(header.binaryblock + content[348:]))
        with pytest.raises(ValueError, match="of the image that its header describes"):
            refuse_damaged(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "packed.mha", "a.nrrd", "packed.nrrd", "a.tif"])
def test_values_that_are_not_finite_are_found(tmp_path, name, value):
    floats(tmp_path / name, 1.0)
    assert voxels_are_finite(HashedFile(tmp_path / name))
    floats(tmp_path / name, value)
    assert not voxels_are_finite(HashedFile(tmp_path / name))


@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_both_keys_of_mha_say_the_byte_order(tmp_path, key):
    """Read in the wrong order these are not finite."""
    voxels = np.full((4, 5, 6), np.frombuffer(b"\x01\x02\x80\x7f", ">f4")[0], ">f4")
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
        f"{key} = True\nCompressedData = False\nElementSpacing = 1 1 1\nDimSize = 6 5 4\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(header.encode() + voxels.tobytes())
    assert voxels_are_finite(HashedFile(tmp_path / "a.mha"))


def test_values_of_the_other_byte_order_and_on_the_border_of_what_is_read_at_once(tmp_path, monkeypatch):
    """Read in the wrong order 1.0 is finite and so are these, but not all numbers are."""
    voxels = np.full((4, 5, 6), np.frombuffer(b"\x00\x00\x80\x7f", ">f4")[0], ">f4")
    image = nibabel.Nifti1Image(voxels, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "a.nii")
    assert CHUNK_BYTES % 16 == 0
    monkeypatch.setattr("nnunet_ssl.data.image_bytes.CHUNK_BYTES", 7)
    assert refuse_damaged(tmp_path / "a.nii")
    for place in range(8):
        nibabel.save(nibabel.Nifti1Image(np.where(np.arange(120) == place, np.nan, 1.0), np.eye(4)), tmp_path / "b.nii")
        assert not refuse_damaged(tmp_path / "b.nii")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("a.mha", b"LOCAL", b"b.raw", "its voxels lie in another file"),
        ("a.mha", b"BinaryData = True", b"BinaryData = False", "its voxels are written as text"),
        ("a.nrrd", b"encoding: raw", b"encoding: hex", "its voxels are written as text"),
        ("a.nrrd", b"encoding: raw", b"encoding: raw\ndata file: b.raw", "its voxels lie in another file"),
    ],
)
def test_voxels_that_cannot_be_looked_after(tmp_path, name, old, new, words):
    itk(tmp_path / name)
    (tmp_path / "b.raw").write_bytes(VOXELS.astype(np.int16).tobytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=words):
        refuse_damaged(tmp_path / name)
