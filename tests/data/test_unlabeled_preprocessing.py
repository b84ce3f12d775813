import errno
import json
import multiprocessing
import os
import time
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data import one_case
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.hashed_files import HashedFile, _Source
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.locks import WHOLE, Part
from nnunet_ssl.data.preprocessed_images import content_of, open_image
from nnunet_ssl.data.stamps import mark_of, read_stamp, state_folder
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing


def write_image(file, seed=0, shape=(12, 14, 16), spacing=(1.0, 1.0, 1.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32))
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


@pytest.fixture
def job(tiny_dataset) -> UnlabeledPreprocessing:
    dataset = tiny_dataset()
    for i in range(3):
        write_image(dataset.images_un / f"scan{i}_0000.nii.gz", seed=i)
    return UnlabeledPreprocessing(
        dataset.case.plans(),
        "3d_fullres",
        dataset.case.dataset_json(),
        dataset.images_un,
        dataset.folder / "nnUNetPlans_3d_fullres_unlabeled",
    )


def test_case_equals_nnunets_own_preprocessing(job):
    assert job.run(1) == {}
    plans = PlansManager(job.plans)
    configuration = plans.get_configuration("3d_fullres")
    expected, *_ = DefaultPreprocessor(verbose=False).run_case(
        [str(job.images / "scan1_0000.nii.gz")], None, plans, configuration, job.dataset_json
    )
    np.testing.assert_array_equal(open_image(job.preprocessed, "scan1")[:], expected)


def test_folder_lists_as_nnunet_expects(job):
    """Stamps and temporary files lie beside it: nnU-Net infers format and cases from the folder's listing."""
    job.run(1)
    dataset_class = infer_dataset_class(str(job.preprocessed))
    assert {"scan0", "scan1", "scan2"} <= set(dataset_class.get_identifiers(str(job.preprocessed)))
    assert not (state_folder(job.preprocessed) / "unfinished").exists()


def test_second_run_does_nothing(job):
    job.run(1)
    before = {file: file.stat().st_mtime_ns for file in job.preprocessed.iterdir()}
    assert job.outdated() == []
    job.run(1)
    assert before == {file: file.stat().st_mtime_ns for file in job.preprocessed.iterdir()}


def test_only_the_changed_case_is_redone(job):
    job.run(1)
    write_image(job.images / "scan1_0000.nii.gz", seed=99)
    assert job.outdated() == ["scan1"]
    old = open_image(job.preprocessed, "scan1")[:]
    job.run(1)
    assert job.outdated() == []
    assert not np.array_equal(old, open_image(job.preprocessed, "scan1")[:])


def test_touched_but_equal_file_is_not_redone(job):
    job.run(1)
    os.utime(job.images / "scan1_0000.nii.gz", (1, 1))
    assert job.outdated() == []
    assert read_stamp(job.preprocessed, "scan1").files[0][2] == 10**9  # the new time is kept: it is read only once


def test_touched_files_are_read_once_by_five_folds_that_start_at_once(job, monkeypatch):
    job.run(1)
    for file in job.images.iterdir():
        os.utime(file, (1, 1))
    read, digest = [], HashedFile.digest
    monkeypatch.setattr(HashedFile, "digest", lambda self: read.append(self.file.name) or digest(self))
    with ThreadPool(5) as pool:
        assert pool.map(lambda _: job.outdated(), range(5)) == [[]] * 5
    assert sorted(read) == [f"scan{i}_0000.nii.gz" for i in range(3)]


@pytest.mark.parametrize(
    "change",
    [
        lambda plans: plans["configurations"]["3d_fullres"].update(spacing=[2.0, 2.0, 2.0]),
        lambda plans: plans["configurations"]["3d_fullres"].update(normalization_schemes=["CTNormalization"]),
        lambda plans: plans["foreground_intensity_properties_per_channel"]["0"].update(mean=7.0),
        lambda plans: plans.update(transpose_forward=[1, 0, 2]),
    ],
    ids=["spacing", "normalization", "intensities", "transpose"],
)
def test_settings_that_change_voxels_make_all_stale(job, change):
    job.run(1)
    change(job.plans)
    assert job.outdated() == ["scan0", "scan1", "scan2"]


