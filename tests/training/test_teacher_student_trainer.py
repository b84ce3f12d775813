"""The base of the trainers with a teacher, in a real trainer."""

import pytest
import torch

from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import make_trainer, parameters_of


@pytest.mark.parametrize(
    ("ema_decay", "shares"),
    [
        (0.99, [(1,), (1 / 2, 1 / 2), (1 / 3, 1 / 3, 1 / 3)]),
        (0.6, [(1,), (1 / 2, 1 / 2), (0.3, 0.3, 0.4)]),
        (0.4, [(1,), (0.4, 0.6), (0.16, 0.24, 0.6)]),
    ],
)
def test_teacher_averages_the_students_of_all_steps_from_the_first_on(tiny_dataset, ema_decay, shares):
    """Decays of 0, 1/2 and 2/3 unless ema_decay is less: the shares of the students of three steps, by hand."""
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerMeanTeacher"), seed=1, ema_decay=ema_decay)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    students = []
    for expected in shares:
        trainer.train_step(next(trainer.dataloader_train))
        students.append(parameters_of(trainer.network))
        for name, value in parameters_of(trainer.networks["teacher"]).items():
            average = sum(share * student[name] for share, student in zip(expected, students, strict=True))
            torch.testing.assert_close(value, average, atol=1e-7, rtol=1e-6)
