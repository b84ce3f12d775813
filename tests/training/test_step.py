"""One step of small modules: what moves, what stays, and what is told."""

import pytest
import torch
from torch import nn

from nnunet_ssl.training.networks import Trained
from nnunet_ssl.training.step import SkippedSteps, Step


class Constant:
    """A schedule that changes nothing."""

    def step(self, current_step):
        pass


def trained(*modules: nn.Module, lr: float = 0.1) -> Trained:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return Trained(modules, torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=0.5), Constant())


@pytest.fixture
def modules():
    torch.manual_seed(0)
    return {"first": nn.Linear(2, 1), "second": nn.Linear(2, 1)}


@pytest.fixture
def step(modules):
    return Step({name: trained(module) for name, module in modules.items()}, torch.device("cpu"))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def test_terms_and_records_come_back_as_numbers(modules, step):
    image = torch.ones(3, 2)
    records = {"plain": 0.25}

    def losses():
        yield {"one": modules["first"](image).square().mean()}
        records["tensor"] = torch.tensor(7.0)
        yield {"two": modules["second"](image).square().mean(), "constant": torch.tensor(2.0)}

    expected = {name: module(image).square().mean().item() for name, module in modules.items()}
    outcome = step.run(losses(), records)
    assert outcome.losses == pytest.approx({"one": expected["first"], "two": expected["second"], "constant": 2.0})
    assert outcome.records == {"plain": 0.25, "tensor": 7.0}
    assert outcome.was_taken


def test_what_has_no_gradient_stays_and_keeps_its_optimiser(modules, step):
    before = weights(modules["second"])
    step.run(iter([{"one": modules["first"](torch.ones(1, 2)).sum()}]), {})
    assert equal(weights(modules["second"]), before)
    assert not step.trained[1].optimizer.state


def test_each_optimiser_is_clipped_for_itself(modules, step):
    scales = {"first": 1.0, "second": 1e6}
    step.run(iter([{n: scales[n] * m(torch.ones(1, 2)).sum()} for n, m in modules.items()]), {})
    norms = [torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item() for module in modules.values()]
    assert norms == pytest.approx([3**0.5, 12.0], rel=1e-4)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_step_that_is_not_finite_changes_nothing(modules, step, bad):
    before = [weights(module) for module in modules.values()]
    out = modules["first"](torch.ones(1, 2)).sum()
    term = out * torch.nan if bad == "loss" else torch.sqrt(out * 0.0)
    outcome = step.run(iter([{"bad": term}, {"good": modules["second"](torch.ones(1, 2)).sum()}]), {})
    assert not outcome.was_taken
    assert (outcome.losses_are_finite, outcome.gradients_are_finite) == (bad != "loss", False)
    assert all(equal(weights(module), old) for module, old in zip(modules.values(), before, strict=True))


def test_losses_are_named_once_and_there_is_one(modules, step):
    with pytest.raises(ValueError, match="yield one twice"):
        step.run(iter([{"one": modules["first"](torch.ones(1, 2)).sum()}] * 2), {})
    with pytest.raises(ValueError, match="there is no loss"):
        step.run(iter([]), {})


def test_a_step_without_any_gradient_is_taken_and_moves_nothing(modules, step):
    before = weights(modules["first"])
    assert step.run(iter([{"constant": torch.tensor(1.0)}]), {}).was_taken
    assert equal(weights(modules["first"]), before)


def test_skipped_steps_name_the_cases_of_the_row(modules, step):
    skipped = SkippedSteps(most_in_a_row=2)

    def run(value: float):
        return step.run(iter([{"one": value * modules["first"](torch.ones(1, 2)).sum()}]), {})

    skipped.count(run(torch.nan), ("early",), 0.01)
    skipped.count(run(1.0), ("healthy",), 0.01)
    skipped.count(run(torch.nan), ("a", "b"), 0.01)
    with pytest.raises(RuntimeError, match=r"not finite in 2 steps in a row.*initial_lr \(0.01\): a, b, c$"):
        skipped.count(run(torch.nan), ("c",), 0.01)
    assert skipped.of_epoch == 3
    skipped.start_epoch()
    assert (skipped.of_epoch, skipped.in_a_row) == (0, 2), "a row goes on over the end of an epoch"


def test_a_step_without_any_gradient_leaves_the_scaler_alone(modules):
    scaler = torch.GradScaler("cpu", init_scale=4.0)
    step = Step({name: trained(module) for name, module in modules.items()}, torch.device("cpu"), scaler)
    assert step.run(iter([{"constant": torch.tensor(1.0)}]), {}).was_taken
    step.run(iter([{"one": modules["first"](torch.ones(1, 2)).sum()}]), {})
    assert scaler.get_scale() == 4.0
