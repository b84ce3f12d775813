"""What identifies the code of a result, and files that are none."""

import os
import shutil
import subprocess

import pytest

import nnunet_ssl
from nnunet_ssl.benchmarking import result_files


def test_a_new_training_step_makes_our_results_stale_and_not_those_of_nnunet(monkeypatch, tmp_path):
    step = tmp_path / "step.py"
    monkeypatch.setattr(result_files, "STEP", step)
    code = {name: result_files.code_of(name) for name in ("nnUNetTrainer", "nnUNetTrainerBCP")}
    step.write_text("a = 1")
    stale = [name for name in code if result_files.is_stale({"trainer": name, "code": code[name]})]
    assert stale == ["nnUNetTrainerBCP"]
    assert code["nnUNetTrainer"]["trainer"] is not None


DIGEST_OF_ASSIGNMENT = "84a9ff2628b258681f8eedb167cb4f40caf2f8268832a479f351fdcbaa1d7117"  # of `a = 1`, in every Python


def test_comments_docstrings_and_line_breaks_are_no_change_of_code(tmp_path):
    def digest_of(text: str) -> str | None:
        (tmp_path / "code.py").write_text(text)
        return result_files.sha256(tmp_path / "code.py")

    assert digest_of('"""What."""\n\na = (  # one\n    1\n)\n') == digest_of("a = 1") == DIGEST_OF_ASSIGNMENT
    others = [digest_of(text) for text in ("a = 2", "b = 1", "a == 1", "a = '1'", "a = 1.0", "a = True", "a = 1; a")]
    assert len({DIGEST_OF_ASSIGNMENT, *others}) == 8
    assert digest_of("x = f'{a}'") != digest_of("x = f'{a!r}'")


def test_a_trainer_of_the_users_own_folder_has_a_digest(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nnUNetTrainerMine.py").write_text("a = 1")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join((f"{tmp_path}/none", str(tmp_path))))
    assert result_files.digests("nnUNetTrainerMine")["trainer"] == DIGEST_OF_ASSIGNMENT
    assert result_files.digests("nnUNetTrainerNobodys")["trainer"] is None


def code_of_baseline():
    code = result_files.code_of("nnUNetTrainer")
    return code["commit"], code["dirty"]


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_changed_tree_is_said(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(result_files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_of_baseline() == (f"nnunet_ssl {nnunet_ssl.__version__}", False)
    for folder in ("nnunet_ssl", "trainers", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    (tmp_path / "README.md").touch()
    (tmp_path / "benchmarks" / "results" / "new.json").touch()
    commit, dirty = code_of_baseline()
    assert (len(commit), dirty) == (12, False)
    (tmp_path / "trainers" / "new.py").touch()
    assert code_of_baseline() == (commit, True)
    monkeypatch.setattr(result_files, "ROOT", tmp_path / "trainers")  # as site-packages in a repository of others
    assert code_of_baseline() == (f"nnunet_ssl {nnunet_ssl.__version__}", False)


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a__default__seed1.json").write_text('{"trainer": "b", "variant": "default", "seed": 1}')
    with pytest.raises(ValueError, match="a__default__seed1.json holds the result of b__default__seed1"):
        result_files.read_results("mine", tmp_path)
    (tmp_path / "mine" / "a__default__seed1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a__default__seed1.json is no result of nnunet_ssl benchmark: KeyError"):
        result_files.read_results("mine", tmp_path)
