import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_ssl.commands.cli import main
from nnunet_ssl.commands.pseudolabel import Finished, marks
from nnunet_ssl.commands.trained_models import with_first_stages
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.evaluation.pool_prediction import PoolPredictor
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import DATASET
from tests.data.test_unlabeled_preprocessing import write_image
from tests.training.test_model_export import finished_run


@pytest.fixture(params=[{}, {"num_classes": 4, "regions": True}], ids=["labels", "regions"])
def dataset(request, tiny_dataset):
    """Return a data set with a trained model and three unlabeled scans, one of them not in imagesUn."""
    dataset = tiny_dataset(**request.param)
    finished_run(dataset, nnUNetTrainerMeanTeacher)
    raw = dataset.images_un.parent
    for folder, case in (("imagesUn", "scan0"), ("imagesUn", "scan1"), ("imagesTr", "scan2")):
        write_image(raw / folder / f"{case}_0000.nii.gz", seed=int(case[-1]), shape=(18, 20, 22))
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["scan0", "scan2", "scan1"]}])
    return dataset


def pseudolabel(out, *more: str) -> int:
    arguments = ["-d", "999", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu", "-o", str(out), *more]
    return main(["pseudolabel", *arguments])


def test_every_scan_is_predicted_and_ranked(dataset, tmp_path, capsys):
    out = tmp_path / "pseudo"
    assert pseudolabel(out) == 0
    labels = {file.name: SimpleITK.ReadImage(str(file)) for file in out.glob("*.nii.gz")}
    assert sorted(labels) == ["scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz"]
    assert all(image.GetSize() == (22, 20, 18) for image in labels.values())
    with (out / "ranking.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    structures = ["whole", "core"] if dataset.case.regions else ["class1"]
    assert list(rows[0])[4:] == [f"{kind}_{name}" for name in structures for kind in ("confidence", "volume_ml")]
    values = {"whole": (1, 2, 3), "core": (3,), "class1": (1,)}
    for row in rows:
        voxels = SimpleITK.GetArrayFromImage(labels[f"{row['case']}.nii.gz"])
        for name in structures:
            volume = np.isin(voxels, values[name]).sum() / 1000
            assert float(row[f"volume_ml_{name}"]) == pytest.approx(volume, rel=1e-4)
        assert 0 <= float(row["entropy"]) <= 1 or row["entropy"] == "nan"
    assert f"most uncertain: {rows[0]['case']}, {rows[1]['case']}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "differs"), [("MeanTeacher", False), ("CPS", True), ("CAD", True), ("MEDL", False)])
def test_two_networks_of_one_architecture_may_disagree(tiny_dataset, name, differs):
    """A student and its teacher are one network; MEDL's second one is of another architecture."""
    model = finished_run(tiny_dataset(), find_trainer(f"nnUNetTrainer{name}"))
    predictor = PoolPredictor(model, "0", "checkpoint_final.pth", torch.device("cpu"))
    assert (predictor.other_weights is not None) == differs
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(18, 20, 22)).astype(np.float32))
    file = model / "scan_0000.nii.gz"
    SimpleITK.WriteImage(image, str(file))
    assert math.isfinite(predictor.predict([file]).uncertainty.disagreement) == differs


def test_wrong_use_is_one_sentence(dataset, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for arguments, message in (
        ((tmp_path / "full",), "full is not empty: name a new folder with -o"),
        ((tmp_path / "new", "-f", "3"), "has no fold 3, it has: 0"),
        ((tmp_path / "new", "-chk", "none.pth"), "none.pth: is the training finished? -chk chooses from: "),
    ):
        assert pseudolabel(*arguments) == 2
        assert message in capsys.readouterr().err
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["nowhere"]}])
    assert pseudolabel(tmp_path / "new") == 2
    assert "unlabeled cases have no image in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def damage(file) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def add_channel(file) -> None:
    write_image(file.with_name(file.name.replace("_0000", "_0001")), shape=(18, 20, 22))


def make_a_text(file) -> None:
    file.write_text("no image")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage, "cut off or damaged"),
        (add_channel, "it has 2 channel(s)"),
        (make_a_text, "is cut off or damaged, or no image"),
    ],
)
@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_scan_that_training_leaves_out_is_left_out_and_named(dataset, tmp_path, capsys, harm, reason):
    image = dataset.images_un / "scan1_0000.nii.gz"
    harm(image)
    assert pseudolabel(tmp_path / "pseudo") == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("left out, scan1: "))
    assert reason in line
    assert ranked(tmp_path / "pseudo") == {"scan0", "scan2"}
    assert not (tmp_path / "pseudo" / "scan1.nii.gz").exists()
    for file in dataset.images_un.glob("scan1_*"):
        file.unlink()
    write_image(image, seed=1, shape=(18, 20, 22))
    assert pseudolabel(tmp_path / "pseudo") == 0  # the same command: what is fixed is added
    assert "2 of 3 scans are done already" in capsys.readouterr().out
    assert ranked(tmp_path / "pseudo") == {"scan0", "scan1", "scan2"}


