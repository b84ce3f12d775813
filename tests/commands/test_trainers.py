import inspect
import os
import re

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.commands.cli import main
from nnunet_ssl.discovery.startup import SHIM_FOLDER
from nnunet_ssl.training.catalog import all_trainers
from nnunet_ssl.training.options import host_defaults

NAMES = [trainer.__name__ for trainer in all_trainers()]


def printed(capsys, *arguments):
    assert main(["trainers", *arguments]) == 0
    return capsys.readouterr().out


def options_of(text):
    """The lines "  name  type  default" of both lists."""
    own, common = text.split("options of this method:\n")[1].split("options of every trainer:\n")
    return [dict(re.findall(r"^  (\w+) +(\w+ +.+)$", part, re.MULTILINE)) for part in (own, common)]


@pytest.mark.parametrize("trainer", all_trainers(), ids=lambda trainer: trainer.__name__)
def test_all_about_one_trainer(capsys, trainer):
    text = printed(capsys, trainer.__name__)
    assert text.startswith(f"{trainer.__name__}\n\n{inspect.getdoc(trainer)}\n\nkind: ")
    own, common = options_of(text)
    assert own
    assert not set(own) & set(common)
    assert {"seed", "num_epochs", "initial_lr"} <= set(common)


def test_a_length_is_a_variant_of_its_trainer(capsys):
    text = printed(capsys, "nnUNetTrainerSSL_250epochs")
    assert text.startswith("nnUNetTrainerSSL_250epochs is nnUNetTrainerSSL with num_epochs=250:\n\nnnUNetTrainerSSL\n")
    assert main(["trainers", "nnUNetTrainerSLL_250epochs"]) == 2
    assert "there is no trainer 'nnUNetTrainerSLL_250epochs', the nearest: nnUNetTrainer" in capsys.readouterr().err
    assert main(["trainers", "nnUNetTrainer"]) == 2
    assert "nnUNetTrainer is nnU-Net's own, which learns from the labeled cases alone" in capsys.readouterr().err


def test_options_of_fixmatch_by_hand(capsys):
    text = printed(capsys, "nnUNetTrainerFixMatch")
    own, common = options_of(text)
    assert "\nkind: a student and its moving average\ncost: 2.33 of nnU-Net's step\n" in text
    assert own["confidence_threshold"].split() == ["float", "0.95"]
    assert own["predict_with"].split() == ["str", "teacher"]
    assert common["seed"].split(maxsplit=1) == ["int", "not set"]
    assert common["previews"].split() == ["bool", "false"]
    assert common["num_epochs"].split() == ["int", "1000"]
    assert common["weight_decay"].split() == ["float", "3e-05"]


def test_defaults_of_nnunet_are_read_from_its_constructor():
    assert host_defaults(nnUNetTrainer) == {
        "num_epochs": 1000,
        "num_iterations_per_epoch": 250,
        "num_val_iterations_per_epoch": 50,
        "save_every": 50,
        "initial_lr": 1e-2,
        "weight_decay": 3e-5,
        "oversample_foreground_percent": 0.33,
    }


OWN = """
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer

class nnUNetTrainerMine(TeacherStudentTrainer):
    \"\"\"Does what I like.

    In more words.
    \"\"\"

    STEP_COST = 2
    my_weight = 0.25
"""


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    (tmp_path / "a_trainer.py").write_text(OWN)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), SHIM_FOLDER]))
    return tmp_path


def test_trainer_of_an_own_folder_is_printed_like_the_package_s(capsys, own_folder):
    text = printed(capsys, "nnUNetTrainerMine")
    assert text.startswith("nnUNetTrainerMine\n\nDoes what I like.\n\nIn more words.\n\nkind: a student and its moving")
    own, common = options_of(text)
    assert own["my_weight"].split() == ["float", "0.25"]
    assert {"ema_decay", "predict_with"} <= set(own)
    assert "seed" in common


def test_trainers_of_own_folders_are_listed_under_a_heading_and_broken_ones_named(capsys, own_folder):
    (own_folder / "plain.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerPlain(nnUNetTrainer):\n    pass\n"
    )
    (own_folder / "z_broken.py").write_text("import nothing_like_that\n\n\nclass nnUNetTrainerBroken:\n    pass\n")
    package, _, own = printed(capsys).partition("in the folders of nnUNet_extTrainer:\n")
    assert re.findall(r"^nnUNetTrainer\w+", package, re.MULTILINE) == NAMES
    assert own.startswith("nnUNetTrainerMine\n  Does what I like.\n  kind:    a student")
    assert f"left out: nnUNetTrainerPlain of {own_folder} does not derive from SemiSupervisedTrainer\n" in own
    assert f"left out: nnUNetTrainerBroken of {own_folder} cannot be imported: ModuleNotFoundError: No module" in own
    assert main(["trainers", "nnUNetTrainerBroken"]) == 2
    assert main(["trainers", "nnUNetTrainerMin"]) == 2
    assert "the nearest: nnUNetTrainerMine" in capsys.readouterr().err


def test_without_a_name_every_trainer_has_its_entry(capsys):
    text = printed(capsys)
    assert re.findall(r"^nnUNetTrainer\w+", text, re.MULTILINE) == NAMES
    assert "Differences from the paper" not in text
    assert "\noptions of all:\n  mirroring seed " in text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nnUNetTrainerMeenTeacher", "the nearest: nnUNetTrainerMeanTeacher"),
        ("unimatch", "the nearest: nnUNetTrainerUniMatch, nnUNetTrainerUniMatchV2"),
        ("nnUNetTrainerEntropyMini", "the nearest: nnUNetTrainerEntropyMinimization"),
        ("xyz", f"there are {', '.join(NAMES)}"),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_nearest(capsys, name, sentence):
    assert main(["trainers", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"nnunet_ssl trainers: there is no trainer {name!r}, {sentence}")
    assert said.count("\n") == 1
