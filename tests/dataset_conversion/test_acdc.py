import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import main
from nnunet_ssl.dataset_conversion.Dataset027_ACDC import convert
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import (
    PIXDIM_Z,
    SROW_X_Y,
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    patch_nifti,
    random_labels,
    random_volume,
    read,
    shear_nifti,
    spacing_of,
    write,
)

SPACING = (1.5, 1.5, 8.0)
VALUES = (0, 1, 2, 3)


@pytest.fixture
def challenge(source):
    """Patients 2 (validation), 3 (training) and 11 (test) of the published split, and 101 of the challenge's test."""
    for number, systole in ((2, 9), (3, 4), (11, 3), (101, 2)):
        folder = source / ("testing" if number > 100 else "training") / f"patient{number:03d}"
        for frame in (1, systole):
            seed = 100 * number + frame
            write(random_volume(seed), folder / f"{folder.name}_frame{frame:02d}.nii.gz", SPACING)
            write(random_labels(seed, VALUES), folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", SPACING)
        phases = [SimpleITK.GetImageFromArray(random_volume(1000 * number + phase)) for phase in range(5)]
        for phase in phases:
            phase.SetSpacing(SPACING)
        SimpleITK.WriteImage(SimpleITK.JoinSeries(phases), str(folder / f"{folder.name}_4d.nii.gz"))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: {systole}\n")
    return source


def write_h5(file, image, label, **arrays):
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as opened:
        for name, array in ({"image": image, "label": label} | arrays).items():
            opened[name] = array


def test_challenge_folders(raw, challenge):
    folder = convert(challenge, num_processes=1)
    assert folder == raw / "Dataset027_ACDC"
    training = ["patient002_frame01", "patient002_frame09", "patient003_frame01", "patient003_frame04"]
    assert names(folder / "labelsTr") == training
    assert names(folder / "imagesTr") == [f"{name}_0000" for name in training]
    assert names(folder / "labelsTs") == [
        "patient011_frame01",
        "patient011_frame03",
        "patient101_frame01",
        "patient101_frame02",
    ]
    assert not (folder / "imagesUn").exists()
    np.testing.assert_array_equal(read(folder / "imagesTr" / "patient003_frame04_0000.nii.gz"), random_volume(304))
    np.testing.assert_array_equal(read(folder / "labelsTr" / "patient003_frame04.nii.gz"), random_labels(304, VALUES))
    assert spacing_of(folder / "labelsTr" / "patient003_frame04.nii.gz") == pytest.approx(SPACING)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert description["numTraining"] == 4
    check_integrity(folder)


@pytest.mark.parametrize(("which", "patients"), [("train", [3]), ("all", [2, 3, 11, 101])])
def test_other_phases_are_unlabeled(raw, challenge, which, patients):
    folder = convert(challenge, unlabeled_frames=which, num_processes=1)
    assert {int(name[7:10]) for name in names(folder / "imagesUn")} == set(patients)
    phases = [f"patient003_frame{phase:02d}_0000" for phase in (2, 3, 5)]
    assert [name for name in names(folder / "imagesUn") if name.startswith("patient003")] == phases
    voxels = read(folder / "imagesUn" / "patient003_frame05_0000.nii.gz")
    np.testing.assert_array_equal(voxels, random_volume(3004))
    assert spacing_of(folder / "imagesUn" / "patient003_frame05_0000.nii.gz") == pytest.approx(SPACING)


def test_hdf5_volumes_and_slices(raw, source):
    """Volumes as they are, slices in the order of their numbers (10 after 9); all voxels exactly."""
    image, label = random_volume(1, (11, 8, 6)), random_labels(1, VALUES, (11, 8, 6))
    write_h5(source / "data" / "patient002_frame01.h5", image, label)
    for index in range(11):
        file = source / "data" / "slices" / f"patient003_frame02_slice_{index + 1}.h5"
        write_h5(file, image[index], label[index], scribble=label[index])
    write_h5(source / "data" / "patient011_frame01.h5", image, label)
    folder = convert(source, num_processes=2, spacing=(1.25, 1.25, 10.0))
    assert names(folder / "labelsTr") == ["patient002_frame01", "patient003_frame02"]
    assert names(folder / "labelsTs") == ["patient011_frame01"]
    for case in names(folder / "labelsTr"):
        np.testing.assert_array_equal(read(folder / "imagesTr" / f"{case}_0000.nii.gz"), image)
        np.testing.assert_array_equal(read(folder / "labelsTr" / f"{case}.nii.gz"), label)
    assert spacing_of(folder / "imagesTr" / "patient002_frame01_0000.nii.gz") == pytest.approx((1.25, 1.25, 10.0))


def remove_annotation(tree):
    (tree / "training" / "patient003" / "patient003_frame04_gt.nii.gz").unlink()


def cut_off(tree):
    file = tree / "training" / "patient003" / "patient003_frame04.nii.gz"
    file.write_bytes(file.read_bytes()[:-200])


def wrong_value(tree):
    folder = tree / "training" / "patient003"
    write(random_labels(0, (0, 4)), folder / "patient003_frame04_gt.nii.gz", SPACING)


def wrong_size(tree):
    folder = tree / "training" / "patient003"
    write(random_labels(0, VALUES, (4, 12, 11)), folder / "patient003_frame04_gt.nii.gz", SPACING)


def other_direction(tree):
    file = tree / "training" / "patient003" / "patient003_frame04_gt.nii.gz"
    image = SimpleITK.ReadImage(str(file))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(file))


