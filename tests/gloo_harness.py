"""Two processes under gloo on the CPU train every trainer given; what each ends with is compared by the test.

Usage: python -m tests.gloo_harness DATA_ROOT REPORT TRAINER ...
"""

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
from tests.conftest import Case, TinyDataset, make_trainer


def train(rank: int, root: Path, report: Path, port: int, names: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for name in names:
        trainer = make_trainer(TinyDataset(Case(num_classes=4), root), find_trainer(name), seed=1)
        trainer.run_training()
        trainer.perform_actual_validation()
        digests = {key: digest(part) for key, part in trainer.stateful_parts().items()}
        results[name] = {"parts": digests, "steps": trainer.optimizer_steps}
    gathered: list = [None, None]
    dist.all_gather_object(gathered, results)
    if rank == 0:
        report.write_text(json.dumps({name: [gathered[0][name], gathered[1][name]] for name in names}))
    dist.destroy_process_group()


def digest(part) -> str:
    tensors = (value.detach().cpu().numpy().tobytes() for value in part.state_dict().values())
    return hashlib.sha256(b"".join(tensors)).hexdigest()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    arguments = (Path(sys.argv[1]), Path(sys.argv[2]), free_port, sys.argv[3:])
    multiprocessing.spawn(train, arguments, nprocs=2)
