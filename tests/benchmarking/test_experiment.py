"""Data, network, length and cases of an experiment."""

import json
from dataclasses import replace

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.benchmarking.experiment import Experiment, length
from nnunet_ssl.benchmarking.splits import facts_of_split, pool_of_fold
from tests.conftest import Case


def test_plans_of_a_configuration_that_inherits_are_whole(tmp_path):
    plans = Case(dim=2, stages=4).plans()
    plans["configurations"]["2d_coarse"] = {"inherits_from": "2d", "spacing": [3.0, 3.0]}
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    smaller = Experiment(tmp_path, "2d_coarse", features=(4, 8, 16), batch_size=8).smaller_plans()
    configuration = PlansManager(smaller).get_configuration("2d_coarse")
    assert (configuration.spacing, configuration.batch_size, configuration.patch_size) == ([3.0, 3.0], 8, [16, 16])
    arguments = configuration.network_arch_init_kwargs
    assert arguments["features_per_stage"] == [4, 8, 16]
    assert [len(arguments[name]) for name in ("strides", "n_conv_per_stage", "n_conv_per_stage_decoder")] == [3, 3, 2]


def test_the_length_is_that_of_the_steps_or_of_nnunets_schedule(experiment):
    """A setting of steps is as it was before there was the other one: results are known by it."""
    short = experiment.setting()
    assert "epochs" not in short
    assert length(short) == {
        "num_epochs": 20,
        "num_iterations_per_epoch": 2,
        "num_val_iterations_per_epoch": 5,
        "save_every": 2,
    }
    whole = replace(experiment, steps=None).setting()
    assert (whole["epochs"], whole["steps"]) == (1000, 250_000)
    assert length(whole) == {"save_every": 10}
    assert whole == short | {"epochs": 1000, "steps": 250_000}


def test_a_name_says_what_differs(experiment, hippocampus):
    names = [
        replace(experiment, **changes).name
        for changes in (
            {},
            {"labeled": 3},
            {"fold": 1},
            {"plans": "Mine", "configuration": "3d_fullres"},
            {"given_name": "mine"},
        )
    ]
    assert names == [
        "hippocampus_2d_2labeled",
        "hippocampus_2d_3labeled",
        "hippocampus_2d_2labeled_tune",
        "hippocampus_3d_fullres_Mine_2labeled",
        "mine",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_labeled_cases_of_a_smaller_number_are_among_those_of_a_larger_one(experiment, seed):
    draws = [replace(experiment, labeled=number).split(seed) for number in (1, 3, 8)]
    assert [len(split["train"]) for split in draws] == [1, 3, 8]
    assert set(draws[0]["train"]) < set(draws[1]["train"]) < set(draws[2]["train"])
    assert draws[0]["val"] == draws[1]["val"]
    assert not set(draws[2]["train"]) & set(draws[0]["val"])


def test_patients_are_drawn_where_the_data_set_knows_them(experiment, hippocampus):
    """Seven patients of two scans each: none is labeled and validated, or labeled and unlabeled."""
    for file in (hippocampus / "gt_segmentations").iterdir():
        file.unlink()
    for patient in range(7):
        for scan in "ab":
            (hippocampus / "gt_segmentations" / f"p{patient}_{scan}.nii.gz").touch()
    for file in (hippocampus.parent.parent / "raw" / hippocampus.name / "imagesUn").iterdir():
        file.unlink()
    content = Case().dataset_json() | {"patient_pattern": r"p\d"}
    (hippocampus / "dataset.json").write_text(json.dumps(content))
    for seed in range(5):
        split = experiment.split(seed)
        patients = {side: {case[:2] for case in cases} for side, cases in split.items()}
        assert {side: len(cases) for side, cases in split.items()} == {"train": 4, "val": 4, "unlabeled": 6}
        assert {side: len(found) for side, found in patients.items()} == {"train": 2, "val": 2, "unlabeled": 3}
        assert len(set.union(*patients.values())) == 7
    assert experiment.name == "hippocampus_2d_2patients"
    assert "unit" not in experiment.setting()
    (hippocampus / "dataset.json").write_text(json.dumps(content | {"unit": "blocks"}))
    assert experiment.setting()["unit"] == "blocks"
    assert experiment.setting()["patient_pattern"] == r"p\d"


def test_the_data_sets_own_split(experiment, hippocampus):
    """With all labels those of the unlabeled cases are learned too, where they have one."""
    split = {"train": ["case.1"], "val": ["case.0"], "unlabeled": ["case.2", "un0"]}
    (hippocampus / "splits_final.json").write_text(json.dumps([split]))
    own = replace(experiment, labeled=None)
    assert own.split(1) == own.split(2) == split
    assert own.split(1, with_all_labels=True) == {"train": ["case.1", "case.2"], "val": ["case.0"]}
    assert own.name == "hippocampus_2d_1labeled"
    assert own.setting()["fold"] == "own split"
    assert facts_of_split(split, hippocampus, True)["unlabeled"] == 2
    assert facts_of_split(split, hippocampus, False)["unlabeled"] == 0


def test_another_fold_of_the_own_split(experiment, hippocampus):
    splits = [{"train": ["case.1"], "val": [f"case.{fold}"], "unlabeled": ["un0"]} for fold in (2, 3)]
    (hippocampus / "splits_final.json").write_text(json.dumps(splits))
    own = replace(experiment, labeled=None, fold=1)
    assert own.split(1) == splits[1]
    assert own.split(1, with_all_labels=True)["val"] == ["case.3"]
    assert own.setting()["fold"] == "own split, fold 1"
    for fold in (-1, 2):
        with pytest.raises(ValueError, match=f"there is no fold {fold}: .*splits_final.json has 2, the first is 0"):
            replace(own, fold=fold).split(1)


def test_images_of_validation_patients_are_not_learned_from(experiment, hippocampus):
    """Of patients of imagesUn one is labeled, one validated and one neither; the last one alone is not enough."""
    content = Case().dataset_json() | {"patient_pattern": r"case.\d"}
    (hippocampus / "dataset.json").write_text(json.dumps(content))
    images = hippocampus.parent.parent / "raw" / hippocampus.name / "imagesUn"
    for file in images.iterdir():
        file.unlink()
    split = experiment.split(1)
    named = {"labeled": split["train"][0], "validated": split["val"][0]}
    for case in named.values():
        (images / f"{case}_later_0000.nii.gz").touch()
    assert experiment.split(1) == split | {"unlabeled": [f"{named['labeled']}_later"]}
    assert pool_of_fold(hippocampus, 0) == [f"{named['labeled']}_later"]
    (images / f"{named['labeled']}_later_0000.nii.gz").unlink()
    assert experiment.split(1) == split, "the training cases that are left"


def test_neighbours_across_a_border_are_left_out_where_the_data_set_asks_for_it(experiment, hippocampus):
    content = Case().dataset_json() | {"border_images": 1}
    for file in (hippocampus / "gt_segmentations").iterdir():
        file.unlink()
    for number in range(100, 200):
        (hippocampus / "gt_segmentations" / f"{number}.nii.gz").touch()
    content["patient_pattern"] = r"^(\d\d)\d$"
    (hippocampus / "dataset.json").write_text(json.dumps(content))
    for labeled in (2, None):
        split = replace(experiment, labeled=labeled or 2).split(1, with_all_labels=labeled is None)
        training = {int(case) for side in ("train", "unlabeled") for case in split.get(side, []) if case.isdigit()}
        validation = {int(case) for case in split["val"]}
        assert training
        assert validation
        assert min(abs(one - other) for one in training for other in validation) > 2
