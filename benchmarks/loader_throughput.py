r"""What a sample of each kind costs the processes that load batches, against a labeled one of nnU-Net's, in one run.

    python benchmarks/loader_throughput.py --dataset 4 --configuration 3d_fullres

The data set is planned and preprocessed before, with unlabeled images. Batches of all kinds are made in turn, in this
process and one thread, as a worker makes them: reading, cropping, spatial and intensity transforms. `workers` is how
many of such processes keep up with steps of a given length.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch

from nnunet_ssl.data.loaders import UnlabeledLoader, close_loader

KINDS = {  # of unlabeled samples, by the views that a method asks for
    "weak": ("weak",),
    "strong": ("strong",),
    "weak and strong": ("weak", "strong"),
    "weak and two strong": ("weak", "strong", "second_strong"),
}
TRAINER = "nnUNetTrainerMeanTeacher"
WARMUP_TURNS = 2  # not counted: files are read and compared with their checksums for the first time


def main() -> int:
    """Measure and print the table."""
    options = parse_arguments()
    os.environ |= {"nnUNet_results": tempfile.mkdtemp(), "nnUNet_n_proc_DA": "0"}
    torch.set_num_threads(1)
    makers = loaders_of(options)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(options.batches + WARMUP_TURNS):
        for name, make in makers.items():
            started = time.process_time()
            make()
            if turn >= WARMUP_TURNS:
                seconds[name].append(time.process_time() - started)
    print(table({name: mean(one) for name, one in seconds.items()}, options))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="data set: id or name")
    parser.add_argument("--configuration", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument("--plans", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument("--batches", type=int, default=30, help="of each kind (default: 30)")
    parser.add_argument("--step", type=float, default=0.25, help="seconds of a step, for `workers` (default: 0.25)")
    return parser.parse_args()


def loaders_of(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what makes a batch, by its kind; the labeled ones first."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(
        options.dataset, options.configuration, 0, TRAINER, options.plans, device=torch.device("cpu")
    )
    trainer.initialize()
    close_loader(trainer.get_dataloaders()[0])
    labeled, unlabeled = trainer.streams
    makers = {"labeled": labeled.generate_train_batch}
    for name, views in KINDS.items():
        loader = UnlabeledLoader(unlabeled.images, labeled, trainer.label_manager, views)
        makers[name] = loader.generate_train_batch
    return makers


def table(seconds: dict[str, float], options: argparse.Namespace) -> str:
    """Return Markdown: processor time of a batch, and its ratio to a labeled one."""
    lines = ["| samples | s of a batch | ratio | workers |", "|---|---|---|---|"]
    for name, one in seconds.items():
        ratio, workers = one / seconds["labeled"], one / options.step
        lines.append(f"| {name} | {one:.3f} | {ratio:.2f} | {workers:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
