"""What JSON files hold is compared with a schema; messages name file, key, and what stands there."""

import json

import pytest
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunet_ssl.conversion.pseudolabeled_dataset import predicted_before
from nnunet_ssl.data.identical_images import identical_images
from nnunet_ssl.data.json_schemas import Plans, read_if_fit, refuse_unfit
from nnunet_ssl.data.plans_file import plans_problem, refuse_bad_plans
from nnunet_ssl.data.preprocessed_images import contents_of
from nnunet_ssl.data.raw_files import RawDataset, read_dataset_json
from nnunet_ssl.data.stamps import folder_of, read_stamp, state_folder
from nnunet_ssl.splits.adopting import read_journal
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import Case, make_trainer

DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".png"}


def write(folder, content):
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient_patern": "x"}, " has the key 'patient_patern', which nobody reads: write 'patient_pattern'"),
        ({"Patient_Pattern": "x"}, " has the key 'Patient_Pattern', which nobody reads: write 'patient_pattern'"),
        ({"region_class_order": [1]}, " has the key 'region_class_order', which nobody reads: write 'regions_class_or"),
        ({"border_image": 3}, " has the key 'border_image', which nobody reads: write 'border_images'"),
        ({"border_images": -1}, ": 'border_images' is less than 0: -1"),
        ({"border_images": "2"}, ": 'border_images' is no whole number: '2'"),
        ({"file_ending": "./../x"}, ": 'file_ending': 'case./../x' is a path, which may lead out of its folder"),
        ({"labels": {"organ": [1], "ignore": [2, 3]}}, r": 'labels': 'ignore' is one whole number, got \[2, 3\]"),
        ({"patient_pattern": None}, ": 'patient_pattern' None is no regular expression"),
        ({"dataset": {"../a": {"images": ["x"], "label": "y"}}}, ": 'dataset', '../a': '../a' is a path"),
        ({"dataset": {"a": {"images": [], "label": "y"}}}, ": 'dataset', 'a', 'images' has fewer than 1 entries"),
        ({"dataset": {}}, ": 'dataset' has fewer than 1 entries"),
    ],
)
def test_dataset_json(tmp_path, changes, message):
    file = write(tmp_path, DATASET_JSON | changes)
    with pytest.raises(ValueError, match=f"^{file}{message}"):
        read_dataset_json(file)


def test_all_that_nnunet_writes_or_passes_over_stays(tmp_path):
    generate_dataset_json(
        str(tmp_path), {0: "T1"}, {"background": 0, "whole": [1, 2], "core": 2}, 3, ".nii.gz", "x", (1, 2), "name",
        "ref", "r", "license", "d", "SimpleITKIO", dim=3, units="mm", dataset_id=4, release_date="x", labels_of="y",
    )  # fmt: skip
    assert read_dataset_json(tmp_path / "dataset.json")["dataset_id"] == 4
    assert (
        "ignore"
        in read_dataset_json(write(tmp_path, DATASET_JSON | {"labels": {"background": 0, "ignore": 1}}))["labels"]
    )


def test_paths_under_the_key_dataset_may_lead_anywhere(tmp_path):
    """As in nnU-Net, whose way this is to use images where they lie."""
    elsewhere = {"a": {"images": ["/data/a.png", "../b.png"], "label": "/data/l.png"}}
    write(tmp_path, DATASET_JSON | {"dataset": elsewhere})
    assert [*RawDataset.open(tmp_path).labels()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "of_configuration", "message"),
    [
        (
            {},
            {"data_identifier": "../../x"},
            "'data_identifier': '../../x' is a path, which may lead out of its folder",
        ),
        ({}, {"data_identifier": "/x"}, "'data_identifier': '/x' is a path"),
        ({}, {"patch_size": [16, "16"]}, "'patch_size', entry 1 is no whole number: '16'"),
        ({}, {"patch_size": [0, 16]}, "'patch_size', entry 0 is not more than 0: 0"),
        ({}, {"patch_size": [16]}, "'patch_size' has fewer than 2 entries"),
        ({}, {"spacing": [1.0, -1.0]}, r"'spacing', entry 1 is not more than 0: -1.0"),
        ({}, {"batch_size": 2.5}, "'batch_size' is no whole number: 2.5"),
        ({}, {"use_mask_for_norm": [0]}, "'use_mask_for_norm', entry 0 is neither true nor false: 0"),
        ({"plans_name": "../x"}, {}, "'plans_name': '../x' is a path"),
        ({"transpose_forward": "012"}, {}, "'transpose_forward' is no list: '012'"),
    ],
)
def test_plans(tiny_dataset, changes, of_configuration, message):
    dataset = tiny_dataset()
    plans = dataset.case.plans() | changes
    plans["configurations"]["3d_fullres"] |= of_configuration
    file = dataset.folder / "nnUNetPlans.json"
    file.write_text(json.dumps(plans))
    said = plans_problem(file)
    assert said.startswith(str(file))
    assert message in said
    with pytest.raises(ValueError, match="is a path|is n|has fewer"):
        refuse_bad_plans(plans, "3d_fullres", "plans.json")


