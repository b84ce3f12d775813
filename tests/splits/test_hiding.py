import contextlib
import errno
import json
from pathlib import Path

import pytest

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.splits import hiding

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
    content = {"file_ending": ".nii.gz", "numTraining": 4, "name": "kept", "labels": {"background": 0, "organ": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1", "1": "T2"}}))
    return tmp_path


def hide(dataset: Path, cases: list[str]) -> list[str]:
    return hiding.hide(RawDataset.open(dataset), cases)


def unhide(dataset: Path, cases: list[str] | None = None) -> list[str]:
    return hiding.unhide(RawDataset.open(dataset), cases)


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

    def interrupted(source, target):
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return move(source, target)

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


def test_one_case_comes_back_and_the_others_stay(dataset):
    hide(dataset, CASES[:3])
    assert unhide(dataset, ["case1"]) == ["case1"]
    assert {path.name for path in (dataset / "labelsHidden").iterdir()} == {"case0.nii.gz", "case2.nii.gz"}
    assert (dataset / "imagesTr" / "case1_0001.nii.gz").exists()
    assert number(dataset) == 2


@pytest.mark.parametrize("step", ["copied", "in place", "never"])
def test_another_disk_is_no_obstacle_and_a_copy_is_whole_or_not_there(dataset, monkeypatch, step):
    """Renaming across file systems fails; the file is then copied, put in place, and only then removed."""
    before = content(dataset)

    def rename(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if step == "copied":
            patched.setattr(Path, "replace", interrupt)
        if step == "in place":
            patched.setattr(Path, "unlink", interrupt)
        if step == "never":
            hide(dataset, ["case0"])
        else:
            with pytest.raises(KeyboardInterrupt):
                hide(dataset, ["case0"])
    assert "label case0" in content(dataset).values()
    hide(dataset, ["case0"])
    assert (dataset / "labelsHidden" / "case0.nii.gz").read_text() == "label case0"
    assert not (dataset / "labelsTr" / "case0.nii.gz").exists()
    (dataset / "labelsHidden" / ".case0.nii.gz.tmp").unlink(missing_ok=True)
    unhide(dataset)
    assert content(dataset) == before


def test_what_lies_beside_a_tiff_travels_with_it(dataset):
    """nnU-Net reads the spacing of CASE_0000.tif and of CASE.tif from CASE.json."""
    json_file = dataset / "dataset.json"
    json_file.write_text(json_file.read_text().replace(".nii.gz", ".tif"))
    for folder, names in (("imagesTr", ("a_0000.tif", "a_0001.tif", "a.json")), ("labelsTr", ("a.tif", "a.json"))):
        for name in names:
            (dataset / folder / name).write_text(f"{folder} {name}")
    before = content(dataset)
    hide(dataset, ["a"])
    there = content(dataset)
    assert {"labelsHidden/a.json", "labelsHidden/a.tif", "imagesUn/a.json", "imagesUn/a_0001.tif"} <= there.keys()
    assert not {"imagesTr/a.json", "labelsTr/a.json"} & there.keys()
    unhide(dataset)
    assert content(dataset) == before


def test_cases_that_lie_elsewhere_are_not_moved(dataset):
    file = dataset / "dataset.json"
    elsewhere = {"case0": {"images": ["/far/case0_0000.nii.gz"], "label": "/far/case0.nii.gz"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": elsewhere}))
    before = content(dataset)
    with pytest.raises(ValueError, match="lie where the key 'dataset' of its dataset.json says"):
        hide(dataset, ["case0"])
    assert content(dataset) == before


def move_to_pool(dataset: Path) -> list[str]:
    raw = RawDataset.open(dataset)
    return hiding.carry_out(raw, hiding.moves_to_pool(raw))


def remove_labels(dataset: Path, cases: list[str]) -> None:
    for case in cases:
        (dataset / "labelsTr" / f"{case}.nii.gz").unlink()


@pytest.mark.parametrize("cases", [["case0"], ["case1", "case3"], CASES[:3]])
def test_images_without_label_move_to_the_unlabeled_ones(dataset, cases):
    remove_labels(dataset, cases)
    before = content(dataset)
    assert move_to_pool(dataset) == cases
    assert {path.name[:5] for path in (dataset / "imagesTr").iterdir()} == {*CASES} - {*cases}
    assert {path.name[:-12] for path in (dataset / "imagesUn").iterdir()} == {*cases, "own"}
    assert sorted(content(dataset).values()) == sorted(before.values())
    assert number(dataset) == 4 - len(cases)


def test_images_with_a_label_stay_and_so_do_hidden_ones(dataset):
    (dataset / "labelsHidden").mkdir()
    (dataset / "labelsTr" / "case2.nii.gz").rename(dataset / "labelsHidden" / "case2.nii.gz")
    before = content(dataset)
    assert move_to_pool(dataset) == []
    assert content(dataset) == before


@pytest.mark.parametrize("moves", range(7))
@pytest.mark.parametrize("ending", [".nii.gz", ".tif"])
def test_moving_that_was_interrupted_is_finished_by_the_same_words(dataset, monkeypatch, moves, ending):
    if ending == ".tif":
        for file in [path for path in dataset.rglob("*") if path.suffix == ".gz"]:
            file.rename(file.with_name(file.name.replace(".nii.gz", ".tif")))
        for case in CASES:
            (dataset / "imagesTr" / f"{case}.json").write_text(f"spacing {case}")
        text = (dataset / "dataset.json").read_text()
        (dataset / "dataset.json").write_text(text.replace(".nii.gz", ".tif"))
    for case in CASES[:2]:
        (dataset / "labelsTr" / f"{case}{ending}").unlink()
    before = content(dataset)
    move, done = hiding.move, []

    def interrupted(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(source)
        return move(source, target)

    monkeypatch.setattr(hiding, "move", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        move_to_pool(dataset)
    monkeypatch.undo()
    move_to_pool(dataset)
    assert sorted(content(dataset).values()) == sorted(before.values())
    assert {name.partition("/")[2][:5] for name in content(dataset) if name.startswith("imagesTr/")} == {*CASES[2:]}
    assert number(dataset) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: remove_labels(d, CASES), "there is no label CASE.nii.gz in .*labelsTr: no image would be left"),
        (
            lambda d: (d / "labelsTr/case0.nii.gz").rename(d / "labelsTr/case0_gt.nii.gz"),
            "labels in .*labelsTr have no image: case0_gt.nii.gz. If one is of case0, name it case0.nii.gz",
        ),
        (
            lambda d: (d / "imagesTr/scan.nii.gz").write_text("an image"),
            "scan.nii.gz is not named as nnU-Net names images: CASE_0000.nii.gz .* here scan_0000.nii.gz",
        ),
        (
            lambda d: (remove_labels(d, ["case0"]), (d / "imagesUn/case0_0000.nii.gz").write_text("another")),
            "case0_0000.nii.gz lies both in .*imagesTr and in .*imagesUn: remove one",
        ),
    ],
)
def test_what_may_be_a_mistake_moves_nothing(dataset, spoil, message):
    spoil(dataset)
    before = content(dataset)
    with pytest.raises(ValueError, match=message):
        move_to_pool(dataset)
    assert content(dataset) == before


def test_images_that_lie_elsewhere_are_not_moved_to_the_pool(dataset):
    file = dataset / "dataset.json"
    elsewhere = {"a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": elsewhere}))
    with pytest.raises(ValueError, match="moved: put them into imagesTr and labelsTr and remove the key"):
        move_to_pool(dataset)
