"""`nnunet_ssl audit`: each planted leak is found, with the words that fix it, and none where there is none."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from nnunet_ssl.commands.cli import main
from nnunet_ssl.data.dataset_reader import DatasetReader
from tests.leaks.conftest import LABELED, SHAPE, TEST, UNLABELED
from tests.leaks.scans import NAME, RawScans, scan, write

SPLIT = f"nnunet_ssl split {NAME} --labeled 100% --overwrite"
PLANNING = "nnUNetv2_plan_and_preprocess -d 999 --verify_dataset_integrity --clean"


@pytest.fixture
def audit(dataset, capsys):
    """Return a function that runs the verb, and returns what it finds: {name: (state, remedy)}."""

    def run(*arguments: str, notes: bool = False) -> dict[str, tuple[str, str]]:
        code = main(["audit", "-d", "999", *arguments])
        output = capsys.readouterr().out
        mark, said = ("[ note  ] ", "advice: ") if notes else ("[PROBLEM] ", "fix it: ")
        lines = output.splitlines()
        found = {}
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith(mark):
                name, _, state = line.removeprefix(mark).partition(": ")
                found[name] = (state, following.strip().removeprefix(said))
        assert code == (1 if "[PROBLEM]" in output else 0)
        assert lines[-1] == f"{NAME}: " + (f"{output.count('[PROBLEM]')} leak(s)." if code else "no leak was found.")
        return found

    return run


def changed(seed: int) -> np.ndarray:
    """Return a copy of a scan that no hash finds."""
    return 2 * np.flip(scan(seed, SHAPE), 0) + 5


def only(found: dict) -> tuple[str, str, str]:
    ((name, (state, remedy)),) = found.items()
    return name, state, remedy


def test_clean_data(audit):
    assert audit() == {}
    assert audit(notes=True) == {}


def test_clean_data_without_patient_pattern_and_without_split(dataset, audit):
    dataset.describe()
    (dataset.preprocessed / "splits_final.json").unlink()
    assert audit() == {}


# ---- copies ----

LEFT_OUT = f"take the unlabeled ones out of imagesUn, or: {SPLIT}"
COPIES = {  # which scan is put where, and what is said
    "training and in validation": ("imagesTr", "p3_a", 0, "p0_a ~ p3_a", SPLIT),
    "unlabeled and in validation": ("imagesUn", "p13_a", 3, "p3_a ~ p13_a", LEFT_OUT),
    "training and in test": ("imagesTs", "p22_a", 1, "p1_a ~ p22_a (imagesTs)", "take them out of imagesTs"),
    "unlabeled and in test": ("imagesTs", "p22_a", 6, "p22_a (imagesTs) ~ p10_a", LEFT_OUT),
    "validation and in test": ("imagesTs", "p22_a", 4, "p4_a ~ p22_a (imagesTs)", "take them out of imagesTs"),
    "training and in unlabeled": ("imagesUn", "p13_a", 0, "p0_a ~ p13_a", LEFT_OUT),
}


@pytest.mark.parametrize("sides", COPIES)
def test_a_changed_copy_on_two_sides(dataset, audit, sides):
    folder, case, seed, pair, remedy = COPIES[sides]
    dataset.add(folder, case, changed(seed))
    name, state, said = only(audit())
    assert name == f"fold 0, one image in {sides}"
    assert state.startswith(f"{pair} (1.00); ~ is a copy that was changed")
    assert said.startswith(remedy)


def test_equal_voxels_on_two_sides(dataset, audit):
    dataset.add("imagesUn", "p13_a", scan(3, SHAPE))
    assert only(audit())[:2] == ("fold 0, one image in unlabeled and in validation", "p3_a = p13_a")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_under_two_names(dataset, audit, link):
    link(dataset.raw / "imagesTr" / "p3_a_0000.nii.gz", dataset.raw / "imagesUn" / "p13_a_0000.nii.gz")
    assert only(audit())[:2] == ("fold 0, one image in unlabeled and in validation", "p3_a = p13_a")


def test_copies_on_one_side_are_none(dataset, audit):
    dataset.add("imagesTr", "p1_a", scan(0, SHAPE))
    dataset.add("imagesUn", "p13_a", scan(6, SHAPE))
    dataset.add("imagesTs", "p22_a", changed(9))
    assert audit() == {}
    state, _ = audit(notes=True)["copies on one side"]
    assert state == "p0_a = p1_a, p20_a (imagesTs) ~ p22_a (imagesTs) (1.00), p10_a = p13_a"


def test_neighbours_of_one_patient_are_a_note_beside_their_patient(dataset, audit):
    dataset.add("imagesUn", "p3_b", changed(3))
    assert list(audit()) == ["fold 0, a patient in unlabeled and in validation"]
    state, _ = audit(notes=True)["fold 0, neighbouring images"]
    assert "p3_a ~ p3_b (1.00)" in state


def test_neighbours_in_number_are_of_one_patient_as_far_as_the_data_set_says(dataset, audit):
    dataset.describe(patient_pattern="^(.+)$", border_images=2)
    for number, folder in ((4, "imagesTr"), (8, "imagesUn"), (9, "imagesUn")):
        dataset.add(folder, f"s{number:03d}", scan(50, SHAPE))
    dataset.split({"train": LABELED[:3], "val": [*LABELED[3:], "s004"]})
    assert only(audit())[1] == "s004 = s009"
    assert "s004 = s008" in audit(notes=True)["fold 0, neighbouring images"][0]


# ---- cases and patients ----


def test_a_validation_case_in_training(dataset, audit):
    dataset.split({"train": LABELED[:4], "val": LABELED[3:]})
    name, state, remedy = only(audit())
    assert (name, state) == ("fold 0, a validation case in training", "p3_a")
    assert remedy.startswith(SPLIT)


def test_training_cases_that_validate_are_a_note(dataset, audit):
    dataset.split({"train": LABELED, "val": LABELED})
    assert audit() == {}
    assert audit(notes=True)["fold 0, validation"][1] == "score the model on imagesTs only"


def test_a_labeled_case_among_the_unlabeled(dataset, audit):
    dataset.split({"train": LABELED[:3], "val": LABELED[3:], "unlabeled": [*UNLABELED, "p0_a", "p4_a"]})
    name, state, remedy = only(audit())
    assert (name, state.rpartition(": ")[2]) == ("fold 0, a labeled case among the unlabeled", "p0_a, p4_a")
    assert remedy.startswith("take them out of imagesUn, or: nnunet_ssl split")


@pytest.mark.parametrize("key", ["train", "val", "unlabeled"])
def test_a_test_case_in_the_split(dataset, audit, key):
    fold = {"train": LABELED[:3], "val": LABELED[3:], "unlabeled": UNLABELED}
    dataset.split(fold | {key: [*fold[key], TEST[0]]})
    found = audit()
    side = {"train": "training", "val": "validation"}.get(key, key)
    state, remedy = found["fold 0, a test case in the split"]
    assert state == f"{side} cases whose image lies in imagesTs alone: p20_a"
    assert remedy.startswith(SPLIT)


def test_a_name_may_stand_in_imagests_for_another_scan(dataset, audit):
    dataset.describe()
    dataset.add("imagesTs", LABELED[0], scan(40, SHAPE))
    assert audit() == {}


PATIENTS = {
    "training and in validation": ("imagesTr", "p0_b", "val"),
    "unlabeled and in validation": ("imagesUn", "p4_b", None),
    "training and in test": ("imagesTs", "p1_b", None),
    "unlabeled and in test": ("imagesTs", "p10_b", None),
    "validation and in test": ("imagesTs", "p5_b", None),
}


@pytest.mark.parametrize("sides", PATIENTS)
def test_a_patient_on_two_sides(dataset, audit, sides):
    folder, case, key = PATIENTS[sides]
    dataset.add(folder, case, scan(40, SHAPE))
    if key:
        dataset.split({"train": LABELED[:3], "val": [*LABELED[3:], case]})
    name, state, remedy = only(audit())
    assert name == f"fold 0, a patient in {sides}"
    assert state == rf"{case.partition('_')[0]}, by patient_pattern ^(p\d+)_"
    assert (SPLIT in remedy) == ("test" not in sides or "unlabeled" in sides)


def test_a_patient_may_be_labeled_and_unlabeled(dataset, audit):
    dataset.add("imagesUn", "p0_b", scan(40, SHAPE))
    assert audit() == {}


def test_patients_in_nnunets_own_split(dataset, audit):
    (dataset.preprocessed / "splits_final.json").unlink()
    dataset.add("imagesTr", "p0_b", scan(40, SHAPE))
    name, state, _ = only(audit())
    assert re.fullmatch(r"fold \d(, \d)*, a patient in training and in validation", name)
    assert state.startswith("p0, by patient_pattern")


def test_few_patients_have_folds_that_fit(dataset, audit):
    (dataset.preprocessed / "splits_final.json").unlink()
    for case in LABELED[3:]:
        shutil.move(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", dataset.raw / "imagesUn")
        shutil.move(dataset.raw / "labelsTr" / f"{case}.nii.gz", dataset.raw / "elsewhere.nii.gz")
    dataset.add("imagesTr", "p0_b", scan(40, SHAPE))  # four cases of three patients
    assert audit() == {}
    dataset.add("imagesUn", "p2_b", scan(41, SHAPE))
    assert only(audit())[0] == "fold 2, a patient in unlabeled and in validation"


def test_folds_are_chosen(dataset, audit, capsys):
    good, bad = {"train": LABELED[:3], "val": LABELED[3:]}, {"train": LABELED[:4], "val": LABELED[3:]}
    dataset.split(good, bad, bad)
    assert list(audit()) == ["fold 1, 2, a validation case in training"]
    assert audit("-f", "0") == {}
    assert list(audit("-f", "2", "0")) == ["fold 2, a validation case in training"]
    assert main(["audit", "-d", "999", "-f", "3"]) == 2
    assert capsys.readouterr().err == "nnunet_ssl audit: there is no fold 3: there are 0, 1, 2\n"


def test_without_raw_data_nothing_can_be_proved(dataset, capsys):
    shutil.rmtree(dataset.raw)
    assert main(["audit", "-d", "999"]) == 2
    assert "an audit reads the raw images, bring them there" in capsys.readouterr().err


# ---- files ----


@pytest.mark.parametrize(
    "name", ["p10_a", "p10_a_seg", "p10_a_seg_0000", "p10_a-mask", "gt_p10_a", "p10_a_labels_0000"]
)
def test_labels_beside_images(dataset, audit, name):
    write(np.ones(SHAPE, np.uint8), dataset.raw / "imagesUn" / f"{name}.nii.gz")
    state, remedy = audit()["labels in imagesUn"]
    assert state == f"by their names these are labels: {name}.nii.gz"
    assert re.match(rf"mkdir -p \S+ && mv \S+/{name}.nii.gz ", remedy)


@pytest.mark.parametrize("name", ["p13_mask_0000", "unsegmented_0000", "signet_0000"])
def test_names_that_only_look_like_labels(dataset, audit, name):
    write(scan(40, SHAPE), dataset.raw / "imagesUn" / f"{name}.nii.gz")
    assert audit() == {}


def test_labels_of_unlabeled_cases_in_a_folder_of_their_own(dataset, audit):
    write(np.ones(SHAPE, np.uint8), dataset.raw / "labelsUn" / "p10_a.nii.gz")
    name, state, remedy = only(audit())
    assert (name, "p10_a.nii.gz" in state) == ("labels in labelsUn", True)
    assert remedy == f"mv {dataset.raw / 'labelsUn'} {dataset.raw / 'labelsHidden'}"


def hide(dataset: RawScans, *cases: str) -> None:
    for case in cases:
        write(np.ones(SHAPE, np.uint8), dataset.raw / "labelsHidden" / f"{case}.nii.gz")


def test_hidden_labels_are_counted(dataset, capsys):
    hide(dataset, "p10_a", "p11_a")
    assert main(["audit", "-d", "999"]) == 0
    assert "hidden labels: 2, of which plans and preprocessed cases know nothing" in capsys.readouterr().out


def test_a_hidden_label_that_is_visible(dataset, audit):
    hide(dataset, "p0_a")
    name, state, remedy = only(audit())
    assert (name, state[-4:]) == ("hidden labels that are visible", "p0_a")
    assert remedy.startswith(f"nnunet_ssl split {NAME} --unhide")


def test_a_hidden_label_beside_its_image_in_imagestr(dataset, audit):
    shutil.copy2(dataset.raw / "imagesUn" / "p10_a_0000.nii.gz", dataset.raw / "imagesTr" / "p10_a_0000.nii.gz")
    hide(dataset, "p10_a")
    assert audit()["hidden labels beside images"][1] == f"nnunet_ssl split {NAME} --unhide"


@pytest.mark.parametrize("values", [(0, 1), (0, 127, 255), (0.0, 0.5, 1.0)])
def test_a_label_map_as_an_image(dataset, audit, values):
    rng = np.random.default_rng(0)
    dataset.add("imagesUn", "p13_a", rng.choice(values, SHAPE))
    name, state, remedy = only(audit())
    assert (name, state) == ("a label map as an image", f"imagesUn/p13_a ({len(values)} values)")
    assert remedy.startswith(f"mv {dataset.raw / 'imagesUn' / 'p13_a_0000.nii.gz'} ")


def test_a_flat_scan_is_no_label_map(dataset, audit):
    dataset.add("imagesUn", "p13_a", np.zeros(SHAPE))
    assert audit() == {}
    assert "p13_a: all its voxels are nearly alike" in audit(notes=True)["scans"][0]


def test_label_maps_as_all_images(dataset, audit):
    for number, case in enumerate(LABELED[:5]):
        labels = np.random.default_rng(number).integers(0, 2, SHAPE)
        write((3 * labels).astype(np.float32), dataset.raw / "imagesTr" / f"{case}_0000.nii.gz")
        write(labels.astype(np.uint8), dataset.raw / "labelsTr" / f"{case}.nii.gz")
    for number, case in enumerate(UNLABELED):  # of few values too, and no label
        write(
            np.random.default_rng(10 + number).integers(0, 4, SHAPE).astype(np.float32),
            dataset.raw / "imagesUn" / f"{case}_0000.nii.gz",
        )
    assert only(audit())[1] == ", ".join(f"imagesTr/{case} (2 values)" for case in LABELED[:5])


def test_a_label_map_as_a_channel(dataset, audit):
    dataset.describe(channel_names={"0": "MRI", "1": "other"})
    for folder, cases in (("imagesTr", LABELED), ("imagesUn", UNLABELED), ("imagesTs", TEST)):
        for number, case in enumerate(cases):
            write(scan(60 + number, SHAPE), dataset.raw / folder / f"{case}_0001.nii.gz")
    shutil.copy2(dataset.raw / "labelsTr" / "p4_a.nii.gz", dataset.raw / "imagesTr" / "p4_a_0001.nii.gz")
    assert audit()["a label map as an image"][0] == "imagesTr/p4_a (2 values)"


def test_labels_of_unlabeled_cases_that_planning_sees_are_a_note(dataset, audit):
    dataset.split({"train": LABELED[:2], "val": LABELED[3:], "unlabeled": [*UNLABELED, "p2_a"]})
    assert audit() == {}
    state, remedy = audit(notes=True)["labels of unlabeled cases"]
    assert state == "1 in labelsTr, which planning reads and no training: p2_a"
    assert "--hide --overwrite" in remedy


# ---- plans ----

INTENSITIES = "foreground_intensity_properties_per_channel"


def test_a_fingerprint_of_hidden_labels(dataset, audit):
    hide(dataset, "p10_a")
    file = dataset.preprocessed / "dataset_fingerprint.json"
    file.write_text(json.dumps({"shapes_after_crop": [[1, 1, 1]] * 7}))
    name, state, remedy = only(audit())
    assert name == "fingerprint of hidden labels"
    assert state.startswith("made of 7 labels, labelsTr has 6")
    assert remedy.startswith(PLANNING)
    file.write_text(json.dumps({"shapes_after_crop": [[1, 1, 1]] * 6}))
    assert audit() == {}
    shutil.rmtree(dataset.raw / "labelsHidden")  # cases that were removed since are nobody's secret
    file.write_text(json.dumps({"shapes_after_crop": [[1, 1, 1]] * 7}))
    assert audit() == {}


def test_hiding_after_planning_says_that_the_fingerprint_has_to_go(dataset, capsys):
    words = ["split", "999", "--labeled", "2", "--folds", "1", "--hide", "--overwrite"]
    assert main(words) == 0
    assert f"next: {PLANNING.removesuffix(' --clean')}\n" in capsys.readouterr().out
    (dataset.preprocessed / "dataset_fingerprint.json").write_text("{}")
    assert main(words) == 0
    assert f"next: {PLANNING}\n" in capsys.readouterr().out


def test_plans_of_another_fingerprint(dataset, audit):
    hide(dataset, "p10_a")
    (dataset.preprocessed / "dataset_fingerprint.json").write_text(
        json.dumps({"shapes_after_crop": [[1, 1, 1]] * 6, INTENSITIES: {"0": {"mean": 1.0}}})
    )
    plans = dataset.preprocessed / "nnUNetPlans.json"
    plans.write_text(json.dumps({INTENSITIES: {"0": {"mean": 2.0}}}))
    name, _, remedy = only(audit())
    assert (name, remedy.startswith(PLANNING)) == ("plans of hidden labels", True)
    plans.write_text(json.dumps({INTENSITIES: {"0": {"mean": 1.0}}}))
    assert audit() == {}


def test_hidden_labels_among_the_references(dataset, audit):
    hide(dataset, "p10_a", "p11_a")
    write(np.ones(SHAPE, np.uint8), dataset.preprocessed / "gt_segmentations" / "p11_a.nii.gz")
    name, state, remedy = only(audit())
    assert (name, state) == ("hidden labels in gt_segmentations", "1 hidden labels are among the references: p11_a")
    assert remedy.startswith(f"rm -r {dataset.preprocessed / 'gt_segmentations'} && {PLANNING}")


def test_hidden_labels_that_are_preprocessed(tiny_dataset, dataset, audit, monkeypatch):
    tiny = tiny_dataset()
    for name in ("raw", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(getattr(dataset, name).parent))
    shutil.copytree(dataset.raw / "imagesTr", tiny.root / "unused")
    hide(dataset, "labeled3")
    tiny.write_splits([{"train": LABELED[:3], "val": LABELED[3:]}])
    found = audit()
    assert found["hidden labels in nnUNetPlans_3d_fullres"][0] == (
        "1 hidden cases are preprocessed with their label: labeled3"
    )


# ---- runs ----


def train(dataset: RawScans, cases: dict | None, options: dict | None = None, fold: int = 0, name: str = "Some") -> str:
    folder = dataset.results / f"nnUNetTrainer{name}__nnUNetPlans__3d_fullres" / f"fold_{fold}"
    folder.mkdir(parents=True)
    from nnunet_ssl.data.split_file import split_digest

    ours = {"options": options or {}}
    if cases is not None:
        digest = split_digest(cases["train"], cases["val"], ())
        ours |= {"train_and_val": digest, "cases": cases}
    file = folder / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "nnunet_ssl": ours, "init_args": {"fold": fold}}, file)
    return str(file)


def test_a_run_of_todays_split(dataset, audit):
    train(dataset, {"train": LABELED[:3], "val": LABELED[3:]})
    train(dataset, None, name="Older")
    assert audit() == {}


def test_a_split_that_changed_since_a_run_began(dataset, audit):
    train(dataset, {"train": LABELED[1:4], "val": [LABELED[0], *LABELED[4:]]})
    name, state, remedy = only(audit())
    assert name == "a split that changed since a run began"
    assert state == (
        "nnUNetTrainerSome, fold 0 began with other training or validation cases than splits_final.json has today, "
        "and learned the labels of p3_a, which validate it now"
    )
    assert remedy == "put that file back, or train it again"
    before = dataset.preprocessed / "splits_final_until_2026-01-01_000000.json"
    before.write_text("[]")
    assert only(audit())[2].startswith(f"mv {before} ")


@pytest.mark.parametrize("is_kept", [True, False])
def test_first_weights_that_saw_the_validation(dataset, audit, is_kept):
    first = train(dataset, {"train": LABELED[1:4], "val": [LABELED[0]]}, fold=7, name="First")
    cases = {"train": LABELED[:3], "val": LABELED[3:]}
    if is_kept:  # in the checkpoint, so that the first one need not be there
        cases["before"] = LABELED[1:4]
        os.unlink(first)
    train(dataset, cases, {"init_checkpoint": first})
    name, state, _ = only(audit())
    assert name == "weights that saw the validation"
    assert state.endswith("trained with the labels of validation cases: p3_a")


def test_a_run_that_cannot_be_read_is_a_note(dataset, audit):
    with open(train(dataset, None), "wb") as file:
        file.write(b"nothing")
    assert audit() == {}
    assert "cannot be read" in audit(notes=True)["a run that cannot be read"][0]


def test_a_second_audit_reads_no_voxel(dataset, audit, monkeypatch):
    monkeypatch.setattr(DatasetReader, "read_channels", lambda *_: pytest.fail("voxels were read"))
    assert audit() == {}
