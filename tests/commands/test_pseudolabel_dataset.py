"""`nnunet_ssl pseudolabel --as-dataset`: a data set on which plain nnU-Net trains."""

import csv
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess_dataset,
)
from nnunetv2.run.run_training import get_trainer_from_args
from skimage import io

from nnunet_ssl.commands.as_dataset import NewDataset
from nnunet_ssl.commands.cli import main
from nnunet_ssl.conversion import pseudolabeled_dataset, raw_dataset
from nnunet_ssl.conversion.pseudolabeled_dataset import LabeledFold, Scan, accepted_scans, write_dataset
from nnunet_ssl.data import whole_files
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation import pool_prediction
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import Case, TinyDataset
from tests.training.test_model_export import finished_run

NEW = "Dataset127_Tiny_Pseudolabeled"
LABELED, SCANS = [f"labeled{i}" for i in range(4)], ["scan0", "scan1", "scan2"]


@dataclass(frozen=True)
class PictureCase(Case):
    """Pictures of two channels in files of their own."""

    def dataset_json(self) -> dict:
        return super().dataset_json() | {"channel_names": {"0": "red", "1": "green"}, "file_ending": ".png"}

    def plans(self) -> dict:
        plans = super().plans() | {"image_reader_writer": "NaturalImage2DIO"}
        configuration = plans["configurations"]["2d"]
        configuration |= {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False] * 2}
        intensities = plans["foreground_intensity_properties_per_channel"]
        return plans | {"foreground_intensity_properties_per_channel": intensities | {"1": intensities["0"]}}


