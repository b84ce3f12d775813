import os
import pickle
import subprocess
import sys
import traceback

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssl.discovery.startup import SHIM_FOLDER
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.warm_processes import answer_of_one


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", SHIM_FOLDER)


@pytest.mark.parametrize(("name", "epochs"), [("_250epochs", 250), ("_1epoch", 1), ("_4000epochs", 4000)])
def test_length_variant(name, epochs):
    variant = find_trainer(f"nnUNetTrainerMeanTeacher{name}")
    assert variant.num_epochs == epochs
    assert variant.__name__ == f"nnUNetTrainerMeanTeacher{name}"
    assert issubclass(variant, nnUNetTrainerMeanTeacher)
    assert variant.ema_decay == nnUNetTrainerMeanTeacher.ema_decay


@pytest.mark.parametrize("name", ["nnUNetTrainerMeanTeacher", "nnUNetTrainerMeanTeacher_250epochs"])
def test_nnunets_lookup_gives_the_same_class_each_time(name):
    first, second = recursive_find_trainer_class_by_name(name), recursive_find_trainer_class_by_name(name)
    assert first is second is find_trainer(name)
    assert pickle.loads(pickle.dumps(first)) is first


def test_variant_is_unpickled_in_a_process_that_never_asked_for_it():
    pickled = pickle.dumps(find_trainer("nnUNetTrainerMeanTeacher_17epochs"))
    assert answer_of_one(f"__import__('pickle').loads({pickled!r}).num_epochs") == 17


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerNoSuchMethod", "nnUNetTrainerMeanTeacher_0epochs", "nnUNetTrainerMeanTeacher_epochs", "os"]
)
def test_unknown_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match="nnunet_ssl has no trainer|has no attribute"):
        find_trainer(name)


def test_nnunets_own_message_for_an_unknown_trainer_still_comes():
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerNoSuchMethod"):
        recursive_find_trainer_class_by_name("nnUNetTrainerNoSuchMethod")


def test_trainer_of_nnunet_itself_is_still_found():
    assert recursive_find_trainer_class_by_name("nnUNetTrainer_250epochs").__module__.startswith("nnunetv2")


def test_method_in_a_folder_of_the_users_own(tmp_path, monkeypatch):
    """CONTRIBUTING: the same file works outside this package, beside its trainers."""
    (tmp_path / "nnUNetTrainerMine.py").write_text(
        "from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer\n"
        "class nnUNetTrainerMine(SemiSupervisedTrainer):\n"
        "    entropy_weight = 0.1\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), SHIM_FOLDER]))
    mine = recursive_find_trainer_class_by_name("nnUNetTrainerMine")
    assert issubclass(mine, nnUNetTrainerMeanTeacher.__mro__[2])
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMeanTeacher") is nnUNetTrainerMeanTeacher


def test_environment_without_the_package_is_not_disturbed(tmp_path):
    """The variable is inherited by processes of other environments, where this package cannot be imported."""
    code = (
        "import sys, importlib\n"
        f"sys.path.insert(0, {SHIM_FOLDER!r})\n"
        "shim = importlib.import_module('nnunet_ssl_trainers')\n"
        "print(hasattr(shim, 'nnUNetTrainerMeanTeacher'))"
    )
    assert subprocess.check_output([sys.executable, "-S", "-c", code], cwd=tmp_path, text=True).strip() == "False"


@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "import nnunet_ssl.trainers.nnUNetTrainerBCP",
        "from nnunet_ssl.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP",
        "from nnunet_ssl.discovery.variants import find_trainer; find_trainer('nnUNetTrainerBCP')",
    ],
)
def test_importing_a_trainer_from_the_package_gives_the_class(first):
    """It has the name of its module; whatever was imported before, one can subclass what the import gives."""
    code = f"""
import os, sys
for name in [name for name in sys.modules if name.startswith("nnunet_ssl.trainers")]:
    del sys.modules[name]
{first}
from nnunet_ssl.trainers import nnUNetTrainerBCP
class Mine(nnUNetTrainerBCP):
    pass
import pickle
from nnunet_ssl.discovery.variants import find_trainer
assert pickle.loads(pickle.dumps(nnUNetTrainerBCP)) is nnUNetTrainerBCP is find_trainer("nnUNetTrainerBCP")
"""
    child = os.fork()  # what is loaded already is not loaded again, and nothing of it is changed here
    if child == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