def no_annotation_of_a_test_patient(tree):
    (tree / "training" / "patient011" / "patient011_frame03_gt.nii.gz").unlink()


def missing_frame(tree):
    (tree / "training" / "patient003" / "patient003_frame04.nii.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_direction, "patient003_frame04_gt.nii.gz: the labels have the direction (-1.0"),
        (no_annotation_of_a_test_patient, "patient011_frame03_gt.nii.gz is missing"),
        (missing_frame, "patient003_frame04.nii.gz is missing, which Info.cfg names"),
        (remove_annotation, "patient003_frame04_gt.nii.gz is missing, the annotation of patient003_frame04.nii.gz"),
        (cut_off, "patient003_frame04.nii.gz is damaged"),
        (wrong_value, r"patient003_frame04_gt.nii.gz: label value 4 found, expected only [0, 1, 2, 3]"),
        (wrong_size, "patient003_frame04_gt.nii.gz: the labels have (11, 12, 4) voxels, the image (10, 12, 4)"),
    ],
)
def test_faults_are_named_and_leave_nothing(raw, challenge, damage, message, capsys):
    damage(challenge)
    assert main(["convert", "ACDC", "-i", str(challenge), "-np", "1"]) == 2
    assert message in capsys.readouterr().err
    assert_nothing_left(raw)


def sheared(tree):
    shear_nifti(tree / "training" / "patient003" / "patient003_frame04.nii.gz")


def sheared_sform(tree):
    patch_nifti(tree / "training" / "patient003" / "patient003_frame04.nii.gz", SROW_X_Y, 0.5)


def no_spacing(tree):
    patch_nifti(tree / "training" / "patient003" / "patient003_frame04.nii.gz", PIXDIM_Z, 0.0)


def spacing_of_labels_is_no_number(tree):
    patch_nifti(tree / "training" / "patient003" / "patient003_frame04_gt.nii.gz", PIXDIM_Z, float("nan"))


def flat(tree):
    write(random_volume(0)[0], tree / "training" / "patient003" / "patient003_frame04.nii.gz")


def colored(tree):
    image = SimpleITK.GetImageFromArray(np.zeros((4, 12, 10, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tree / "training" / "patient003" / "patient003_frame04_gt.nii.gz"))


def no_number(tree):
    volume = random_volume(0)
    volume[1, 2, 3] = np.inf
    write(volume, tree / "training" / "patient003" / "patient003_frame04.nii.gz", SPACING)


def only_the_annotation(tree):
    missing_frame(tree)
    (tree / "training" / "patient003" / "Info.cfg").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing_frame, "patient003_frame04.nii.gz is missing, which Info.cfg names"),
        (only_the_annotation, "patient003_frame04.nii.gz is missing, which patient003_frame04_gt.nii.gz names"),
        (remove_annotation, "patient003_frame04_gt.nii.gz is missing"),
        (cut_off, "patient003_frame04.nii.gz is damaged"),
        (wrong_value, "patient003_frame04_gt.nii.gz: label value 4 found"),
        (wrong_size, "patient003_frame04_gt.nii.gz: the labels have (11, 12, 4) voxels"),
        (other_direction, "patient003_frame04_gt.nii.gz: the labels have the direction"),
        (sheared, "patient003_frame04.nii.gz: the axes in its header are not perpendicular"),
        (sheared_sform, "patient003_frame04.nii.gz: the axes in its header are not perpendicular"),
        (no_spacing, "patient003_frame04.nii.gz: its header gives the voxel size 1.5 x 1.5 x 0 mm"),
        (spacing_of_labels_is_no_number, "patient003_frame04_gt.nii.gz: its header holds values that are not finite"),
        (flat, "patient003_frame04.nii.gz has 2 dimensions, expected 3"),
        (colored, "patient003_frame04_gt.nii.gz holds 3 values in each voxel, expected 1"),
        (no_number, "patient003_frame04.nii.gz: the image holds values that are not finite"),
    ],
)
def test_broken_frame_is_left_out_and_the_rest_converted(raw, challenge, damage, reason, capsys):
    damage(challenge)
    folder = assert_left_out("ACDC", challenge, raw, capsys, {"patient003_frame04": reason})
    assert names(folder / "labelsTr") == ["patient002_frame01", "patient002_frame09", "patient003_frame01"]


