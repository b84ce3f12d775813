import json
import re

import pytest

from nnunet_ssl.data.raw_files import (
    RawDataset,
    channel_names,
    channel_problem,
    misspelled,
    read_dataset_json,
    sidecar,
    unlabeled_images,
    unused_files,
    with_sidecars,
)

ONE = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
TWO = ONE | {"channel_names": {"0": "T1", "1": "T2"}}
THREE = ONE | {"channel_names": {"0": "T1", "1": "T2", "2": "PD"}}


def images(folder, *names: str):
    for name in names:
        (folder / name).touch()
    return unlabeled_images(folder, ".nii.gz")


@pytest.mark.parametrize(
    ("dataset_json", "names", "says"),
    [
        (
            TWO,
            ["site_0001.nii.gz", "site_0007.nii.gz"],
            "not 0001, 0007; if site_0007.nii.gz is a case of its own",
        ),
        (ONE, ["scan_0003.nii.gz"], "0003; if scan_0003.nii.gz is a case of its own, name it scan_0003_0000.nii.gz"),
        (ONE, ["scan_0000.nii.gz", "scan_0001.nii.gz"], "it has 2 channel(s), the data set has 1 (MRI)"),
        (TWO, ["scan_0000.nii.gz", "scan_0002.nii.gz"], "it has 2 channel(s), the data set has 2 (T1, T2)"),
        (THREE, ["scan_0000.nii.gz", "scan_0002.nii.gz"], "numbered 0000 and so on: no 0001"),
        (TWO, ["scan_0001.nii.gz"], "it has 1 channel(s), the data set has 2 (T1, T2)"),
        (TWO, ["p_0000.nii.gz", "p_0001.nii.gz", "p_0002.nii.gz"], "it has 3 channel(s), the data set has 2 (T1, T2)"),
    ],
)
def test_a_case_has_exactly_the_channels_of_the_data_set(tmp_path, dataset_json, names, says):
    ((_, files),) = images(tmp_path, *names).items()
    assert says in channel_problem(files, dataset_json)


@pytest.mark.parametrize(
    ("dataset_json", "names"),
    [
        (ONE, ["scan_0000.nii.gz"]),
        (TWO, ["scan_0000.nii.gz", "scan_0001.nii.gz"]),
        (TWO, ["scan_0000.nii.gz"]),  # one file may hold all channels, as an RGB picture does; reading it shows
        (ONE, ["site_0001_0000.nii.gz"]),
    ],
)
def test_complete_cases_pass(tmp_path, dataset_json, names):
    for files in images(tmp_path, *names).values():
        assert channel_problem(files, dataset_json) is None


@pytest.mark.parametrize("name", ["scan7.nii.gz", "scan_000.nii.gz", "0000.nii.gz"])
def test_names_without_channel_are_refused_with_the_right_one(tmp_path, name):
    with pytest.raises(ValueError, match=rf"here {name.split('.')[0]}_0000.nii.gz"):
        images(tmp_path, name)


def test_what_is_not_used_is_said_in_one_line(tmp_path):
    images(tmp_path, "a_0000.nii.gz", "b_0000.nii", "c_0000.NII.GZ", "d.NII.GZ", "notes.txt", ".DS_Store", "README")
    (tmp_path / "more").mkdir()
    said = unused_files(tmp_path, ".nii.gz")
    assert "\n" not in said
    assert "2 file(s) with the ending .NII.GZ" in said
    assert "1 file(s) with the ending .nii, 1 file(s) with the ending .txt" in said
    assert "1 sub-folder(s)" in said
    assert "1 file(s) without an ending" in said
    assert "DS_Store" not in said


def test_nothing_is_said_where_all_is_used(tmp_path):
    images(tmp_path, "a_0000.nii.gz")
    assert unused_files(tmp_path, ".nii.gz") == ""
    assert unused_files(tmp_path / "nowhere", ".nii.gz") == ""
    (tmp_path / "tiff").mkdir()
    for name in ("a_0000.tif", "a.json"):
        (tmp_path / "tiff" / name).touch()
    assert unused_files(tmp_path / "tiff", ".tif") == ""


def test_spacing_file_of_a_tiff_belongs_to_the_case(tmp_path):
    for name in ("a_0000.tif", "a_0001.tif", "a.json", "b_0000.tif", "c.tif", "c.json"):
        (tmp_path / name).touch()
    assert with_sidecars([tmp_path / "a_0000.tif", tmp_path / "a_0001.tif"])[2:] == [tmp_path / "a.json"]
    assert sidecar(tmp_path / "b_0000.tif") is None
    assert sidecar(tmp_path / "c.tif", is_label=True) == tmp_path / "c.json"
    assert sidecar(tmp_path / "c.tif") is None  # no image of nnU-Net's
    assert sidecar(tmp_path / "a_0000.tif", is_label=True) is None  # a_0000.json it would be


