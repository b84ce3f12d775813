"""Several processes that train one model: devices, and what they tell each other.

There is no DistributedDataParallel around the networks: gradients are averaged once for each step, over all trained
parameters, so that a method may add modules, freeze parts, and leave terms out in one process.
"""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch import distributed as dist

SINGLE_PATCHES = (
    "each process has a batch of one patch: methods that mix images of a batch with each other do not mix them, and "
    "gain less (docs/methods.md). Take fewer GPUs (-num_gpus), or plan for a larger batch"
)


def refuse_missing_gpu(device: torch.device) -> None:
    """Raise a RuntimeError if a GPU is asked for, as nnU-Net does by default, and torch can use none."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that torch can use: -device cpu trains without one, slowly, for trying out")


def device_of_this_process(requested: torch.device) -> torch.device:
    """Return the device of this rank: its GPU on this node, or the CPU when that was asked for.

    nnU-Net takes the global rank for a device index, which names no device on a second node. LOCAL_RANK is set by
    torchrun; nnU-Net's own launcher runs on one node, where both are the same.
    """
    if requested.type != "cuda":
        return requested
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank() % torch.cuda.device_count())))


@torch.no_grad()
def broadcast(modules: Iterable[nn.Module]) -> None:
    """Give all processes the parameters and buffers of the first one."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, src=0)


def refuse_different_epochs(epoch: int) -> None:
    """Raise a RuntimeError where processes go on from different epochs: one cannot read the newest checkpoint."""
    epochs: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(epochs, epoch)
    if len(set(epochs)) > 1:
        of_all = ", ".join(f"process {rank} of epoch {one}" for rank, one in enumerate(epochs))
        raise RuntimeError(
            f"the processes have read different checkpoints ({of_all}): see above why one does not read the newest, "
            "and start the training again"
        )


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], flag: Tensor) -> tuple[Tensor, Tensor]:
    """Set each gradient to its mean over all processes, in one collective; it does not wait for the device.

    A gradient that is missing in some processes counts as zero there. One that is missing in all is zero after this,
    and has to be taken away again before an optimiser sees it: momentum and weight decay would move its parameter.
    Parameters that do not learn are not sent.

    Args:
        parameters: the same ones in the same order in all processes.
        flag: a float of 0 or 1.

    Returns:
        The sum of the flag over all processes, and in how many processes each parameter has a gradient, (P,).
    """
    has_gradient = _on_device(tuple(p.grad is not None for p in parameters), flag.device)
    learning = [p for p in parameters if p.requires_grad]
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning]
    everything = torch.cat([flag.reshape(1), has_gradient, *gradients])
    del gradients
    dist.all_reduce(everything)
    flags, present, summed = everything.split([1, len(parameters), len(everything) - 1 - len(parameters)])
    mean = summed.div_(dist.get_world_size())
    for parameter, gradient in zip(learning, mean.split([p.numel() for p in learning]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    return flags[0], present


@lru_cache(maxsize=64)
def _on_device(flags: tuple[bool, ...], device: torch.device) -> Tensor:
    """Return flags as floats; kept, because the way to a GPU would wait for it, and few different ones occur."""
    return torch.tensor(flags, dtype=torch.float32, device=device)


class SupervisedLosses:
    """Refuses a supervised loss that not every process computes, where its Dice is over the batches of all of them.

    Those that compute it would wait for the others without end. The processes ask each other from host to host, so none
    waits for its device.
    """

    def __init__(self, is_ddp: bool, configuration: ConfigurationManager) -> None:
        """Refuse batches of the plans whose parts nnU-Net's common Dice cannot put together: they differ in size."""
        have_common_dice = is_ddp and configuration.batch_dice
        if have_common_dice and len({*batch_sizes(configuration.batch_size)}) > 1:
            raise ValueError(
                f"the plans' batches of {configuration.batch_size} cannot be divided evenly over "
                f"{dist.get_world_size()} processes, and nnU-Net's Dice is over the batches of all of them: take "
                "another number of GPUs (-num_gpus), or plans with another batch_size"
            )
        is_gloo = have_common_dice and dist.get_backend() == "gloo"
        self.group = dist.new_group(backend="gloo") if have_common_dice and not is_gloo else None
        self.have_common_dice = have_common_dice

    def agree(self, on_another: bool) -> None:
        """Agree before each supervised loss of a step that another one comes, and at the end of the losses that none.

        Raises:
            ValueError: in all processes, where they disagree.
        """
        if not self.have_common_dice:
            return
        with_another = torch.tensor(int(on_another))
        dist.all_reduce(with_another, group=self.group)
        if 0 < int(with_another) < dist.get_world_size():
            raise ValueError(
                "some processes compute a supervised_loss more than others in this step, and its Dice is over the "
                "batches of all of them: call supervised_loss equally often in each process, or use masked_loss, "
                "whose Dice is of one process"
            )


def union_over_processes(names: Iterable[str]) -> list[str]:
    """Return the names that any process has, sorted."""
    names = set(names)
    if dist.is_initialized():
        gathered: list = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, names)
        names = set().union(*gathered)
    return sorted(names)


def place_among_processes() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def of_first_process(thing: Any) -> Any:  # noqa: ANN401 - anything that can be pickled
    """Return what the first process passes."""
    things = [thing]
    if dist.is_initialized():
        dist.broadcast_object_list(things, src=0)
    return things[0]


def sum_array(counts: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all processes."""
    if not dist.is_initialized():
        return counts
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, counts)
    return np.sum(gathered, axis=0)


def sum_tensor(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient; it stays on its device."""
    tensor = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def batch_sizes(batch_size: int) -> list[int]:
    """Return how nnU-Net divides the plans' batch over the processes: sizes that differ by one at most."""
    _, processes = place_among_processes()
    return [batch_size // processes + (i < batch_size % processes) for i in range(processes)]


def gather_tensor(tensor: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return the tensors of all processes one after the other along the first axis, without gradient.

    Args:
        tensor: (N, ...).
        lengths: N of each process; None: the same in all of them.
    """
    tensor = tensor.detach().contiguous()
    if not dist.is_initialized():
        return tensor
    lengths = lengths or [len(tensor)] * dist.get_world_size()
    longest = tensor.new_zeros((max(lengths), *tensor.shape[1:]))
    longest[: len(tensor)] = tensor
    gathered = [torch.empty_like(longest) for _ in lengths]
    dist.all_gather(gathered, longest)
    return torch.cat([one[:length] for one, length in zip(gathered, lengths, strict=True)])
