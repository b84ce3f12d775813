"""`nnunet_ssl benchmark`: all combinations, what is not repeated, what goes on, the report, and wrong use."""

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.benchmarking import experiment, one_training, running
from nnunet_ssl.commands.cli import main
from tests.conftest import DATASET

LABELED = 8  # of which 2 validate in fold 0


@pytest.fixture
def dataset(tiny_dataset, monkeypatch, tmp_path):
    """A data set of 8 labeled cases and none in imagesUn."""
    dataset = tiny_dataset(dim=2, stages=4)
    for number in range(4, LABELED):
        dataset.write_case(dataset.labeled_folder, f"labeled{number}", seed=number)
    (dataset.folder / "splits_final.json").unlink()
    monkeypatch.chdir(tmp_path)
    return dataset


def benchmark(words: str) -> int:
    return main(["benchmark", "-d", "999", "-c", "2d", "-device", "cpu", *shlex.split(words)])


@pytest.fixture
def trained(monkeypatch):
    """Let trainings be over at once, with a Dice that their facts say, and return their names."""
    names = []

    class Process:
        def __init__(self, command, **_):
            self.place, self.results = Path(command[4]), [Path(file) for file in command[5:]]

        def wait(self):
            facts = json.loads((self.place / "facts.json").read_text())
            gain = 0.1 * (facts["trainer"] != "nnUNetTrainer") + 0.2 * (facts["variant"] == "all")
            dice = {case: {"1": 0.5 + gain + 0.01 * facts["seed"]} for case in ("labeled3", "labeled7")}
            for result in self.results:
                result.parent.mkdir(parents=True, exist_ok=True)
                outcome = {"cost": 2.0, "seconds": 60, "dice": dice, "hd95": {}, "asd": {}}
                result.write_text(json.dumps(facts | outcome))
            names.append(f"{self.place.parent.name}/{self.place.name}")
            return 0

    monkeypatch.setattr(running, "Popen", Process)
    return names


# ---- what is trained ----

ALL = "--trainers nnUNetTrainerBCP --labeled 2 3 --seeds 0 1 --steps 20"
FEW = "--trainers nnUNetTrainerBCP --labeled 2 --steps 20 --no-upper-bound"


def test_all_combinations_are_trained_once_and_reported(dataset, trained, capsys):
    assert benchmark(ALL) == 0
    said = capsys.readouterr().out
    assert trained == [
        f"tiny_2d_{labeled}labeled/{trainer}__default__seed{seed}"
        for labeled in (2, 3)
        for trainer in ("nnUNetTrainer", "nnUNetTrainerBCP")
        for seed in (0, 1)
    ] + [f"tiny_2d_2labeled/nnUNetTrainer__all__seed{seed}" for seed in (0, 1)]
    output = dataset.root / "results" / DATASET / "benchmark"
    report = (output / "report.md").read_text()
    assert report in said
    assert "10 runs, 0 done before" in said
    assert report.count("\n## tiny_2d_") == 2
    assert "2 labeled, 4 unlabeled and 2 validation cases (nnU-Net's fold 0). 20 steps" in report
    overview = report.partition("\n## ")[0]
    assert "| `nnUNetTrainer` | 0.5050 | 0.5050 |" in overview
    assert "| `nnUNetTrainerBCP` | 0.6050 (+0.1000) | 0.6050 (+0.1000) |" in overview
    assert "| `nnUNetTrainer`, all labeled | 0.7050 (+0.2000) | 0.7050 (+0.2000) |" in overview
    assert report.count("| `nnUNetTrainer`, all 6 labeled | 0.7000 | 0.7100 | +0.2000 |") == 2
    assert "not finished" not in report
    assert len([*(output / "results").glob("*/*.json")]) == 12
    trained.clear()
    assert benchmark(ALL) == 0
    assert trained == []
    assert f"10 runs, 10 done before; logs in {output}" in capsys.readouterr().out
    assert (output / "report.md").read_text() == report
    assert benchmark(ALL.replace("0 1", "0 1 2")) == 0
    assert len(trained) == 5, "a seed more"


def test_a_dry_run_trains_and_writes_nothing(dataset, trained, capsys):
    before = sorted(dataset.root.rglob("*"))
    assert benchmark(f"{ALL} --dry-run") == 0
    said = capsys.readouterr().out
    assert "tiny_2d_3labeled/nnUNetTrainerBCP__default__seed1: 3 labeled, 3 unlabeled, 2 validation cases" in said
    assert said.count(" labeled, ") == 10
    assert trained == []
    assert sorted(dataset.root.rglob("*")) == before


