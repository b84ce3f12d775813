"""Every error of a verb is one sentence that names file, key or option, and what to do."""

import argparse
import ast
import errno
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from nnunet_ssl.commands import cli, doctor
from nnunet_ssl.commands.cli import VERBS, main, sentence
from nnunet_ssl.commands.outputs import output_file, output_folder
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing

TRAINER = "nnUNetTrainerMeanTeacher"
MODEL = f"{TRAINER}__nnUNetPlans__3d_fullres"
WORDS_OF_OTHERS = ("Traceback", "Errno", "Error", "torch.", "numpy", "NoneType", "invalid literal", "list index")


@pytest.fixture
def dataset(tiny_dataset, monkeypatch):
    """Return a data set with a raw folder, and a model that was not trained."""
    monkeypatch.setattr(doctor, "CHECKS", ())
    dataset = tiny_dataset()
    monkeypatch.chdir(dataset.root)
    raw = dataset.images_un.parent
    for name in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / name).mkdir(parents=True)
    for folder in (raw, model_of(dataset)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset.folder / "dataset.json", folder)
    shutil.copy(dataset.folder / "nnUNetPlans.json", model_of(dataset) / "plans.json")
    (model_of(dataset) / "fold_0").mkdir()
    init_args = {"configuration": "3d_fullres"}
    content = {"network_weights": {}, "trainer_name": TRAINER, "init_args": init_args, "nnunet_ssl": {}}
    torch.save(content, checkpoint_of(dataset))
    return dataset


def model_of(dataset) -> Path:
    return dataset.root / "results" / dataset.folder.name / MODEL


def checkpoint_of(dataset) -> Path:
    return model_of(dataset) / "fold_0" / "checkpoint_final.pth"


def words(verb: str, *more: str) -> list[str]:
    """Return a call of a verb about the data set."""
    of_model = ["-d", "999", "-c", "3d_fullres", "-tr", TRAINER]
    calls = {
        "split": ["999", "--labeled", "1"],
        "preprocess": ["-d", "999"],
        "adopt": ["-d", "999", "scan0"],
        "report": ["-d", "999", "-np", "1", "-o", "out"],
        "doctor": ["-d", "999"],
        "export": [*of_model, "-o", "out.zip"],
        "pseudolabel": [*of_model, "-device", "cpu", "-o", "out"],
        "preview": [*of_model, "-device", "cpu", "-o", "out.png"],
        "benchmark": [*("-d", "999", "-device", "cpu", "-o", "out"), "--trainers", TRAINER, "--labeled", "1"],
    }
    return [verb, *calls[verb], *more]


def message(capsys, arguments: list[str], code: int = 2) -> str:
    """Return the one sentence with which a call ends."""
    assert main(arguments) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith(f"nnunet_ssl {arguments[0]}: ")]
    assert len(lines) == 1, error
    assert error.endswith(f"{lines[0]}\n")
    assert not [word for word in WORDS_OF_OTHERS if word in error]
    return lines[0]


# ---- what nobody has foreseen ----


