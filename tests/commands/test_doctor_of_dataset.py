"""`nnunet_ssl doctor -d`: what keeps one data set from training, by the names and headers of its files."""

import gzip
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssl.commands import doctor
from nnunet_ssl.commands.cli import main
from nnunet_ssl.commands.dataset_checks import check_dataset
from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.split_file import NO_ESTIMATE
from nnunet_ssl.data.stamps import Stamp, stamp_file
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from tests.data.test_unlabeled_preprocessing import write_image

NAME = "Dataset999_Tiny"
LABELED = [f"labeled{i}" for i in range(4)]
PLANNING = "nnUNetv2_plan_and_preprocess -d 999 --verify_dataset_integrity"
PREPROCESSING = "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 3d_fullres"


@pytest.fixture
def dataset(tiny_dataset, monkeypatch):
    """Return a whole data set, raw images without voxels, labels empty: 4 labeled cases, 3 unlabeled, two folds."""
    monkeypatch.setattr(DatasetReader, "read_channels", lambda *_: pytest.fail("voxels were read"))
    monkeypatch.setattr(doctor, "CHECKS", ())
    dataset = tiny_dataset()
    raw = raw_of(dataset)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    for case in LABELED:
        write_header(raw / "imagesTr" / f"{case}_0000.nii.gz")
        (raw / "labelsTr" / f"{case}.nii.gz").touch()
    for i in range(3):
        (raw / "imagesUn" / f"unlabeled{i}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    return dataset


def write_header(file: Path, size: tuple[int, ...] = (20, 20, 20), spacing: float = 1.0) -> None:
    """Write an image file of which only the header is there."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(size)
    header.set_zooms([spacing] * len(size))
    header["magic"] = b"n+1"
    file.write_bytes(gzip.compress(header.binaryblock))


def test_scans_that_lie_another_way_are_named(dataset):
    raw = raw_of(dataset)
    for i in range(3):
        write_header(raw / "imagesUn" / f"unlabeled{i}_0000.nii.gz")
    assert not [state for state in notes() if state.startswith("orientation")]
    header = nibabel.Nifti1Header()
    header.set_data_shape((20, 20, 20))
    header.set_sform(np.diag([-1.0, 1.0, 1.0, 1.0]), code=1)
    header["magic"] = b"n+1"
    (raw / "imagesUn" / "unlabeled1_0000.nii.gz").write_bytes(gzip.compress(header.binaryblock))
    advice = notes()["orientation: 1 of 7 scans lie, by their headers, not as the largest group: unlabeled1"]
    assert advice == "turn them the same way: nnU-Net takes voxels as they lie in the file"


def raw_of(dataset) -> Path:
    return dataset.images_un.parent


def look(dataset: str = "999", configuration: str | None = None, plans: str = "nnUNetPlans") -> list[Finding]:
    return list(check_dataset(dataset, configuration, plans))


def problem() -> tuple[str, str]:
    """Return state and remedy of the only problem that is found."""
    (found,) = [finding for finding in look() if finding.is_problem]
    return f"{found.name}: {found.state}", found.remedy


def notes() -> dict[str, str]:
    """Return what is advised where nothing keeps a training from starting."""
    found = look()
    assert not [finding for finding in found if finding.is_problem]
    return {f"{finding.name}: {finding.state}": finding.remedy for finding in found if finding.remedy}


def change_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("given", ["999", NAME])
def test_a_whole_data_set_can_be_trained(dataset, given, capsys):
    assert main(["doctor", "-d", given]) == 0
    output = capsys.readouterr().out
    assert "cases: 4 labeled of 4 patient(s), 3 in imagesUn" in output
    assert "fold 1: 2 labeled, 2 validation, 3 unlabeled" in output
    assert output.endswith(f"A training on data set {given} can start.\n")


def test_a_data_set_that_cannot_be_trained_is_exit_code_1(dataset, capsys):
    (raw_of(dataset) / "labelsTr" / "labeled0.nii.gz").unlink()
    assert main(["doctor", "-d", "999"]) == 1
    output = capsys.readouterr().out
    assert "\n[PROBLEM] images in imagesTr: 1 without a label: labeled0\n" in f"\n{output}"
    assert f"\n          fix it: nnunet_ssl split {NAME} --move-unlabeled\n" in output
    assert "\nA training on data set 999 cannot start: " in output


@pytest.mark.parametrize("option", ["-c", "-p"])
def test_options_about_a_data_set_go_with_one(dataset, option, capsys):
    assert main(["doctor", option, "3d_fullres"]) == 2
    assert capsys.readouterr().err == f"nnunet_ssl doctor: {option} goes with -d DATASET\n"


def test_nothing_is_changed_by_looking(dataset):
    def state():
        return {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}

    before = state()
    look()
    assert state() == before


@pytest.mark.parametrize(
    ("size", "spacing", "words"),
    [
        ((20, 20), 1.0, "it is a single slice, and the data set has volumes, of 20 slices as a rule"),
        ((20, 20, 20, 5), 1.0, "it holds 5 images in one file"),
        ((20, 20, 20), 0.0, "its header gives no voxel size, but 0 x 0 x 0 mm"),
    ],
)
@pytest.mark.parametrize("is_planned", [True, False])
def test_labeled_images_of_no_use(dataset, size, spacing, words, is_planned):
    write_header(raw_of(dataset) / "imagesTr" / "labeled2_0000.nii.gz", size, spacing)
    if not is_planned:
        (dataset.folder / "nnUNetPlans.json").unlink()
    found = {finding.state: finding.remedy for finding in look() if finding.name == "images in imagesTr"}
    if not is_planned and len(size) == 2:
        assert found == {}
        return
    ((state, remedy),) = found.items()
    assert state.startswith("1 of no use: labeled2 (")
    assert words in state
    assert remedy.endswith("or take these cases out, with their labels")


# ---- which data set ----


@pytest.mark.parametrize("place", ["raw", "preprocessed", "results"])
def test_two_data_sets_of_one_id(dataset, place):
    other = dataset.root / place / "Dataset999_Tiny copy"
    other.mkdir(parents=True)
    state, remedy = problem()
    assert state == (
        f"data set: 2 have the id 999: {NAME} in nnUNet_raw and nnUNet_preprocessed, "
        f"Dataset999_Tiny copy in nnUNet_{place}"
    )
    assert remedy == f"mv '{other}' /elsewhere   # if it is the wrong one"


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ("998", "there is no data set '998' in"),
        ("Dataset999_Tyni", "'Dataset999_Tyni' in .*; is it Dataset999_Tiny"),
        ("Tiny", "a data set is given by id or name, 4 or Dataset004_Hippocampus, got 'Tiny'"),
    ],
)
def test_a_data_set_that_there_is_not(dataset, given, state):
    (found,) = look(given)
    assert re.search(state, found.state)
    assert found.is_problem
    assert found.remedy == f"choose with -d; there are: {NAME}"


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_without_folders_no_data_set_is_looked_at(dataset, monkeypatch, variable):
    monkeypatch.delenv(variable)
    assert problem() == ("data set: not looked at", "set nnUNet_raw and nnUNet_preprocessed first")


# ---- dataset.json ----


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (None, "there is no .*dataset.json"),
        ("{", "dataset.json is no JSON"),
        ("[]", "dataset.json holds no JSON object but"),
        ('{"labels": {"background": 0}}', "dataset.json has no key 'file_ending'"),
        ('{"file_ending": ".png"}', "dataset.json has no key 'labels'"),
        (
            '{"file_ending": "png", "labels": {}}',
            "'file_ending' is written with its dot, such as \".nii.gz\", got 'png'",
        ),
        (
            '{"file_ending": ".png", "labels": {"0": "background"}}',
            "'labels', '0' is neither .* got 'backgr",
        ),
        ('{"file_ending": ".png", "labels": ["background"]}', "'labels' is not an object with names and values"),
        ('{"file_ending": ".png", "labels": {}, "patient_pattern": "("}', "'patient_pattern': "),
        ('{"file_ending": ".png", "labels": {}, "patient_pattern": 3}', "'patient_pattern': "),
        ('{"file_ending": ".png", "labels": {}}', "has no key 'channel_names'"),
        ('{"file_ending": ".png", "labels": {}, "channel_names": ["CT"]}', "'channel_names' are numbers with names"),
    ],
)
def test_a_dataset_json_that_is_none(dataset, content, state):
    file = raw_of(dataset) / "dataset.json"
    file.unlink() if content is None else file.write_text(content)
    found, remedy = problem()
    assert re.search(state, found)
    assert remedy.startswith("write it as https://")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"labels": {"organ": 1}}, 'labels have no "background": 0'),
        ({"labels": {"background": 1, "organ": 0}}, 'labels have no "background": 0'),
        ({"labels": {"background": 0, "organ": 2}}, "the values of labels are 0, 2: number them 0, 1, 2 without gaps"),
        ({"labels": {"background": 0, "ignore": 1, "organ": 2}}, "are 0, 2, 1: .* without gaps, ignore last"),
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": 2}},
            "regions, which need the key 'regions_class_order'",
        ),
    ],
)
def test_what_nnunet_refuses_in_dataset_json(dataset, changes, state):
    for folder in (raw_of(dataset), dataset.folder):
        change_json(folder / "dataset.json", **changes)
    found = [finding for finding in look() if finding.is_problem]
    assert any(re.search(state, finding.state) and "https://" in finding.remedy for finding in found)


@pytest.mark.parametrize("labels", [{"background": 0, "a": 1, "b": 2}, {"background": 0, "ignore": 1}])
def test_a_dataset_json_that_changed_after_planning(dataset, labels):
    change_json(raw_of(dataset) / "dataset.json", labels=labels)
    state, remedy = problem()
    assert state.startswith("dataset.json: other labels than at planning")
    assert remedy == PLANNING


def test_an_older_conversion_is_a_note_with_its_remedy(dataset):
    change_json(raw_of(dataset) / "dataset.json", converted_by="nnunet_ssl", name="HC18")
    ((state, remedy),) = [(state, remedy) for state, remedy in notes().items() if state.startswith("conversion")]
    assert "HC18 was converted by an older version" in state
    assert remedy.startswith("nnunet_ssl convert HC18 -i FOLDER --overwrite")


# ---- raw files ----


@pytest.mark.parametrize("cases", [["a"], ["a", "b b"], [f"c{i}" for i in range(9)]])
def test_images_without_label_in_imagestr(dataset, cases):
    for case in cases:
        write_header(raw_of(dataset) / "imagesTr" / f"{case}_0000.nii.gz")
    state, remedy = problem()
    assert state.startswith(f"images in imagesTr: {len(cases)} without a label: {cases[0]}")
    assert remedy == f"nnunet_ssl split {NAME} --move-unlabeled"
    assert main(remedy.split()[1:]) == 0
    assert not [finding for finding in look() if finding.is_problem]


def test_labels_without_image(dataset):
    for name in ("x", "y", "z"):
        (raw_of(dataset) / "labelsTr" / f"{name}.nii.gz").touch()
    found = notes()
    assert "bring their images to imagesTr" in found["labels in labelsTr: 3 whose image is not in imagesTr: x, y, z"]


def test_labels_whose_image_is_unlabeled(dataset):
    (raw_of(dataset) / "labelsTr" / "unlabeled1.nii.gz").touch()
    found = notes()
    remedy = found["labels in labelsTr: 1 whose image is not in imagesTr: unlabeled1"]
    assert remedy == "bring their images from imagesUn to imagesTr, or take these labels out"


@pytest.mark.parametrize("number", [3, None, "4"])
@pytest.mark.parametrize("planned", [True, False])
def test_numtraining_that_planning_would_refuse(dataset, number, planned):
    change_json(raw_of(dataset) / "dataset.json", numTraining=number)
    if not planned:
        (dataset.folder / "nnUNetPlans.json").unlink()
    (found,) = [finding for finding in look() if finding.name.startswith("numTraining")]
    assert found.state == f"says {number}, imagesTr has 4 cases: {PLANNING} fails"
    assert found.is_problem != planned
    assert main(found.remedy.partition("   #")[0].split()[1:]) == 0
    assert not [finding for finding in look() if finding.name.startswith("numTraining")]


def test_no_labeled_case_at_all(dataset):
    for file in (raw_of(dataset) / "labelsTr").iterdir():
        file.rename(file.with_name(file.name.replace(".nii.gz", ".nrrd")))
    state, remedy = problem()
    assert "there is no CASE.nii.gz in" in state
    assert "4 file(s) with the ending .nrrd" in state
    assert "fix file_ending in dataset.json" in remedy


@pytest.mark.parametrize("folder", ["imagesTr", "imagesUn"])
@pytest.mark.parametrize("name", ["scan", "two words", "scan_1"])
def test_images_that_are_not_named_as_channels(dataset, folder, name):
    (raw_of(dataset) / folder / f"{name}.nii.gz").touch()
    state, remedy = problem()
    assert state == f"names in {folder}: not named as channel CASE_0000.nii.gz: {name}.nii.gz"
    subprocess.run(remedy, shell=True, check=True)
    assert (raw_of(dataset) / folder / f"{name}_0000.nii.gz").exists()


@pytest.mark.parametrize("folder", ["imagesTr", "imagesUn"])
@pytest.mark.parametrize("numbers", [(1,), (0, 1), (2, 3, 4)])
def test_channels_that_the_data_set_does_not_have(dataset, folder, numbers):
    case = {"imagesTr": "labeled0", "imagesUn": "unlabeled0"}[folder]
    (raw_of(dataset) / folder / f"{case}_0000.nii.gz").unlink()
    for number in numbers:
        write_header(raw_of(dataset) / folder / f"{case}_{number:04d}.nii.gz")
    state, remedy = problem()
    assert state.startswith(f"channels in {folder}: {case}: it has {len(numbers)} channel(s), the data set has 1 (MRI)")
    assert "the data set's channels, or take them out" in remedy


@pytest.mark.parametrize("name", ["a.png", "notes.txt", "folder"])
def test_what_is_not_used_in_imagesun_is_a_note(dataset, name):
    path = raw_of(dataset) / "imagesUn" / name
    path.touch() if "." in name else path.mkdir()
    assert any(state.startswith("imagesUn: not used in") for state in notes())


def test_hiding_that_was_interrupted(dataset):
    hidden = raw_of(dataset) / "labelsHidden"
    hidden.mkdir()
    (raw_of(dataset) / "labelsTr" / "labeled3.nii.gz").rename(hidden / "labeled3.nii.gz")
    found = [finding for finding in look() if finding.is_problem]
    assert found[0].state == "--hide was interrupted: hidden labels of cases in imagesTr: labeled3"
    assert found[0].remedy.startswith(f"nnunet_ssl split {NAME} --unhide")
    assert main(["split", NAME, "--unhide"]) == 0
    assert not [finding for finding in look() if finding.is_problem]


def test_files_that_dataset_json_names_elsewhere(dataset):
    elsewhere = {case: {"images": [f"/far/{case}_0000.nii.gz"], "label": f"/far/{case}.nii.gz"} for case in LABELED}
    change_json(raw_of(dataset) / "dataset.json", dataset=elsewhere)
    state, remedy = problem()
    assert state.startswith("files that dataset.json names: missing: /far/labeled0.nii.gz")
    assert remedy == f"fix the key 'dataset' of {raw_of(dataset) / 'dataset.json'}"


# ---- plans and preprocessed cases ----


def test_a_data_set_that_is_not_planned(dataset):
    (dataset.folder / "nnUNetPlans.json").rename(dataset.folder / "nnUNetResEncUNetLPlans.json")
    state, remedy = problem()
    assert state == f"plans: there is no {dataset.folder / 'nnUNetPlans.json'}"
    assert remedy == f"{PLANNING}   # or choose with -p: nnUNetResEncUNetLPlans"


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("processes", ["0", "1", None])
def test_no_process_for_augmentation_is_warned_of_where_planning_is_still_to_do(
    dataset, monkeypatch, planned, processes
):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    if processes is not None:
        monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    if not planned:
        (dataset.folder / "nnUNetPlans.json").unlink()
    found = [finding for finding in look() if finding.name == "nnUNet_n_proc_DA"]
    assert [finding.is_problem for finding in found] == [False] * (processes == "0" and not planned)
    assert all(finding.remedy.startswith("unset nnUNet_n_proc_DA") for finding in found)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"configurations": None}, "has no key 'configurations'"),
        ({"configurations": {}}, "'configurations' has fewer than 1 entries: {}"),
        ({"configurations": {"2d": {"inherits_from": "4d"}}}, "configuration '2d' is damaged"),
        ({"configurations": {"2d": {"architecture": {}}}}, "configuration '2d' has no key 'data_identifier'"),
        ({"dataset_name": "Dataset001_Old"}, "is of data set 'Dataset001_Old', which was renamed or copied since"),
        ({"image_reader_writer": None}, "has no key 'image_reader_writer'"),
    ],
)
def test_plans_that_are_damaged_or_of_another_data_set(dataset, changes, state):
    change_json(dataset.folder / "nnUNetPlans.json", **changes)
    found, remedy = problem()
    assert state in found
    assert remedy == PLANNING


@pytest.mark.parametrize("configuration", ["2d", "3d_lowres", "three d"])
def test_a_configuration_that_the_plans_do_not_have(dataset, configuration):
    found = look(configuration=configuration)[-1]
    assert found.is_problem or any(finding.is_problem for finding in look(configuration=configuration))
    (found,) = [finding for finding in look(configuration=configuration) if finding.is_problem]
    assert found.state.endswith(f"has no configuration {configuration}")
    assert found.remedy == "choose with -c: 3d_fullres"


@pytest.mark.parametrize(
    "interrupt",
    [
        lambda folder: [file.unlink() for file in folder.glob("labeled2*")],
        lambda folder: (folder / "labeled2.pkl").unlink(),
        lambda folder: (folder / "labeled2_seg.b2nd").write_bytes(b"half"),
        lambda folder: (folder / "labeled2.b2nd").write_bytes((folder / "labeled2.b2nd").read_bytes()[:-9]),
    ],
    ids=["no file", "no properties", "half a label", "image cut off"],
)
def test_labeled_preprocessing_that_was_interrupted(dataset, interrupt):
    interrupt(dataset.labeled_folder)
    state, remedy = problem()
    assert state == "3d_fullres, labeled cases: 1 of 4 not preprocessed, or not to the end: labeled2"
    assert remedy == PREPROCESSING


def test_labeled_cases_that_are_not_preprocessed_at_all(dataset):
    shutil.rmtree(dataset.labeled_folder)
    assert problem() == ("labeled cases: not preprocessed for 3d_fullres", PREPROCESSING)


def test_other_configurations_are_looked_at_only_when_asked_for(dataset):
    file = dataset.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["2d"] = plans["configurations"]["3d_fullres"] | {"data_identifier": "nnUNetPlans_2d"}
    plans["configurations"]["cascade"] = {"inherits_from": "2d", "previous_stage": "3d_fullres"}
    file.write_text(json.dumps(plans))
    assert not [finding for finding in look() if finding.is_problem]
    (found,) = [finding for finding in look(configuration="2d") if finding.is_problem]
    assert found.remedy == PREPROCESSING.replace("3d_fullres", "2d")
    (found,) = [finding for finding in look(configuration="cascade") if finding.is_problem]
    assert found.remedy == PREPROCESSING.replace("3d_fullres", "cascade")


def test_references_and_fingerprint_that_a_training_needs(dataset):
    (dataset.folder / "gt_segmentations" / "labeled1.nii.gz").unlink()
    state, remedy = problem()
    assert state.startswith("references: 1 missing in")
    assert remedy == PREPROCESSING
    (dataset.folder / "dataset_fingerprint.json").unlink()
    found = [finding for finding in look() if finding.is_problem]
    assert [finding.remedy for finding in found] == [PLANNING, PREPROCESSING]


def test_cases_preprocessed_with_a_label_that_was_hidden_since(dataset):
    dataset.write_case(dataset.labeled_folder, "former", seed=9)
    state = "1 preprocessed with a label that is not in labelsTr any more: former"
    remedy = notes()[f"3d_fullres, former labeled cases: {state}"]
    assert remedy == PLANNING


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_unlabeled_images_that_could_not_be_preprocessed_are_a_note(dataset, damaged, monkeypatch):
    monkeypatch.undo()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(dataset.root / name))
    for i in range(3):
        if i >= damaged:
            write_image(dataset.images_un / f"unlabeled{i}_0000.nii.gz", seed=i)
    assert main(["preprocess", "-d", "999"]) == 1
    found = notes()
    (state,) = [state for state in found if state.startswith("3d_fullres, unlabeled images")]
    assert f"{damaged} could not be preprocessed, trainings leave them out: unlabeled0 (" in state
    assert found[state] == f"nnunet_ssl preprocess -d {NAME} -c 3d_fullres -p nnUNetPlans   # after fixing them"


def test_unlabeled_images_that_are_not_preprocessed_yet_are_a_note(dataset):
    state = "3d_fullres, unlabeled cases: 3 of 3 not preprocessed yet: a training does it first"
    assert notes() == {
        state: f"nnunet_ssl preprocess -d {NAME} -c 3d_fullres -p nnUNetPlans",
        "copies: changed copies under other names were not looked for in 7 of 7 scans": f"nnunet_ssl audit -d {NAME}",
    }


def test_a_case_of_other_channels_is_one_problem_and_not_called_left_out(dataset):
    """Where file names do not tell, as of a colour picture; where they do the raw files say it."""
    plans, dataset_json = dataset.case.plans(), dataset.case.dataset_json()
    images = raw_of(dataset) / "imagesUn"
    job = UnlabeledPreprocessing(plans, "3d_fullres", dataset_json, images, dataset.unlabeled_folder)
    for case, is_wrong in (("unlabeled0", True), ("unlabeled1", False)):
        stamp = Stamp(job.settings(), [], problem="it is odd", wrong_channel_count=is_wrong)
        write_json_atomically(asdict(stamp), stamp_file(dataset.unlabeled_folder, case))
    state, remedy = problem()
    assert state == "3d_fullres, unlabeled images: a training refuses other channels: unlabeled0 (it is odd)"
    assert remedy.endswith("# after fixing them, or taking them out of imagesUn")
    left_out = "1 could not be preprocessed, trainings leave them out: unlabeled1 (it is odd)"
    assert left_out in [finding.state for finding in look()]
    (images / "unlabeled0_0000.nii.gz").rename(images / "unlabeled0_0001.nii.gz")
    assert problem()[0].startswith("channels in imagesUn: unlabeled0")


def test_where_the_raw_data_is_not_what_is_preprocessed_counts(dataset):
    shutil.rmtree(raw_of(dataset))
    assert not [finding for finding in look() if finding.is_problem]
    assert "4 labeled of 4 patient(s), 3 in imagesUn" in [finding.state for finding in look()]
    shutil.rmtree(dataset.folder / "gt_segmentations")
    assert problem()[1] == PREPROCESSING


# ---- number of cases, split ----


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_few_cases_and_the_folds_that_there_will_be(dataset, number):
    (dataset.folder / "splits_final.json").unlink()
    for case in LABELED[number:]:
        (raw_of(dataset) / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        (raw_of(dataset) / "labelsTr" / f"{case}.nii.gz").unlink()
    (found,) = [finding for finding in look() if finding.name == "split"]
    assert not found.is_problem
    if number == 1:
        assert found.state == f"none yet; of one patient there is fold 0: {NO_ESTIMATE}"
        assert found.remedy == "label a second patient"
    else:
        folds = f"none yet; of {number} patients there are folds 0 to {number - 1}, one validates in each"
        assert found.state == folds


def test_patients_count_not_cases(dataset):
    (dataset.folder / "splits_final.json").unlink()
    for folder in (raw_of(dataset), dataset.folder):
        change_json(folder / "dataset.json", patient_pattern="^(labeled)")
    states = {finding.name: finding.state for finding in look()}
    assert states["cases"] == "4 labeled of 1 patient(s), 3 in imagesUn"
    assert NO_ESTIMATE in states["split"]


def test_no_unlabeled_case(dataset):
    for file in (raw_of(dataset) / "imagesUn").iterdir():
        file.unlink()
    found = [finding for finding in look() if finding.is_problem]
    assert {finding.state for finding in found} == {"it has no unlabeled cases: only nnUNetTrainer can train"}
    assert "--labeled 50% --overwrite" in found[0].remedy
    (dataset.folder / "splits_final.json").unlink()
    assert problem()[0] == "unlabeled cases: none: only nnUNetTrainer can train"


FOLD = {"train": ["labeled0", "labeled1"], "val": ["labeled2", "labeled3"]}


@pytest.mark.parametrize(
    ("folds", "state"),
    [
        ("[", "is no JSON"),
        ({}, "is no list of folds"),
        ([], "has no fold"),
        ([{"train": ["labeled0"]}], "fold 0 of .* has no key 'val'"),
        ([FOLD | {"unlabelled": ["unlabeled0"]}], "has the key 'unlabelled', which nobody reads"),
        ([FOLD | {"train": "labeled0"}], "'train' is no list: 'labeled0'"),
        ([FOLD | {"val": []}], "fold 0: val is empty"),
        ([FOLD | {"train": ["labeled0", "gone"]}], "fold 0: cases in train or val have no label in labelsTr: gone"),
        (
            [FOLD, FOLD | {"unlabeled": ["nowhere"]}],
            "fold 1: unlabeled cases are neither in imagesUn nor .*: nowhere",
        ),
        (
            [FOLD | {"unlabeled": ["labeled1"]}],
            "unlabeled and at the same time a training or validation case: labeled1",
        ),
        (
            [FOLD | {"unlabeled": ["labeled3"]}],
            "unlabeled and at the same time a training or validation case: labeled3",
        ),
        ([FOLD | {"unlabeled": []}], "fold 0: it has no unlabeled cases"),
    ],
)
def test_a_split_that_cannot_be_trained_on(dataset, folds, state):
    file = dataset.folder / "splits_final.json"
    file.write_text(folds if isinstance(folds, str) else json.dumps(folds))
    found, remedy = problem()
    assert re.search(state, found)
    again = f"or, with other validation cases: nnunet_ssl split {NAME} --labeled 100% --overwrite"
    assert remedy == f"correct it in {file}; {again}"


def test_a_split_that_needs_a_hidden_label(dataset):
    raw = raw_of(dataset)
    (raw / "labelsHidden").mkdir()
    (raw / "labelsTr" / "labeled0.nii.gz").rename(raw / "labelsHidden" / "labeled0.nii.gz")
    (raw / "imagesTr" / "labeled0_0000.nii.gz").rename(raw / "imagesUn" / "labeled0_0000.nii.gz")
    found = [finding for finding in look() if finding.is_problem]
    assert (found[0].state, found[0].remedy) == (
        "needed with a label that is hidden: labeled0",
        f"nnunet_ssl split {NAME} --unhide",
    )


def test_a_case_that_is_labeled_and_in_imagesun(dataset):
    (raw_of(dataset) / "imagesUn" / "labeled1_0000.nii.gz").touch()
    found = [finding for finding in look() if finding.is_problem]
    assert [(finding.name, finding.remedy) for finding in found] == [("split, fold 0, 1", "take them out of imagesUn")]
    (dataset.folder / "splits_final.json").unlink()
    assert "unlabeled and at the same time a training or validation case: labeled1" in problem()[0]


@pytest.mark.parametrize(
    ("fold", "pattern", "state"),
    [
        ({"train": LABELED, "val": LABELED}, None, NO_ESTIMATE),
        ({"train": LABELED, "val": LABELED[:1]}, None, "their scores are too good: labeled0"),
        (FOLD, "^(label)", "patients are in training and in validation, whose scores are too good: label"),
    ],
)
def test_a_split_whose_scores_are_no_estimate_is_a_note(dataset, fold, pattern, state):
    dataset.write_splits([fold])
    for folder in (raw_of(dataset), dataset.folder):
        change_json(folder / "dataset.json", patient_pattern=pattern)
    assert any(state in found for found in notes())


def test_hidden_and_preprocessed_cases_may_be_unlabeled_ones(dataset):
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["labeled2", "unlabeled0"]}])
    assert not [finding for finding in look() if finding.is_problem]
    assert "fold 0: 1 labeled, 1 validation, 2 unlabeled" in [finding.state for finding in look()]


def test_a_misspelled_imagesun_is_named_with_the_command_that_renames_it(dataset):
    folder = raw_of(dataset) / "imagesUn"
    folder.rename(folder.with_name("imagesUnlabeled"))
    (remedy,) = [finding.remedy for finding in look() if finding.name == "imagesUn"]
    subprocess.run(remedy, shell=True, check=True)
    assert folder.is_dir()