def test_what_is_missing_is_named_and_what_the_baseline_has_is_shown(dataset, trained, capsys):
    words = "--trainers nnUNetTrainerBCP nnUNetTrainerICT --labeled 2 --seeds 0 1 --steps 20 -o out --no-upper-bound"
    assert benchmark(words) == 0
    for name in ("nnUNetTrainer__default__seed1", "nnUNetTrainerICT__default__seed0"):
        Path("out", "results", "tiny_2d_2labeled", f"{name}.json").unlink()
    capsys.readouterr()
    assert benchmark(f"{words} --dry-run") == 0
    said = capsys.readouterr().out
    assert "| trainer | seed 0 | difference" in said
    assert "| `nnUNetTrainerBCP` | 0.6000 | +0.1000 |" in said
    assert "| `nnUNetTrainerICT`" not in said
    assert "* not finished: tiny_2d_2labeled/nnUNetTrainer__default__seed1" in said
    assert "* not finished: tiny_2d_2labeled/nnUNetTrainerICT__default__seed0" in said


def test_a_training_that_fails_stops_no_other_and_is_exit_code_1(dataset, trained, monkeypatch, capsys):
    class Process(running.Popen):
        def wait(self):
            if "BCP" in self.place.name:
                (self.place / "log.txt").write_text("...\nRuntimeError: no memory\n")
                return 1
            return super().wait()

    monkeypatch.setattr(running, "Popen", Process)
    assert benchmark("--trainers nnUNetTrainerBCP nnUNetTrainerICT --labeled 2 --steps 20") == 1
    said = capsys.readouterr().out
    assert "nnUNetTrainerBCP__default__seed1: FAILED, see " in said
    assert "log.txt: RuntimeError: no memory" in said
    assert "| `nnUNetTrainerICT` |" in said
    assert "* not finished: tiny_2d_2labeled/nnUNetTrainerBCP__default__seed1" in said


# ---- trainings ----


@pytest.fixture
def in_this_process(monkeypatch):
    """Let trainings run in this process, of four epochs with a step in each."""

    class Process:
        def __init__(self, command, stdout, stderr, env):
            self.arguments, self.log, self.variables = command[3:], stdout, env

        def wait(self):
            with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(self.log):
                for name, value in self.variables.items():
                    patched.setenv(name, value)
                patched.setattr(sys, "argv", self.arguments)
                try:
                    one_training.main()
                except RuntimeError as error:
                    print(error)
                    return 1
            return 0

    monkeypatch.setattr(running, "Popen", Process)
    monkeypatch.setattr(running, "usable_cores", lambda: 1)
    monkeypatch.setattr(experiment, "EPOCHS", 4)
    monkeypatch.setattr(experiment, "VALIDATION_STEPS", 1)


def results_in(folder: str) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in Path(folder, "results").glob("*/*.json")}


def test_an_interrupted_training_goes_on_to_the_same_result(dataset, in_this_process, monkeypatch, capsys):
    words = "--trainers nnUNetTrainerBCP --labeled 2 --steps 20 --features 4 8 8 --no-upper-bound"
    assert benchmark(f"{words} -o undisturbed") == 0
    expected = results_in("undisturbed")
    ours = expected["nnUNetTrainerBCP__default__seed1"]
    assert set(ours["dice"]) == {"labeled3", "labeled7"}
    assert ours["setting"]["features"] == [4, 8, 8]
    assert ours["cost"] == 2.3333
    assert str(dataset.root) not in json.dumps(expected)

    begins, epochs = nnUNetTrainer.on_epoch_start, []

    def on_epoch_start(trainer):
        epochs.append((type(trainer).__name__, trainer.current_epoch))
        if len(epochs) in (4, 8):
            raise RuntimeError("interrupted")
        begins(trainer)

    monkeypatch.setattr(nnUNetTrainer, "on_epoch_start", on_epoch_start)
    assert benchmark(f"{words} -o interrupted") == 1
    assert results_in("interrupted") == {}
    capsys.readouterr()
    assert benchmark(f"{words} -o interrupted --dry-run") == 0
    assert capsys.readouterr().out.count("; goes on where it stopped") == 2
    epochs[:] = [None] * 8
    assert benchmark(f"{words} -o interrupted") == 0
    assert [one for one in epochs if one is not None and one[1] == 0] == [], "none begins again"
    again = results_in("interrupted")["nnUNetTrainerBCP__default__seed1"]
    assert again["dice"] == ours["dice"]
    assert os.environ.get("nnUNet_ssl_options") is None