def test_settings_that_do_not_change_voxels_keep_all(job):
    job.run(1)
    job.plans["configurations"]["3d_fullres"].update(batch_size=7, patch_size=[8, 8, 8])
    assert job.outdated() == []


def damage(job) -> None:
    file = job.images / "scan1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_damaged_image_stops_no_other_and_is_named(job, num_processes):
    damage(job)
    problems = job.run(num_processes)
    assert list(problems) == ["scan1"]
    assert "scan1_0000.nii.gz is cut off or damaged" in problems["scan1"]
    assert open_image(job.preprocessed, "scan0").shape == open_image(job.preprocessed, "scan2").shape
    with pytest.raises(FileNotFoundError):
        open_image(job.preprocessed, "scan1")
    assert job.outdated() == []
    assert job.outdated(retry_problems=True) == ["scan1"]
    write_image(job.images / "scan1_0000.nii.gz", seed=1)
    assert job.run(1) == {}


def test_image_with_nan_is_named(job):
    """ITK's NIfTI reader turns NaN into 0, for labeled images too; the readers of other formats hand it on."""
    job.dataset_json["file_ending"] = ".nrrd"
    voxels = np.ones((12, 14, 16), dtype=np.float32)
    voxels[3, 3, 3] = np.nan
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(job.images / "scan2_0000.nrrd"))
    assert job.run(1) == {"scan2": "the image holds values that are not finite (NaN or infinite)"}


def test_truncated_uncompressed_nifti_is_named(job):
    """ITK's reader fills the missing rest with zeros."""
    job.dataset_json["file_ending"] = ".nii"
    write_image(job.images / "scan0_0000.nii")
    file = job.images / "scan0_0000.nii"
    file.write_bytes(file.read_bytes()[:2000])
    assert "scan0_0000.nii is cut off or damaged (it has 1648 of the 10752 bytes" in job.run(1)["scan0"]


def test_wrong_channel_count_is_told_apart(job):
    write_image(job.images / "scan0_0001.nii.gz")
    assert job.run(1)["scan0"].startswith("it has 2 channel(s), the data set has 1 (MRI), numbered")
    assert read_stamp(job.preprocessed, "scan0").wrong_channel_count


@pytest.mark.parametrize("shape", [(2, 12, 14, 16), (3, 12, 14, 16)])
def test_one_file_with_several_images_is_left_out(job, shape):
    """nnU-Net's preprocessor takes them for channels: list index out of range."""
    image = SimpleITK.GetImageFromArray(np.ones(shape, np.float32), isVector=False)
    SimpleITK.WriteImage(image, str(job.images / "scan0_0000.nii.gz"))
    reason = f"it holds {shape[0]} images in one file, as a series over time does: take the one that is wanted"
    assert job.run(1) == {"scan0": f"scan0_0000.nii.gz: {reason}"}
    assert not read_stamp(job.preprocessed, "scan0").wrong_channel_count


def test_link_to_nowhere_stops_no_other(job):
    (job.images / "scan1_0000.nii.gz").unlink()
    (job.images / "scan1_0000.nii.gz").symlink_to("/nowhere.nii.gz")
    assert list(job.run(1)) == ["scan1"]
    assert open_image(job.preprocessed, "scan2").shape[0] == 1


