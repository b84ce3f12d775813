"""Which samples of a batch come from the unlabeled stream."""

from collections.abc import Sequence

import torch
from torch import Tensor


def unlabeled_share(progress: float) -> float:
    """Return 1 - lr / lr_0 of nnU-Net's learning rate, which falls as (1 - t)^0.9; in [0, 1].

    Args:
        progress: t of the run, in [0, 1].
    """
    return 1.0 - (1.0 - progress) ** 0.9


def draw_unlabeled(batch_size: int, share: float) -> list[int]:
    """Draw the numbers of the samples that are unlabeled, in order; of two and more samples one at least is labeled.

    Each but one is unlabeled with a probability of `share`, as evenly as it goes: their number is the whole number
    below (B - 1) share, or the one above. While the share grows from 0 to 1, that is on average as many as ⌊B share⌋,
    which for a small B would stay 0 for long. A batch of 1 stands for half of a batch of 2. Drawn on the CPU.

    Args:
        batch_size: B, 1 or more.
        share: in [0, 1].
    """
    expected = max(batch_size - 1, 0.5) * share
    count = min(int(expected + torch.rand(()).item()), max(batch_size - 1, 1))
    return sorted(torch.randperm(batch_size)[:count].tolist())


def with_samples(batch: Tensor, samples: Tensor, places: Sequence[int]) -> Tensor:
    """Return a batch (B, ...) in which samples (N, ...) stand at N of the places, in their order.

    The gradient flows through both. It waits for no device, as indexing with the places would.
    """
    rows = list(batch.unbind())
    for place, sample in zip(places, samples.unbind(), strict=True):
        rows[place] = sample.to(batch.dtype)
    return torch.stack(rows)


def samples_at(batch: Tensor, places: Sequence[int]) -> Tensor:
    """Return the samples (N, ...) at N ≥ 1 of the places of a batch (B, ...); it waits for no device."""
    return torch.stack([batch[place] for place in places])
