"""Time and memory of one training step of our trainers against nnU-Net's own, on the same data, in one run.

    python benchmarks/step_time.py --trainer nnUNetTrainerMeanTeacher --features 16 32 64 128 --batch-size 2

The steps of all trainers alternate, on one batch of random numbers in memory, at the middle of the run: in an even
and an odd epoch, because the networks of some learn in turn. The cost model is the ratio that a trainer states
(`STEP_COST`); where it says how often each of its networks is passed (`PASSES`), it is these numbers times what a pass
of each network costs in the same run. host_seconds are those that a step waited for work of the host. Peak memory is
measured with each trainer in a process of its own: what CUDA allocated, or on the CPU how far the high-water mark of
the process rose above what it held before the trainer was made; nan where the system is not Linux.
"""

import argparse
import csv
import json
import multiprocessing
import os
import pkgutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.data.places import Place
from nnunet_ssl.data.views import IMAGES, LABEL

HERE = Path(__file__).parent
WARMUP_TURNS = 3  # not counted
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "anterior": 1, "posterior": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
# What a method has to be told of several labels, and of weights that are not downloaded here.
OPTIONS_OF_DATA = {"elliptic_label": "posterior", "encoder_weights": "none"}
BASELINE = "nnUNetTrainer"
COLUMNS = ("trainer", "seconds", "ratio", "cost_model", "share_of_model", "host_seconds", "peak_gib", "peak_ratio")
ENCODER = "encoder"  # in PASSES, that of the first network
FORWARD_AND_BACKWARD = 3  # passes: a backward one counts as two forward ones


class Timing(NamedTuple):
    """Median seconds of a step, of which the host let the device wait so many, and of a pass of each network of it."""

    step: float
    host: float
    networks: dict[str, float]


def main() -> int:
    """Measure, print the table and write the csv."""
    options = parse_arguments()
    names = [BASELINE, *trainers_called(options)]
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    timings = time_alternately(names, options)
    with ThreadPoolExecutor(options.jobs) as threads:
        peaks = dict(zip(names, threads.map(lambda name: peak_memory(name, options), names), strict=True))
    rows = [row_of(name, timings, peaks) for name in names]
    print_table(rows)
    for name, timing in timings.items():
        first, *others = timing.networks or [None]
        for network in others:
            cost = timing.networks[network] / timing.networks[first]
            print(f"{name}: a pass of {network} costs {cost:.2f} of that of {first}")
    with open(options.output, "w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", nargs="+", required=True, metavar="NAME", help="trainers, or ALL")
    parser.add_argument("--configuration", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each trainer (default: 20)")
    parser.add_argument(
        "--features", type=int, nargs="+", metavar="N", help="features per stage, instead of the plans'"
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="instead of the plans'")
    parser.add_argument("--plans", default=str(HERE / "hippocampus_plans.json"), help="an nnU-Net plans file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of torch (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure memory at a time (default: 1)")
    parser.add_argument("-o", "--output", default="step_time.csv", help="default: step_time.csv")
    return parser.parse_args()


def trainers_called(options: argparse.Namespace) -> list[str]:
    """Return the trainers named; ALL stands for every trainer of the package that is for such patches."""
    if options.trainer != ["ALL"]:
        return options.trainer
    import nnunet_ssl.trainers
    from nnunet_ssl.discovery.variants import find_trainer

    configuration = json.loads(Path(options.plans).read_text())["configurations"][options.configuration]
    names = sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))
    return [name for name in names if len(configuration["patch_size"]) in find_trainer(name).DIMENSIONS]


def make_trainer(name: str, options: argparse.Namespace) -> Any:  # noqa: ANN401 - any nnU-Net trainer
    """Return an initialised trainer, in the middle of its run."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    plans = json.loads(Path(options.plans).read_text())
    configuration = plans["configurations"][options.configuration]
    if options.features:
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = options.features
    if options.batch_size:
        configuration["batch_size"] = options.batch_size
    plans["continue_training"] = False
    trainer = recursive_find_trainer_class_by_name(name)(
        plans, options.configuration, 0, DATASET_JSON, torch.device(options.device)
    )
    os.environ.setdefault("nnUNet_preprocessed", os.environ["nnUNet_results"])
    trainer.preprocessed_dataset_folder = str(empty_dataset_folder())
    trainer.options = {option: value for option, value in OPTIONS_OF_DATA.items() if hasattr(trainer, option)}
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    trainer.current_epoch = trainer.num_epochs // 2
    trainer.step_of_epoch = 0
    trainer.network.train()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return trainer


def empty_dataset_folder() -> Path:
    """Return a folder from which nnU-Net infers its usual format; no case is read."""
    folder = Path(os.environ["nnUNet_results"], "cases")
    folder.mkdir(exist_ok=True)
    (folder / "case.b2nd").touch()
    return folder


def make_batch(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a batch of random images and labels, as the two loaders yield it."""
    torch.manual_seed(0)
    configuration = trainer.configuration_manager
    shape = (configuration.batch_size, 1, *configuration.patch_size)
    scales = trainer._get_deep_supervision_scales()
    target = [
        torch.randint(0, 3, (*shape[:2], *(round(s * f) for s, f in zip(shape[2:], scale, strict=True)))).short()
        for scale in scales
    ]
    keys = tuple(f"case{i}" for i in range(shape[0]))
    size = (1, 1, *configuration.patch_size)[-3:]
    places = tuple(Place(key, (i, 0, 0), size, (size[0] + len(keys), *size[1:])) for i, key in enumerate(keys))
    where = {"keys": keys, "places": places}
    unlabeled = {view: torch.randn(shape) for view in IMAGES} | {LABEL: target[0]} | where
    return {"data": torch.randn(shape), "target": target, **where, "unlabeled": unlabeled}