@pytest.mark.parametrize(
    ("fault", "raised", "words"),
    [
        (MemoryError("9 GiB"), RuntimeError, r"scan0 needs more memory than there is \(9 GiB\): try fewer processes"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left on device"),
    ],
)
def test_fault_of_the_machine_is_not_blamed_on_the_image(job, monkeypatch, fault, raised, words):
    def fail(*_, **__):
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(DefaultPreprocessor, "run_case_save", fail)
        with pytest.raises(raised, match=words):
            job.run(1)
    assert job.outdated() == ["scan0", "scan1", "scan2"]
    assert job.run(1) == {}


def test_stamp_cut_off_by_a_power_cut_counts_as_none(job):
    job.run(1)
    (state_folder(job.preprocessed) / "stamps" / "scan1.json").write_text("")
    assert job.outdated() == ["scan1"]


def test_name_without_channel_is_refused(job):
    write_image(job.images / "scan7.nii.gz")
    with pytest.raises(ValueError, match=r"scan7.nii.gz is not named as nnU-Net names images: CASE_0000.nii.gz"):
        job.image_files()


def test_unfinished_case_is_redone_after_a_kill(job, monkeypatch):
    """Files of a case appear whole; without its stamp a case counts as not done."""
    job.run(1)
    stamp = state_folder(job.preprocessed) / "stamps" / "scan1.json"
    stamp.unlink()
    left = stamp.with_name("scan1.json.1.tmp"), state_folder(job.preprocessed) / "unfinished" / "scan1" / "scan1.b2nd"
    left[1].parent.mkdir(parents=True)
    for file in left:
        file.write_bytes(b"half")
    assert job.outdated() == ["scan1"]
    assert job.run(1) == {}
    assert not any(file.exists() for file in left)
    assert json.loads(stamp.read_text())["problem"] == ""


def test_several_processes_at_once_share_the_work(job):
    """Five folds are often started at once: one preprocesses, the others wait and find the work done."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert pool.map(run_job, [job, job]) == [{}, {}]
    assert job.outdated() == []


def run_job(job: UnlabeledPreprocessing, part: Part = WHOLE) -> dict:
    return job.run(1, part=part)


def test_parts_in_several_processes_at_once_are_all_and_join_their_index(job):
    for i in range(3, 12):
        write_image(job.images / f"scan{i:02d}_0000.nii.gz", seed=i)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert pool.starmap(run_job, [(job, Part(0, 2)), (job, Part(1, 2))]) == [{}, {}]
    indexed = json.loads((state_folder(job.preprocessed) / "pool_index.json").read_text())["stamps"]
    assert indexed.keys() == job.image_files().keys()
    assert job.outdated() == []


def test_a_part_that_was_killed_goes_on_and_leaves_others_alone(job):
    """A case of another part that is being written is no left-over."""
    parts = [Part(number, 2).of(job.image_files()) for number in (0, 1)]
    assert all(parts)
    state = state_folder(job.preprocessed)
    left, at_work = (
        [state / "unfinished" / cases[0] / "half.b2nd", state / "stamps" / f"{cases[0]}.json.7.tmp"] for cases in parts
    )
    for file in (*at_work, *left):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    assert job.run(1, part=Part(0, 2)) == {}
    assert all(file.exists() for file in at_work)
    assert not any(file.exists() for file in left)
    assert job.outdated() == parts[1]
    before = {file: file.stat().st_mtime_ns for file in job.preprocessed.iterdir()}
    assert job.run(1, part=Part(0, 2)) == {}  # which has nothing to do
    assert before == {file: file.stat().st_mtime_ns for file in job.preprocessed.iterdir()}
    assert job.run(1) == {}
    assert not (state / "unfinished").exists()
    assert job.outdated() == []


@pytest.mark.parametrize("channels", [1, 2])
def test_an_image_is_read_once_to_be_hashed_and_its_voxels_are_noted(job, channels, monkeypatch):
    names = {str(channel): f"MRI{channel}" for channel in range(channels)}
    job.dataset_json["channel_names"] = names
    job.plans["configurations"]["3d_fullres"].update(
        normalization_schemes=["ZScoreNormalization"] * channels, use_mask_for_norm=[False] * channels
    )
    job.plans["foreground_intensity_properties_per_channel"] = dict.fromkeys(
        names, job.plans["foreground_intensity_properties_per_channel"]["0"]
    )
    for i in range(3):
        for channel in range(1, channels):
            write_image(job.images / f"scan{i}_{channel:04d}.nii.gz", seed=i + 10)
    sizes, reads = [], _Source.readinto
    monkeypatch.setattr(_Source, "readinto", lambda self, buffer: sizes.append(reads(self, buffer)) or sizes[-1])
    assert job.run(1) == {}
    files = job.image_files()
    assert sum(sizes) == sum(file.stat().st_size for of_case in files.values() for file in of_case)
    reader = DatasetReader.of_plans(job.plans)
    for case, of_case in files.items():
        stamp = read_stamp(job.preprocessed, case)
        assert [tuple(mark) for mark in stamp.files] == [mark_of(file) for file in of_case]
        assert stamp.voxels == content_of(reader.read_channels(of_case)[0])
        assert stamp.sizes.keys() == stamp.checksums.keys() == {f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"}


def test_a_damaged_image_is_not_tried_again_until_it_changes(job):
    damage(job)
    job.run(1)
    assert tuple(read_stamp(job.preprocessed, "scan1").files[0]) == mark_of(job.images / "scan1_0000.nii.gz")
    os.utime(job.images / "scan1_0000.nii.gz", (1, 1))
    assert job.outdated() == []


def test_a_file_that_cannot_be_read_today_is_tried_again(job, monkeypatch):
    def refuse(file, content=None):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    with monkeypatch.context() as patched:
        patched.setattr(one_case, "refuse_damaged", refuse)
        patched.setattr(HashedFile, "digest", lambda self: refuse(self.file))
        assert job.run(1).keys() == {"scan0", "scan1", "scan2"}
    assert job.outdated() == ["scan0", "scan1", "scan2"]


@pytest.mark.parametrize("name", ["scan1.b2nd", "scan1_seg.b2nd", "scan1.pkl"])
@pytest.mark.parametrize("how", ["gone", "shorter"])
def test_a_preprocessed_file_that_is_not_there_any_more_is_made_again(job, name, how):
    job.run(1)
    file = job.preprocessed / name
    content = file.read_bytes()
    file.unlink() if how == "gone" else file.write_bytes(content[:-1])
    assert job.outdated() == ["scan1"]
    assert job.run(1) == {}
    assert job.outdated() == []


def test_a_stamp_of_an_earlier_version_is_as_good(job):
    job.run(1)
    for stamp in (state_folder(job.preprocessed) / "stamps").iterdir():
        content = json.loads(stamp.read_text())
        del content["sizes"], content["voxels"]
        stamp.write_text(json.dumps(content))
    assert job.outdated() == []


@pytest.mark.parametrize("change", ["spacing", "removed", "added"])
def test_spacing_file_of_a_tiff_is_stamped_with_its_image(tiny_dataset, change):
    """CASE.json is part of the case: another spacing makes the case outdated, and no other."""
    dataset = tiny_dataset()
    plans = dataset.case.plans() | {"image_reader_writer": "Tiff3DIO"}
    dataset_json = dataset.case.dataset_json() | {"file_ending": ".tif"}
    job = UnlabeledPreprocessing(plans, "3d_fullres", dataset_json, dataset.images_un, dataset.unlabeled_folder)
    dataset.images_un.mkdir(parents=True)
    for case in ("a", "b"):
        voxels = np.random.default_rng(0).normal(100, 20, (12, 14, 16)).astype(np.float32)
        tifffile.imwrite(dataset.images_un / f"{case}_0000.tif", voxels)
        if change != "added" or case == "b":
            (dataset.images_un / f"{case}.json").write_text(json.dumps({"spacing": [2.0, 1.0, 1.0]}))
    assert job.run(1) == {}
    assert open_image(job.preprocessed, "b").shape == (1, 24, 14, 16)
    if change == "removed":
        (dataset.images_un / "a.json").unlink()
    else:
        (dataset.images_un / "a.json").write_text(json.dumps({"spacing": [3.0, 1.0, 1.0]}))
    assert job.outdated() == ["a"]
    assert job.run(1) == {}
    assert open_image(job.preprocessed, "a").shape == (1, 12 if change == "removed" else 36, 14, 16)
    assert job.outdated() == []


def test_interrupted_in_several_processes_it_ends_at_once_and_keeps_what_is_finished(job, monkeypatch):
    """Ctrl-C reaches the parent: what waits is not begun, the workers end in mid-work, and finished cases count."""
    for i in range(3, 40):
        write_image(job.images / f"scan{i:02d}_0000.nii.gz", seed=i)
    results = in_processes(
        partial(preprocess_first_at_once, job), sorted(job.image_files().items()), 2, "Preprocessing unlabeled cases"
    )
    before = set(multiprocessing.active_children())
    next(results)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert time.monotonic() - started < 20
    assert set(multiprocessing.active_children()) <= before
    assert job.image_files().keys() - job.outdated() == {"scan0"}


def preprocess_first_at_once(job: UnlabeledPreprocessing, named: tuple) -> None:
    time.sleep(0 if named[0] == "scan0" else 30)
    job.run(1, [named[0]])
