import json
import math

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from skimage import io

from nnunet_ssl.data.dataset_reader import DatasetReader, WrongChannelCountError, ending_in, refuse_unusable

RNG = np.random.default_rng(0)


def itk(file, shape, spacing) -> None:
    image = SimpleITK.GetImageFromArray(RNG.integers(0, 3, shape).astype(np.uint8))
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


def sheared(file) -> None:
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[0, 2] = 0.4
    nibabel.save(nibabel.Nifti1Image(RNG.integers(0, 3, (6, 5, 4)).astype(np.uint8), affine), file)


def tiff(file, spacing=None) -> None:
    tifffile.imwrite(file, RNG.integers(0, 3, (7, 5, 6)).astype(np.uint8))
    if spacing:
        name = file.name.removesuffix(".tif").removesuffix("_0000")
        file.with_name(f"{name}.json").write_text(json.dumps({"spacing": spacing}))


def picture(file, shape=(5, 6)) -> None:
    io.imsave(file, RNG.integers(0, 3, shape).astype(np.uint8), check_contrast=False)


FORMATS = {  # how it is written; the reader; what is read: shape, spacing, whether it has one, ml of a voxel
    "volume.nii.gz": (lambda f: itk(f, (4, 5, 6), (0.5, 0.5, 3.0)), "SimpleITKIO", (4, 5, 6), (3, 0.5, 0.5), 0.00075),
    "slice.nii.gz": (lambda f: itk(f, (5, 6), (0.5, 0.4)), "SimpleITKIO", (5, 6), (0.4, 0.5), math.nan),
    "flat.nii.gz": (lambda f: itk(f, (1, 5, 6), (0.5, 0.5, 3.0)), "SimpleITKIO", (1, 5, 6), (3, 0.5, 0.5), 0.00075),
    "thick.nrrd": (lambda f: itk(f, (1, 5, 6), (0.5, 0.5, 90.0)), "SimpleITKIO", (1, 5, 6), (90, 0.5, 0.5), 0.0225),
    "slice.mha": (lambda f: itk(f, (5, 6), (0.5, 0.4)), "SimpleITKIO", (5, 6), (0.4, 0.5), math.nan),
    "sheared.nii.gz": (sheared, "NibabelIO", (4, 5, 6), (math.hypot(2.0, 0.4), 0.5, 0.5), None),
    "plain.nii": (lambda f: itk(f, (4, 5, 6), (0.5, 0.5, 3.0)), "NibabelIO", (4, 5, 6), (3, 0.5, 0.5), 0.00075),
    "picture.png": (picture, "NaturalImage2DIO", (5, 6), (1, 1), math.nan),
    "picture.tif": (picture, "NaturalImage2DIO", (5, 6), (1, 1), math.nan),
    "stack.tif": (lambda f: tiff(f, [3.0, 0.5, 0.5]), "Tiff3DIO", (7, 5, 6), (3, 0.5, 0.5), 0.00075),
    "bare.tif": (tiff, "Tiff3DIO", (7, 5, 6), (1, 1, 1), math.nan),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["label", "image"])
def test_spacing_and_volume_are_the_files_own(tmp_path, name, kind):
    """A placeholder of an axis that is not there is no length; a format without spacing has no volume."""
    write, reader_name, shape, spacing, voxel_ml = FORMATS[name]
    stem, ending = name.split(".", 1)
    file = tmp_path / (name if kind == "label" else f"{stem}_0000.{ending}")
    write(file)
    reader = DatasetReader.of_dataset({"file_ending": f".{ending}"}, [file])
    assert type(reader.reader).__name__ == reader_name
    if kind == "label":
        found = reader.read_labels(file)
        assert found.array.dtype == np.int32
    else:
        channels, properties = reader.read_channels([file])
        found = reader.space_of_image([file], properties, channels.shape[1:])
        assert reader.read_image(file).array.shape == shape
    assert found.array.shape == shape
    assert found.spacing == pytest.approx(spacing, rel=1e-5)
    expected = math.prod(spacing) / 1000 if voxel_ml is None else voxel_ml
    assert found.voxel_ml == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert found.has_spacing == (name not in ("picture.png", "picture.tif", "bare.tif"))


def test_the_reader_of_the_plans_counts(tmp_path):
    assert type(DatasetReader.of_plans({"image_reader_writer": "NibabelIOWithReorient"}).reader).__name__ == (
        "NibabelIOWithReorient"
    )
    named = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}
    assert type(DatasetReader.of_dataset(named).reader).__name__ == "NibabelIO"


