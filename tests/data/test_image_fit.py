"""Images of no use are left out with a reason, and all others are preprocessed."""

import os
import socket
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile

from nnunet_ssl.data import image_fit, memory
from nnunet_ssl.data.image_fit import refuse_unfit
from nnunet_ssl.data.image_headers import header_of
from nnunet_ssl.data.memory import memory_limit
from nnunet_ssl.data.preprocessed_images import open_image
from nnunet_ssl.data.stamps import read_stamp
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from tests.data.test_unlabeled_preprocessing import write_image

SHAPE = (12, 14, 16)


def voxels(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


@pytest.fixture
def job(tiny_dataset) -> UnlabeledPreprocessing:
    dataset = tiny_dataset()
    plans, dataset_json = dataset.case.plans(), dataset.case.dataset_json()
    write_image(dataset.images_un / "good_0000.nii.gz")
    return UnlabeledPreprocessing(plans, "3d_fullres", dataset_json, dataset.images_un, dataset.unlabeled_folder)


def nifti(file, array=None, affine=None, forms=(1, 0), **changes) -> None:
    """Write a NIfTI file and change its header; `changes` are fields with {index: value} or a value."""
    image = nibabel.Nifti1Image(voxels().T if array is None else array, np.eye(4) if affine is None else affine)
    image.header.set_qform(np.eye(4), forms[0])
    image.header.set_sform(np.eye(4) if affine is None else affine, forms[1])
    nibabel.save(image, file.with_suffix("").with_suffix(".nii"))
    plain = file.with_suffix("").with_suffix(".nii")
    content = plain.read_bytes()
    plain.unlink()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, values in changes.items():
        for index, value in values.items() if isinstance(values, dict) else [((), values)]:
            header[name][index] = value
    with nibabel.openers.ImageOpener(file, "wb") as opened:
        opened.write(header.binaryblock + content[348:])


def of_numpy(file, array, **spaces) -> None:
    image = SimpleITK.GetImageFromArray(array, isVector=spaces.get("is_vector", False))
    image.SetSpacing(spaces.get("spacing", (1.0,) * image.GetDimension()))
    SimpleITK.WriteImage(image, str(file))


def with_value(value) -> np.ndarray:
    array = voxels().T.copy()
    array[3, 4, 5] = value
    return array


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.5
NO_SIZE = "its header gives no voxel size, but"
NOT_FINITE = "the image holds values that are not finite"
SERIES = "it holds 5 images in one file, as a series over time does"
UNUSABLE = {  # how it is written, what is said
    "a slice": (lambda f: of_numpy(f, voxels((14, 16))), "it is a single slice, and the data set has volumes, of 20"),
    "a series": (lambda f: of_numpy(f, voxels((5, *SHAPE))), SERIES),
    "a series without depth": (lambda f: nifti(f, voxels((16, 14, 1, 5))), SERIES),
    "a colour picture": (lambda f: of_numpy(f, voxels((*SHAPE, 3)), is_vector=True), r"holds 3 images|colour picture"),
    "RGB": (
        lambda f: nifti(f, np.zeros((16, 14, 12), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "it is a colour picture, or has 3 values in each voxel",
    ),
    "complex": (lambda f: nifti(f, voxels().T.astype(np.complex64)), "it is a colour picture, or has 2 values"),
    "no spacing": (lambda f: nifti(f, pixdim={1: 0.0}), f"{NO_SIZE} 0 x 1 x 1 mm"),
    "negative spacing": (lambda f: nifti(f, pixdim={2: -2.0}), f"{NO_SIZE} 1 x -2 x 1 mm"),
    "spacing NaN": (lambda f: nifti(f, pixdim={3: np.nan}), f"{NO_SIZE} 1 x 1 x nan mm"),
    "spacing infinite": (lambda f: nifti(f, pixdim={3: np.inf}), f"{NO_SIZE} 1 x 1 x inf mm"),
    "absurd spacing": (lambda f: nifti(f, pixdim={3: 1e4}), "its voxels are 1 x 1 x 10000 mm, those of the data set 1"),
    "tiny spacing": (lambda f: nifti(f, pixdim={1: 1e-3}), "its voxels are 0.001 x 1 x 1 mm, those of the data set 1"),
    "meters": (lambda f: nifti(f, xyzt_units=1), "its voxels are 1000 x 1000 x 1000 mm"),
    "size 0": (lambda f: nifti(f, dim={3: 0}), "its size is 16 x 14 x 0 voxels"),
    "no orientation": (lambda f: nifti(f, forms=(0, 1), srow_x={0: np.nan}), "the orientation in its header is none"),
    "a plane": (lambda f: nifti(f, forms=(0, 1), srow_z={2: 0.0}), "the orientation in its header is none"),
    "two axes alike": (
        lambda f: nifti(f, forms=(0, 1), srow_x={1: 1.0}, srow_y={1: 0.0}),
        "the orientation in its header is none",
    ),
    "no rotation": (lambda f: nifti(f, quatern_b=5.0), "the orientation in its header is none"),
    "oblique axes": (lambda f: nifti(f, affine=SHEAR, forms=(0, 1)), "its axes are not at right angles to each other"),
    "NaN": (lambda f: nifti(f, with_value(np.nan)), NOT_FINITE),
    "infinite": (lambda f: nifti(f, with_value(np.inf)), NOT_FINITE),
    "flat": (lambda f: nifti(f, np.full((16, 14, 12), 100.1, np.float32)), "all its voxels have the same value"),
    "nothing but 0": (lambda f: nifti(f, np.zeros((16, 14, 12), np.uint8)), "all its voxels have the same value"),
    "no image": (lambda f: f.write_bytes(b"no image"), "is cut off or damaged, or no image: its header cannot be read"),
    "empty": (lambda f: f.touch(), "is cut off or damaged, or no image: its header cannot be read"),
    "a folder": (lambda f: f.mkdir(), "is no file but a folder, a pipe, or a link that leads nowhere"),
    "a pipe": (os.mkfifo, "is no file but a folder"),
    "a socket": (lambda f: socket.socket(socket.AF_UNIX).bind(str(f)), "is no file but a folder"),
    "a link to nowhere": (lambda f: f.symlink_to("nowhere"), "is no file but a folder"),
    "an endless link": (lambda f: f.symlink_to(f.name), "is no file but a folder"),
    "a link without end": (lambda f: f.symlink_to("/dev/zero"), "is no file but a folder"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_image_of_no_use_is_left_out_with_a_reason(job, kind, monkeypatch):
    monkeypatch.chdir(job.images)  # the address of a socket is short
    write, words = UNUSABLE[kind]
    write((Path() if kind == "a socket" else job.images) / "bad_0000.nii.gz")
    problems = job.run(1)
    assert [*problems] == ["bad"]
    assert any(part in problems["bad"] for part in words.split("|")), problems
    assert not any(word in problems["bad"] for word in ("ITK", "Exception", "Error", "\n"))
    assert not read_stamp(job.preprocessed, "bad").wrong_channel_count
    assert open_image(job.preprocessed, "good").shape == (1, *SHAPE)
    assert job.outdated() == []  # it is not tried again at the start of each training


@pytest.mark.parametrize(
    ("line", "changed", "words"),
    [
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = -1 1 1", f"{NO_SIZE} -1 x 1 x 1 mm"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1", "its header gives no voxel size"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 5000", "its voxels are 1 x 1 x 5000 mm"),
    ],
)
def test_spacing_of_other_formats(job, line, changed, words):
    """Of a negative one ITK takes the absolute value."""
    (job.images / "good_0000.nii.gz").unlink()
    job.dataset_json["file_ending"] = ".mha"
    of_numpy(job.images / "bad_0000.mha", voxels())
    of_numpy(job.images / "good_0000.mha", voxels())
    content = (job.images / "bad_0000.mha").read_bytes()
    assert line in content
    (job.images / "bad_0000.mha").write_bytes(content.replace(line, changed))
    problems = job.run(1)
    assert [*problems] == ["bad"]
    assert words in problems["bad"]
    assert "ITK" not in problems["bad"]


def test_an_infinite_value_that_normalisation_would_clip(job):
    (job.images / "good_0000.nii.gz").unlink()
    job.dataset_json["file_ending"] = ".nrrd"
    job.plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    of_numpy(job.images / "bad_0000.nrrd", with_value(np.inf).T)
    assert job.run(1) == {"bad": "the image holds values that are not finite (NaN or infinite)"}


def test_an_image_that_normalisation_makes_flat(job):
    job.plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    of_numpy(job.images / "bad_0000.nii.gz", voxels() + 1000)  # beyond the highest intensities of the data set
    assert job.run(1).keys() == {"bad", "good"}
    job.plans["foreground_intensity_properties_per_channel"]["0"]["percentile_99_5"] = 500.0
    assert job.run(1) == {"bad": "all its voxels have the same value, at the latest once it is normalised"}


def test_a_volume_among_single_slices(job):
    job.plans["original_median_shape_after_transp"] = [1, 20, 20]
    job.plans["original_median_spacing_after_transp"] = [999.0, 1.0, 1.0]
    of_numpy(job.images / "slice_0000.nii.gz", voxels((14, 16)))
    of_numpy(job.images / "thin_0000.nii.gz", voxels((1, 14, 16)))
    assert job.run(1) == {"good": "it has 12 slices, and the data set has single ones"}


def test_the_slices_of_a_data_set_are_those_of_its_images(job):
    """Plans have the axes in another order."""
    job.plans.update(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    job.plans["original_median_shape_after_transp"] = [20, 1, 20]
    assert job.run(1) == {"good": "it has 12 slices, and the data set has single ones"}


def test_channels_that_differ(job):
    job.dataset_json["channel_names"] = {"0": "T1", "1": "T2"}
    for properties in ("foreground_intensity_properties_per_channel",):
        job.plans[properties]["1"] = job.plans[properties]["0"]
    for key in ("normalization_schemes", "use_mask_for_norm"):
        job.plans["configurations"]["3d_fullres"][key] *= 2
    for case, second in {"good": {}, "size": {"shape": (12, 14, 15)}, "spacing": {"spacing": (1.0, 1.0, 2.0)}}.items():
        write_image(job.images / f"{case}_0000.nii.gz")
        write_image(job.images / f"{case}_0001.nii.gz", **second)
    of_numpy(job.images / "both_0000.nii.gz", voxels((2, *SHAPE)))
    of_numpy(job.images / "three_0000.nii.gz", voxels((3, *SHAPE)))
    problems = job.run(1)
    assert "three_0000.nii.gz: it holds 3 images in one file" in problems.pop("three")
    assert problems == {
        "size": "its channels differ in size: size_0001.nii.gz has 15 x 14 x 12 voxels",
        "spacing": "its channels differ in voxel size: spacing_0001.nii.gz has 1 x 1 x 2 mm",
    }
    assert open_image(job.preprocessed, "both").shape == (2, *SHAPE)


def test_an_image_of_which_resampling_leaves_nothing(job):
    of_numpy(job.images / "thin_0000.nii.gz", voxels((1, 14, 16)), spacing=(1.0, 1.0, 0.3))
    of_numpy(job.images / "thick_0000.nii.gz", voxels((1, 14, 16)), spacing=(1.0, 1.0, 0.6))
    assert job.run(1) == {
        "thin": "it is too thin: its 16 x 14 x 1 voxels of 1 x 1 x 0.3 mm are less than half a voxel of the data set, "
        "of 1 x 1 x 1 mm"
    }


def test_an_image_too_large_for_the_memory_is_left_out_before_it_is_read(job, monkeypatch):
    """It names its sizes; the data set's own spacing is 50 times as fine."""
    job.plans["configurations"]["3d_fullres"]["spacing"] = [0.02] * 3
    monkeypatch.setattr(image_fit, "memory_limit", lambda: 8 * 2**30)
    monkeypatch.setattr("nnunet_ssl.data.one_case.refuse_damaged", lambda *_: pytest.fail("it was read"))
    assert job.run(1)["good"] == (
        "it is too large: its 16 x 14 x 12 voxels of 1 x 1 x 1 mm become 336 million when it is preprocessed, which "
        "needs 10 GiB of memory, and there are 8. Look whether the voxel size in its header is right"
    )
    monkeypatch.undo()
    monkeypatch.setattr(image_fit, "memory_limit", lambda: None)
    refuse_unfit(list(job.images.iterdir()), *plans_of(job), job.dataset_json)


def test_memory_of_a_2d_configuration_is_that_of_its_slices(job, monkeypatch):
    """Their distance stays as it is."""
    job.plans["configurations"]["3d_fullres"]["spacing"] = [0.5, 0.5]
    monkeypatch.setattr(image_fit, "memory_limit", lambda: 370_000)
    with pytest.raises(ValueError, match="become 0 million"):
        refuse_unfit(list(job.images.iterdir()), *plans_of(job), job.dataset_json)
    monkeypatch.setattr(image_fit, "memory_limit", lambda: 380_000)
    refuse_unfit(list(job.images.iterdir()), *plans_of(job), job.dataset_json)


def plans_of(job):
    plans = image_fit.PlansManager(job.plans)
    return plans, plans.get_configuration("3d_fullres")


def test_the_memory_limit_is_the_smallest_of_machine_and_group(monkeypatch, tmp_path):
    whole = memory_limit()
    assert 2**28 < whole < 2**50
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    (tmp_path / "jobs" / "7").mkdir(parents=True)
    (tmp_path / "jobs" / "7" / "memory.max").write_text("max\n")
    (tmp_path / "jobs" / "memory.max").write_text("1000\n")
    assert [*memory._limits_of_cgroup("0::/jobs/7")] == [1000]
    assert [*memory._limits_of_cgroup("3:cpu:/jobs/7")] == []
    (tmp_path / "memory" / "a").mkdir(parents=True)
    (tmp_path / "memory" / "a" / "memory.limit_in_bytes").write_text("2000\n")
    assert [*memory._limits_of_cgroup("4:memory:/a")] == [2000]


def test_headers_of_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((7, 5, 6), np.uint8))
    assert header_of(tmp_path / "a_0000.tif").size == (6, 5, 7)
    (tmp_path / "a.json").write_text('{"spacing": [3.0, 0.5, 0.4]}')
    assert header_of(tmp_path / "a_0000.tif").spacing == (0.4, 0.5, 3.0)
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((5, 6, 3), np.uint8), photometric="rgb")
    assert "colour picture" in header_of(tmp_path / "a_0000.tif").problem()
    (tmp_path / "a_0000.tif").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match="its header cannot be read"):
        header_of(tmp_path / "a_0000.tif")
