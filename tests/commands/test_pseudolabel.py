import csv
import json

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import main
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
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
    assert f"most worth labeling next: {rows[0]['case']}, {rows[1]['case']}" in capsys.readouterr().out


def test_wrong_use_is_one_sentence(dataset, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for arguments, message in (
        ((tmp_path / "full",), "full is not empty: name a new folder with -o"),
        ((tmp_path / "new", "-f", "3"), "checkpoint_final.pth: is the training finished?"),
    ):
        assert pseudolabel(*arguments) == 2
        assert message in capsys.readouterr().err
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": ["nowhere"]}])
    assert pseudolabel(tmp_path / "new") == 2
    assert "the unlabeled case nowhere has no image in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