@pytest.mark.parametrize("error", [KeyError("labels"), TypeError("no"), IndexError("list index out of range")])
def test_a_bug_is_shown_with_all_that_a_report_needs(capsys, monkeypatch, error):
    def run(options):
        raise error

    monkeypatch.setattr("nnunet_ssl.commands.trainers.run", run)
    assert main(["trainers"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("nnunet_ssl trainers: this is a bug of nnunet_ssl ")
    assert f"({type(error).__name__}: {error}), please report it with the lines above" in lines[-1]


@pytest.mark.parametrize("name", ["nnUNet_def_n_proc", "nnUNet_n_proc_DA"])
@pytest.mark.parametrize("value", ["many", "-1", "2.5", ""])
def test_a_number_of_processes_that_is_none(capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    said = message(capsys, ["trainers"]).removeprefix("nnunet_ssl trainers: ")
    assert said == f"{name} is a number of processes, got {value!r}: export {name}=4, or unset {name}"


# ---- the operating system ----


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        (lambda place: (place / "gone").read_text(), "there is no PLACE/gone"),
        (lambda place: (place / "file" / "x").read_text(), "PLACE/file/x: a part of this path is a file, not a folder"),
        (lambda place: place.read_text(), "PLACE is a folder, a file was expected"),
        (lambda place: (place / "file").mkdir(), "PLACE/file is in the way: remove it, or choose another place"),
    ],
)
def test_errors_of_the_operating_system_say_what_is_wrong_with_which_file(tmp_path, do, expected):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Errno") as raised:
        do(tmp_path)
    assert sentence(raised.value) == expected.replace("PLACE", str(tmp_path))


@pytest.mark.parametrize(
    ("number", "files", "expected"),
    [
        (errno.EXDEV, ("/a", None, "/b"), "/a and /b: Invalid cross-device link"),
        (errno.EIO, ("/a",), "/a: Input/output error"),
        (errno.EACCES, ("/a",), "/a: permission denied, look at its permissions or choose another place"),
    ],
)
def test_numbers_of_errors_are_left_out(number, files, expected):
    assert sentence(OSError(number, __import__("os").strerror(number), *files)) == expected


# ---- data sets, variables ----

VARIABLES = {
    "split": ("raw", "preprocessed"),
    "preprocess": ("raw", "preprocessed"),
    "report": ("raw", "preprocessed", "results"),
    "export": ("results",),
    "pseudolabel": ("raw", "preprocessed", "results"),
    "adopt": ("raw", "preprocessed"),
    "preview": ("raw", "preprocessed", "results"),
    "benchmark": ("raw", "preprocessed"),
}


@pytest.mark.parametrize(("verb", "place"), [(verb, place) for verb, places in VARIABLES.items() for place in places])
def test_a_variable_that_is_not_set(dataset, monkeypatch, capsys, verb, place):
    monkeypatch.delenv(f"nnUNet_{place}")
    assert f"nnUNet_{place} not set: export nnUNet_{place}=/path/to/folder" in message(capsys, words(verb))


def test_one_command_sets_all_variables_that_are_missing(dataset, monkeypatch, capsys):
    for place in ("raw", "preprocessed"):
        monkeypatch.delenv(f"nnUNet_{place}")
    expected = "not set: export nnUNet_raw=/path/to/folder nnUNet_preprocessed=/path/to/folder"
    assert message(capsys, words("split")).endswith(expected)


@pytest.mark.parametrize("verb", VARIABLES)
def test_a_data_set_that_is_two_is_not_called_unknown(dataset, capsys, verb):
    (dataset.root / "raw" / "Dataset999_Other").mkdir()
    said = message(capsys, words(verb))
    assert "several data sets have the id 999: Dataset999_Other in nnUNet_raw; Dataset999_Tiny in" in said
    assert "give the name instead of the id" in said


@pytest.mark.parametrize("verb", VARIABLES)
@pytest.mark.parametrize("given", ["998", "Dataset999_Tin", "Tiny"])
def test_a_data_set_that_there_is_not(dataset, capsys, verb, given):
    arguments = [given if word == "999" else word for word in words(verb)]
    said = message(capsys, arguments)
    assert "there is no data set" in said or "a data set is given by id or name" in said
    assert given in said


# ---- damaged files ----

DATASET_JSON, PLANS, SPLITS = "dataset.json", "nnUNetPlans.json", "splits_final.json"
READ_BY = {
    ("raw", DATASET_JSON): ("split", "pseudolabel", "adopt"),
    ("preprocessed", DATASET_JSON): ("preprocess", "report", "preview", "benchmark"),
    ("preprocessed", PLANS): ("preprocess", "preview", "benchmark"),
    ("preprocessed", SPLITS): ("report", "pseudolabel", "adopt"),
    ("model", DATASET_JSON): ("export", "pseudolabel", "preview"),
    ("model", "plans.json"): ("export", "pseudolabel", "preview"),
}


def file_of(dataset, place: str, name: str) -> Path:
    folders = {"raw": dataset.images_un.parent, "preprocessed": dataset.folder, "model": model_of(dataset)}
    return folders[place] / name


@pytest.mark.parametrize("content", ["{", "[]", '"text"', b"\xff\xfe\x00", "", "folder", "gone"])
@pytest.mark.parametrize(
    ("place", "name", "verb"), [(*where, verb) for where, verbs in READ_BY.items() for verb in verbs]
)
def test_a_damaged_json_is_named(dataset, capsys, place, name, verb, content):
    file = file_of(dataset, place, name)
    file.unlink()
    if content == "folder":
        file.mkdir()
    elif content != "gone":
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    said = message(capsys, words(verb))
    assert str(file) in said or (name == SPLITS and content in ("[]", "gone"))


@pytest.mark.parametrize(
    ("verb", "place", "name", "key"),
    [
        ("split", "raw", DATASET_JSON, "labels"),
        ("split", "raw", DATASET_JSON, "file_ending"),
        ("split", "raw", DATASET_JSON, "channel_names"),
        ("preprocess", "preprocessed", DATASET_JSON, "file_ending"),
        ("preprocess", "preprocessed", PLANS, "configurations"),
        ("preprocess", "preprocessed", PLANS, "image_reader_writer"),
        ("preprocess", "preprocessed", PLANS, "foreground_intensity_properties_per_channel"),
        ("report", "preprocessed", DATASET_JSON, "labels"),
        ("preview", "preprocessed", PLANS, "transpose_forward"),
        ("preview", "preprocessed", DATASET_JSON, "channel_names"),
        ("benchmark", "preprocessed", DATASET_JSON, "file_ending"),
        ("benchmark", "preprocessed", PLANS, "configurations"),
        ("export", "model", DATASET_JSON, "labels"),
        ("pseudolabel", "model", DATASET_JSON, "channel_names"),
    ],
)
def test_a_missing_key_is_named_with_its_file(dataset, capsys, verb, place, name, key):
    file = file_of(dataset, place, name)
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))
    assert f"{file} has no key '{key}'" in message(capsys, words(verb))