@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_a_label_that_somebody_has_put_there_is_not_written_over(dataset, tmp_path, capsys):
    """Of a scan that could not be predicted, and can now; what the command itself has left is not somebody's."""
    image, out = dataset.images_un / "scan1_0000.nii.gz", tmp_path / "pseudo"
    damage(image)
    assert pseudolabel(out) == 1
    write_image(image, seed=1, shape=(18, 20, 22))
    label = out / "scan1.nii.gz"
    drawn = SimpleITK.GetImageFromArray(np.ones((18, 20, 22), np.uint8))
    SimpleITK.WriteImage(drawn, str(label))
    before = label.read_bytes()
    capsys.readouterr()
    assert pseudolabel(out) == 1
    said = capsys.readouterr().out
    assert f"left out, scan1: {label} is there already, and is not what the model predicts: it is kept" in said
    assert label.read_bytes() == before
    label.unlink()
    assert pseudolabel(out) == 0
    lines = (out / "finished.jsonl").read_text().splitlines(keepends=True)
    (out / "finished.jsonl").write_text("".join(lines[:-1]))  # ended between the label and its line
    assert pseudolabel(out) == 0
    assert ranked(out) == {"scan0", "scan1", "scan2"}


def ranked(out) -> set[str]:
    with (out / "ranking.csv").open(newline="") as opened:
        return {row["case"] for row in csv.DictReader(opened)}


@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_interrupted_it_goes_on_where_it_stopped(dataset, tmp_path, monkeypatch, capsys):
    out, seen = tmp_path / "pseudo", []
    assert pseudolabel(tmp_path / "whole") == 0
    predict = PoolPredictor.predict

    def interrupted(self, files):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(files[0].name)
        return predict(self, files)

    with monkeypatch.context() as patched:
        patched.setattr(PoolPredictor, "predict", interrupted)
        assert pseudolabel(out) == 130
    with (out / "finished.jsonl").open("a") as opened:
        opened.write('{"case": "scan1", "unfin')  # as a power cut leaves it
    done = {file.name: file.stat().st_mtime_ns for file in out.glob("*.nii.gz")}
    write_image(dataset.images_un / "scan0_0000.nii.gz", seed=77, shape=(18, 20, 22))  # another scan by this name now
    assert pseudolabel(out) == 0
    kept = {name for name, time in done.items() if (out / name).stat().st_mtime_ns == time}
    assert kept == {"scan2.nii.gz"}
    assert ranked(out) == {"scan0", "scan1", "scan2"}
    write_image(dataset.images_un / "scan0_0000.nii.gz", seed=0, shape=(18, 20, 22))
    assert pseudolabel(out) == 0
    assert (out / "ranking.csv").read_text() == (tmp_path / "whole" / "ranking.csv").read_text()


@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_outputs_are_those_of_the_scans_that_there_are(dataset, tmp_path, capsys):
    """A deleted label file is made again; what stands for a scan that is damaged or gone by now is deleted."""
    out = tmp_path / "pseudo"
    assert pseudolabel(out) == 0
    ranking = (out / "ranking.csv").read_text()
    (out / "scan1.nii.gz").unlink()
    assert pseudolabel(out) == 0
    assert (out / "scan1.nii.gz").exists()
    assert (out / "ranking.csv").read_text() == ranking
    damage(dataset.images_un / "scan1_0000.nii.gz")
    assert pseudolabel(out) == 1
    assert not (out / "scan1.nii.gz").exists()
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["scan2"]}])
    assert pseudolabel(out) == 0
    assert ranked(out) == {"scan2"}
    assert [file.name for file in out.glob("*.nii.gz")] == ["scan2.nii.gz"]
    for content in ("[]\nno json\n", '["x"]\n{"case": "scan2"}\n', "3\n4\n"):
        (out / "finished.jsonl").write_text(content)
        assert pseudolabel(out) == 2
        assert "finished.jsonl is damaged: name a new folder with -o" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_a_label_that_an_expert_has_corrected_is_never_lost(dataset, tmp_path, capsys):
    """Though its image was copied anew, or is no unlabeled one any more."""
    out = tmp_path / "pseudo"
    assert pseudolabel(out) == 0
    corrected = out / "scan1.nii.gz"
    write_image(corrected, seed=7, shape=(18, 20, 22))
    content = corrected.read_bytes()
    for case in ("scan0", "scan1"):
        os.utime(dataset.images_un / f"{case}_0000.nii.gz", (1, 1))
    capsys.readouterr()
    assert pseudolabel(out) == 0
    said = capsys.readouterr().out
    assert "2 of 3 scans are done already" in said
    assert "kept, as somebody has changed the label since: scan1, though the scan" in said
    assert corrected.read_bytes() == content
    assert ranked(out) == {"scan0", "scan1", "scan2"}
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["scan0", "scan2"]}])
    assert pseudolabel(out) == 0
    assert "kept, as somebody has changed the label since: scan1" in capsys.readouterr().out
    assert corrected.read_bytes() == content
    assert ranked(out) == {"scan0", "scan2"}


