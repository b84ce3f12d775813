import json
from pathlib import Path

import pytest

from nnunet_ssl.splits import hiding
from nnunet_ssl.splits.hiding import hide, unhide

CASES = [f"case{i}" for i in range(4)]


@pytest.fixture
def dataset(tmp_path):
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (tmp_path / folder).mkdir()
    for case in CASES:
        (tmp_path / "labelsTr" / f"{case}.nii.gz").write_text(f"label {case}")
        for channel in range(2):
            (tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz").write_text(f"image {case} {channel}")
    (tmp_path / "imagesUn" / "own_0000.nii.gz").write_text("always unlabeled")
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "numTraining": 4, "name": "kept"}))
    return tmp_path


def content(dataset: Path) -> dict[str, str]:
    files = (path for path in dataset.rglob("*") if path.is_file() and path.name != "dataset.json")
    return {str(path.relative_to(dataset)): path.read_text() for path in files}


def number(dataset: Path) -> int:
    return json.loads((dataset / "dataset.json").read_text())["numTraining"]


def test_hidden_labels_are_out_of_sight(dataset):
    assert hide(dataset, ["case1", "case3", "own"]) == ["case1", "case3"]
    names = {path.name for path in (dataset / "labelsTr").iterdir()}
    assert names == {"case0.nii.gz", "case2.nii.gz"}
    assert {path.name[:5] for path in (dataset / "imagesTr").iterdir()} == {"case0", "case2"}
    assert (dataset / "labelsHidden" / "case3.nii.gz").read_text() == "label case3"
    assert (dataset / "imagesUn" / "case1_0001.nii.gz").exists()
    assert number(dataset) == 2


def test_there_and_back_is_where_it_was(dataset):
    before = content(dataset), json.loads((dataset / "dataset.json").read_text())
    hide(dataset, CASES[:3])
    assert unhide(dataset) == CASES[:3]
    assert (content(dataset), json.loads((dataset / "dataset.json").read_text())) == before
    assert not (dataset / "labelsHidden").exists()


@pytest.mark.parametrize("moves", range(9))
@pytest.mark.parametrize("back", [False, True])
def test_interrupted_anywhere_either_can_be_run_again(dataset, monkeypatch, moves, back):
    before = content(dataset)
    done = 0
    move = hiding.move

    def interrupted(file, folder):
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return move(file, folder)

    if back:
        hide(dataset, CASES[:3])
    hidden = content(dataset)
    monkeypatch.setattr(hiding, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unhide(dataset) if back else hide(dataset, CASES[:3])
    monkeypatch.undo()
    assert sorted(content(dataset).values()) == sorted(before.values())
    hide(dataset, CASES[:3])
    if back:
        assert content(dataset) == hidden
    unhide(dataset)
    assert content(dataset) == before
    assert number(dataset) == 4


def test_ids_with_special_characters(dataset):
    (dataset / "labelsTr" / "pat[1].nii.gz").touch()
    (dataset / "imagesTr" / "pat[1]_0000.nii.gz").touch()
    hide(dataset, ["pat[1]"])
    assert (dataset / "imagesUn" / "pat[1]_0000.nii.gz").exists()


def test_nothing_is_overwritten(dataset):
    (dataset / "labelsHidden").mkdir()
    (dataset / "labelsHidden" / "case0.nii.gz").write_text("another")
    with pytest.raises(ValueError, match="case0.nii.gz lies both in .*labelsTr and in .*labelsHidden: remove one"):
        hide(dataset, ["case0"])