@pytest.mark.parametrize("key", ["spacing", "data_identifier", "normalization_schemes", "patch_size"])
def test_a_missing_key_of_a_configuration_is_named_with_the_command_that_plans(dataset, capsys, key):
    file = dataset.folder / PLANS
    plans = json.loads(file.read_text())
    del plans["configurations"]["3d_fullres"][key]
    file.write_text(json.dumps(plans))
    said = message(capsys, words("preprocess"))
    assert f"{file}: configuration '3d_fullres' has no key '{key}': nnUNetv2_plan_and_preprocess -d 999 " in said


# ---- trained models ----


@pytest.mark.parametrize("verb", ["export", "pseudolabel", "preview"])
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["-f", "7"], "has no fold 7, it has: 0"),
        (["-f", "x"], "-f is the number of a fold, or all, got 'x'"),
        (["-f", "-1"], "-f is the number of a fold, or all, got '-1'"),
        (["-f", "01"], "-f is the number of a fold, or all, got '01'"),
        (["-f", "all"], "has no fold all, it has: 0"),
        (["-chk", "none.pth"], "none.pth: is the training finished? -chk chooses from: checkpoint_final.pth"),
        (["-c", "2d"], f"there are: -tr {TRAINER} -p nnUNetPlans -c 3d_fullres"),
        (["-tr", "nnUNetTrainerMean"], f"there are: -tr {TRAINER} -p nnUNetPlans -c 3d_fullres"),
        (["-p", "Mine"], f"there are: -tr {TRAINER} -p nnUNetPlans -c 3d_fullres"),
    ],
)
def test_a_model_that_there_is_not_and_which_there_is(dataset, capsys, verb, more, expected):
    assert expected in message(capsys, words(verb, *more))


@pytest.mark.parametrize("verb", ["export", "pseudolabel", "preview"])
def test_where_no_model_is_trained_the_command_that_trains_is_said(dataset, capsys, verb):
    shutil.rmtree(model_of(dataset))
    training = f"nnUNetv2_train {dataset.folder.name} 3d_fullres 0 -tr {TRAINER} -p nnUNetPlans"
    assert message(capsys, words(verb)).endswith(f"there is no trained model {model_of(dataset)}: {training}")


@pytest.mark.parametrize("verb", ["export", "pseudolabel", "preview"])
def test_a_training_that_failed_at_its_start_is_no_model(dataset, capsys, verb):
    model = model_of(dataset)
    shutil.copytree(model, model.with_name(f"{TRAINER}__nnUNetPlans__2d"))
    shutil.rmtree(model)
    (model / "fold_0").mkdir(parents=True)
    expected = f"there is no checkpoint in {model} yet, there are: -tr {TRAINER} -p nnUNetPlans -c 2d"
    assert message(capsys, words(verb)).endswith(expected)