def test_several_broken_cases_are_all_named(raw, challenge, capsys):
    no_spacing(challenge)
    no_annotation_of_a_test_patient(challenge)
    for file in (challenge / "training" / "patient002").iterdir():
        file.unlink()
    reasons = {
        "patient002": "has no patient002_frameYY",
        "patient011_frame03": "is missing",
        "patient003_frame04": "voxel",
    }
    folder = assert_left_out("ACDC", challenge, raw, capsys, reasons)
    assert names(folder / "labelsTr") == ["patient003_frame01"]
    assert "patient011_frame03" not in names(folder / "labelsTs")


def no_sequence(file):
    file.unlink()


def no_fourth_dimension(file):
    write(random_volume(0), file, SPACING)


def fewer_phases(file):
    (file.parent / "Info.cfg").write_text("ED: 1\nES: 4\nNbFrame: 12\n")


def sheared_sequence(file):
    patch_nifti(file, SROW_X_Y, 0.5)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_sequence, "patient003_4d.nii.gz is missing"),
        (no_fourth_dimension, "patient003_4d.nii.gz has 3 dimensions, expected 4"),
        (fewer_phases, "patient003_4d.nii.gz has 5 phases, Info.cfg says 12"),
        (sheared_sequence, "patient003_4d.nii.gz: the axes in its header are not perpendicular"),
    ],
)
def test_broken_sequence_costs_its_phases_only(raw, challenge, damage, reason, capsys):
    damage(challenge / "training" / "patient003" / "patient003_4d.nii.gz")
    command = ["convert", "ACDC", "-i", str(challenge), "-np", "1", "--unlabeled-frames", "all"]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert main([*command, "--allow-missing"]) == 1
    assert f"  patient003_4d: {challenge}" in (said := capsys.readouterr().out)
    assert reason in said
    folder = raw / "Dataset027_ACDC"
    assert len(names(folder / "labelsTr")) == 4
    assert {name[:10] for name in names(folder / "imagesUn")} == {"patient002", "patient011", "patient101"}


def test_annotated_frame_that_is_broken_does_not_become_unlabeled(raw, challenge):
    missing_frame(challenge)
    folder = convert(challenge, unlabeled_frames="train", num_processes=1, allow_missing=True)
    assert "patient003_frame03_0000" in names(folder / "imagesUn")
    assert "patient003_frame04_0000" not in names(folder / "imagesUn")


def test_patient_that_is_there_twice_is_left_out(raw, challenge, capsys):
    shutil.copytree(challenge / "training" / "patient003", challenge / "copy" / "patient003")
    reason = "the source has more than one case"
    folder = assert_left_out(
        "ACDC", challenge, raw, capsys, {"patient003_frame01": reason, "patient003_frame04": reason}
    )
    assert names(folder / "labelsTr") == ["patient002_frame01", "patient002_frame09"]


