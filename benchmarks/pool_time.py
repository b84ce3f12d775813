r"""Time of predicting all unlabeled cases whole, against nnU-Net's training step, in one run.

    python benchmarks/pool_time.py --configuration 2d --features 16 32 64 128 --batch-size 16 \
        --cases 80 --shape 36 50 35

Steps of nnU-Net's trainer and predictions of one case of random numbers take turns, so that they meet the same
disturbances. A prediction is that of a training: the sliding window with and without mirroring, the label map, and its
file. The share of a run is what all rounds take of the time of nnU-Net's steps alone, for runs of several lengths: it
adds to the cost of a method, which is in the same unit.
"""

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

import step_time
from nnunet_ssl.data.pool_predictions import PoolPredictions, begin_round
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.training.whole_pool import WholePool, predictor_for

TRAINER = "nnUNetTrainerSelfTraining"
LENGTHS = (2_000, 250_000)  # steps of the trainings of README, of nnU-Net's own


def main() -> int:
    """Measure and print."""
    options = parse_arguments()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    step, cases = measure(options)
    print(f"nnU-Net's step: {step:.3f} s; {options.cases} cases of {options.shape}, {options.rounds} rounds")
    for name, seconds in cases.items():
        shares = ", ".join(f"{share_of_run(step, seconds, options, steps):.2%} of {steps} steps" for steps in LENGTHS)
        print(f"{name}: a case takes {seconds:.3f} s, {seconds / step:.2f} steps; all rounds {shares}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line: that of step_time.py, and what the pool is like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, required=True, metavar="N", help="unlabeled cases")
    parser.add_argument("--shape", type=int, nargs=3, required=True, metavar="N", help="of a preprocessed case")
    parser.add_argument("--rounds", type=int, default=3, help="of predictions (default: 3)")
    own, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], "--trainer", TRAINER, *rest]
    return argparse.Namespace(**vars(step_time.parse_arguments()) | vars(own))


def measure(options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Return the median seconds of nnU-Net's step, and of a case by the way that it is predicted."""
    torch.set_num_threads(options.threads)
    plain, ours = (step_time.make_trainer(name, options) for name in (step_time.BASELINE, TRAINER))
    batch = step_time.make_batch(plain)
    run = predicting(ours, options.shape)
    steps, cases = [], {name: [] for name in run}
    for turn in range(options.steps + step_time.WARMUP_TURNS):
        seconds = step_time.seconds_of(lambda: plain.train_step(copy.copy(batch)), options.device)
        found = {name: step_time.seconds_of(predict, options.device) for name, predict in run.items()}
        if turn >= step_time.WARMUP_TURNS:
            steps.append(seconds)
            for name, one in found.items():
                cases[name].append(one)
    return median(steps), {name: median(one) for name, one in cases.items()}


def predicting(trainer: Any, shape: list[int]) -> dict[str, Any]:  # noqa: ANN401 - a trainer
    """Return what predicts and stores a case, with and without mirroring."""
    folder = Path(tempfile.mkdtemp())
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    whole = {"chunks": image.shape, "blocks": image.shape}
    nnUNetDatasetBlosc2.save_case(image, np.zeros(image.shape, np.int16), {}, str(folder / "case"), **whole)
    trainer.set_deep_supervision_enabled(False)
    found = {}
    for name, axes in (("mirrored", trainer.mirror_axes), ("not mirrored", ())):
        pool = WholePool(UnlabeledDataset({"case": folder}, folder), predictor_for(trainer, axes), print)
        round_of = begin_round(folder / name, {"epoch": 0}, {})
        found[name] = lambda pool=pool, to=round_of: predict_again(pool, to)
    return found


def predict_again(pool: WholePool, to: PoolPredictions) -> None:
    """Predict and store the case, also if that was done before."""
    (to.folder / "case.b2nd").unlink(missing_ok=True)
    pool.predict(to, None)


def share_of_run(step: float, case: float, options: argparse.Namespace, steps: int) -> float:
    """Return what all rounds take, as a share of the time of nnU-Net's steps."""
    return options.rounds * options.cases * case / (steps * step)


if __name__ == "__main__":
    sys.exit(main())
