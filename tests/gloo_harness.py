"""Two processes under gloo on the CPU train every trainer given; what each ends with is compared by the test."""

import dataclasses
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.catalog import names_in_folders, trainer_in_folder
from nnunet_ssl.training.distributed import batch_sizes, gather_tensor, sum_array
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from tests.conftest import Case, TinyDataset, draw_no_progress, make_trainer, started, state_of, tensors_of
from tests.outside_trainer import nnUNetTrainerOutside
from tests.warm_processes import WARM

OUTSIDE = "nnUNetTrainerOutside"
IN_FOLDERS = names_in_folders()  # of nnUNet_extTrainer, beside the package's: their authors run these tests over them

CASE = Case(num_classes=4, stages=6)  # more heads than any method takes
CASE_OF_2D = dataclasses.replace(CASE, dim=2)  # whose plans ask for a Dice over all processes
# Methods whose losses are means over samples, with the options that leave nothing to chance in them.
WHOLE_STEP = {
    "nnUNetTrainerMeanTeacher": {},
    "nnUNetTrainerCPS": {"mixing_probability": 0.0},
    "nnUNetTrainerEntropyMinimization": {},
    "nnUNetTrainerMCNet": {},
    "nnUNetTrainerOutside": {"pretrain_fraction": 0.0, "warmup_fraction": 0.0},
}
# Options that each process draws by, in steps of labeled images alone.
DRAWN = {"nnUNetTrainerMN": {"adapter_dropout": 0.0}}
# How many of nnU-Net's losses a step of a method has.
SUPERVISED_LOSSES = {"nnUNetTrainerMeanTeacher": 1, "nnUNetTrainerCPS": 2, "nnUNetTrainerMCNet": 3}


class Threads(SpawnContext):
    """Threads where nnU-Net's validation starts processes, each of which would import torch."""

    Pool = staticmethod(ThreadPool)


def settings_of_one_step(name: str) -> dict[str, float]:
    """Return options under which a step has nothing that each process draws, masks or normalises for itself."""
    if name in WHOLE_STEP:
        return {"rampup_duration": 0.0} | WHOLE_STEP[name]
    weights = {option: 0.0 for option in vars(trainer_called(name)) if option.endswith("_weight")}
    return weights | DRAWN.get(name, {})


@functools.cache  # nnU-Net's search makes another class each time
def trainer_called(name: str) -> type:
    """Return a trainer of the package, the one that is written outside of it, or one of a folder of its author's."""
    if name == OUTSIDE:
        return nnUNetTrainerOutside
    return trainer_in_folder(name, IN_FOLDERS[name]) if name in IN_FOLDERS else find_trainer(name)


