"""One training of a benchmark, started by it in a process of its own: it trains, validates, and leaves the result."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

from nnunet_ssl.benchmarking.experiment import length
from nnunet_ssl.benchmarking.gradient_norms import measure_during
from nnunet_ssl.benchmarking.outcome import is_ours, outcome_of
from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.raw_files import read_json_file


def main() -> None:
    """Train as nnUNetv2_train does, going on from a checkpoint if there is one, and leave the result.

    The arguments are the folder of the training, and the files that take its result.
    """
    place, results = Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]]
    facts = read_json_file(place / "facts.json")
    trainer = make_trainer(facts)
    norms = place / "gradient_norms.json"
    if is_ours(type(trainer)):
        measure_during(trainer, norms)
    if any(Path(trainer.output_folder).glob("checkpoint_*.pth")):
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    trainer.perform_actual_validation()
    outcome = outcome_of(trainer, facts.get("head"))
    if norms.exists():
        outcome["gradient_norms"] = read_json_file(norms)
    for result in results:
        write_json_atomically(facts | outcome, result)


def make_trainer(facts: dict[str, Any]) -> Any:  # noqa: ANN401 - any nnU-Net trainer
    """Return the trainer of a run, seeded as far as nnU-Net's own can be."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    np.random.seed(facts["seed"])
    torch.manual_seed(facts["seed"])
    setting, device = facts["setting"], torch.device(facts["device"])
    plans = setting.get("plans", "nnUNetPlans")
    trainer = get_trainer_from_args(
        setting["dataset"], setting["configuration"], 0, facts["trainer"], plans, device=device
    )
    if not is_ours(type(trainer)):
        for name, value in length(setting).items():
            setattr(trainer, name, value)
    return trainer


if __name__ == "__main__":
    main()
