import csv
import math
from pathlib import Path

import matplotlib

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.curves import OWN, Curves
from nnunet_ssl.training.epoch_progress import EpochProgress
from tests.conftest import make_trainer

PLOT = Curves.plot  # which the fixtures leave out
MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")


def test_values_stand_at_their_epoch_and_gaps_are_nan(tmp_path):
    curves = Curves()
    curves.log(0, {"a": 1.0})
    curves.log(1, {"a": 2.0, "b": 5.0})
    curves.log(2, {"b": 6.0})
    curves.write_csv(tmp_path / "curves.csv")
    rows = list(csv.reader((tmp_path / "curves.csv").open()))
    assert rows == [["epoch", "a", "b"], ["0", "1", "nan"], ["1", "2", "5"], ["2", "nan", "6"]]


def test_epoch_that_is_run_again_replaces_what_was_logged():
    curves = Curves()
    for epoch, value in [(0, 1.0), (1, 2.0), (2, 3.0), (1, 9.0)]:
        curves.log(epoch, {"a": value})
    assert curves.values == {"a": [1.0, 9.0]}


def test_run_writes_all_curves_and_keeps_them_in_the_checkpoint(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    monkeypatch.setattr(Curves, "plot", PLOT)
    trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, num_epochs=3)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert (folder / "progress_ssl.png").stat().st_size > 10_000
    rows = list(csv.DictReader((folder / "progress_ssl.csv").open()))
    assert len(rows) == 3
    assert rows[0].keys() == {
        "epoch", "loss/supervised", "loss/consistency", "ramp/consistency", "learning_rate", "dice/teacher",
        "dice/student", "confident", "agreement", "pseudo_label/1", "labeled/1", "step_seconds",
    }  # fmt: skip
    assert all(math.isfinite(float(value)) for name, value in rows[-1].items() if not name.startswith("dice"))
    resumed = make_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(f"{folder}/checkpoint_final.pth")
    assert resumed.observer.curves.values["loss/supervised"] == trainer.observer.curves.values["loss/supervised"]


def test_curves_of_a_method_have_a_panel_of_their_own_if_there_are_any():
    curves = Curves()
    curves.log(0, {"loss/supervised": 1.0, "labeled/1": 0.1, "step_seconds": 0.2})
    assert [title for title, _, _ in curves._panels()] == ["Losses, weighted", "Foreground by class", "Time of a step"]
    curves.log(1, {"usual_confidence": 0.5, "admitted/first": 3.0, "loss/supervised": 1.0})
    assert curves._panels()[-1] == (*OWN, ["admitted/first", "usual_confidence"])
    assert sorted(name for *_, names in curves._panels() for name in names) == sorted(curves.values)


def test_fonts_that_nnunet_sets_do_not_reach_the_plot(tmp_path):
    """Its logger scales all fonts of the process by 2.5, which overlaps every label of a small panel."""
    curves = Curves()
    curves.log(0, {"loss/supervised": 1.0})
    curves.plot(tmp_path / "before.png", "run")
    with matplotlib.rc_context({"font.size": 30.0, "axes.labelsize": 30.0}):
        curves.plot(tmp_path / "after.png", "run")
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()


def test_dice_of_the_student_is_that_of_its_own_validation(tiny_dataset):
    """Validated by itself on the same batch, the student has the hits that were counted beside the teacher's."""
    trainer = make_trainer(tiny_dataset(ignore=True, num_classes=3), MEAN_TEACHER, seed=1)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    batch = next(trainer.dataloader_val)
    alone = trainer._validate("student", {**batch, "target": [level.clone() for level in batch["target"]]})
    trainer.validation_step(batch)
    tp, fp, fn = trainer.hit_counts.counts["student"]
    assert (tp == alone["tp_hard"]).all()
    assert (fp == alone["fp_hard"]).all()
    assert (fn == alone["fn_hard"]).all()


def test_line_every_minute_without_a_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    lines = []
    progress = EpochProgress(3, 10, 0.5, lines.append)
    for _ in range(5):
        now[0] += 30
        progress.advance(-0.25)
    assert lines == [
        "epoch 3: step 2 of 10, loss -0.250, Dice 0.500, 4.0 minutes left in this epoch",
        "epoch 3: step 4 of 10, loss -0.250, Dice 0.500, 3.0 minutes left in this epoch",
    ]