@pytest.mark.parametrize("verb", ["export", "pseudolabel", "preview"])
@pytest.mark.parametrize("content", [b"", b"hello", [3], {}, "half"])
def test_a_checkpoint_that_is_none(dataset, capsys, verb, content):
    file = checkpoint_of(dataset)
    if content == "half":
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    if verb == "pseudolabel":
        (dataset.images_un / "un_0000.nii.gz").touch()
    assert str(file) in message(capsys, words(verb))


def test_a_checkpoint_of_a_trainer_that_is_not_installed(dataset, capsys):
    (dataset.images_un / "un_0000.nii.gz").touch()
    torch.save(torch.load(checkpoint_of(dataset)) | {"trainer_name": "nnUNetTrainerOfOthers"}, checkpoint_of(dataset))
    said = message(capsys, words("pseudolabel"))
    assert "is of trainer nnUNetTrainerOfOthers, which is not installed" in said
    assert "nnUNet_extTrainer" in said


def test_a_checkpoint_that_does_not_fit_its_plans(dataset, capsys):
    (dataset.images_un / "un_0000.nii.gz").touch()
    said = message(capsys, words("pseudolabel"))
    assert f"{checkpoint_of(dataset)} does not fit plans.json and dataset.json in {model_of(dataset)}" in said


def test_a_checkpoint_of_nnunet_has_no_preview(dataset, capsys):
    content = torch.load(checkpoint_of(dataset))
    del content["nnunet_ssl"]
    torch.save(content, checkpoint_of(dataset))
    assert "checkpoint_final.pth is of no semi-supervised training" in message(capsys, words("preview"))


