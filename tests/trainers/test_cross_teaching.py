import torch

from nnunet_ssl.building_blocks.label_space import SoftmaxLabels


def test_the_two_networks_are_of_different_architecture(start):
    trainer, *_ = start("CrossTeaching")
    names = [type(network).__name__ for network in trainer.networks.networks.values()]
    assert names == ["PlainConvUNet", "ResidualEncoderUNet"]
    trainer, *_ = start("CrossTeaching", cell={"residual": True})
    names = [type(network).__name__ for network in trainer.networks.networks.values()]
    assert names == ["ResidualEncoderUNet", "PlainConvUNet"]


def test_each_network_learns_the_labels_of_the_other(start, monkeypatch):
    trainer, labeled, unlabeled = start("CrossTeaching", progress=0.99)
    learned, dice = [], SoftmaxLabels.dice
    monkeypatch.setattr(SoftmaxLabels, "dice", lambda self, p, y: learned.append((p, y)) or dice(self, p, y))
    first, second = (trainer.network_probabilities(unlabeled.weak, name) for name in (None, "second"))
    space = trainer.label_space
    names = [name for losses in trainer.training_losses(labeled, unlabeled) for name in losses]
    assert names == ["supervised", "cross", "second_supervised", "second_cross"]
    (of_first, target_of_first), (of_second, target_of_second) = learned
    torch.testing.assert_close(of_first.detach(), first)
    torch.testing.assert_close(of_second.detach(), second)
    assert torch.equal(target_of_first, space.one_hot(space.pseudo_label(second)))
    assert torch.equal(target_of_second, space.one_hot(space.pseudo_label(first)))
    assert of_first.requires_grad
    assert of_second.requires_grad


def test_loss_by_hand(start):
    """Sure and equal to the label the Dice loss is 0; sure and elsewhere it is the whole weight."""
    trainer, *_ = start("CrossTeaching", progress=0.99)
    labels = torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)
    labels[..., 0] = 1
    labels[..., 1] = 2
    labels[..., 2] = 3
    probs = trainer.label_space.one_hot(labels)
    ramp = trainer.ramp("cross")
    assert trainer.cross_loss(probs, labels).item() == 0.0
    wrong = trainer.cross_loss(trainer.label_space.one_hot(torch.zeros_like(labels)), labels)
    torch.testing.assert_close(wrong, torch.tensor(trainer.cross_weight * ramp), atol=1e-4, rtol=0)