def time_alternately(names: list[str], options: argparse.Namespace) -> dict[str, Timing]:
    """Return the median seconds of each trainer; they take turns so that they meet the same disturbances."""
    torch.set_num_threads(options.threads)
    trainers = {name: make_trainer(name, options) for name in names}
    batch = make_batch(trainers[BASELINE])
    steps: dict[str, list[float]] = {name: [] for name in names}
    passes = {name: {network: [] for network, _ in getattr(trainers[name], "PASSES", ())} for name in names}
    middle = trainers[BASELINE].num_epochs // 2
    for turn in range(options.steps + WARMUP_TURNS):
        for name, trainer in trainers.items():
            trainer.current_epoch = middle + turn % 2
            steps[name].append(seconds_of(lambda t=trainer: t.train_step(batch), options.device))
            for network, seconds in passes[name].items():
                seconds.append(seconds_of(lambda t=trainer, n=network: pass_network(t, n, batch), options.device))
    return {
        name: Timing(
            mean(median(part) for epoch in (0, 1) if (part := steps[name][WARMUP_TURNS + epoch :: 2])),
            waited_for_host(trainer),
            {network: median(seconds[WARMUP_TURNS:]) for network, seconds in passes[name].items()},
        )
        for name, trainer in trainers.items()
    }


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Return how long something takes, with what it left for the device to do."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def pass_network(trainer: Any, network: str, batch: dict[str, Any]) -> None:  # noqa: ANN401
    """Pass a labeled batch through a network, or the encoder of the first one, forward and backward."""
    labeled, _ = batches_on_device(batch, trainer.device)
    with trainer.step.autocast():
        is_encoder = network == ENCODER
        loss = trainer.encode(labeled.image)[-1].mean() if is_encoder else trainer.supervised_loss(labeled, network)
    loss.backward()
    trainer.networks[trainer.FIRST_NETWORK if is_encoder else network].zero_grad(set_to_none=True)


def waited_for_host(trainer: Any) -> float:  # noqa: ANN401
    """Return the median seconds that a step waited for what runs on the host; 0 where nothing does."""
    records = trainer.observer.epoch_records if hasattr(trainer, "observer") else {}
    return median(records.get("host/seconds_waiting", [0.0])[WARMUP_TURNS:] or [0.0])


def peak_memory(name: str, options: argparse.Namespace) -> float:
    """Return the peak memory in GiB of three steps of one trainer, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_here, (name, options))


def _peak_memory_here(name: str, options: argparse.Namespace) -> float:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    torch.set_num_threads(options.threads)
    recursive_find_trainer_class_by_name(name)  # imports what is to be imported
    before = kib_of_process("VmRSS")
    trainer = make_trainer(name, options)
    batch = make_batch(trainer)
    for _ in range(3):
        trainer.train_step(batch)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return (kib_of_process("VmHWM") - before) / 2**20


def kib_of_process(field: str) -> float:
    """Return a number of Linux's account of this process; resource.getrusage would count its parent's peak too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    account = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(account[field].split()[0])


def row_of(name: str, timings: dict[str, Timing], peaks: dict[str, float]) -> dict[str, Any]:
    """Return one line of the table."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    timing = timings[name]
    ratio, cost = timing.step / timings[BASELINE].step, cost_of(recursive_find_trainer_class_by_name(name), timing)
    values = (name, timing.step, ratio, cost, ratio / cost, timing.host, peaks[name], peaks[name] / peaks[BASELINE])
    return dict(zip(COLUMNS, values, strict=True))


def cost_of(trainer: type, timing: Timing) -> float:
    """Return the cost of a step that a trainer states, with what its networks' passes cost here if it counts them."""
    passes = getattr(trainer, "PASSES", ())
    if not passes:
        return getattr(trainer, "STEP_COST", 1.0)
    first = next(iter(timing.networks.values()))
    counted = sum(number * timing.networks[network] / first for network, number in passes)
    return counted / FORWARD_AND_BACKWARD


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table as Markdown."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
