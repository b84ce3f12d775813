"""Devices and processes: what nnU-Net decides for one node of CUDA devices only."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


def device_of_this_process(requested: torch.device) -> torch.device:
    """Return the device of this rank: its GPU on this node, or the CPU when that was asked for.

    nnU-Net takes the global rank for a device index, which names no device on a second node. LOCAL_RANK is set by
    torchrun; nnU-Net's own launcher runs on one node, where both are the same.
    """
    if requested.type != "cuda":
        return requested
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank() % torch.cuda.device_count())))


def wrap_for_distributed_training(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return the network as distributed training needs it, on CUDA or CPU."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def without_ddp(network: nn.Module) -> nn.Module:
    """Return the network of this process alone, still compiled if it was."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def unwrap(network: nn.Module) -> nn.Module:
    """Return the bare module behind distributed training and torch.compile."""
    network = without_ddp(network)
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def tie_unused_heads(outputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the first outputs, as many as asked for, with the others tied into the first one at weight 0.

    Distributed training stops when a parameter gets no gradient, and a loss on the finest deep supervision heads alone
    leaves the others without one.
    """
    unused = [0.0 * output.flatten()[0] for output in outputs[count:]]
    return [outputs[0] + torch.stack(unused).sum(), *outputs[1:count]] if unused else list(outputs)


def agree(flags: Tensor) -> Tensor:
    """Return 1 where a flag, a float of 0 or 1, is 1 in every process. Stays on the device: no synchronisation."""
    dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    return flags


def union_over_processes(names: Iterable[str]) -> list[str]:
    """Return the names that any process has, sorted."""
    names = set(names)
    if dist.is_initialized():
        gathered: list = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, names)
        names = set().union(*gathered)
    return sorted(names)


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all processes."""
    if not dist.is_initialized():
        return counts
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, counts)
    return np.sum(gathered, axis=0)
