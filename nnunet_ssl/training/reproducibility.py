"""Seeds: with the option `seed`, on the CPU of one machine and `nnUNet_n_proc_DA=0`, two runs are equal bit for bit.

On a GPU they are nearly so: cross-entropy and interpolation have no deterministic backward pass there.
"""

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform


def derive_seed(*parts: int) -> int:
    """Mix whole numbers ≥ 0 (seed, stream, rank, worker, epoch ...) into one seed; other numbers give another seed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed numpy and torch on all devices: what nnU-Net and its transforms draw from."""
    np.random.seed(seed)
    torch.manual_seed(seed)


def use_deterministic_algorithms() -> None:
    """Make cuDNN choose the same algorithm each time; nnU-Net lets it choose by timing."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def fix_timed_choices(transform: BasicTransform) -> None:
    """Stop transforms that time two implementations and take the faster from doing so; they differ in rounding."""
    if hasattr(transform, "benchmark"):
        transform.benchmark = False
    for inner in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if inner is not None:
            fix_timed_choices(inner)