def as_pictures(dataset: TinyDataset) -> TinyDataset:
    dataset.case = PictureCase(dim=2)
    (dataset.folder / "nnUNetPlans.json").write_text(json.dumps(dataset.case.plans()))
    (dataset.folder / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    return dataset


def write_case(dataset: TinyDataset, folder: str, case: str, seed: int, label: str | None = None) -> None:
    """Write the images of a case, and its label into another folder: a box in noise."""
    raw, ending = dataset.images_un.parent, dataset.case.dataset_json()["file_ending"]
    rng = np.random.default_rng(seed)
    shape = (40, 44) if ending == ".png" else (20, 22, 24)
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(size // 4, size // 2 + seed % 3) for size in shape)] = dataset.case.num_classes - 1
    for name in filter(None, (folder, label)):
        (raw / name).mkdir(parents=True, exist_ok=True)
    if ending == ".png":
        for channel in range(2):
            voxels = (rng.normal(100, 10, shape) + 80 * mask).astype(np.uint8)
            io.imsave(raw / folder / f"{case}_{channel:04d}.png", voxels, check_contrast=False)
        if label:
            io.imsave(raw / label / f"{case}.png", mask, check_contrast=False)
        return
    image = SimpleITK.GetImageFromArray((rng.normal(100, 10, shape) + 80 * mask).astype(np.float32))
    SimpleITK.WriteImage(image, str(raw / folder / f"{case}_0000.nii.gz"))
    if label:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(raw / label / f"{case}.nii.gz"))


@pytest.fixture(params=["labels"])
def dataset(request, tiny_dataset):
    """Return a data set with a trained model, four labeled cases, two in train and two in val, and three scans."""
    cells = {"labels": {}, "regions": {"num_classes": 4, "regions": True}, "pictures": {"dim": 2}}
    dataset = tiny_dataset(**cells[request.param])
    dataset = as_pictures(dataset) if request.param == "pictures" else dataset
    final = finished_run(dataset, nnUNetTrainerMeanTeacher) / "fold_0" / "checkpoint_final.pth"
    axes = {"inference_allowed_mirroring_axes": (0, 1)}  # which pictures have, too
    torch.save(torch.load(final, weights_only=False) | axes, final)
    for number, case in enumerate(LABELED):
        write_case(dataset, "imagesTr", case, seed=number, label="labelsTr")
    for number, case in enumerate(SCANS):
        write_case(dataset, "imagesUn", case, seed=20 + number)
    (dataset.images_un.parent / "dataset.json").write_text(
        json.dumps(dataset.case.dataset_json() | {"reference": "kept", "converted_by": "nnunet_ssl"})
    )
    return dataset


class Interruption:
    """Ctrl-C at the nth call of several functions."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.happened = False

    def in_place_of(self, original):
        def call(*arguments, **more):
            self.left -= 1
            if self.left == -1:
                self.happened = True
                raise KeyboardInterrupt
            return original(*arguments, **more)

        return call


ALL_KINDS = pytest.mark.parametrize("dataset", ["labels", "regions", "pictures"], indirect=True)


def pseudolabel(dataset, out: Path, *more: str) -> int:
    model = ["-d", "999", "-c", dataset.case.configuration, "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu"]
    return main(["pseudolabel", *model, "-o", str(out), *more])


def new_folder(dataset, place: str = "raw") -> Path:
    return dataset.root / place / NEW


def origin_of(dataset) -> dict:
    return json.loads((new_folder(dataset) / "origin.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def only_says_something(out: Path) -> None:
    """Let the model be sure of something in each scan, whatever it is: it was not trained."""
    lines = (out / "finished.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines[1:]]
    for number, entry in enumerate(entries):
        entry["uncertainty"]["entropy"] = 0.1 * (number + 1)
    (out / "finished.jsonl").write_text("\n".join([lines[0], *map(json.dumps, entries)]) + "\n")


@ALL_KINDS
def test_data_set_holds_true_labels_and_accepted_pseudo_labels(dataset, tmp_path, capsys):
    out, raw = tmp_path / "out", dataset.images_un.parent
    assert pseudolabel(dataset, out) == 0
    only_says_something(out)
    assert pseudolabel(dataset, out, "--as-dataset", "127", "--accept", "67%") == 0
    with (out / "ranking.csv").open(newline="") as opened:
        ranking = [row["case"] for row in csv.DictReader(opened)]
    chosen, ending = ranking[1:], dataset.case.dataset_json()["file_ending"]
    new = new_folder(dataset)
    channels = 2 if ending == ".png" else 1
    expected = {f"imagesTr/{case}_{i:04d}{ending}" for case in (*LABELED, *chosen) for i in range(channels)}
    expected |= {f"labelsTr/{case}{ending}" for case in (*LABELED, *chosen)}
    found = contents(new)
    assert found.keys() == expected | {"dataset.json", "splits_final.json", "origin.json"}
    for name in expected:
        case = Path(name).name.removesuffix(ending).rpartition("_")[0]
        source = raw / ("imagesUn" if case in chosen else "imagesTr") / Path(name).name
        if name.startswith("labelsTr"):
            source = (out if name[9:14] in SCANS else raw / "labelsTr") / Path(name).name
        assert found[name] == source.read_bytes(), name
    splits = [{"train": sorted(["labeled0", "labeled1", *chosen]), "val": ["labeled2", "labeled3"]}]
    assert json.loads(found["splits_final.json"]) == splits
    assert json.loads((new_folder(dataset, "preprocessed") / "splits_final.json").read_text()) == splits
    said = capsys.readouterr().out
    assert f"{new}: 2 of 3 scans with their pseudo-label, 4 labeled cases, of which 2 validate" in said
    training = f"then: nnUNetv2_train 127 {dataset.case.configuration} 0\n"
    assert f"next: nnUNetv2_plan_and_preprocess -d 127 --verify_dataset_integrity\n{training}" in said


PLANS_ANEW = "next: nnUNetv2_plan_and_preprocess -d 127 --verify_dataset_integrity"


@pytest.mark.parametrize(
    ("plans", "configuration", "expected"),
    [
        (
            "nnUNetResEncUNetLPlans",
            "3d_fullres",
            [
                "next: nnUNetv2_plan_and_preprocess -d 127 -pl nnUNetPlannerResEncL --verify_dataset_integrity",
                "then: nnUNetv2_train 127 3d_fullres 0 -p nnUNetResEncUNetLPlans",
            ],
        ),
        (
            "SMALLER",
            "2d",
            [
                f"{PLANS_ANEW} --no_pp",
                "then: nnUNetv2_move_plans_between_datasets -s 27 -t 127 -sp SMALLER -tp SMALLER",
                "then: nnUNetv2_preprocess -d 127 -plans_name SMALLER -c 2d",
                "then: nnUNetv2_train 127 2d 0 -p SMALLER",
            ],
        ),
        (
            "nnUNetPlans",
            "2d_coarse",
            [
                f"{PLANS_ANEW} --no_pp",
                "then: nnUNetv2_move_plans_between_datasets -s 27 -t 127 -sp nnUNetPlans -tp nnUNetPlans",
                "then: nnUNetv2_preprocess -d 127 -plans_name nnUNetPlans -c 2d_coarse",
                "then: nnUNetv2_train 127 2d_coarse 0",
            ],
        ),
        (
            "nnUNetPlans",
            "3d_cascade_fullres",
            [
                "a cascade needs folds that validate each labeled case, and this data set has one: train without it",
                PLANS_ANEW,
                "then: nnUNetv2_train 127 3d_fullres 0",
            ],
        ),
    ],
)
def test_how_plain_nnunet_trains_with_it(plans, configuration, expected):
    new = NewDataset(Path("Dataset127_Hearts_Pseudolabeled"), None, None, 1, {"dataset": "Dataset027_Hearts"})
    assert list(new.next_commands(plans, configuration)) == expected


def test_origin_says_whose_each_label_is(dataset, tmp_path):
    out = tmp_path / "out"
    assert pseudolabel(dataset, out) == 0
    only_says_something(out)
    assert pseudolabel(dataset, out, "--as-dataset", "127", "--accept", "2") == 0
    origin = origin_of(dataset)
    with (out / "ranking.csv").open(newline="") as opened:
        ranking = {row["case"]: row for row in csv.DictReader(opened)}
    assert origin["accept"] == "2"
    assert {case for case, one in origin["cases"].items() if one == {"label": "true"}} == {*LABELED}
    accepted = {case: one for case, one in origin["cases"].items() if one["label"] == "predicted"}
    assert all(ranking[case]["rank"] == str(one["rank"]) for case, one in accepted.items())
    assert sorted(accepted[case]["rank"] for case in accepted) == [2, 3]
    (left,) = origin["not_accepted"].items()
    assert (left[0], left[1]["rank"]) == (list(ranking)[0], 1)
    for case, one in accepted.items():
        assert f"{one['entropy']:.6g}" == ranking[case]["entropy"]
        assert one["disagreement"] is None or f"{one['disagreement']:.6g}" == ranking[case]["disagreement"]
        model = one["model"]
        assert len(model.pop("sha256")) == 64
        assert model == {
            "trainer": "nnUNetTrainerMeanTeacher",
            "plans": "nnUNetPlans",
            "configuration": "3d_fullres",
            "fold": "0",
            "checkpoint": "checkpoint_final.pth",
        }
    content = json.loads((new_folder(dataset) / "dataset.json").read_text())
    assert (content["numTraining"], content["reference"], content["name"]) == (6, "kept", "Tiny_Pseudolabeled")
    assert "converted_by" not in content  # or `convert --overwrite` would take it for its own


@pytest.mark.parametrize(("accept", "number"), [("100%", 3), ("2", 2), ("1", 1)])
def test_a_corrected_label_is_taken_in_any_case_and_called_so(dataset, tmp_path, capsys, accept, number):
    """Who follows the ranking corrects the most uncertain ones, which the model would not have accepted."""
    out = tmp_path / "out"
    assert pseudolabel(dataset, out) == 0
    only_says_something(out)
    assert pseudolabel(dataset, out) == 0
    with (out / "ranking.csv").open(newline="") as opened:
        first = next(csv.DictReader(opened))["case"]
    drawn = SimpleITK.ReadImage(str(out / f"{first}.nii.gz"))
    SimpleITK.WriteImage(1 - SimpleITK.Cast(drawn, SimpleITK.sitkUInt8), str(out / f"{first}.nii.gz"))
    assert pseudolabel(dataset, out, "--as-dataset", "127", "--accept", accept) == 0
    said = capsys.readouterr().out
    assert f"{number} of 3 scans with their pseudo-label, of which 1 corrected by somebody" in said
    kinds = [one["label"] for one in origin_of(dataset)["cases"].values()]
    assert (kinds.count("corrected"), kinds.count("predicted")) == (1, number - 1)
    assert origin_of(dataset)["cases"][first]["label"] == "corrected"


@pytest.mark.parametrize(
    ("accept", "entropy", "expected"),
    [
        (1.0, {"a": 0.9, "b": 0.5, "c": 0.1}, ["a", "b", "c"]),
        (0.5, {"a": 0.9, "b": 0.5, "c": 0.2, "d": 0.1}, ["c", "d"]),
        (0.01, {"a": 0.9, "b": 0.5, "c": 0.1}, ["c"]),
        (2, {"z": 0.9, "y": 0.5, "x": 0.1}, ["x", "y"]),
        (1.0, {"empty": float("nan"), "b": 0.5}, ["b"]),
        (2, {"empty": float("nan"), "b": 0.5}, ["b"]),
    ],
)
def test_the_surest_are_accepted_and_never_an_empty_one(accept, entropy, expected):
    assert accepted_scans(list(entropy), entropy, accept) == expected


def test_accepting_what_there_is_not():
    with pytest.raises(ValueError, match="--accept 3, but there are 2 ranked scans"):
        accepted_scans(["a", "b"], {"a": 0.1, "b": 0.2}, 3)
    with pytest.raises(ValueError, match="the model predicts nothing in any scan"):
        accepted_scans(["a"], {"a": float("nan")}, 1.0)


def test_images_need_no_space_and_survive_that_the_originals_move(dataset, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0
    new, image = new_folder(dataset), dataset.images_un / "scan0_0000.nii.gz"
    assert (new / "imagesTr" / "scan0_0000.nii.gz").samefile(image)
    assert not (new / "labelsTr" / "labeled0.nii.gz").samefile(dataset.images_un.parent / "labelsTr/labeled0.nii.gz")
    before = image.read_bytes()
    image.rename(tmp_path / "elsewhere.nii.gz")
    assert (new / "imagesTr" / "scan0_0000.nii.gz").read_bytes() == before
    (tmp_path / "elsewhere.nii.gz").rename(image)

    def no_links(*_, **__):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(whole_files.os, "link", no_links)
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0
    assert not (new / "imagesTr" / "scan0_0000.nii.gz").samefile(image)
    assert (new / "imagesTr" / "scan0_0000.nii.gz").read_bytes() == before


def test_interrupted_at_any_file_the_same_words_finish_it(dataset, tmp_path, monkeypatch):
    out, words = tmp_path / "out", ("--as-dataset", "127")
    assert pseudolabel(dataset, out, *words) == 0
    expected = [contents(new_folder(dataset, place)) for place in ("raw", "preprocessed")]
    content = dataset.case.dataset_json()

    class Predictor:
        """All is predicted: no model need be loaded."""

        def __init__(self, *_) -> None:
            self.predictor = SimpleNamespace(dataset_json=content)

    monkeypatch.setattr(pool_prediction, "PoolPredictor", Predictor)
    places = [
        *((pseudolabeled_dataset, name) for name in ("link_or_copy", "copy", "replace_folds")),
        *((Path, name) for name in ("rename", "replace", "write_text")),
        (raw_dataset.shutil, "rmtree"),
    ]
    for at in range(1000):
        if at % 2:  # from nothing, or over what is there
            for place in ("raw", "preprocessed"):
                shutil.rmtree(new_folder(dataset, place), ignore_errors=True)
        with monkeypatch.context() as patched:
            interruption = Interruption(at)
            for owner, name in places:
                patched.setattr(owner, name, interruption.in_place_of(getattr(owner, name)))
            assert pseudolabel(dataset, out, *words) == (130 if interruption.happened else 0)
        if not interruption.happened:
            break
        assert pseudolabel(dataset, out, *words) == 0
        assert [contents(new_folder(dataset, place)) for place in ("raw", "preprocessed")] == expected, at
        assert not list((dataset.root / "raw").glob(".*"))
    assert at > 20


def test_wrong_use_is_one_sentence_before_anything_is_predicted(dataset, tmp_path, capsys):
    raw, out = dataset.images_un.parent, tmp_path / "out"

    def refused(expected: str, *words: str) -> None:
        assert pseudolabel(dataset, out, *words) == 2
        assert expected in capsys.readouterr().err
        assert not out.exists()
        assert not new_folder(dataset).exists()

    refused("--accept goes with --as-dataset", "--accept", "5")
    too_many = ("--as-dataset", "127", "--accept", "110%")
    refused("--accept is a number of scans or a share such as 10%, got '110%'", *too_many)
    refused("--accept 4, but there are 3 unlabeled scans", "--as-dataset", "127", "--accept", "4")
    refused("--as-dataset takes an id from 1 to 999, got 0", "--as-dataset", "0")
    refused("the id 999 is that of Dataset999_Tiny: choose another with --as-dataset", "--as-dataset", "999")
    (dataset.root / "results" / "Dataset127_Mine").mkdir()
    refused("the id 127 is that of Dataset127_Mine: choose another", "--as-dataset", "127")
    (dataset.root / "results" / "Dataset127_Mine").rmdir()
    write_case(dataset, "imagesUn", "labeled2", seed=50)
    refused("unlabeled and at the same time a training or validation case: labeled2: take", "--as-dataset", "127")
    (dataset.images_un / "labeled2_0000.nii.gz").unlink()
    shutil.copy(raw / "imagesTr" / "labeled3_0000.nii.gz", dataset.images_un / "copy_0000.nii.gz")
    refused("unlabeled cases are the same image as a labeled or test case: copy = labeled3", "--as-dataset", "127")
    (dataset.images_un / "copy_0000.nii.gz").unlink()
    label = (raw / "labelsTr" / "labeled2.nii.gz").rename(raw / "labeled2.nii.gz")
    refused("training or validation cases of fold 0 are not in labelsTr: labeled2", "--as-dataset", "127")
    label.rename(raw / "labelsTr" / "labeled2.nii.gz")
    (dataset.folder / "splits_final.json").unlink()
    refused("splits_final.json, which says what validates: copy it from where", "--as-dataset", "127")


def test_a_data_set_of_other_words_is_not_replaced(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0
    before = contents(new_folder(dataset))
    assert pseudolabel(dataset, out, "--as-dataset", "127", "--accept", "1") == 2
    assert f"{NEW} exists and was not written by this command with this model" in capsys.readouterr().err
    (new_folder(dataset) / "origin.json").unlink()
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 2
    assert contents(new_folder(dataset)).keys() == before.keys() - {"origin.json"}


@pytest.mark.parametrize("changed", ["imagesTs/new_0000.nii.gz", "labelsTr/scan1.nii.gz", "labelsTr/scan0.nii.gz"])
def test_what_somebody_has_changed_in_it_is_not_replaced(dataset, tmp_path, capsys, changed):
    out = tmp_path / "out"
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0, "unchanged, it is written again"
    file = new_folder(dataset) / changed
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"mine") if "scan0" not in changed else file.unlink()
    before = contents(new_folder(dataset))
    capsys.readouterr()
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 2
    assert f"{NEW} was changed since this command wrote it ({changed}): choose another id" in capsys.readouterr().err
    assert contents(new_folder(dataset)) == before


def test_a_model_of_another_split_is_warned_of(dataset, tmp_path, capsys):
    """Its validation cases may be among those that the model was trained with."""
    dataset.write_splits([{"train": ["labeled2", "labeled3"], "val": ["labeled0"]}])
    assert pseudolabel(dataset, tmp_path / "out", "--as-dataset", "127") == 0
    assert "WARNING: splits_final.json has other cases in train or val now" in capsys.readouterr().out


def test_scan_that_cannot_be_predicted_is_not_in_it(dataset, tmp_path, capsys):
    file = dataset.images_un / "scan1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-300])
    assert pseudolabel(dataset, tmp_path / "out", "--as-dataset", "127") == 1
    assert "left out, scan1: " in capsys.readouterr().out
    assert "scan1" not in origin_of(dataset)["cases"]
    assert {"scan0", "scan2"} <= origin_of(dataset)["cases"].keys()


def test_fold_all_validates_on_its_labeled_cases(dataset, tmp_path, capsys):
    model = finished_run(dataset, nnUNetTrainerMeanTeacher, fold="all")
    assert (model / "fold_all").is_dir()
    assert pseudolabel(dataset, tmp_path / "out", "-f", "all", "--as-dataset", "127") == 0
    (fold,) = json.loads((new_folder(dataset) / "splits_final.json").read_text())
    assert fold["val"] == LABELED
    assert {*fold["train"]} > {*LABELED}
    assert "WARNING: the validation cases are the training cases" in capsys.readouterr().out


def test_a_second_round_predicts_the_pseudo_labeled_cases_again(dataset, tmp_path):
    """The model of the new data set stands in for one that plain nnU-Net has trained on it."""
    assert pseudolabel(dataset, tmp_path / "out", "--as-dataset", "127", "--accept", "2") == 0
    first = {case for case, one in origin_of(dataset)["cases"].items() if one["label"] == "predicted"}
    results = dataset.root / "results"
    shutil.copytree(results / dataset.folder.name, results / NEW)
    words = ["-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu", "-o", str(tmp_path / "out2"), "--accept", "1"]
    assert main(["pseudolabel", "-d", "127", *words, "--as-dataset", "227"]) == 0
    second = json.loads((dataset.root / "raw" / "Dataset227_Tiny_Pseudolabeled" / "origin.json").read_text())
    predicted = {case for case, one in second["cases"].items() if one["label"] == "predicted"}
    assert {*second["not_accepted"]} | predicted == first
    assert len(predicted) == 1
    assert second["cases"].keys() - predicted == {*LABELED}
    splits = json.loads((dataset.root / "raw" / "Dataset227_Tiny_Pseudolabeled" / "splits_final.json").read_text())
    assert splits == [{"train": sorted(["labeled0", "labeled1", *predicted]), "val": ["labeled2", "labeled3"]}]


def test_cases_that_lie_elsewhere_and_the_spacing_beside_tiffs(tmp_path, monkeypatch):
    """Training cases may have any names by the key `dataset`; the spacing of CASE_0000.tif stands in CASE.json."""
    for place in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{place}", str(tmp_path / place))
    names = {"a": "mine_0007", "b": "yours_0000"}
    cases = {case: {"images": [f"{name}.tif"], "label": f"{case}_label.tif"} for case, name in names.items()}
    content = Case().dataset_json() | {"file_ending": ".tif", "dataset": cases}
    raw = RawDataset(tmp_path / "raw" / "Dataset999_Tiny", content)
    raw.folder.mkdir(parents=True)
    for name in ("mine_0007.tif", "mine.json", "yours_0000.tif", "a_label.tif", "a_label.json", "b_label.tif"):
        (raw.folder / name).write_text(name)
    for name in ("un_0000.tif", "un.json", "un.tif"):
        (tmp_path / name).write_text(name)
    folder = tmp_path / "raw" / NEW
    scan = Scan([tmp_path / "un_0000.tif"], tmp_path / "un.tif", {"label": "predicted"})
    write_dataset(folder, raw, LabeledFold(["a"], ["b"]), {"un": scan}, {}, {})
    expected = {
        "imagesTr/a_0000.tif": "mine_0007.tif",
        "imagesTr/a.json": "mine.json",
        "imagesTr/b_0000.tif": "yours_0000.tif",
        "imagesTr/un_0000.tif": "un_0000.tif",
        "imagesTr/un.json": "un.json",
        "labelsTr/a.tif": "a_label.tif",
        "labelsTr/a.json": "a_label.json",
        "labelsTr/b.tif": "b_label.tif",
        "labelsTr/un.tif": "un.tif",
        "labelsTr/un.json": "un.json",
    }
    found = {name: text.decode() for name, text in contents(folder).items() if "Tr/" in name}
    assert found == expected
    assert "dataset" not in json.loads((folder / "dataset.json").read_text())
    scan = Scan([tmp_path / "un.nii.gz"], tmp_path / "un.tif", {})
    with pytest.raises(ValueError, match="un.nii.gz does not end in .tif, as dataset.json says"):
        write_dataset(folder, raw, LabeledFold(["a"], ["b"]), {"un": scan}, {}, {})
    assert {name for name in contents(folder) if "Tr/" in name} == expected.keys()


@pytest.mark.slow
@ALL_KINDS
def test_plain_nnunet_plans_preprocesses_and_trains_it(dataset, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert pseudolabel(dataset, out, "--as-dataset", "127") == 0
    configuration = dataset.case.configuration
    extract_fingerprints([127], num_processes=1, check_dataset_integrity=True)
    with monkeypatch.context() as patched:
        patched.setenv("nnUNet_n_proc_DA", "1")  # with 0 nnU-Net's planner sets torch's threads to 0
        plan_experiments([127])
    folder = new_folder(dataset, "preprocessed")
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    settings = plans["configurations"][configuration]
    settings |= {"patch_size": [16] * dataset.case.dim, "batch_size": 2}
    settings["architecture"] = dataset.case.plans()["configurations"][configuration]["architecture"]
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess_dataset(127, configurations=[configuration], num_processes=[1])
    trainer = get_trainer_from_args("127", configuration, 0, "nnUNetTrainer", device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    assert sorted(trainer.do_split()[1]) == ["labeled2", "labeled3"]
    trainer.run_training()
    trainer.perform_actual_validation(False)
    predicted = {file.name.partition(".")[0] for file in Path(trainer.output_folder, "validation").glob("labeled*")}
    assert predicted == {"labeled2", "labeled3"}
    assert os.path.exists(Path(trainer.output_folder, "checkpoint_final.pth"))
