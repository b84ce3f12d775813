"""Seeds: with the option `seed`, on the CPU of one machine and `nnUNet_n_proc_DA=0`, two runs are equal bit for bit.

On a GPU they are nearly so: cross-entropy and interpolation have no deterministic backward pass there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

COMPILED_FORMS = 32  # of one function that torch keeps; a student and its teacher have 8, torch's own limit


def derive_seed(*parts: int) -> int:
    """Mix whole numbers ≥ 0 (seed, stream, rank, worker, epoch ...) into one seed; other numbers give another seed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed numpy and torch on all devices: what nnU-Net and its transforms draw from."""
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def torch_settings(is_seeded: bool, compiles: bool) -> Iterator[None]:
    """Run what is inside with torch's global settings as a training needs them, and leave them as they were.

    Args:
        is_seeded: cuDNN chooses the same algorithm each time; nnU-Net lets it choose by timing.
        compiles: torch keeps as many compiled forms as several networks with and without gradient have.
    """
    cudnn, limit = torch.backends.cudnn, torch._dynamo.config.cache_size_limit
    before = cudnn.benchmark, cudnn.deterministic
    try:
        if is_seeded:
            cudnn.benchmark, cudnn.deterministic = False, True
        if compiles:
            torch._dynamo.config.cache_size_limit = max(limit, COMPILED_FORMS)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        torch._dynamo.config.cache_size_limit = limit


def fix_timed_choices(transform: BasicTransform) -> None:
    """Stop transforms that time two implementations and take the faster from doing so; they differ in rounding."""
    for one in _all_of(transform):
        if hasattr(one, "benchmark"):
            one.benchmark = False


def forget_orders(transforms: Iterable[BasicTransform]) -> None:
    """Put channels in order that transforms of a cascade shuffle in place: what they draw depends on nothing before."""
    for one in (inner for transform in transforms for inner in _all_of(transform)):
        if isinstance(getattr(one, "channel_idx", None), list):
            one.channel_idx.sort()


def _all_of(transform: BasicTransform) -> Iterator[BasicTransform]:
    """Yield a transform and those inside of it."""
    yield transform
    for inner in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if inner is not None:
            yield from _all_of(inner)