def free_port() -> int:
    """Return a port that nobody uses yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(root: Path, root_of_2d: Path, report: Path, names: list[str], seconds: float = 600.0) -> None:
    """Train in two processes; an error in one, or too long a time, ends both and is raised here."""
    port = free_port()
    contexts = WARM, SpawnContext()  # one from nothing: forked ones would agree in the order of their sets by chance
    processes = [
        c.Process(target=train, args=(i, root, root_of_2d, report, port, names)) for i, c in enumerate(contexts)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    try:
        # Asked once for each turn: one that ends in between would leave nothing to wait for.
        while (running := [p.sentinel for p in processes if p.exitcode is None]) and time.monotonic() < deadline:
            wait(running, deadline - time.monotonic())
            if any(process.exitcode for process in processes):
                break
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert codes == [0, 0], "one of the two processes failed, or did not end in time (None)"


def train(rank: int, root: Path, root_of_2d: Path, report: Path, port: int, names: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    multiprocessing.context._concrete_contexts["spawn"] = Threads()
    torch.set_num_threads(1)
    draw_no_progress()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    of_3d, of_2d = TinyDataset(CASE, root), TinyDataset(CASE_OF_2D, root_of_2d)
    results, validated = {}, set()
    for name in names:
        dataset = of_3d if 3 in trainer_called(name).DIMENSIONS else of_2d
        point_to(dataset)
        trainer = make_trainer(dataset, trainer_called(name), seed=1)
        trainer.run_training()
        if not validated & set(type(trainer).__bases__):  # it is the bases' and slow: once for each of them
            trainer.perform_actual_validation()
            validated |= set(type(trainer).__bases__)
        results[name] = {"state": digest(trainer), "steps": trainer.optimizer_steps}
        keep_one_step(rank, dataset, name, report.parent)
        results[name]["after_uneven_batches"] = digest_after_uneven_batches(dataset, name)
        results[name]["stopped_with"] = stop_by_one_rank(rank, dataset, name)
        results[name]["summed"] = sum_array(np.array([rank, 1])).tolist()
    point_to(of_3d)
    results["uneven"] = uneven_gradients(of_3d)
    results["gathered"] = gather_tensor(torch.tensor([[float(rank)], [10.0 + rank]], requires_grad=True)).tolist()
    of_batch = torch.arange(2 - rank) + 10 * rank
    results["gathered_of_batches"] = gather_tensor(of_batch, batch_sizes(3)).tolist()
    results["collectives_of_3d"] = collectives_of_a_step(of_3d, "nnUNetTrainerCPS")["step"]
    point_to(of_2d)
    results["collectives"] = {name: collectives_of_a_step(of_2d, name) for name in SUPERVISED_LOSSES}
    results["refused"] = losses_of_some(of_2d)
    results["refused_batches"] = uneven_batches_with_a_common_dice(of_2d)
    gathered: list = [None, None]
    dist.all_gather_object(gathered, results)
    if rank == 0:
        report.write_text(json.dumps({name: [gathered[0][name], gathered[1][name]] for name in results}))
    gc.collect()  # wrapped networks hold on to the group, which aborts the process when it goes before them
    dist.barrier()  # nor may one process leave while the other still talks to it
    dist.destroy_process_group()


def point_to(dataset: TinyDataset) -> None:
    """Set nnU-Net's variables to a data set."""
    os.environ |= {f"nnUNet_{place}": str(dataset.root / place) for place in ("raw", "preprocessed", "results")}


def keep_one_step(rank: int, dataset: TinyDataset, name: str, folder: Path) -> None:
    """Save this rank's batch, and the weights after a step, for the comparison with one process."""
    trainer = started(dataset, trainer_called(name), **settings_of_one_step(name))
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    torch.save({"batch": batch, "weights": trained_weights(trainer)}, folder / f"{name}{rank}.pth")


def digest_after_uneven_batches(dataset: TinyDataset, name: str) -> dict[str, str]:
    """Return what a step leaves in which one process has a sample more than the other."""
    case = dataclasses.replace(dataset.case, batch_size=3, batch_dice=False)
    trainer = started(TinyDataset(case, dataset.root), trainer_called(name), warmup_fraction=0.0)
    batch = next(trainer.dataloader_train)
    assert len(batch["keys"]) == batch_sizes(3)[dist.get_rank()]
    trainer.train_step(batch)
    return digest(trainer)


def uneven_batches_with_a_common_dice(dataset: TinyDataset) -> str:
    """Return what is said where nnU-Net's Dice would be over batches of unlike sizes."""
    case = dataclasses.replace(dataset.case, batch_size=3)
    try:
        started(TinyDataset(case, dataset.root), trainer_called("nnUNetTrainerMeanTeacher"))
    except ValueError as error:
        return str(error)
    return "not refused"


class Uneven(SemiSupervisedTrainer):
    """Has a term that only the second process has, and a part that no process uses."""

    def build_parts(self):
        return {name: torch.nn.Conv3d(4, 1, 1) for name in ("everywhere", "somewhere", "nowhere")}

    def build_state(self):
        memory = torch.nn.Module()
        memory.register_buffer("prototypes", torch.randn(4))
        return {"memory": memory}

    def training_losses(self, labeled, unlabeled):
        found = self.forward_pass(labeled.image)
        used = self.parts["everywhere"](found.features).mean()
        yield {"supervised": self.supervised_loss(labeled, outputs=found.outputs), "everywhere": used}
        if self.local_rank == 1:
            yield {"somewhere": self.parts["somewhere"](self.forward_pass(unlabeled.weak).features).mean()}
            self.gradient_here = self.parts["somewhere"].bias.grad.clone()