def test_plans_of_nnunet_with_whole_numbers_as_spacing_stay():
    plans = Case().plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [1, 2, 0.5]
    refuse_unfit(plans | {"more": 3}, Plans, "plans.json")
    refuse_bad_plans(plans, "3d_fullres", "plans.json")


def test_a_training_refuses_them_before_anything_is_read(tiny_dataset, monkeypatch):
    plans = Case().plans()
    plans["configurations"]["3d_fullres"]["data_identifier"] = "../elsewhere"
    dataset = tiny_dataset()
    with monkeypatch.context() as patched:
        patched.setattr(Case, "plans", lambda _: plans)
        with pytest.raises(
            ValueError, match="nnUNetPlans.json: configuration '3d_fullres': 'data_identifier': '../els"
        ):
            make_trainer(dataset, nnUNetTrainerMeanTeacher).initialize()
    monkeypatch.setattr(Case, "dataset_json", lambda _: DATASET_JSON | {"file_ending": "/../x"})
    with pytest.raises(ValueError, match="^dataset.json: 'file_ending' is written with its dot"):
        make_trainer(dataset, nnUNetTrainerMeanTeacher).initialize()


def test_an_identifier_leads_nowhere_else(tmp_path):
    with pytest.raises(ValueError, match="'../x' is a path"):
        folder_of(tmp_path, "../x")
    with pytest.raises(ValueError, match="'../x' is a path"):
        read_stamp(tmp_path / "pool", "../x")


WRONG_SHAPES = [
    "[]",
    "3",
    "{",
    '{"labeled0": 3}',
    '{"labeled0": {"mark": "x"}}',
    '{"labeled0": {"mark": [1, 2], "shape": 3}}',
]


@pytest.mark.parametrize("content", WRONG_SHAPES)
def test_a_cache_of_a_wrong_shape_is_made_anew(tiny_dataset, tmp_path, content):
    folder, cache = tiny_dataset().labeled_folder, tmp_path / "cache.json"
    expected = contents_of(folder, ["labeled0", "labeled1"], cache)
    whole = cache.read_text()
    cache.write_text(content)
    assert contents_of(folder, ["labeled0", "labeled1"], cache) == expected
    assert json.loads(cache.read_text()) == json.loads(whole)


@pytest.mark.parametrize(
    "content", ["[]", '{"imagesUn/a_0000.nii.gz": {"marks": [], "shape": "x", "digest": 3}}', "[" * 99999]
)
def test_a_cache_of_images_of_a_wrong_shape_is_made_anew(tmp_path, content):
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    assert identical_images({}, None, cache) == []
    assert read_if_fit(cache, dict[str, int]) is None


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"settings": {}, "files": [["a", 1]]}', '{"settings": 3, "files": []}']
)
def test_a_stamp_of_a_wrong_shape_is_none(tmp_path, content):
    folder = state_folder(tmp_path / "pool") / "stamps"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(content)
    assert read_stamp(tmp_path / "pool", "a") is None
    (folder / "a.json").write_text(
        '{"settings": {}, "files": [["a", 1, 2, "x"]], "content": {"shape": [1, 2], "digest": "x"}}'
    )
    stamp = read_stamp(tmp_path / "pool", "a")
    assert stamp.content.shape == (1, 2)
    assert stamp.files == [("a", 1, 2, "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[3]", "adopted.json is not an object with names and values"),
        ('{"a": {"on": "x"}}', "adopted.json: 'a' has no key 'finished'; remove the file"),
        ('{"../a": {"on": "x", "finished": true}}', "adopted.json: '../a': '../a' is a path"),
    ],
)
def test_notes_of_adopted_cases(tmp_path, content, message):
    (tmp_path / "adopted.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_journal(RawDataset(tmp_path, DATASET_JSON))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cases": []}', "origin.json: 'cases' is not an object"),
        ('{"cases": {"../a": {"label": "predicted"}}}', "'../a' is a path"),
        ('{"cases": {"a": {}}}', "'cases', 'a' has no key 'label'"),
    ],
)
def test_origins_of_labels(tmp_path, content, message):
    (tmp_path / "origin.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        predicted_before(RawDataset(tmp_path, DATASET_JSON))