# ---- where to write ----


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "-o names a file, got nothing"),
        ("folder", "-o names a file, 'folder' is a folder"),
        ("file/x.csv", "-o file/x.csv: file is no folder"),
        ("file/a/b/x.csv", "-o file/a/b/x.csv: .*file is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=expected):
        output_file(given)


@pytest.mark.parametrize("given", ["new", "file", "a/b/new", "folder/new"])
def test_a_file_that_can_be_written_is_not(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert output_file(given) == Path(given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("given", ["", "file", "file/x"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder|got nothing"):
        output_folder(given)
    assert output_folder("a/b") == Path("a/b")


def test_a_place_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
    for check in (output_file, output_folder):
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be written to: choose another place"):
            check(str(tmp_path / "new" / "x"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "-gt", ".", "-pred", ".", "-o", "folder"],
        ["report", "-d", "999", "-o", "file"],
        words("export", "-o", "file/x.zip"),
        words("preview", "-o", "folder"),
        ["hc", "-i", "masks", "-o", "folder"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_verbs_look_at_o_first(dataset, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.nii.gz").touch()
    assert f"nnunet_ssl {arguments[0]}: -o " in message(capsys, arguments)


# ---- options that do not go together ----


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "-d", "999", "Dataset999_Tiny"], "-d names one twice: 999 Dataset999_Tiny"),
        (["report", "-d", "999", "--results", ".", "./"], "--results names one twice: . ./"),
        (["report", "-d", "999", "--predictions", "a=.", "a=."], "--predictions names 'a' twice: a=. a=."),
        (words("export", "-f", "0", "0"), "-f names a fold twice: 0 0"),
        (["split", "999", "--labeled", "", "--overwrite"], "--labeled is a number of patients or a share such as 10%"),
        (["split", "999", "--protocol", ""], "no protocol '', there are"),
        (["split", "999", "--move-unlabeled", "--overwrite"], "--overwrite does not apply to --move-unlabeled"),
        (["doctor", "-p", "nnUNetPlans"], "-p goes with -d DATASET"),
    ],
)
def test_options_that_do_not_go_together(dataset, capsys, arguments, expected):
    assert expected in message(capsys, arguments)


# ---- commands to copy ----


def test_names_in_commands_are_quoted(tmp_path):
    plans = {"dataset_name": "Dataset004_Two words", "plans_name": "my plans", "configurations": {}}
    command = UnlabeledPreprocessing(plans, "3d (small)", {}, tmp_path, tmp_path).command
    assert shlex.split(command) == [
        *("nnunet_ssl", "preprocess", "-d", "Dataset004_Two words", "-c", "3d (small)", "-p", "my plans")
    ]


NNUNET = {
    "nnUNetv2_train": "run/run_training.py",
    "nnUNetv2_preprocess": "experiment_planning/plan_and_preprocess_entrypoints.py",
    "nnUNetv2_plan_and_preprocess": "experiment_planning/plan_and_preprocess_entrypoints.py",
    "nnUNetv2_move_plans_between_datasets": "experiment_planning/plans_for_pretraining/move_plans_between_datasets.py",
    "nnUNetv2_predict": "inference/predict_from_raw_data.py",
    "nnUNetv2_ensemble": "ensembling/ensemble.py",
}
OTHERS = {"pip install": ("-e", "--force-reinstall", "--no-deps"), "docker run": ("--shm-size",), "convert": ()}
SPOKEN_BY = {  # modules whose messages a single verb speaks, or nnU-Net's training
    "splits/hiding.py": "split",
    "splits/make_splits.py": "split",
    "splits/adopting.py": "adopt",
    "conversion/pseudolabeled_dataset.py": "pseudolabel",
    "commands/as_dataset.py": "pseudolabel",
    "commands/going_on.py": "adopt",
    "evaluation/folders.py": "evaluate",
    "training/model_export.py": "export",
    "training/checkpoints.py": "nnUNetv2_train",
    "training/options.py": "nnUNetv2_train",
    "training/semi_supervised_trainer.py": "nnUNetv2_train",
    "commands/trained_models.py": "pseudolabel",
    "commands/raw_checks.py": "split",
    "commands/preprocessed_checks.py": "doctor",
    "commands/split_checks.py": "split",
    "commands/dataset_checks.py": "doctor",
    "commands/outputs.py": "report",
    "commands/benchmark_checks.py": "benchmark",
    "benchmarking/planning.py": "benchmark",
    "benchmarking/slurm.py": "benchmark",
    "benchmarking/splits.py": "benchmark",
    "data/plans_file.py": "preprocess",
}
OPTION = re.compile(r"(?<![\w/.=-])(--?[a-zA-Z][\w-]*)")


def options_of(speaker: str) -> set[str]:
    """Return the options that a verb or a command of nnU-Net's has."""
    if speaker in VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"nnunet_ssl.commands.{speaker}").add_arguments(parser)
        return {option for action in parser._actions for option in action.option_strings}
    import nnunetv2

    source = (Path(nnunetv2.__path__[0]) / NNUNET[speaker]).read_text()
    return set(re.findall(r"""add_argument\(\s*['"](--?\w+)""", source))


def texts_in(file: Path) -> list[str]:
    """Return the strings of a module that are no docstrings of functions, each f-string as one with {} in it."""
    tree = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.ClassDef)
    with_docstring = [node for node in ast.walk(tree) if isinstance(node, functions) and ast.get_docstring(node)]
    documented = {id(node.body[0].value) for node in with_docstring}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | inside:
            texts.append(node.value)
    return texts


def speakers_of(text: str, speaker: str) -> set[str]:
    """Return whose options a text may name: the verb's that speaks, and those of the commands in it."""
    verbs = set(re.findall(r"nnunet_ssl (\w+)", text)) & VERBS.keys()
    return {speaker} | verbs | {command for command in NNUNET if command in text}


PACKAGE = Path(cli.__file__).parent.parent
MODULES = {f"commands/{verb}.py": verb for verb in VERBS if verb != "convert"} | SPOKEN_BY


@pytest.mark.parametrize("module", MODULES)
def test_no_message_names_an_option_that_its_speaker_does_not_have(module):
    for text in filter(lambda text: " " in text, texts_in(PACKAGE / module)):
        allowed = {"-tr", "--help", "-h"}.union(*(options_of(one) for one in speakers_of(text, MODULES[module])))
        allowed |= {option for command, options in OTHERS.items() if command in text for option in options}
        unknown = set(OPTION.findall(text)) - allowed
        assert not unknown, text