def uneven_gradients(dataset: TinyDataset) -> dict[str, object]:
    """Return what comes of gradients that only one process has, or none."""
    torch.manual_seed(dist.get_rank())  # and no seed: what starts alike has been sent
    trainer = started(dataset, Uneven, seed=None, weight_decay=0.5)
    before = trainer.parts["nowhere"].weight.detach().clone()
    trainer.train_step(next(trainer.dataloader_train))
    here = getattr(trainer, "gradient_here", None)
    return {
        "state": digest(trainer),
        "share": None if here is None else (trainer.parts["somewhere"].bias.grad / here).item(),
        "nowhere": {
            "has_gradient": trainer.parts["nowhere"].weight.grad is not None,
            "moved": not torch.equal(trainer.parts["nowhere"].weight, before),
        },
    }


class OfSome(SemiSupervisedTrainer):
    """Has a second supervised loss that only the second process computes, as its last line or before another term."""

    last = False  # whether the loss of some is the last one

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
        if self.local_rank == 1:
            yield {"again": self.supervised_loss(labeled)}
        if not self.last:
            yield {"unsupervised": self.forward_pass(unlabeled.weak).logits.mean()}


def losses_of_some(dataset: TinyDataset) -> list[str]:
    """Return what a step says in which some processes compute a loss with a Dice over all of them."""
    messages = []
    for last in (False, True):
        trainer = started(dataset, OfSome, warmup_fraction=0.0, last=last)
        try:
            trainer.train_step(next(trainer.dataloader_train))
        except ValueError as error:
            messages.append(str(error))
    return messages


def collectives_of_a_step(dataset: TinyDataset, name: str) -> dict[str, int]:
    """Return how often processes wait for each other in a step, and in one of nnU-Net's losses with its gradient."""
    trainer = started(dataset, trainer_called(name), warmup_fraction=0.0)
    batch = next(trainer.dataloader_train)
    labeled, _ = batches_on_device(batch, trainer.device)
    with counted_collectives() as of_step:
        trainer.train_step(batch)
    with counted_collectives() as of_loss:
        trainer.supervised_loss(labeled).backward()
    return {"step": len(of_step), "loss": len(of_loss)}


@contextmanager
def counted_collectives() -> Iterator[list[str]]:
    """Note each collective that is called inside."""
    called, kinds = [], ("all_reduce", "all_gather", "broadcast", "all_gather_object", "reduce", "barrier")
    originals = {kind: getattr(dist, kind) for kind in kinds}

    def noting(kind: str):
        return lambda *given, **more: called.append(kind) or originals[kind](*given, **more)

    for kind in kinds:
        setattr(dist, kind, noting(kind))
    try:
        yield called
    finally:
        for kind, original in originals.items():
            setattr(dist, kind, original)


def trained_weights(trainer) -> dict[str, torch.Tensor]:
    """Return the weights of all trained networks and parts."""
    state = trainer.networks.state_dict()
    return tensors_of({kind: state[kind] for kind in ("networks", "parts")})


def stop_by_one_rank(rank: int, dataset: TinyDataset, name: str) -> str:
    """Give rank 1 images that are not finite; both ranks stop, and name its cases."""
    trainer = started(dataset, trainer_called(name), max_nonfinite_steps=1)
    batch = next(trainer.dataloader_train)
    if rank == 1:
        batch["data"] = batch["data"] * torch.nan
        batch["keys"] = ["the_bad_case"] * len(batch["keys"])
    try:
        trainer.train_step(batch)
    except RuntimeError as error:
        return str(error)
    return "not stopped"


def digest(trainer) -> dict[str, str]:
    """Return digests of all that has to be equal in all processes, by its path."""
    state = state_of(trainer).items()
    return {name: hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest() for name, value in state}
