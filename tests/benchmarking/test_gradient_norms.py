"""Norms of the gradients of a method's terms, which a benchmark measures within a run."""

import json

import pytest
import torch

from nnunet_ssl.benchmarking.gradient_norms import gradient_norms, measure_during
from nnunet_ssl.data.loaders import batches_on_device
from tests.conftest import assert_equal_weights, make_trainer, started, state_of
from tests.gloo_harness import trainer_called


@pytest.fixture
def dataset(tiny_dataset):
    return tiny_dataset(dim=2, batch_size=2)


@pytest.mark.parametrize("name", ["CPS", "C3S3", "CAD", "TransMedSeg"])
def test_a_run_is_the_same_whether_they_are_measured_or_not(dataset, tmp_path, name):
    """Of methods with random boxes, with scores, with work on the host and with statistics that they keep."""
    states, curves, file = [], [], tmp_path / "norms.json"
    for is_measured in (False, True):
        trainer = make_trainer(dataset, trainer_called(f"nnUNetTrainer{name}"), seed=1, num_epochs=10)
        if is_measured:
            measure_during(trainer, file)
        trainer.run_training()
        states.append(state_of(trainer))
        curves.append({name: one for name, one in trainer.observer.curves.values.items() if "seconds" not in name})
    assert_equal_weights(*states)
    assert repr(curves[0]) == repr(curves[1])  # Dice of validation patches, which are drawn too; some are nan
    norms = json.loads(file.read_text())
    assert list(norms) == (["0.6", "0.9"] if trainer.warmup_fraction else ["0.3", "0.6", "0.9"])
    terms = {term.removeprefix("loss/") for term in trainer.observer.epoch_records if term.startswith("loss/")}
    assert all(of_then.keys() == terms and of_then["supervised"] > 0 for of_then in norms.values())


def test_a_norm_is_that_of_the_gradient_of_all_networks(dataset):
    trainer = started(dataset, trainer_called("nnUNetTrainerMCNet"), num_epochs=10)
    trainer.current_epoch = 9
    batch = next(trainer.dataloader_train)
    norms = gradient_norms(trainer, [batch, batch])
    parameters = trainer.step.parameters
    terms = {}
    for losses in trainer.training_losses(*batches_on_device(batch, trainer.device)):
        for name, loss in losses.items():
            trainer.optimizer.zero_grad()
            loss.backward(retain_graph=True)
            terms[name] = sum(p.grad.double().square().sum() for p in parameters if p.grad is not None).sqrt().item()
    assert norms == pytest.approx(terms, rel=1e-3)
    assert len({round(norm, 6) for norm in norms.values()}) == len(norms) > 1


def test_a_term_without_gradient_has_none(dataset, monkeypatch):
    trainer = started(dataset, trainer_called("nnUNetTrainerMeanTeacher"))
    monkeypatch.setattr(trainer, "training_losses", lambda *_: iter([{"nothing": torch.tensor(2.0)}]))
    assert gradient_norms(trainer, [next(trainer.dataloader_train)]) == {"nothing": 0.0}
