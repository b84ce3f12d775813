"""The base of methods with two networks."""

import pytest
import torch

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from tests.conftest import assert_equal_weights, make_trainer, parameters_of, started, state_of


class Pair(DualNetworkTrainer):
    """Two networks that learn the labels; the second one's loss can be scaled."""

    scale = 1.0

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"second_supervised": self.scale * self.supervised_loss(labeled, "second")}


def test_networks_start_differently_and_are_both_trained(tiny_dataset):
    trainer = started(tiny_dataset(), Pair)
    before = [parameters_of(trainer.networks[name]) for name in ("first", "second")]
    assert any(not torch.equal(value, before[1][name]) for name, value in before[0].items())
    trainer.train_step(next(trainer.dataloader_train))
    for network, old in zip((trainer.network, trainer.networks["second"]), before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in parameters_of(network).items())


def test_each_network_is_clipped_for_itself(tiny_dataset):
    """A gradient of the second network that is a million times as large leaves the first one's step as it is."""
    dataset = tiny_dataset()
    small, large = (started(dataset, Pair, scale=scale) for scale in (1.0, 1e6))
    batch = next(small.dataloader_train)
    small.train_step(batch)
    large.train_step(batch)
    assert_equal_weights(parameters_of(small.network), parameters_of(large.network))
    norm = torch.stack([p.grad.norm() for p in large.networks["second"].parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(12.0, rel=1e-3)


def test_one_graph_is_alive_at_a_time(tiny_dataset):
    """What is yielded for the first network is back-propagated before the second one is run at all."""
    trainer = started(tiny_dataset(), Pair)
    order = []
    trainer.network.encoder.register_forward_hook(lambda *_: order.append("first"))
    trainer.networks["second"].encoder.register_forward_hook(lambda *_: order.append("second"))
    next(iter(trainer.network.parameters())).register_hook(lambda _: order.append("first back"))
    next(iter(trainer.networks["second"].parameters())).register_hook(lambda _: order.append("second back"))
    trainer.train_step(next(trainer.dataloader_train))
    assert order == ["first", "first back", "second", "second back"]


def test_learning_rates_fall_together(tiny_dataset):
    trainer = started(tiny_dataset(), Pair, num_epochs=4)
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    rates = [one.optimizer.param_groups[0]["lr"] for one in trainer.networks.trained.values()]
    assert rates[0] == rates[1] < trainer.initial_lr


@pytest.mark.parametrize("residual", [False, True])
def test_second_network_can_have_the_other_architecture(tiny_dataset, residual):
    trainer = started(tiny_dataset(residual=residual), Pair, second_architecture="other")
    names = [type(network).__name__ for network in trainer.networks.networks.values()]
    assert sorted(names) == ["PlainConvUNet", "ResidualEncoderUNet"]
    trainer.train_step(next(trainer.dataloader_train))
    trainer.validation_step(next(trainer.dataloader_val))
    assert trainer.hit_counts.counts.keys() == {"second"}


def test_unknown_architecture_is_refused(tiny_dataset):
    with pytest.raises(ValueError, match="second_architecture is same or other, got 'vit'"):
        make_trainer(tiny_dataset(), Pair, second_architecture="vit").initialize()


def test_initial_weights_go_into_the_first_network_alone(tiny_dataset, tmp_path):
    dataset = tiny_dataset()
    source = make_trainer(dataset, Pair, seed=7)
    source.initialize()
    source.save_checkpoint(str(tmp_path / "start.pth"))
    trainer = started(dataset, Pair, init_checkpoint=str(tmp_path / "start.pth"))
    assert_equal_weights(parameters_of(trainer.network), parameters_of(source.network))
    second = parameters_of(trainer.networks["second"])
    assert any(not torch.equal(value, second[name]) for name, value in parameters_of(source.network).items())


def test_probabilities_of_either_network_carry_no_gradient(tiny_dataset):
    trainer = started(tiny_dataset(num_classes=4), Pair)
    _, unlabeled = batches_on_device(next(trainer.dataloader_train), trainer.device)
    first = trainer.network_probabilities(unlabeled.weak)
    second = trainer.network_probabilities(unlabeled.weak, "second")
    for probs in (first, second):
        assert probs.shape == (2, 4, 16, 16, 16)
        assert not probs.requires_grad
        torch.testing.assert_close(probs.sum(1), torch.ones(2, 16, 16, 16))
    assert not torch.equal(first, second)


def test_run_with_two_architectures_goes_on_as_if_undisturbed(tiny_dataset):
    dataset = tiny_dataset()
    settings = {"seed": 1, "second_architecture": "other", "save_every": 1}
    undisturbed = make_trainer(dataset, Pair, **settings)
    undisturbed.run_training()
    stopped = make_trainer(dataset, Pair, **settings)
    stopped.on_epoch_end = lambda: stop_after_one(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(dataset, Pair, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))


def stop_after_one(trainer: Pair) -> None:
    type(trainer).on_epoch_end(trainer)
    raise KeyboardInterrupt
