"""One training step: the losses of a method, each back-propagated when it is yielded, then all optimisers at once."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_ssl.training import distributed
from nnunet_ssl.training.networks import Trained

Losses = dict[str, Tensor]

LARGEST_NORM = 12  # of each network's gradient; nnU-Net's


@dataclass(frozen=True)
class Outcome:
    """What came of a step, as plain numbers.

    Attributes:
        losses: the terms of this process, weighted.
        records: what the method recorded.
        losses_are_finite: in all processes.
        losses_here_are_finite: in this one.
        gradients_are_finite: in all processes.
    """

    losses: dict[str, float]
    records: dict[str, float]
    losses_are_finite: bool
    losses_here_are_finite: bool
    gradients_are_finite: bool

    @property
    def was_taken(self) -> bool:
        """Whether the optimisers moved: all is finite."""
        return self.losses_are_finite and self.gradients_are_finite


class Step:
    """Runs the generator of a method's losses and steps the optimisers, if all is finite.

    All numbers come from the device in one transfer; it waits for the device no longer than nnU-Net's own step does.
    """

    def __init__(
        self,
        trained: Mapping[str, Trained],
        device: torch.device,
        grad_scaler: torch.amp.GradScaler | None = None,
        is_distributed: bool = False,
    ) -> None:
        self.trained = list(trained.values())
        self.parameters = [parameter for one in self.trained for parameter in one.parameters()]
        self.device = device
        self.grad_scaler = grad_scaler
        self.is_distributed = is_distributed

    def run(self, losses: Iterator[Losses], records: dict[str, float | Tensor]) -> Outcome:
        """Take one step.

        Args:
            losses: the generator that `training_losses` returns.
            records: scalars by name; what is recorded while the losses are computed is in it afterwards.
        """
        for one in self.trained:
            one.optimizer.zero_grad(set_to_none=True)
        terms = self._backpropagate(losses)
        here = torch.stack(list(terms.values())).isfinite().all().float()
        everywhere, present = here, here.new_zeros(0)
        if self.is_distributed:
            not_finite, present = distributed.average_gradients(self.parameters, 1.0 - here)
            everywhere = (not_finite == 0).float()
        moved = self._with_gradient()
        norm = self._clip_gradients(moved)
        outcome, present = self._fetch(terms, records, [everywhere, here, norm.isfinite().float()], present)
        self._step_optimizers(moved, outcome, present)
        return outcome

    def autocast(self) -> AbstractContextManager:
        """Return nnU-Net's mixed precision, without its cache of weights.

        In older torch a pass without gradient leaves its weights there, and a later one of the same network gives them
        no gradient: https://github.com/pytorch/pytorch/issues/112583.
        """
        return torch.autocast("cuda", cache_enabled=False) if self.device.type == "cuda" else nullcontext()

    def _backpropagate(self, losses: Iterator[Losses]) -> Losses:
        terms: Losses = {}
        while True:
            with self.autocast():
                yielded = next(losses, None)
            if yielded is None:
                break
            if repeated := yielded.keys() & terms.keys():
                raise ValueError(f"the losses yield {', '.join(sorted(repeated))} twice: give each term a name")
            loss = sum(yielded.values())
            if loss.requires_grad:  # an empty mask may leave a constant
                (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
            terms |= {name: term.detach().float() for name, term in yielded.items()}
        if not terms:
            raise ValueError("there is no loss: training_losses yields none")
        return terms

    def _with_gradient(self) -> list[Trained]:
        return [one for one in self.trained if any(p.grad is not None for p in one.parameters())]

    def _clip_gradients(self, moved: list[Trained]) -> Tensor:
        """Clip the gradient of each optimiser as nnU-Net does; return the sum of their norms, finite if all are."""
        norms = []
        for one in moved:
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(one.optimizer)
            norms.append(nn.utils.clip_grad_norm_(one.parameters(), LARGEST_NORM))
        return sum(norms) if norms else torch.zeros((), device=self.device)

    def _fetch(
        self, terms: Losses, records: dict[str, float | Tensor], finite: list[Tensor], present: Tensor
    ) -> tuple[Outcome, list[float]]:
        """Bring all numbers of a step from the device in one transfer."""
        recorded = {name: value.float() for name, value in records.items() if isinstance(value, Tensor)}
        scalars = torch.stack([*finite, *terms.values(), *recorded.values()])
        numbers = iter(torch.cat([scalars, present]).tolist())
        everywhere, here, gradients = (bool(next(numbers)) for _ in finite)
        losses = {name: next(numbers) for name in terms}
        fetched = {name: next(numbers) for name in recorded}
        return Outcome(losses, {**records, **fetched}, everywhere, here, gradients), list(numbers)

    def _step_optimizers(self, moved: list[Trained], outcome: Outcome, present: list[float]) -> None:
        """Step if all is finite; a parameter that has a gradient in no process stays as it is."""
        if outcome.was_taken:
            for parameter, processes in zip(self.parameters, present, strict=False):
                if not processes:
                    parameter.grad = None
            for one in moved:
                one.optimizer.step() if self.grad_scaler is None else self.grad_scaler.step(one.optimizer)
        if self.grad_scaler is not None and moved:
            self.grad_scaler.update()

    def may_overflow(self) -> bool:
        """Return whether mixed precision explains gradients that are not finite: until its scale has come down to 1."""
        return self.grad_scaler is not None and self.grad_scaler.get_scale() >= 1.0


class SkippedSteps:
    """Counts the steps that were skipped because something in them was not finite.

    Attributes:
        of_epoch: since `start_epoch`.
    """

    def __init__(self, most_in_a_row: int) -> None:
        self.most_in_a_row = most_in_a_row
        self.in_a_row = self.of_epoch = 0
        self.cases: deque[tuple[str, ...]] = deque(maxlen=most_in_a_row)

    def start_epoch(self) -> None:
        """Start counting an epoch's."""
        self.of_epoch = 0

    def count(self, outcome: Outcome, cases: tuple[str, ...], initial_lr: float) -> None:
        """Count a step whose loss is not finite, in this process or another.

        Args:
            outcome: of the step.
            cases: in its batches, here.
            initial_lr: for the message.

        Raises:
            RuntimeError: there were `most_in_a_row`; it names the cases.
        """
        if outcome.was_taken:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.of_epoch += 1
        self.cases.append(() if outcome.losses_here_are_finite and not outcome.losses_are_finite else cases)
        if self.in_a_row >= self.most_in_a_row:
            names = distributed.union_over_processes(case for step in self.cases for case in step)
            raise RuntimeError(
                f"the loss was not finite in {self.in_a_row} steps in a row; the weights are those from before them. "
                f"Look at these cases, or lower initial_lr ({initial_lr}): {', '.join(names)}"
            )
