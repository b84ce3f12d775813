"""Pictures of a run that takes its time for training."""

from pathlib import Path

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training import drawing
from nnunet_ssl.training.curves import Curves
from nnunet_ssl.training.drawing import Allowance, Drawing
from tests.conftest import make_trainer


@pytest.mark.parametrize(("cost", "expected"), [(0.2, 40), (0.25, 40), (0.5, 20), (1.0, 10), (3.0, 4)])
def test_what_is_done_takes_no_more_than_is_allowed_on_average(cost, expected):
    allowance, done = Allowance(0.25), 0
    for epoch in range(40):
        allowance.add_epoch()
        if allowance.is_enough:
            allowance.spend(cost)
            done += 1
        assert done * cost <= 0.25 * (epoch + 1) + cost
    assert done == expected


def test_what_was_cheap_saves_nothing_for_what_is_not():
    allowance, done = Allowance(1.0), []
    for epoch in range(30):
        allowance.add_epoch()
        if allowance.is_enough:
            allowance.spend(0.01 if epoch < 20 else 5.0)
            done.append(epoch)
    assert done == [*range(21), 25]


@pytest.fixture
def slow_clock(monkeypatch):
    """Let each picture take 3 seconds."""
    times = iter(range(0, 10**6, 3))
    monkeypatch.setattr(drawing.time, "perf_counter", lambda: next(times))


def drawn(epochs: int) -> list[int]:
    found, pictures = [], Drawing(print)
    for epoch in range(epochs):
        is_last = epoch == epochs - 1
        pictures.draw_now_and_then(lambda file, at=epoch: found.append(at), file=Path("a.png"), is_last=is_last)
    return found


def test_first_and_last_epoch_are_drawn(slow_clock):
    assert drawn(30) == [0, 12, 24, 29]
    assert drawn(1) == [0]


def test_run_draws_its_curves_now_and_then_and_writes_them_always(tiny_dataset, monkeypatch, slow_clock):
    found = []
    for owner, name in ((Curves, "plot"), (Curves, "write_csv"), (MetaLogger, "plot_progress_png")):
        monkeypatch.setattr(owner, name, lambda *_, of=name, **__: found.append(of))
    monkeypatch.setattr(drawing, "draw_whole", lambda plot, file: plot(str(file.parent)))
    make_trainer(tiny_dataset(dim=2), nnUNetTrainerMeanTeacher, seed=1, num_epochs=6).run_training()
    assert {name: found.count(name) for name in found} == {"plot": 2, "write_csv": 6, "plot_progress_png": 2}
