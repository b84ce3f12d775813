import os

import pytest

from nnunet_ssl.discovery.startup import SHIM_FOLDER, register


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, SHIM_FOLDER),
        ("", SHIM_FOLDER),
        ("/mine", os.pathsep.join(["/mine", SHIM_FOLDER])),
        (os.pathsep.join(["/mine", "/yours"]), os.pathsep.join(["/mine", "/yours", SHIM_FOLDER])),
        (SHIM_FOLDER, SHIM_FOLDER),
    ],
)
def test_own_value_is_kept_and_ours_appended_once(monkeypatch, before, after):
    monkeypatch.delenv("NNUNET_SSL_DISCOVERY", raising=False)
    if before is None:
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    else:
        monkeypatch.setenv("nnUNet_extTrainer", before)
    register()
    register()
    assert os.environ["nnUNet_extTrainer"] == after


def test_opt_out_leaves_the_variable_alone(monkeypatch):
    monkeypatch.setenv("NNUNET_SSL_DISCOVERY", "0")
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    register()
    assert os.environ["nnUNet_extTrainer"] == "/mine"


def test_shim_folder_holds_exactly_one_module():
    modules = [name for name in os.listdir(SHIM_FOLDER) if name.endswith(".py")]
    assert modules == ["nnunet_ssl_trainers.py"]
