"""How strongly each term of a method pulls at the networks, measured within a run and without changing it."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import isclose
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.data.preprocessed_images import write_json_atomically

MEASURED_AT = (0.3, 0.6, 0.9)  # of the run
BATCHES = 2  # the last ones of an epoch

Norms = dict[str, float]


def measure_during(trainer: Any, file: Path) -> None:  # noqa: ANN401 - a trainer of this package
    """Have a run write its `gradient_norms` to a file, by the progress at which they were measured.

    They are those of the last batches before it, in the main stage alone. A seeded run is the same with
    and without.
    """
    last: deque[dict[str, Any]] = deque(maxlen=BATCHES)
    step, end_of_epoch = trainer.train_step, trainer.on_train_epoch_end

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        last.append(batch)
        return step(batch)

    def on_train_epoch_end(outputs: list[dict[str, Any]]) -> None:
        end_of_epoch(outputs)
        over = (trainer.current_epoch + 1) / trainer.num_epochs
        if any(isclose(over, when) for when in MEASURED_AT) and trainer.stages.at(over) == "main":
            norms = json.loads(file.read_text()) if file.exists() else {}
            norms[f"{over:g}"] = gradient_norms(trainer, list(last))
            write_json_atomically(norms, file)

    trainer.train_step, trainer.on_train_epoch_end = train_step, on_train_epoch_end


def gradient_norms(trainer: Any, batches: Sequence[dict[str, Any]]) -> Norms:  # noqa: ANN401
    """Return the norm of each term's gradient over all trained parameters, the mean over batches."""
    with _state_put_back(trainer):
        of_batches = [_norms_of(trainer, batch) for batch in batches]
    return {name: float(f"{mean(norms[name] for norms in of_batches):.4g}") for name in of_batches[0]}


def _norms_of(trainer: Any, batch: dict[str, Any]) -> Norms:  # noqa: ANN401
    norms: Norms = {}
    trainer.observer.start_step(0)
    with trainer.step.autocast():
        for terms in trainer.training_losses(*batches_on_device(batch, trainer.device)):
            for name, term in terms.items():
                norms[name] = _norm(term, trainer.step.parameters) if term.requires_grad else 0.0
    return norms


def _norm(term: torch.Tensor, parameters: Sequence[torch.Tensor]) -> float:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.float().norm() for gradient in gradients if gradient is not None]).norm().item()


@contextmanager
def _state_put_back(trainer: Any) -> Iterator[None]:  # noqa: ANN401
    """Put back what the method keeps. Random numbers need not be: each epoch of a seeded run draws its own."""
    before = {name: deepcopy(kept.state_dict()) for name, kept in trainer.state.items()}
    try:
        yield
    finally:
        for name, kept in trainer.state.items():
            kept.load_state_dict(before[name])
