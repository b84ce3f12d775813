"""Two processes under gloo on the CPU train every trainer given; what each ends with is compared by the test."""

import gc
import hashlib
import json
import multiprocessing
import os
import socket
import time
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.distributed import sum_over_processes, unwrap
from tests.conftest import Case, TinyDataset, draw_no_progress, make_trainer, tensors_of
from tests.warm_processes import WARM

CASE = Case(num_classes=4, stages=6)  # more heads than any method takes; in 2d the Dice is over all processes
# Their unsupervised losses are means over all voxels.
WHOLE_STEP = ("nnUNetTrainerMeanTeacher", "nnUNetTrainerCPS", "nnUNetTrainerEntropyMinimization")


class Threads(SpawnContext):
    """Threads where nnU-Net's validation starts processes, each of which would import torch."""

    Pool = staticmethod(ThreadPool)


def settings_of_one_step(name: str) -> dict[str, float]:
    """Return options under which a step has nothing that each process draws, masks or normalises for itself."""
    if name in WHOLE_STEP:
        return {"rampup_duration": 0.0}
    return {option: 0.0 for option in vars(find_trainer(name)) if option.endswith("_weight")}


def run(root: Path, report: Path, names: list[str], seconds: float = 600.0) -> None:
    """Train in two processes; an error in one, or too long a time, ends both and is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    contexts = WARM, SpawnContext()  # one from nothing: forked ones would agree in the order of their sets by chance
    processes = [c.Process(target=train, args=(i, root, report, port, names)) for i, c in enumerate(contexts)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    try:
        while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            wait([process.sentinel for process in processes if process.exitcode is None], deadline - time.monotonic())
            if any(process.exitcode for process in processes):
                break
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert codes == [0, 0], "one of the two processes failed, or did not end in time (None)"


def train(rank: int, root: Path, report: Path, port: int, names: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    multiprocessing.context._concrete_contexts["spawn"] = Threads()
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
        results[name]["summed"] = sum_over_processes(np.array([rank, 1])).tolist()
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
