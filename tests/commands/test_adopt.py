"""`nnunet_ssl adopt`: unlabeled cases that an expert has labeled become training cases."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.commands.cli import main
from nnunet_ssl.commands.going_on import finished_trainings, how_to_go_on
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.data.split_file import read_splits
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.splits.adopting import Adoption
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training.run_lock import locked
from tests.commands.test_pseudolabel_dataset import LABELED, Interruption, as_pictures, write_case
from tests.conftest import DATASET, make_trainer, started
from tests.training.test_model_export import finished_run


@pytest.fixture(params=["labels"])
def dataset(request, tiny_dataset):
    """Return a data set with labeled cases, scan0 and scan1 with a label in labelsUn, and scan2 without one."""
    cells = {
        "labels": {},
        "regions": {"num_classes": 4, "regions": True, "ignore": True},
        "pictures": {"dim": 2},
    }
    dataset = tiny_dataset(**cells[request.param])
    dataset = as_pictures(dataset) if request.param == "pictures" else dataset
    for file in dataset.unlabeled_folder.iterdir():
        file.unlink()
    for number, case in enumerate(LABELED):
        write_case(dataset, "imagesTr", case, seed=number, label="labelsTr")
    for number in range(3):
        write_case(dataset, "imagesUn", f"scan{number}", seed=20 + number, label="labelsUn" if number < 2 else None)
    write_dataset_json(dataset)
    dataset.write_splits(
        [
            {"train": LABELED[:2], "val": LABELED[2:], "unlabeled": ["scan2", "scan0", "scan1"]},
            {"train": LABELED[2:], "val": LABELED[:2]},
        ]
    )
    return dataset


ALL_KINDS = pytest.mark.parametrize("dataset", ["labels", "regions", "pictures"], indirect=True)


def write_dataset_json(dataset, **more) -> None:
    (raw_of(dataset) / "dataset.json").write_text(json.dumps(dataset.case.dataset_json() | more))


def raw_of(dataset) -> Path:
    return dataset.images_un.parent


def ending_of(dataset) -> str:
    return dataset.case.dataset_json()["file_ending"]


def adopt_cases(*words: str) -> int:
    return main(["adopt", "-d", "999", *words])


def splits_of(dataset) -> list[dict]:
    return read_splits(dataset.folder / "splits_final.json")


def contents(root: Path) -> dict[str, bytes]:
    """Return all files, of preprocessed images the voxels, without those that differ between two runs.

    These are dated copies, locks, and what remembers times of change.
    """
    files = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
    odd = re.compile(r"_until_|lock$|_contents\.json$")
    return {name: content_of(file) for name, file in files.items() if not odd.search(name)}


def content_of(file: Path) -> bytes:
    return blosc2.open(str(file), mode="r")[:].tobytes() if file.suffix == ".b2nd" else file.read_bytes()


@ALL_KINDS
def test_case_is_a_training_case_from_here_on(dataset, capsys):
    raw, ending = raw_of(dataset), ending_of(dataset)
    before = contents(dataset.root)
    plans = (dataset.folder / "nnUNetPlans.json").read_bytes()
    assert adopt_cases("scan0", "scan1") == 0
    after = contents(raw)
    channels = 2 if ending == ".png" else 1
    for case in ("scan0", "scan1"):
        for channel in range(channels):
            name = f"{case}_{channel:04d}{ending}"
            assert after[f"imagesTr/{name}"] == before[f"raw/{DATASET}/imagesUn/{name}"]
            assert f"imagesUn/{name}" not in after
        assert after[f"labelsTr/{case}{ending}"] == before[f"raw/{DATASET}/labelsUn/{case}{ending}"]
        reference = dataset.folder / "gt_segmentations" / f"{case}{ending}"
        assert reference.read_bytes() == after[f"labelsTr/{case}{ending}"]
    assert not (raw / "labelsUn").exists()
    assert len(list((raw / "imagesUn").iterdir())) == channels
    assert RawDataset.open(raw).dataset_json["numTraining"] == 6
    assert splits_of(dataset) == [
        {"train": [*LABELED[:2], "scan0", "scan1"], "val": LABELED[2:], "unlabeled": ["scan2"]},
        {"train": [*LABELED[2:], "scan0", "scan1"], "val": LABELED[:2]},
    ]
    assert (dataset.folder / "nnUNetPlans.json").read_bytes() == plans
    said = capsys.readouterr().out
    assert "adopted: scan0, scan1; 6 labeled cases, 1 in imagesUn" in said
    assert f"preprocessed for {dataset.case.configuration} (nnUNetPlans)" in said
    (copy,) = dataset.folder.glob("splits_final_until_*.json")
    assert f"the one before: {copy.name}" in said


@ALL_KINDS
def test_preprocessed_case_is_nnunets_own(dataset):
    assert adopt_cases("scan0") == 0
    raw, ending = raw_of(dataset), ending_of(dataset)
    plans = PlansManager(dataset.case.plans())
    configuration = plans.get_configuration(dataset.case.configuration)
    images = sorted(str(file) for file in (raw / "imagesTr").glob("scan0_*"))
    image, label, properties = DefaultPreprocessor(verbose=False).run_case(
        images, str(raw / "labelsTr" / f"scan0{ending}"), plans, configuration, dataset.case.dataset_json()
    )
    folder = dataset.labeled_folder
    there = infer_dataset_class(str(folder))(str(folder), ["scan0"])
    found = there.load_case("scan0")
    np.testing.assert_array_equal(found[0][:], image)
    np.testing.assert_array_equal(found[1][:], label)
    assert found[3]["class_locations"].keys() == properties["class_locations"].keys()
    assert {*infer_dataset_class(str(folder)).get_identifiers(str(folder))} == {*LABELED, "scan0"}
    assert not list(dataset.folder.glob("*unfinished*"))


def test_what_was_preprocessed_without_a_label_is_gone_and_training_goes_on(dataset):
    assert main(["preprocess", "-d", "999", "-np", "1"]) == 0
    assert len(list(dataset.unlabeled_folder.glob("scan?.b2nd"))) == 3
    assert adopt_cases("scan0", "scan1") == 0
    left = {file.name.partition(".")[0].removesuffix("_seg") for file in dataset.unlabeled_folder.iterdir()}
    assert left == {"scan2"}
    stamps = dataset.unlabeled_folder.with_name(f"{dataset.unlabeled_folder.name}_state") / "stamps"
    assert [file.stem for file in stamps.iterdir()] == ["scan2"]
    for fold in (0, 1):
        trainer = started(dataset, nnUNetTrainerMeanTeacher, fold=fold)
        assert {"scan0", "scan1"} <= set(trainer.dataloader_train.labeled.data_loader.indices)
        assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


@pytest.mark.parametrize("labels", ["labelsUn", "labelsHidden"])
@pytest.mark.parametrize("dataset", ["pictures"], indirect=True)
def test_interrupted_at_any_file_the_same_words_finish_it(dataset, labels, tmp_path, monkeypatch, capsys):
    """Between any two changes of files; what the first call has done is not done twice."""
    (raw_of(dataset) / "labelsUn").rename(raw_of(dataset) / labels)
    words = ["scan0", "scan1", *(["--labels", str(raw_of(dataset) / labels)] if labels == "labelsHidden" else [])]
    assert main(["preprocess", "-d", "999", "-np", "1"]) == 0
    shutil.copytree(dataset.root, tmp_path / "before")

    def restore() -> None:
        shutil.rmtree(dataset.root)
        shutil.copytree(tmp_path / "before", dataset.root)

    assert adopt_cases(*words) == 0
    expected = contents(dataset.root)
    for at in range(1000):
        restore()
        with monkeypatch.context() as patched:
            interruption = Interruption(at)
            for name in ("rename", "replace", "unlink", "rmdir"):
                patched.setattr(Path, name, interruption.in_place_of(getattr(Path, name)))
            saving = interruption.in_place_of(DefaultPreprocessor.run_case_save)
            patched.setattr(DefaultPreprocessor, "run_case_save", saving)
            assert adopt_cases(*words) == (130 if interruption.happened else 0)
        if not interruption.happened:
            break
        is_done = all(one.get("finished") for one in journal(dataset).values()) and bool(journal(dataset))
        assert adopt_cases(*words) == (2 if is_done else 0), at
        assert contents(dataset.root) == expected, at
        capsys.readouterr()
    assert at > 30


def journal(dataset) -> dict:
    file = raw_of(dataset) / "adopted.json"
    return json.loads(file.read_text()) if file.exists() else {}


def refused(dataset, capsys, expected: str, *words: str) -> None:
    """Expect one sentence, and no changed file."""
    before = contents(dataset.root)
    assert adopt_cases(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nnunet_ssl adopt: ")
    assert expected in error
    assert contents(dataset.root) == before


def test_cases_that_cannot_be_adopted(dataset, capsys):
    raw = raw_of(dataset)
    refused(dataset, capsys, "scan7 has no image in", "scan7", "scan0")
    refused(dataset, capsys, "labeled0 is a validation case: it stays one", "labeled0")
    dataset.write_splits([{"train": LABELED[:1], "val": LABELED[2:]}])
    refused(dataset, capsys, "imagesUn (it is a labeled case)", "labeled0")
    write_case(dataset, "imagesTs", "scan1", seed=70)
    refused(dataset, capsys, "scan1 is a test case, with an image in imagesTs", "scan0", "scan1")
    shutil.rmtree(raw / "imagesTs")
    assert main(["adopt", "-d", "998", "scan0"]) == 2
    assert "there is no data set '998'" in capsys.readouterr().err
    assert adopt_cases("scan0") == 0
    refused(dataset, capsys, "scan0 was adopted already (on 20", "scan0")
    refused(dataset, capsys, "scan0 was adopted already (on 20", "scan1", "scan0")
    refused(dataset, capsys, "--labels takes a folder that exists, got 'nowhere'", "scan1", "--labels", "nowhere")
    elsewhere = {"dataset": {"a": {"images": ["x.nii.gz"], "label": "y.nii.gz"}}}
    (raw_of(dataset) / "dataset.json").write_text(json.dumps(dataset.case.dataset_json() | elsewhere))
    refused(dataset, capsys, "lie where the key 'dataset' of its dataset.json says", "scan1")


@pytest.mark.parametrize("name", ["imagesTr", "imagesTs"])
def test_same_image_as_a_validation_or_test_case(dataset, capsys, name):
    raw = raw_of(dataset)
    (raw / name).mkdir(exist_ok=True)
    case = "labeled2" if name == "imagesTr" else "other"
    shutil.copy(raw / "imagesUn" / "scan1_0000.nii.gz", raw / name / f"{case}_0000.nii.gz")
    refused(dataset, capsys, "= scan1: the same image, and one is a validation or test case", "scan0", "scan1")


def test_same_image_as_one_that_stays_unlabeled(dataset, capsys):
    """A training would refuse it, as it must not take for unlabeled what it has the label of."""
    images = raw_of(dataset) / "imagesUn"
    shutil.copy(images / "scan1_0000.nii.gz", images / "scan2_0000.nii.gz")
    refused(dataset, capsys, "scan1 = scan2: the same image, and scan2 would stay an unlabeled case", "scan0", "scan1")
    write_case(dataset, "imagesUn", "scan2", seed=22, label="labelsUn")
    shutil.copy(images / "scan1_0000.nii.gz", images / "scan0_0000.nii.gz")
    assert adopt_cases("scan0", "scan1") == 0, "both are labeled from here on"


@pytest.mark.parametrize(
    ("shape", "spacing", "fill", "expected"),
    [
        ((1, 22, 24), (1.0, 1.0, 0.3), None, "scan1 cannot be preprocessed for 3d_fullres: it is too thin"),
        (
            (20, 22, 24),
            (1.0, 1.0, 500.0),
            None,
            "scan1 cannot be preprocessed for 3d_fullres: its voxels are 1 x 1 x 500",
        ),
        ((20, 22, 24), (1.0, 1.0, 1.0), 3.0, "scan1: all its voxels have the same value"),
    ],
)
def test_what_cannot_be_preprocessed_stays_where_it_is(dataset, capsys, shape, spacing, fill, expected):
    raw = raw_of(dataset)
    voxels = np.random.default_rng(0).normal(size=shape) if fill is None else np.full(shape, fill)
    for file, array in (
        (raw / "imagesUn" / "scan1_0000.nii.gz", voxels.astype(np.float32)),
        (raw / "labelsUn" / "scan1.nii.gz", np.ones(shape, np.uint8)),
    ):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(spacing)
        SimpleITK.WriteImage(image, str(file))
    refused(dataset, capsys, expected, "scan0", "scan1")


def test_a_training_that_runs_or_waits_is_not_pulled_the_cases_from(dataset, capsys):
    folder = Path(os.environ["nnUNet_results"], DATASET, "nnUNetTrainerSSL__nnUNetPlans__3d_fullres", "fold_1")
    folder.mkdir(parents=True)
    with locked(folder, print):
        refused(dataset, capsys, f"a training runs in {folder} and reads what would move: wait", "scan0")
        refused(dataset, capsys, f"a training runs in {folder}", "scan0", "--allow-unfinished")
    (folder / "checkpoint_latest.pth").touch()
    expected = "not finished, and could not go on with more labeled cases than it began with: nnUNetTrainerSSL__"
    refused(dataset, capsys, expected, "scan0")
    (folder / "checkpoint_final.pth").touch()
    assert adopt_cases("scan0") == 0
    (folder / "checkpoint_final.pth").unlink()
    assert adopt_cases("scan1", "--allow-unfinished") == 0


def spoil_value(image):
    voxels = SimpleITK.GetArrayFromImage(image)
    voxels[0, 0, 0] = 7
    return same_space(voxels, image)


def spoil_shape(image):
    return SimpleITK.GetImageFromArray(SimpleITK.GetArrayFromImage(image)[:-1])


def spoil_spacing(image):
    image.SetSpacing((1.0, 1.0, 3.0))
    return image


def spoil_direction(image):
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    return image


def spoil_origin(image):
    image.SetOrigin((0.0, 0.0, 30.0))
    return image


def spoil_fractions(image):
    return same_space(SimpleITK.GetArrayFromImage(image) + np.float32(0.5), image)


def same_space(voxels, image):
    changed = SimpleITK.GetImageFromArray(voxels)
    changed.CopyInformation(image)
    return changed


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_value, "holds the value 7, dataset.json knows only 0, 1"),
        (spoil_shape, "has the shape (19, 22, 24), its image (20, 22, 24)"),
        (spoil_spacing, "has the spacing (3, 1, 1) mm, its image"),
        (spoil_direction, "has the direction"),
        (spoil_origin, "their origins differ"),
        (spoil_fractions, "holds the value 0.5: labels are whole numbers"),
        (None, "is damaged, or no image"),
    ],
)
def test_a_wrong_label_is_refused_with_case_file_and_remedy(dataset, capsys, spoil, expected):
    file = raw_of(dataset) / "labelsUn" / "scan1.nii.gz"
    if spoil is None:
        file.write_bytes(b"hello")
    else:
        SimpleITK.WriteImage(spoil(SimpleITK.ReadImage(str(file))), str(file))
    refused(dataset, capsys, f"scan1: {file} ", "scan0", "scan1")
    refused(dataset, capsys, expected, "scan0", "scan1")
    refused(dataset, capsys, ": correct the file and adopt it again", "scan0", "scan1")
    file.unlink()
    refused(dataset, capsys, f"scan1 has no label: put it into {file}, or name its folder with --labels", "scan1")


def test_ignore_label_may_be_in_it(dataset):
    labels = {"background": 0, "class1": 1, "ignore": 2}
    write_dataset_json(dataset, labels=labels)
    for file in (dataset.folder / "dataset.json", raw_of(dataset) / "dataset.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": labels}))
    file = raw_of(dataset) / "labelsUn" / "scan0.nii.gz"
    image = SimpleITK.ReadImage(str(file))
    voxels = SimpleITK.GetArrayFromImage(image)
    voxels[0] = 2
    SimpleITK.WriteImage(same_space(voxels, image), str(file))
    assert adopt_cases("scan0") == 0


def test_labels_of_another_folder_are_copied(dataset, tmp_path):
    (raw_of(dataset) / "labelsUn").rename(tmp_path / "from the expert")
    before = contents(tmp_path / "from the expert")
    for file in (tmp_path / "from the expert").iterdir():
        file.chmod(0o444)
    assert adopt_cases("scan0", "--labels", str(tmp_path / "from the expert")) == 0
    assert contents(tmp_path / "from the expert") == before
    assert (raw_of(dataset) / "labelsTr" / "scan0.nii.gz").read_bytes() == before["scan0.nii.gz"]


def test_a_label_that_lies_in_labels_tr_already_is_taken(dataset):
    raw = raw_of(dataset)
    (raw / "labelsUn" / "scan0.nii.gz").rename(raw / "labelsTr" / "scan0.nii.gz")
    assert adopt_cases("scan0") == 0
    assert (raw / "imagesTr" / "scan0_0000.nii.gz").exists()


def test_nothing_is_overwritten(dataset, capsys, tmp_path):
    raw = raw_of(dataset)
    shutil.copy(raw / "labelsTr" / "labeled0.nii.gz", raw / "labelsTr" / "scan0.nii.gz")
    expected = f"scan0.nii.gz lies both in {raw / 'labelsUn'} and in {raw / 'labelsTr'}: remove one of them"
    refused(dataset, capsys, expected, "scan0")
    (raw / "labelsUn").rename(tmp_path / "labels")
    refused(dataset, capsys, "scan0.nii.gz lies both in", "scan0", "--labels", str(tmp_path / "labels"))


def test_what_lies_beside_a_tiff_moves_with_it(tmp_path):
    files = ("imagesUn/a_0000.tif", "imagesUn/a_0001.tif", "imagesUn/a.json", "labelsUn/a.tif", "labelsUn/a.json")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    raw = RawDataset(tmp_path, {"file_ending": ".tif", "labels": {}, "channel_names": {"0": "a", "1": "b"}})
    shutil.copytree(tmp_path / "labelsUn", tmp_path / "other")
    for labels in ("other", "labelsUn"):
        moves, copies = Adoption(raw, ["a"], tmp_path / labels).moves()
        assert [len(moves), len(copies)] == ([3, 2] if labels == "other" else [5, 0])
    Adoption(raw, ["a"], tmp_path / "labelsUn").carry_out()
    for name in files:
        assert (tmp_path / name.replace("Un/", "Tr/")).read_text() == name


def test_hidden_labels(dataset, capsys):
    raw = raw_of(dataset)
    (raw / "labelsHidden").mkdir()
    shutil.copy(raw / "labelsUn" / "scan0.nii.gz", raw / "labelsHidden")
    refused(dataset, capsys, f"take that one with --labels {raw / 'labelsHidden'}, or remove it", "scan0")
    assert adopt_cases("scan0", "--labels", str(raw / "labelsHidden")) == 0
    assert not (raw / "labelsHidden").exists()
    assert (raw / "labelsTr" / "scan0.nii.gz").exists()


def test_patients_who_validate_are_not_trained_with(dataset, capsys):
    """Another scan of a validation patient goes into the other folds alone."""
    write_dataset_json(dataset, patient_pattern=r"^[a-z]+([0-9])")
    assert adopt_cases("scan0") == 0  # its patient 0 validates in fold 1
    assert ["scan0" in fold["train"] for fold in splits_of(dataset)] == [True, False]
    assert "scan0 is not in train of fold 1, where its patient validates" in capsys.readouterr().out
    dataset.write_splits([{"train": LABELED[:1], "val": LABELED[1:]}])
    refused(dataset, capsys, "scan1 is of patient 1, who validates in every fold", "scan1")


def test_the_planner_of_nnunet_finds_one_split_in_both_places(dataset):
    """nnU-Net compares splits_final.json of the raw data set with that beside the plans, and stops if they differ."""
    shutil.copy(dataset.folder / "splits_final.json", raw_of(dataset))
    assert adopt_cases("scan0") == 0
    assert read_splits(raw_of(dataset) / "splits_final.json") == splits_of(dataset)


def test_a_data_set_that_is_not_planned_yet(dataset, capsys):
    shutil.rmtree(dataset.folder)
    assert adopt_cases("scan0") == 0
    said = capsys.readouterr().out
    assert "next: nnUNetv2_plan_and_preprocess -d 999 --verify_dataset_integrity" in said
    assert f"then train: nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSSL" in said


def test_older_format_is_left_to_nnunet(dataset, capsys):
    for file in dataset.labeled_folder.glob("*.b2nd"):
        file.unlink()
    (dataset.labeled_folder / "labeled0.npz").touch()
    assert adopt_cases("scan0") == 0
    assert "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 3d_fullres" in capsys.readouterr().out
    assert not list(dataset.labeled_folder.glob("scan0*"))


def test_cascades_cannot_be_trained_with_adopted_cases(dataset, capsys):
    file = dataset.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    stage = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        "3d_lowres": stage | {"data_identifier": "lowres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    file.write_text(json.dumps(plans))
    assert adopt_cases("scan0", "scan1") == 0
    note = "3d_cascade_fullres cannot be trained with scan0, scan1: no fold validates them, so that no first stage"
    assert note in capsys.readouterr().out


# ---- how to go on ----


def lines(dataset) -> list[str]:
    return list(how_to_go_on(DATASET, dataset.folder))


def test_training_goes_on_from_the_newest_model_by_the_printed_lines(dataset, capsys, monkeypatch):
    older = finished_run(dataset, find_trainer("nnUNetTrainerEntropyMinimization"))
    newest = finished_run(dataset, nnUNetTrainerMeanTeacher, fold=1, seed=3)
    os.utime(older / "fold_0" / "checkpoint_final.pth", (1, 1))
    weights = torch.load(newest / "fold_1" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert adopt_cases("scan0") == 0
    move, training = capsys.readouterr().out.strip().splitlines()[-2:]
    command, *places = shlex.split(move)
    assert command == "mv"
    os.rename(*places)
    assert not (newest / "fold_1").exists()
    variable, *words = shlex.split(training)
    assert words == f"nnUNetv2_train {DATASET} 3d_fullres 1 -tr nnUNetTrainerMeanTeacher -p nnUNetPlans".split()
    name, _, text = variable.partition("=")
    assert "seed=3" in text.split()
    monkeypatch.setenv(name, text)
    plans = dataset.case.plans() | {"continue_training": False}
    trainer = nnUNetTrainerMeanTeacher(plans, "3d_fullres", 1, dataset.case.dataset_json(), torch.device("cpu"))
    trainer.on_train_start()
    for key, value in trainer.networks[trainer.inference_network()].state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert finished_trainings(DATASET) == [older / "fold_0" / "checkpoint_final.pth"]  # what is put aside is none


def test_a_second_model_is_put_beside_the_first(dataset):
    model = finished_run(dataset, nnUNetTrainerMeanTeacher)
    (model / "former_fold_0").mkdir()
    assert lines(dataset)[1] == f"mv {model / 'fold_0'} {model / 'former_fold_0_2'}"


def test_a_model_of_nnunet_goes_on_by_its_own_option(dataset):
    model = finished_run(dataset, nnUNetTrainerMeanTeacher)
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    del content["nnunet_ssl"]
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    assert lines(dataset)[-1].endswith(f" -pretrained_weights {model / 'former_fold_0' / 'checkpoint_final.pth'}")


def test_values_with_spaces_are_quoted(dataset, tmp_path, monkeypatch):
    finished_run(dataset, nnUNetTrainerMeanTeacher)
    (dataset.root / "results").rename(tmp_path / "my results")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "my results"))
    variable = shlex.split(lines(dataset)[-1])[0].partition("=")[2]
    (model,) = (tmp_path / "my results" / DATASET).iterdir()
    (model / "fold_0").rename(model / "former_fold_0")  # as the line before says
    monkeypatch.setenv("nnUNet_ssl_options", variable)
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, resume=True)
    trainer.initialize()
    expected = f"{DATASET}/nnUNetTrainerMeanTeacher__nnUNetPlans__3d_fullres/former_fold_0/checkpoint_final.pth"
    assert trainer.init_checkpoint == str(tmp_path / "my results" / expected)


def test_plans_of_any_name_are_named(dataset):
    file = dataset.folder / "nnUNetPlans.json"
    file.rename(dataset.folder / "nnUNetResEncUNetLPlans.json")
    command = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSSL"
    assert lines(dataset) == [f"then train: {command} -p nnUNetResEncUNetLPlans"]
    shutil.copy(dataset.folder / "nnUNetResEncUNetLPlans.json", file)
    assert lines(dataset) == [f"then train: {command}"]


def test_damaged_models_are_passed_over(dataset):
    model = finished_run(dataset, nnUNetTrainerMeanTeacher)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"hello")
    assert lines(dataset) == [f"then train: nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSSL"]
