import torch

from nnunet_ssl.building_blocks.label_space import SoftmaxLabels


def test_each_network_learns_the_labels_of_the_other(start, monkeypatch):
    trainer, labeled, unlabeled = start("CPS", progress=0.99)
    taught = []
    original = SoftmaxLabels.cross_entropy
    monkeypatch.setattr(
        SoftmaxLabels, "cross_entropy", lambda self, z, y: taught.append((z, y)) or original(self, z, y)
    )
    of_first, of_second = (
        trainer.label_space.pseudo_label(trainer.network_probabilities(unlabeled.strong, network))
        for network in (None, "second")
    )
    losses = {name: value for terms in trainer.training_losses(labeled, unlabeled) for name, value in terms.items()}
    assert list(losses) == ["supervised", "cross", "second_supervised", "second_cross"]
    assert torch.equal(taught[0][1], of_second)
    assert torch.equal(taught[1][1], of_first)
    assert not torch.equal(of_first, of_second)


def test_every_voxel_counts(start):
    trainer, labeled, unlabeled = start("CPS", progress=0.99)
    terms = list(trainer.training_losses(labeled, unlabeled))
    first = trainer.forward_pass(unlabeled.strong).logits
    target = trainer.label_space.pseudo_label(trainer.network_probabilities(unlabeled.strong, "second"))
    expected = torch.nn.functional.cross_entropy(first, target[:, 0])
    ramp = trainer.observer.step_records["ramp/cross"]
    torch.testing.assert_close(terms[1]["cross"], trainer.cross_weight * ramp * expected)


def test_the_labels_of_both_networks_are_watched(start, monkeypatch):
    trainer, labeled, unlabeled = start("CPS", progress=0.5)
    trainer.step_of_epoch = 0
    shares = [
        trainer.label_space.pseudo_label(trainer.network_probabilities(unlabeled.strong, network)).eq(1).float().mean()
        for network in (None, "second")
    ]
    list(trainer.training_losses(labeled, unlabeled))
    records = trainer.observer.step_records
    assert records["pseudo_label/1"] == shares[1]
    assert records["pseudo_label_for_second/1"] == shares[0]
    assert shares[0] != shares[1]