def test_cases_may_lie_elsewhere(tmp_path, monkeypatch):
    """nnU-Net's key `dataset`: relative to the data set's folder, absolute, or with a variable."""
    monkeypatch.setenv("FAR", str(tmp_path / "far"))
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "stray.nii.gz").touch()
    elsewhere = {
        "b": {"images": ["../b_0000.nii.gz"], "label": "$FAR/b.nii.gz"},
        "a": {"images": ["/abs/a_0000.nii.gz"], "label": "/abs/a.nii.gz"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(ONE | {"dataset": elsewhere}))
    raw = RawDataset.open(tmp_path)
    assert {case: str(file) for case, file in raw.labels().items()} == {
        "a": "/abs/a.nii.gz",
        "b": str(tmp_path / "far" / "b.nii.gz"),
    }
    assert [str(file) for file in raw.images()["b"]] == [str(tmp_path.parent / "b_0000.nii.gz")]
    assert [str(file) for file in raw.image_of("a", ["imagesTr"])] == ["/abs/a_0000.nii.gz"]
    assert raw.image_of("stray", ["imagesTr"]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("{", "is no JSON"),
        ('{"labels": {}}', "has no key 'file_ending'"),
        ('{"file_ending": ".png"}', "has no key 'labels'"),
        ('{"file_ending": ".png", "labels": ["organ"]}', "'labels' is not an object with names and values: ['organ']"),
        (
            '{"file_ending": ".png", "labels": {"0": "organ"}}',
            "'labels', '0' is neither a whole number nor a list",
        ),
        ('{"file_ending": ".png", "labels": {"organ": "1"}}', "'labels', 'organ' is neither a whole number"),
        ('{"file_ending": ".png", "labels": {"organ": 1.5}}', "'labels', 'organ' is neither a whole number"),
        ('{"file_ending": ".png", "labels": {"organ": []}}', "'labels', 'organ' is neither a whole number"),
        (
            '{"file_ending": "png", "labels": {}}',
            "'file_ending' is written with its dot, such as",
        ),
        ('{"file_ending": 3, "labels": {}}', "'file_ending' is no text: 3"),
    ],
)
def test_faults_of_dataset_json_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'dataset.json'}|no .*dataset.json") as raised:
        read_dataset_json(tmp_path / "dataset.json")
    assert message in str(raised.value)


@pytest.mark.parametrize("elsewhere", [{"a": {}}, {"a": {"label": "a.png"}}, ["a"], {"a": "a.png"}])
def test_the_key_dataset_says_how_it_is_written(tmp_path, elsewhere):
    content = ONE | {"dataset": elsewhere}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError,
        match=r"dataset.json: 'dataset'(, 'a')?(, 'images')? (has no key|is not an object)",
    ):
        RawDataset.open(tmp_path).labels()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no key 'channel_names'"),
        ({"channel_names": ["CT"]}, "'channel_names' are numbers with names"),
        ({"channel_names": {}}, "'channel_names' are numbers with names"),
        ({"modality": "CT"}, "'channel_names' are numbers with names"),
    ],
)
def test_faults_of_channel_names_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        channel_names(content)


@pytest.mark.parametrize(
    ("labeled", "problem"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "it has 1 channel(s), the data set has 2 (T1, T2), .* so on: no 0001$"),
        (["a_0000.nii.gz"], None),  # all channels in one file
        (["a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"], None),
        ([], None),
    ],
)
def test_the_labeled_cases_tell_whether_one_file_holds_all_channels(tmp_path, labeled, problem):
    for folder, names in (("imagesTr", labeled), ("imagesUn", ["u_0000.nii.gz"])):
        (tmp_path / folder).mkdir()
        images(tmp_path / folder, *names)
    raw = RawDataset(tmp_path, TWO)
    found = raw.channel_problem(raw.images("imagesUn")["u"])
    assert found is None if problem is None else re.match(problem.replace("(", "[(]").replace(")", "[)]"), found)


def test_what_nnunet_writes_beside_predictions_is_passed_over(tmp_path):
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "summary.json"):
        (tmp_path / name).touch()
    assert unused_files(tmp_path, ".nii.gz") == ""
    (tmp_path / "other.json").touch()
    assert "1 file(s) with the ending .json" in unused_files(tmp_path, ".nii.gz")


@pytest.mark.parametrize("name", ["imagesUN", "imageUn", "ImagesUn", "imagesUnlabeled"])
def test_a_misspelled_folder_is_named(tmp_path, name):
    for folder in ("imagesTr", "labelsTr", name):
        (tmp_path / folder).mkdir()
    assert unused_files(tmp_path / "imagesUn", ".nii.gz") == f"there is no folder imagesUn, is it {name}?"
    assert misspelled(tmp_path / "imagesTs") in (None, tmp_path / name)
    (tmp_path / "imagesUn").mkdir(exist_ok=True)
    assert misspelled(tmp_path / "imagesUn") is None


def test_folders_of_nnunet_are_not_taken_for_misspelled(tmp_path):
    for folder in ("imagesTr", "imagesTs", "labelsTr"):
        (tmp_path / folder).mkdir()
    assert unused_files(tmp_path / "imagesUn", ".nii.gz") == ""


def test_an_unlabeled_case_called_as_labels_of_another_is_refused(tmp_path):
    """nnU-Net preprocesses the labels of `a` to `a_seg`: one file would be both."""
    with pytest.raises(ValueError, match="a_seg_0000.nii.gz is called as nnU-Net calls the labels of a, which"):
        images(tmp_path, "a_0000.nii.gz", "a_seg_0000.nii.gz", "b_seg_0000.nii.gz")
    (tmp_path / "a_seg_0000.nii.gz").unlink()
    assert [*unlabeled_images(tmp_path, ".nii.gz")] == ["a", "b_seg"]
