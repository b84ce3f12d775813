import inspect
from os.path import join

import nnunetv2
import pytest
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_ssl.data.dataset_names import dataset_name, known_datasets, planning_command

PLACES = ("raw", "preprocessed", "results")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that makes folders of data sets, PLACE/NAME each."""
    for place in PLACES:
        (tmp_path / place).mkdir()
        monkeypatch.setenv(f"nnUNet_{place}", str(tmp_path / place))
    return lambda *folders: [(tmp_path / folder).mkdir() for folder in folders]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("4", "Dataset004_Heart"),
        ("027", "Dataset027_ACDC"),
        ("300", "Dataset300_Two words"),
        ("1234", "Dataset1234_Long"),
        ("Dataset027_ACDC", "Dataset027_ACDC"),
    ],
)
def test_a_data_set_is_found_by_id_and_name_wherever_it_lies_as_nnunet_does(make, place, given, name):
    make(f"{place}/{name}", f"{place}/Dataset001_Other", f"{place}/not_a_dataset")
    assert dataset_name(given) == maybe_convert_to_dataset_name(given) == name


@pytest.mark.parametrize(
    ("given", "folders", "named"),
    [
        ("4", ("raw/Dataset004_A", "raw/Dataset004_B"), "Dataset004_A in nnUNet_raw; Dataset004_B in nnUNet_raw"),
        (
            "27",
            ("raw/Dataset027_ACDC", "preprocessed/Dataset027_ACDC", "results/Dataset027_Old"),
            "Dataset027_ACDC in nnUNet_raw and nnUNet_preprocessed; Dataset027_Old in nnUNet_results",
        ),
        ("5", ("raw/Dataset005_A", "preprocessed/Dataset005_A_backup"), "Dataset005_A_backup in nnUNet_preprocessed"),
        ("100", ("raw/Dataset100_A", "raw/Dataset1000_B"), "Dataset1000_B in nnUNet_raw; Dataset100_A in nnUNet_raw"),
    ],
)
def test_several_data_sets_of_one_id_are_named_with_their_places(make, given, folders, named):
    make(*folders)
    with pytest.raises(RuntimeError, match="More than one dataset name"):
        maybe_convert_to_dataset_name(given)
    with pytest.raises(ValueError, match=f"several data sets have the id {given}: .*{named}.* give the name instead"):
        dataset_name(given)
    assert dataset_name(folders[0].partition("/")[2]) == folders[0].partition("/")[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("5", "there is no data set '5' in nnUNet_raw=.*raw, nnUNet_preprocessed="),
        ("Dataset005_None", "there is no data set 'Dataset005_None' in"),
        ("Dataset004_hart", "'Dataset004_hart' in .*; is it Dataset004_Heart"),
        ("Dataset004_Heart/", "; is it Dataset004_Heart"),
        ("Heart", "a data set is given by id or name, 4 or Dataset004_Hippocampus, got 'Heart'"),
        ("-4", "is given by id or name, .*, got '-4'"),
        ("", "is given by id or name, .*, got ''"),
        ("Dataset4_Heart", "is given by id or name, .*, got 'Dataset4_Heart'"),
    ],
)
def test_what_is_no_data_set_is_one_sentence(make, given, message):
    make("raw/Dataset004_Heart")
    with pytest.raises(ValueError, match=message):
        dataset_name(given)


def test_a_variable_that_names_no_folder_is_said(make, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "/nowhere")
    with pytest.raises(ValueError, match=r"nnUNet_results=/nowhere \(no folder\)"):
        dataset_name("4")


def test_files_are_no_data_sets(make, tmp_path):
    make("raw/Dataset004_Heart")
    (tmp_path / "raw" / "Dataset005_Brain.zip").touch()
    assert known_datasets() == {"Dataset004_Heart": ["nnUNet_raw"]}


@pytest.mark.parametrize(("name", "number"), [("Dataset004_A", 4), ("Dataset027_A b", 27), ("Dataset1234_A", 1234)])
def test_planning_is_told_the_id(name, number):
    assert planning_command(name) == f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity"


@pytest.mark.parametrize(
    ("plans", "planner"),
    [("nnUNetPlans", None), ("Mine", None)]
    + [(f"nnUNetResEncUNet{size}Plans", f"nnUNetPlannerResEnc{size}") for size in ("M", "L", "XL")],
)
def test_command_names_the_planner_that_makes_the_plans(plans, planner):
    command = planning_command("Dataset004_Hippocampus", plans)
    assert (f" -pl {planner} " in command) if planner else ("-pl" not in command)
    if planner:
        made_by = recursive_find_python_class(
            join(nnunetv2.__path__[0], "experiment_planning"), planner, "nnunetv2.experiment_planning"
        )
        assert inspect.signature(made_by).parameters["plans_name"].default == plans