def test_predictions_of_another_first_stage_are_those_of_another_model(tmp_path):
    checkpoints = [tmp_path / stage / "fold_0" / "checkpoint_final.pth" for stage in ("second", "first")]
    for file in checkpoints:
        file.parent.mkdir(parents=True)
        file.write_text("weights")
    Finished.open(tmp_path / "out", checkpoints, {}, ".nii.gz")
    Finished.open(tmp_path / "out", checkpoints, {}, ".nii.gz")
    checkpoints[1].write_text("other weights")
    with pytest.raises(ValueError, match="holds the predictions of another model"):
        Finished.open(tmp_path / "out", checkpoints, {}, ".nii.gz")


def test_the_first_stage_of_a_cascade_predicts_too(tiny_dataset):
    plans = tiny_dataset().case.plans()
    stage = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        "3d_lowres": stage | {"data_identifier": "lowres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    results = Path(os.environ["nnUNet_results"], DATASET)
    final = Path("fold_2", "checkpoint_final.pth")
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        model = results / f"nnUNetTrainerSSL__nnUNetPlans__{configuration}"
        model.mkdir(parents=True)
        (model / "plans.json").write_text(json.dumps(plans))
    first, second = (results / f"nnUNetTrainerSSL__nnUNetPlans__{one}" for one in ("3d_lowres", "3d_cascade_fullres"))
    assert with_first_stages(second / final) == [second / final, first / final]
    assert with_first_stages(first / final) == [first / final]


def test_notes_that_name_a_path_delete_nothing(tmp_path):
    """What was predicted for a scan that has left the pool is deleted: a name from a file stays in its folder."""
    folder, mine = tmp_path / "out", tmp_path / "mine.nii.gz"
    folder.mkdir()
    mine.touch()
    checkpoint = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    model = json.dumps(["model", "fold_0", checkpoint.name, *marks([checkpoint])])
    entry = {"case": "../mine", "marks": [[1, 2]], "uncertainty": {"entropy": 1.0}, "volumes_ml": {}}
    (folder / "finished.jsonl").write_text(f"{model}\n{json.dumps(entry)}\n")
    with pytest.raises(ValueError, match=r"is damaged: .*\(line 2: 'case': '../mine' is a path"):
        Finished.open(folder, [checkpoint], {}, ".nii.gz").forget_what_is_gone()
    assert mine.exists()


@pytest.mark.parametrize("dataset", [{}], indirect=True)
@pytest.mark.parametrize("value", [1e38, 3e38])
def test_intensities_that_preprocessing_cannot_take_are_left_out(dataset, tmp_path, capsys, value):
    voxels = np.random.default_rng(0).normal(size=(18, 20, 22)).astype(np.float32)
    voxels[:9] = value
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(dataset.images_un / "scan1_0000.nii.gz"))
    assert pseudolabel(tmp_path / "pseudo") == 1
    assert "left out, scan1: the image holds values that are not finite" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", [{}], indirect=True)
def test_predictions_of_two_models_are_not_mixed(dataset, tmp_path, capsys):
    assert pseudolabel(tmp_path / "pseudo") == 0
    folder = dataset.root / "results" / dataset.folder.name / "nnUNetTrainerMeanTeacher__nnUNetPlans__3d_fullres"
    shutil.copy(folder / "fold_0" / "checkpoint_final.pth", folder / "fold_0" / "checkpoint_best.pth")
    assert pseudolabel(tmp_path / "pseudo", "-chk", "checkpoint_best.pth") == 2
    assert "holds the predictions of another model" in capsys.readouterr().err