def test_nothing_that_can_be_converted_is_refused(raw, challenge, capsys):
    for file in challenge.glob("*/*/*_gt.nii.gz"):
        file.write_bytes(b"no image")
    assert main(["convert", "ACDC", "-i", str(challenge), "-np", "1", "--allow-missing"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "none of 8 cases can be converted; patient101_frame01: " in error
    assert_nothing_left(raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unlabeled-frames"], "--unlabeled-frames needs the challenge's 4-D sequences"),
        (["--spacing", "1", "1", "0"], "--spacing is three lengths above 0 mm, got 1.0 1.0 0.0"),
        (["--spacing", "1", "1", "nan"], "--spacing is three lengths above 0 mm, got 1.0 1.0 nan"),
        (["-np", "0"], "-np is a number of processes, at least 1, got 0"),
    ],
)
def test_wrong_use_is_one_sentence(raw, source, arguments, message, capsys):
    write_h5(source / "patient003_frame01.h5", random_volume(1), random_labels(1, VALUES))
    assert main(["convert", "ACDC", "-i", str(source), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_missing_slice_and_missing_array_are_named(raw, source):
    image, label = random_volume(1)[0], random_labels(1, VALUES)[0]
    for number in (1, 3):
        write_h5(source / f"patient003_frame01_slice_{number}.h5", image, label)
    with pytest.raises(ValueError, match=r"patient003_frame01_slice_2.h5 is missing, there are 2"):
        convert(source)
    (source / "patient003_frame01_slice_2.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"patient003_frame01_slice_2.h5 is damaged, or no HDF5 file"):
        convert(source, num_processes=1)
    with h5py.File(source / "patient003_frame01_slice_2.h5", "w") as opened:
        opened["image"] = image
    with pytest.raises(ValueError, match="slice_2.h5 has no array 'label'"):
        convert(source, num_processes=1)
    assert_nothing_left(raw)


def test_nothing_is_overwritten_unasked(raw, challenge):
    folder = convert(challenge, num_processes=1)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="Dataset027_ACDC exists: replace it with --overwrite, or choose another id"):
        convert(challenge, num_processes=1)
    assert (folder / "mine.txt").exists()
    convert(challenge, num_processes=1, overwrite=True)
    assert not (folder / "mine.txt").exists()
    assert [path.name for path in raw.iterdir()] == ["Dataset027_ACDC"]


def test_id_of_another_dataset_is_refused(raw, challenge, tmp_path):
    (tmp_path / "results" / "Dataset027_Mine").mkdir()
    with pytest.raises(ValueError, match="the id 27 is taken by .*Dataset027_Mine: choose another with -d"):
        convert(challenge, num_processes=1)
    assert convert(challenge, dataset_id=28, num_processes=1).name == "Dataset028_ACDC"


def test_source_inside_the_target_is_not_deleted(raw, challenge):
    """A download that lies where the data set goes."""
    folder = convert(challenge, num_processes=1)
    (folder / "download").mkdir()
    challenge.rename(folder / "download" / "database")
    with pytest.raises(ValueError, match="would be replaced: choose another id with -d"):
        convert(folder / "download" / "database", num_processes=1, overwrite=True)
    assert (folder / "download" / "database" / "training").is_dir()


def test_dataset_of_the_users_own_is_not_replaced(raw, challenge):
    (raw / "Dataset027_ACDC").mkdir()
    (raw / "Dataset027_ACDC" / "dataset.json").write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match="exists and was not made by a conversion: choose another id"):
        convert(challenge, num_processes=1, overwrite=True)
    assert (raw / "Dataset027_ACDC" / "dataset.json").exists()


def test_patients_of_the_challenges_test_may_lack_annotations(raw, challenge):
    for file in (challenge / "testing" / "patient101").glob("*_gt.nii.gz"):
        file.unlink()
    folder = convert(challenge, num_processes=1)
    assert "patient101_frame01_0000" in names(folder / "imagesTs")
    assert "patient101_frame01" not in names(folder / "labelsTs")


def test_interrupted_conversion_leaves_nothing(raw, challenge, monkeypatch, capsys):
    from nnunet_ssl.dataset_conversion import Dataset027_ACDC

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Dataset027_ACDC, "read_frame", interrupted)
    assert main(["convert", "ACDC", "-i", str(challenge), "-np", "1"]) == 130
    assert capsys.readouterr().err.endswith("nnunet_ssl convert ACDC: interrupted, nothing was written\n")
    assert_nothing_left(raw)


def test_module_is_a_command_too(raw, challenge):
    command = [sys.executable, "-m", "nnunet_ssl.dataset_conversion.Dataset027_ACDC"]
    result = subprocess.run([*command, "-i", challenge, "-d", "28", "-np", "1"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Dataset028_ACDC: 4 labeled cases, 4 for testing, 0 unlabeled" in result.stdout
    result = subprocess.run([*command, "-i", challenge, "-d", "28"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "Dataset028_ACDC exists: replace it with --overwrite" in result.stderr


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real ACDC data are not here")
def test_real_slices_and_volumes(raw):
    """14 training patients as slices, 8 validation volumes: every voxel as in the files."""
    folder = convert(SHARED_DATA / "ACDC")
    cases = names(folder / "labelsTr")
    assert len(cases) == 36
    for case in cases:
        image, label = (
            read(folder / f"images{'Tr'}" / f"{case}_0000.nii.gz"),
            read(folder / "labelsTr" / f"{case}.nii.gz"),
        )
        volume = SHARED_DATA / "ACDC" / "data" / f"{case}.h5"
        files = (
            [volume]
            if volume.exists()
            else [volume.with_name(f"{case}_slice_{index + 1}.h5") for index in range(len(image))]
        )
        for index, file in enumerate(files):
            with h5py.File(file) as opened:
                where = slice(None) if len(files) == 1 else index
                np.testing.assert_array_equal(image[where], opened["image"][()])
                np.testing.assert_array_equal(label[where], opened["label"][()])
        assert len(list(volume.parent.glob(f"{case}_slice_*"))) in (0, len(image))