# ---- wrong use ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--trainers nnUNetTrainerBPC --labeled 2",
            "there is no trainer 'nnUNetTrainerBPC', the nearest: nnUNetTrainerBCP",
        ),
        (
            "--trainers nnUNetTrainerMN --labeled 2",
            "nnUNetTrainerMN is for 3-D patches, and those of configuration 2d are 2-D: ",
        ),
        (
            "--trainers nnUNetTrainerBCP_250epochs --labeled 2",
            "--steps says how long all trainers train: write nnUNetTrainerBCP instead of nnUNetTrainerBCP_250epochs",
        ),
        ("--labeled 2 6", "--labeled is at most 5, got 6: fold 0 of Dataset999_Tiny has 6 training cases, and "),
        ("--labeled 2 0", "--labeled takes numbers from 1 on, got 0"),
        ("--labeled 2 --steps 30", "--steps is a multiple of 20, got 30"),
        ("--labeled 2 --steps 0", "--steps is a multiple of 20, got 0"),
        ("--labeled 2 --jobs 0", "--jobs is a number from 1 on, got 0"),
        ("--labeled 2 --batch-size 0", "--batch-size is a number from 1 on, got 0"),
        ("--labeled 2 --features 4 8 8 8 8", "--features has a number for each of 2 to 4 stages, got 5"),
        ("--labeled 2 --seeds -1", "--seeds are from 0 to 4294967295, got -1"),
        ("--labeled 2 -c 3d_fullres", "nnUNetPlans.json has no configuration 3d_fullres that can be trained"),
        ("--labeled 2 -p Mine", "there is no "),
        ("--labeled 2 -f 1", "--fold goes with --own-split: leave it out"),
        ("--own-split", "splits_final.json cannot be read"),
        ("--own-split --tune-fold", "--tune-fold goes with --labeled: leave it out"),
        ("--labeled 2 3 --experiment mine", "--experiment names the results of one number of labeled cases"),
        ("--labeled 2 --options seed=2", "--options: seed is said by --seeds, leave it out"),
        ("--labeled 2 --options num_epochs=2", "--options: num_epochs is said by --steps, leave it out"),
        ("--labeled 2 --options ema", "--options is written as name=value name=value, got 'ema'"),
        (
            "--labeled 2 --options ema_decay=2",
            "--options of nnUNetTrainerBCP: ema_decay is a fraction in [0, 1], got 2.0",
        ),
        ("--labeled 2 --options nothing=2", "--options of nnUNetTrainerBCP: "),
        ("--labeled 2 --slurm-options time=1", "--slurm-options goes with --slurm: add it, or leave them out"),
        ("--labeled 2 -o ''", "-o names a folder, got nothing"),
    ],
)
def test_wrong_use_is_one_sentence_and_nothing_is_trained(dataset, trained, capsys, words, sentence):
    given = words if "--trainers" in words else f"--trainers nnUNetTrainerBCP {words}"
    assert benchmark(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnunet_ssl benchmark: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert trained == []
    assert not (dataset.root / "results" / DATASET).exists()


def test_a_trainer_of_nnunet_takes_no_options(dataset, capsys):
    assert benchmark("--trainers nnUNetTrainerNoMirroring --labeled 2 --options ema_decay=0.9") == 2
    assert "nnUNetTrainerNoMirroring is not of nnunet_ssl and takes no --options" in capsys.readouterr().err


def test_a_case_that_is_not_preprocessed_is_named_with_the_command(dataset, trained, capsys):
    (dataset.labeled_folder / "labeled5.b2nd").unlink()
    assert benchmark(ALL) == 2
    said = capsys.readouterr().err
    assert "labeled5" in said
    assert "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 2d" in said


def test_a_data_set_of_few_cases_needs_a_split_of_its_own(dataset, trained, capsys):
    for number in range(4, LABELED):
        (dataset.folder / "gt_segmentations" / f"labeled{number}.nii.gz").unlink()
    assert benchmark(ALL) == 2
    said = capsys.readouterr().err
    assert "has 4 labeled cases, and nnU-Net's 5 folds need as many: divide them by nnunet_ssl split" in said
    split = {"train": ["labeled0"], "val": ["labeled1"]}
    dataset.write_splits([split])
    own = "--trainers nnUNetTrainerBCP --own-split --steps 20"
    assert benchmark(own) == 2
    assert "fold 0 names no unlabeled cases, and there are none in" in capsys.readouterr().err
    dataset.write_splits([split | {"unlabeled": ["labeled2", "labeled3"]}])
    assert benchmark(own) == 0
    assert trained == [
        f"tiny_2d_1labeled/{name}__seed1"
        for name in ("nnUNetTrainer__default", "nnUNetTrainerBCP__default", "nnUNetTrainer__all")
    ]


def test_without_a_folder_for_results_one_is_named_with_o(dataset, trained, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    assert benchmark(FEW) == 2
    assert (
        "nnUNet_results not set: export nnUNet_results=/path/to/folder, or name a folder with -o"
        in capsys.readouterr().err
    )
    assert benchmark(f"{FEW} -o out --results json") == 0
    assert len([*Path("json").glob("*/*.json")]) == 2
    assert Path("out", "report.md").is_file()


def test_results_in_another_setting_are_not_mixed(dataset, trained, capsys):
    assert benchmark(FEW) == 0
    assert benchmark(f"{FEW} --batch-size 1") == 2
    said = capsys.readouterr().err
    assert "was trained in another setting: name this one with --experiment, or choose another --output" in said
