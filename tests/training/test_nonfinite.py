"""A case that makes a loss not finite is named; such weights are in no checkpoint; no picture ends a run."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import nn

from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training.checkpoints import checkpoints_of
from nnunet_ssl.training.curves import Curves
from nnunet_ssl.training.nonfinite import Suspects, refuse_nonfinite
from nnunet_ssl.training.step import Outcome
from tests.conftest import make_trainer, started

FULL = OSError(errno.ENOSPC, "No space left on device")


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def warnings_of(trainer) -> list[str]:
    return [line.partition(": WARNING: ")[2].strip() for line in log_of(trainer).splitlines() if ": WARNING: " in line]


def spoil(dataset, case: str) -> None:
    """Write a case, unlabeled if its name says so, whose voxels are not finite."""
    folder, has_label = (dataset.unlabeled_folder, False) if case.startswith("un") else (dataset.labeled_folder, True)
    for file in folder.glob(f"{case}*"):
        file.unlink()
    normal = np.random.Generator.normal
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(np.random, "default_rng", lambda seed: Spoiled(seed, normal))
        dataset.write_case(folder, case, 7, has_label)


class Spoiled:
    def __init__(self, seed, normal):
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def normal(self, size):
        return self.rng.normal(size=size) * np.nan

    def integers(self, *ends):
        return self.rng.integers(*ends)


@pytest.mark.parametrize(("case", "term"), [("labeled1", "supervised is nan"), ("unlabeled2", "consistency is nan")])
def test_the_case_behind_a_loss_is_named_once_and_the_run_goes_on(tiny_dataset, case, term):
    dataset = tiny_dataset()
    spoil(dataset, case)
    trainer = make_trainer(
        dataset,
        nnUNetTrainerMeanTeacher,
        seed=1,
        num_iterations_per_epoch=12,
        rampup_duration=0.01,
        max_nonfinite_steps=99,
    )
    trainer.run_training()
    first, *rest = [line for line in warnings_of(trainer) if "In its batch were" in line]
    assert term in first
    assert case in first
    assert first.startswith("epoch 0, step ")
    assert not rest, "each batch of it has the same suspect"
    skipped = [line for line in warnings_of(trainer) if "steps were skipped" in line]
    assert skipped[-1].endswith(f"(suspected: {case})"), skipped
    assert Path(trainer.output_folder, "checkpoint_final.pth").is_file()
    assert 0 < trainer.optimizer_steps < 24


def outcome(finite: bool, here: bool = True, gradient: bool = True) -> Outcome:
    return Outcome({"supervised": 1.0 if here else float("nan")}, {}, finite, here, gradient)


def test_another_bad_case_is_named_at_its_first_time():
    suspects = Suspects()
    assert "a, b" in suspects.add_step(outcome(False, False), ("a", "b"), ("c",), "epoch 0, step 3")
    assert not suspects.add_step(outcome(False, False), ("a", "x"), ("d",), "epoch 0, step 4")
    assert suspects.groups == [{"a"}]
    assert "b, x" in suspects.add_step(outcome(False, False), ("x", "b"), (), "epoch 0, step 5"), "cleared meanwhile"
    assert suspects.names() == "a, b, x"


def test_a_gradient_is_named_as_such_and_the_cases_of_another_process_are_not_ours():
    assert "the gradient is not finite" in Suspects().add_step(outcome(True, gradient=False), ("a",), (), "")
    elsewhere = Suspects()
    assert "labeled cases none" in elsewhere.add_step(outcome(False, here=True), ("a",), ("b",), "")
    assert elsewhere.groups == []


def test_nothing_is_said_of_steps_that_are_taken(tiny_dataset):
    trainer = started(tiny_dataset(), nnUNetTrainerMeanTeacher)
    trainer.train_step(next(trainer.dataloader_train))
    assert "not finite" not in log_of(trainer)
    assert trainer.observer._suspects.groups == []


# ---- weights ----


def spoiled_after(trainer, epoch: int, spoil) -> None:
    """Let something in a run be spoiled within an epoch, after its steps."""
    ended = trainer.on_train_epoch_end

    def end(outputs):
        ended(outputs)
        if trainer.current_epoch == epoch:
            with torch.no_grad():
                spoil(trainer)

    trainer.on_train_epoch_end = end


@pytest.mark.parametrize("kind", ["network", "teacher"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tiny_dataset, kind, value):
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, seed=1, num_epochs=4, checkpoint_minutes=10)
    names = {"network": trainer_network, "teacher": trainer_teacher}

    def spoil_one(trainer):
        next(names[kind](trainer).parameters()).view(-1)[3] = value

    spoiled_after(trainer, 2, spoil_one)
    with pytest.raises(RuntimeError, match=r"after 3 epochs the weights of the .* are not finite"):
        trainer.run_training()
    assert "it is saved after 2 epochs: the same command with --c goes on from there" in log_of(trainer)
    for file in checkpoints_of(trainer.output_folder):
        weights = torch.load(file, weights_only=True)
        assert all(torch.isfinite(one).all() for one in weights["network_weights"].values())
        assert weights["current_epoch"] <= 2


@pytest.mark.parametrize("kind", ["networks", "teachers", "parts"])
def test_weights_of_all_kinds_are_looked_at_and_nothing_else(kind):
    good = {"weight": torch.ones(2), "steps": torch.tensor(3)}
    ours = {one: {f"of {one}": good} for one in ("networks", "teachers", "parts")} | {"state": {"best": torch.inf}}
    refuse_nonfinite(good, ours, 1)
    ours[kind] = {f"of {kind}": good | {"bias": torch.tensor([0.0, torch.nan])}}
    with pytest.raises(RuntimeError, match=f"after 1 epochs the weights of the of {kind} are not finite"):
        refuse_nonfinite(good, ours, 1)


def trainer_network(trainer) -> nn.Module:
    return trainer.network


def trainer_teacher(trainer) -> nn.Module:
    return next(iter(trainer.networks.teachers.values()))


# ---- pictures ----


def fails(error):
    def draw(*_args, **_kwargs):
        raise error

    return draw


@pytest.mark.parametrize("error", [FULL, OSError(errno.EROFS, "Read-only file system"), RuntimeError("no\nfont")])
def test_no_picture_ends_a_run_and_each_is_complained_of_once(tiny_dataset, monkeypatch, error):
    monkeypatch.setenv("nnUNet_ssl_options", "")
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, seed=1, num_epochs=3, previews=True)
    for owner, name in ((Curves, "plot"), (Curves, "write_csv"), (MetaLogger, "plot_progress_png")):
        monkeypatch.setattr(owner, name, fails(error))
    trainer.draw_preview = fails(error)
    trainer.run_training()
    said = [line for line in warnings_of(trainer) if "cannot be drawn" in line]
    assert [line.partition(" cannot")[0] for line in said] == [
        "previews",
        "progress.png",
        "progress_ssl.csv",
        "progress_ssl.png",
    ]
    assert all("the training goes on without it: " in line for line in said)
    assert "Traceback" not in log_of(trainer)
    assert Path(trainer.output_folder, "checkpoint_final.pth").is_file()


def test_half_a_picture_of_nnunet_takes_no_place_and_its_figure_no_memory(tiny_dataset, monkeypatch):
    from matplotlib import pyplot as plt

    def half(_, folder):
        plt.figure()
        Path(folder, "progress.png").write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(MetaLogger, "plot_progress_png", half)
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, seed=1)
    folder = Path(trainer.output_folder)
    (folder / "progress.png").write_bytes(b"of the epoch before")
    before = plt.get_fignums()
    trainer.run_training()
    assert (folder / "progress.png").read_bytes() == b"of the epoch before"
    assert plt.get_fignums() == before
    assert not list(folder.glob(".*"))
    assert "progress.png cannot be written: the disk is full (" in log_of(trainer)
    assert json.loads((folder / "run_ssl.json").read_text())["options"]["seed"] == 1
