"""Whether seeded trainings end in the same weights, bit for bit, before and after a change of the code.

    python benchmarks/trajectories.py before.json                   # in the checkout of the one commit
    python benchmarks/trajectories.py after.json                    # in that of the other
    python benchmarks/trajectories.py --compare before.json after.json

Each checkout needs an environment in which it is installed (`pip install -e .`), with the same versions of all else.
Each trainer trains tiny networks on tiny data in 2d and 3d, in one thread and without workers, across its warm-up, its
ramp and an interruption with `--c`. What is compared are digests of all networks, teachers and parts in the last
checkpoint. A change that is meant to alter a method changes its lines, and no others.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pkgutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from tests.conftest import Case, TinyDataset, draw_no_progress, make_trainer

CHECKOUT = Path(__file__).resolve().parent.parent
CASES = {
    "2d": Case(dim=2, num_classes=4, batch_size=4),
    "3d": Case(dim=3, residual=True, num_classes=2, batch_size=2, ignore=True),
}
EPOCHS, STEPS, STOPPED_AFTER = 5, 4, 3  # a warm-up of 0.4 of the run ends with the second epoch


class Stopped(Exception):
    """Ends a training where an interruption would."""


def main() -> int:
    """Train and write the digests, or compare two files of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="where the digests go, or with --compare two of them")
    parser.add_argument("--trainers", nargs="+", metavar="NAME", help="default: all of this checkout")
    parser.add_argument("--compare", action="store_true", help="say where two files differ")
    options = parser.parse_args()
    if options.compare:
        return compare(*(json.loads(Path(file).read_text()) for file in options.files))
    refuse_another_checkout()
    torch.set_num_threads(1)
    draw_no_progress()
    trainings = [(name, case) for name in options.trainers or all_trainers() for case in cases_of(name)]
    digests = {f"{name} {case}": train(name, case) for name, case in trainings}
    Path(options.files[0]).write_text(json.dumps(digests, indent=1))
    return 0


def refuse_another_checkout() -> None:
    """End with a message where the environment's package is not that of this checkout."""
    import nnunet_ssl.trainers

    for place in (Path(nnunet_ssl.__file__).parent, Path(nnunet_ssl.trainers.__path__[0])):
        if place.resolve().parent != CHECKOUT:
            sys.exit(f"{place} is what would be trained, and not {CHECKOUT}: install this checkout (pip install -e .)")


def all_trainers() -> list[str]:
    """Return the names of the package's trainers."""
    import nnunet_ssl.trainers

    return sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))


def cases_of(name: str) -> list[str]:
    """Return the cases whose dimensions a trainer is for."""
    from nnunet_ssl.discovery.variants import find_trainer

    return [case for case in CASES if CASES[case].dim in find_trainer(name).DIMENSIONS]


def train(name: str, case: str) -> list[str]:
    """Train, stop and resume; return the digests of all networks at the end, sorted."""
    from nnunet_ssl.discovery.variants import find_trainer

    cls = find_trainer(name)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for variable in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{variable}"] = str(Path(folder, variable))
        dataset = TinyDataset(CASES[case], Path(folder)).write()
        stopped = make_trainer(dataset, cls, seed=1, num_epochs=EPOCHS, num_iterations_per_epoch=STEPS, save_every=1)
        stopped.on_epoch_end = lambda: stop(stopped)
        with contextlib.suppress(Stopped):
            stopped.run_training()
        resumed = make_trainer(dataset, cls, resume=True)
        resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
        resumed.run_training()
        return networks_of(torch.load(f"{resumed.output_folder}/checkpoint_final.pth", weights_only=False))


def stop(trainer: Any) -> None:  # noqa: ANN401 - any of our trainers
    """End an epoch, and the training after some of them."""
    type(trainer).on_epoch_end(trainer)
    if trainer.current_epoch == STOPPED_AFTER:
        raise Stopped


def networks_of(checkpoint: dict[str, Any]) -> list[str]:
    """Return the digests of all networks, teachers and parts in a checkpoint, sorted: roles may have other names.

    Raises:
        RuntimeError: the run has not taken all of its steps.
    """
    ours = checkpoint["nnunet_ssl"]
    if ours["optimizer_steps"] != EPOCHS * STEPS:
        raise RuntimeError(f"{ours['optimizer_steps']} of {EPOCHS * STEPS} steps were taken")
    kept = [state for kind in ("networks", "teachers", "parts") for state in ours.get(kind, {}).values()]
    weights = [state for state in kept if "param_groups" not in state]  # an earlier checkpoint has optimisers there too
    return sorted(digest(state) for state in [checkpoint["network_weights"], *weights])


def digest(state: dict[str, torch.Tensor]) -> str:
    """Return a digest of named tensors."""
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()[:16]


def compare(before: dict[str, list[str]], after: dict[str, list[str]]) -> int:
    """Print a line for each training; return 1 where one differs, or is not there after."""
    differs = 0
    for training in sorted({*before, *after}):
        if training not in before or training not in after:
            differs += training in before
            print(f"{training}: only {'after' if training in after else 'before'}")
            continue
        is_equal = before[training] == after[training]
        differs += not is_equal
        print(f"{training}: {f'{len(after[training])} networks equal' if is_equal else 'DIFFERENT'}")
    return int(differs > 0)


if __name__ == "__main__":
    sys.exit(main())
