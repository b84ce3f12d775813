"""The teacher: an exponential moving average of the student.

Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780
"""

import copy

import torch
from torch import nn


def make_teacher(student: nn.Module) -> nn.Module:
    """Return a copy of the student in evaluation mode that shares no storage with it and takes no gradient.

    Args:
        student: the bare module, neither compiled nor wrapped for distributed training.
    """
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, ema_decay: float, step: int) -> None:
    """Move the teacher towards the student: θ' ← α θ' + (1 - α) θ with α = min(1 - 1 / (step + 1), ema_decay).

    The first step copies the student; early steps average over all steps so far. Buffers are copied.

    Args:
        teacher: the module made by `make_teacher`, changed in place.
        student: the bare module.
        ema_decay: weight of the teacher's old parameters, in [0, 1].
        step: how many updates came before this one.
    """
    if not 0.0 <= ema_decay <= 1.0:
        raise ValueError(f"ema_decay is the weight of the teacher's old parameters in [0, 1], got {ema_decay}")
    decay = min(1.0 - 1.0 / (step + 1), ema_decay)
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - decay)
    for teacher_buffer, student_buffer in zip(teacher.buffers(), student.buffers(), strict=True):
        teacher_buffer.copy_(student_buffer)
