r"""Where the time of an epoch goes: steps, validation, pictures and checkpoints of a trainer, beside nnU-Net's own.

    python benchmarks/epoch_time.py --trainer nnUNetTrainerMeanTeacher nnUNetTrainerCPS --configuration 2d \
        --features 16 32 64 128 --batch-size 8 --epoch 300

Short epochs of all trainers take turns, on one batch of random numbers in memory, late in a run whose curves are that
long already. Steps and validation steps are counted up to an epoch of nnU-Net's, 250 and 50; the rest is what an epoch
takes on average. Loading is another matter: see loader_throughput.py.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import step_time

OF_NNUNET = {"steps": 250, "validation": 50}  # in an epoch
SHORT = 2  # steps of either kind that are measured in one
PARTS = ("steps", "validation", "pictures and curves", "checkpoints", "rest of the epoch's end")


class Stopwatch:
    """Seconds by what they were spent on; what is called inside of something else is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as the part what it takes."""

        def run(*arguments: object, **named: object) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - started
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took

        return run


def main() -> int:
    """Measure and print the table."""
    options = parse_arguments()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(options.threads)
    names = [step_time.BASELINE, *options.trainer]
    trainers = {name: late_in_a_run(name, options) for name in names}
    batch = step_time.make_batch(trainers[step_time.BASELINE])
    watches = {name: watched(trainer, batch) for name, trainer in trainers.items()}
    for turn in range(options.epochs + 1):
        for name, trainer in trainers.items():
            if turn == 1:  # the first epoch is not counted
                watches[name].seconds.clear()
            short_epoch(trainer)
    print(table(watches, options))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line: that of step_time.py, and how far the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epoch", type=int, default=300, help="of the run (default: 300)")
    parser.add_argument("--epochs", type=int, default=40, help="that are measured (default: 40)")
    own, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], *rest]
    return argparse.Namespace(**vars(step_time.parse_arguments()) | vars(own))


def late_in_a_run(name: str, options: argparse.Namespace) -> Any:  # noqa: ANN401 - any nnU-Net trainer
    """Return a trainer with curves of so many epochs."""
    trainer = step_time.make_trainer(name, options)
    trainer.output_folder = tempfile.mkdtemp(dir=os.environ["nnUNet_results"])
    trainer.current_epoch = options.epoch
    trainer.num_epochs = 2 * options.epoch + options.epochs
    trainer.disable_checkpointing = False
    kept = trainer.logger.local_logger.my_fantastic_logging
    classes = len(step_time.DATASET_JSON["labels"]) - 1
    for key, values in kept.items():
        drawn = [random.random() for _ in range(options.epoch)]
        values += [[one] * classes for one in drawn] if "per_class" in key else drawn
    if hasattr(trainer, "observer"):
        trainer.observer.guard(trainer.logger)
    return trainer


def watched(trainer: Any, batch: dict[str, Any]) -> Stopwatch:  # noqa: ANN401
    """Give a trainer batches, and count the time of its parts."""
    watch = Stopwatch()
    trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = SHORT
    trainer.dataloader_train = trainer.dataloader_val = itertools.repeat(batch)
    trainer.on_train_epoch_start = lambda: start_epoch(trainer)
    trainer.print_to_log_file = lambda *_, **__: None
    trainer.train_step = watch.timed("steps", trainer.train_step)
    trainer.validation_step = watch.timed("validation", trainer.validation_step)
    trainer.logger.plot_progress_png = watch.timed("pictures and curves", trainer.logger.plot_progress_png)
    trainer.save_checkpoint = watch.timed("checkpoints", trainer.save_checkpoint)
    trainer.on_epoch_end = watch.timed("rest of the epoch's end", trainer.on_epoch_end)
    if hasattr(trainer, "observer"):
        trainer.observer.write_line = lambda *_, **__: None
        trainer.observer.draw_curves = watch.timed("pictures and curves", trainer.observer.draw_curves)
        fill_curves(trainer)
    return watch


def start_epoch(trainer: Any) -> None:  # noqa: ANN401
    """Start the steps of an epoch without looking for streams, of which there are none here."""
    trainer.network.train()
    trainer.step_of_epoch = 0
    if hasattr(trainer, "observer"):
        trainer.networks.start_epoch(trainer.current_epoch)
        trainer.skipped_steps.start_epoch()
        trainer.observer.start_epoch(trainer.current_epoch, SHORT, None, shows_progress=False)


def fill_curves(trainer: Any) -> None:  # noqa: ANN401
    """Let a short epoch name the curves, and give each of them a value for every epoch before it."""
    short_epoch(trainer)
    for curve in trainer.observer.curves.values.values():
        curve[:-1] = [random.random() for _ in curve[:-1]]


def short_epoch(trainer: Any) -> None:  # noqa: ANN401
    """Do an epoch of a few steps as nnU-Net does."""
    trainer.logger.log("epoch_start_timestamps", time.time(), trainer.current_epoch)
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(SHORT)])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        validated = [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(SHORT)]
        trainer.on_validation_epoch_end(validated)
    trainer.on_epoch_end()


def table(watches: dict[str, Stopwatch], options: argparse.Namespace) -> str:
    """Return Markdown: seconds of an epoch of nnU-Net's length."""
    lines = ["| trainer | " + " | ".join(PARTS) + " | beside the steps |", "|---" * (len(PARTS) + 2) + "|"]
    for name, watch in watches.items():
        seconds = [
            watch.seconds[part] / options.epochs * (OF_NNUNET[part] / SHORT if part in OF_NNUNET else 1)
            for part in PARTS
        ]
        share = sum(seconds[1:]) / sum(seconds)
        lines.append(f"| {name} | " + " | ".join(f"{one:.2f}" for one in seconds) + f" | {share:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
