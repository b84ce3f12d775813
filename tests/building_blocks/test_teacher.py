import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssl.building_blocks.teacher import make_teacher, update_teacher


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))


def test_teacher_shares_no_storage_with_student():
    student = network()
    teacher = make_teacher(student)
    ours = {value.data_ptr() for value in student.state_dict().values()}
    assert not ours & {value.data_ptr() for value in teacher.state_dict().values()}
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("ema_decay", [0.0, 0.5, 0.99, 1.0])
def test_average_equals_naive_float64_reference(ema_decay):
    torch.manual_seed(0)
    student = network().double()
    teacher = make_teacher(student)
    reference = [parameter.detach().numpy().copy() for parameter in teacher.parameters()]
    for step in range(20):
        for parameter in student.parameters():
            parameter.data += torch.randn_like(parameter)
        update_teacher(teacher, student, ema_decay, step)
        alpha = min(1 - 1 / (step + 1), ema_decay)
        reference = [
            alpha * old + (1 - alpha) * new.detach().numpy()
            for old, new in zip(reference, student.parameters(), strict=True)
        ]
    for expected, parameter in zip(reference, teacher.parameters(), strict=True):
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-12)


def test_first_update_copies_and_early_ones_average_evenly():
    student = nn.Linear(1, 1, bias=False)
    teacher = make_teacher(student)
    for step, value in enumerate([3.0, 5.0, 10.0]):
        student.weight.data.fill_(value)
        update_teacher(teacher, student, ema_decay=0.99, step=step)
        assert teacher.weight.item() == pytest.approx(np.mean([3.0, 5.0, 10.0][: step + 1]))


def test_buffers_are_copied_not_shared():
    student = network()
    teacher = make_teacher(student)
    student(torch.randn(4, 1, 8, 8))
    update_teacher(teacher, student, ema_decay=0.99, step=5)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    student[1].running_mean += 1
    assert not torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_decay_outside_the_unit_interval_is_refused():
    student = network()
    with pytest.raises(ValueError, match=r"ema_decay .* got 99"):
        update_teacher(make_teacher(student), student, ema_decay=99, step=0)
