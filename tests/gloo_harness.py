"""Two processes under gloo on the CPU train every trainer given; what each ends with is compared by the test.

Usage: python -m tests.gloo_harness DATA_ROOT REPORT TRAINER ...
"""

import gc
import hashlib
import json
import os
import socket
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.distributed import unwrap
from tests.conftest import Case, TinyDataset, draw_no_progress, make_trainer, tensors_of

CASE = Case(num_classes=4, stages=6)  # more heads than any method takes; in 2d the Dice is over all processes
# Their unsupervised losses are means over all voxels.
WHOLE_STEP = ("nnUNetTrainerMeanTeacher", "nnUNetTrainerCPS", "nnUNetTrainerEntropyMinimization")


def settings_of_one_step(name: str) -> dict[str, float]:
    """Return options under which a step has nothing that each process draws, masks or normalises for itself."""
    if name in WHOLE_STEP:
        return {"rampup_duration": 0.0}
    return {option: 0.0 for option in vars(find_trainer(name)) if option.endswith("_weight")}


def train(rank: int, root: Path, report: Path, port: int, names: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    draw_no_progress()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results, validated = {}, set()
    for name in names:
        dataset = TinyDataset(CASE, root)
        trainer = make_trainer(dataset, find_trainer(name), seed=1)
        trainer.run_training()
        if not validated & set(type(trainer).__bases__):  # it is the bases' and slow: once for each of them
            trainer.perform_actual_validation()
            validated |= set(type(trainer).__bases__)
        digests = {key: digest(part) for key, part in trainer.stateful_parts().items()}
        results[name] = {"parts": digests, "steps": trainer.optimizer_steps}
        keep_one_step(rank, dataset, name, report.parent)
        results[name]["stopped_with"] = stop_by_one_rank(rank, dataset, name)
    gathered: list = [None, None]
    dist.all_gather_object(gathered, results)
    if rank == 0:
        report.write_text(json.dumps({name: [gathered[0][name], gathered[1][name]] for name in names}))
    gc.collect()  # wrapped networks hold on to the group, which aborts the process when it goes before them
    dist.barrier()  # nor may one process leave while the other still talks to it
    dist.destroy_process_group()


def started(dataset: TinyDataset, name: str, **settings):
    trainer = make_trainer(dataset, find_trainer(name), seed=1, **settings)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def keep_one_step(rank: int, dataset: TinyDataset, name: str, folder: Path) -> None:
    """Save this rank's batch, and the weights after a step, for the comparison with one process."""
    trainer = started(dataset, name, **settings_of_one_step(name))
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    weights = [unwrap(network).state_dict() for network, _ in trainer.trained_networks()]
    torch.save({"batch": batch, "weights": weights}, folder / f"{name}{rank}.pth")


def stop_by_one_rank(rank: int, dataset: TinyDataset, name: str) -> str:
    """Give rank 1 images that are not finite; both ranks stop, and name its cases."""
    trainer = started(dataset, name, max_nonfinite_steps=1)
    batch = next(trainer.dataloader_train)
    if rank == 1:
        batch["data"] = batch["data"] * torch.nan
        batch["keys"] = ["the_bad_case"] * len(batch["keys"])
    try:
        trainer.train_step(batch)
    except RuntimeError as error:
        return str(error)
    return "not stopped"


def digest(part) -> str:
    tensors = (value.detach().cpu().numpy().tobytes() for value in tensors_of(part.state_dict()).values())
    return hashlib.sha256(b"".join(tensors)).hexdigest()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    arguments = (Path(sys.argv[1]), Path(sys.argv[2]), free_port, sys.argv[3:])
    multiprocessing.spawn(train, arguments, nprocs=2)
