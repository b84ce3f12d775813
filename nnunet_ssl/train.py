"""`torchrun ... -m nnunet_ssl.train` with the words of `nnUNetv2_train`: one training on several GPUs and nodes.

nnU-Net's own launcher starts processes on one node. Here PyTorch's starts them, and starts them again after a failure:

    torchrun --nproc-per-node 4 --max-restarts 3 -m nnunet_ssl.train 27 3d_fullres 0 -tr nnUNetTrainerSSL --c

`--c` begins a run where there is none, and otherwise goes on from its newest checkpoint that can be read.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.run import load_pretrained_weights, run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from nnunet_ssl.training.checkpoints import load_checkpoint_file
from nnunet_ssl.training.distributed import device_of_this_process
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun says to each process
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
LONGEST_WAIT = timedelta(days=1)  # for the first process, which alone computes the metrics of a validation
# What nnU-Net's function that reads first weights knows of torch. Its own reads them onto the device whose index is the
# global rank, which a second node does not have, and runs code that is in them.
ONTO_CPU = SimpleNamespace(load=lambda file, **_: load_checkpoint_file(file, torch.device("cpu")), device=torch.device)

run_training_of_one_process = run_training.run_training  # whose name `train` takes while the words are read


def main() -> int:
    """Train as the command line says, in the group of processes that the launcher has started."""
    try:
        refuse_without_launcher()
        with replaced(run_training, "run_training", train):
            run_training.run_training_entry()
    except ValueError as error:
        print(f"nnunet_ssl.train: {error}", file=sys.stderr)
        return 2
    return 0


def refuse_without_launcher() -> None:
    """Raise a ValueError if torchrun has not started this process."""
    if any(name not in os.environ for name in LAUNCHER):
        raise ValueError(
            "start it with torchrun, as in torchrun --nproc-per-node 2 -m nnunet_ssl.train ..., or train in one "
            "process with nnUNetv2_train"
        )


def train(  # noqa: PLR0913 - the arguments of nnU-Net's function
    dataset: str,
    configuration: str,
    fold: str,
    trainer: str,
    plans: str,
    pretrained_weights: str | None,
    num_gpus: int,
    npz: bool,
    goes_on: bool,
    *rest: bool,
    device: torch.device,
) -> None:
    """Run nnU-Net's function of these arguments in this process of the group.

    Raises:
        ValueError: what nnU-Net's own launcher is told, a trainer that is not semi-supervised, a device without
            collectives, or restarts that would find a run and refuse it.
    """
    if num_gpus != 1:
        raise ValueError("-num_gpus is of nnU-Net's own launcher: leave it out, and give torchrun --nproc-per-node")
    if not issubclass(recursive_find_trainer_class_by_name(trainer), SemiSupervisedTrainer):
        raise ValueError(f"{trainer} is not of nnunet_ssl: train it with nnUNetv2_train -num_gpus")
    if device.type not in BACKENDS:
        raise ValueError(f"-device is cuda or cpu in several processes, got {device.type}")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and not goes_on:
        raise ValueError("with --max-restarts give --c too: it begins a run, and goes on with it after a restart")
    with process_group(device), replaced(load_pretrained_weights, "torch", ONTO_CPU):
        run_training_of_one_process(
            dataset, configuration, fold, trainer, plans, pretrained_weights, 1, npz, goes_on, *rest, device=device
        )


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Be in the launcher's group of processes, on this node's device."""
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # One node's launcher may keep its store, and with it the addresses of processes that it has started again.
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=size)
    at_the_end = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    if device.type == "cuda":
        torch.cuda.set_device(device_of_this_process(device))
    try:
        yield
        gc.collect()  # what holds on to the group aborts the process when the group goes first
        dist.barrier(at_the_end)  # no process leaves while another still talks to it
    finally:
        dist.destroy_process_group()


@contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:  # noqa: ANN401 - a module
    """Let a module have something else by a name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


if __name__ == "__main__":
    sys.exit(main())