@pytest.mark.parametrize("damage", [b"", b"no image", None])
@pytest.mark.parametrize("name", ["volume.nii.gz", "thick.nrrd", "picture.png", "stack.tif", "plain.nii"])
def test_damaged_files_are_one_sentence(tmp_path, name, damage, capfd):
    file = tmp_path / name
    FORMATS[name][0](file)
    reader = DatasetReader.of_dataset({"file_ending": f".{name.split('.', 1)[1]}"}, [file])
    file.write_bytes(file.read_bytes()[: min(400, file.stat().st_size * 2 // 3)] if damage is None else damage)
    with pytest.raises(ValueError, match=f"{file} is damaged, or no image: ."):
        reader.read_labels(file)
    assert capfd.readouterr().out == ""


def test_missing_files_and_channels_that_do_not_fit(tmp_path):
    itk(tmp_path / "a_0000.nii.gz", (4, 5, 6), (1, 1, 1))
    itk(tmp_path / "a_0001.nii.gz", (4, 5, 7), (1, 1, 1))
    reader = DatasetReader.of_dataset({"file_ending": ".nii.gz"})
    with pytest.raises(ValueError, match="b_0000.nii.gz is missing"):
        reader.read_channels([tmp_path / "b_0000.nii.gz"])
    with pytest.raises(ValueError, match=r"a_0000.nii.gz is damaged.*Not all input images have the same shape"):
        reader.read_channels([tmp_path / f"a_000{i}.nii.gz" for i in (0, 1)])


def test_spacing_file_without_spacing_is_named(tmp_path):
    tiff(tmp_path / "a.tif")
    (tmp_path / "a.json").write_text("{}")
    reader = DatasetReader.of_dataset({"file_ending": ".tif"}, [tmp_path / "a.tif"])
    for content in ("{}", '{"spacing": [1, 2]}', '{"spacing": [0, 1, 1]}', '{"spacing": "1 1 1"}', "{"):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=f'{tmp_path / "a.json"} (holds no "spacing"|is no JSON)'):
            reader.read_labels(tmp_path / "a.tif")


def test_labels_have_one_channel(tmp_path):
    picture(tmp_path / "rgb.png", (5, 6, 3))
    reader = DatasetReader.of_dataset({"file_ending": ".png"})
    with pytest.raises(ValueError, match="rgb.png has 3 channels: labels have one"):
        reader.read_labels(tmp_path / "rgb.png")


def test_images_that_no_network_should_see():
    names = {"channel_names": {"0": "T1", "1": "T2"}}
    refuse_unusable(np.arange(18.0).reshape(2, 3, 3), names)
    with pytest.raises(WrongChannelCountError, match=r"it has 3 channel\(s\), the data set has 2 \(T1, T2\)"):
        refuse_unusable(np.zeros((3, 3, 3)), names)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            refuse_unusable(np.full((2, 3, 3), value), names)


def test_unknown_endings_and_mixed_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="nnU-Net has no reader for files that end in '.jpg'"):
        DatasetReader.of_dataset({"file_ending": ".jpg"})
    with pytest.raises(ValueError, match="there is no mask CASE.nii.gz in"):
        ending_in(tmp_path, "mask")
    for name in ("a.png", "b.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds files that end in \.nrrd and in \.png"):
        ending_in(tmp_path, "mask")


def test_a_damaged_example_does_not_choose_the_reader(tmp_path):
    """Of nnU-Net's readers for .tif the one for pictures takes what is left of a compressed stack."""
    for name in "abcd":
        voxels = np.random.default_rng(0).integers(0, 255, (9, 32, 32)).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", voxels, compression="zlib")
    damaged = tmp_path / "a.tif"
    damaged.write_bytes(damaged.read_bytes()[:2500])
    files = [tmp_path / f"{name}.tif" for name in "abcd"]
    assert type(DatasetReader.of_dataset({"file_ending": ".tif"}, files).reader).__name__ == "Tiff3DIO"
    assert type(DatasetReader.of_dataset({"file_ending": ".nii.gz"}, [damaged]).reader).__name__ == "SimpleITKIO"


@pytest.mark.parametrize("name", ["volume.nii.gz", "plain.nii", "volume.gipl"])
def test_files_that_itk_would_fill_with_zeros_are_refused(tmp_path, name):
    file = tmp_path / name
    itk(file, (8, 9, 10), (1, 1, 1))
    reader = DatasetReader.of_dataset({"file_ending": f".{name.split('.', 1)[1]}"}, [file])
    assert reader.read_labels(file).array.shape == (8, 9, 10)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=f"{name} is cut off or damaged"):
        reader.read_labels(file)


def test_a_flipped_bit_of_a_compressed_file_is_noticed(tmp_path):
    """Only the check sum at its end tells."""
    file = tmp_path / "volume.nii.gz"
    itk(file, (8, 9, 10), (1, 1, 1))
    reader = DatasetReader.of_dataset({"file_ending": ".nii.gz"}, [file])
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # of the check sum
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="volume.nii.gz is cut off or damaged"):
        reader.read_labels(file)
