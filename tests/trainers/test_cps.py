import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SoftmaxLabels
from nnunet_ssl.building_blocks.mixing import partner


def labels_of(trainer, image) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        trainer.label_space.pseudo_label(trainer.network_probabilities(image, name)) for name in (None, "second")
    )


def test_each_network_learns_the_labels_of_the_other_for_the_same_mixed_images(start, seen, monkeypatch):
    trainer, labeled, unlabeled = start("CPS", progress=0.99)
    learned, original = [], SoftmaxLabels.cross_entropy
    monkeypatch.setattr(SoftmaxLabels, "cross_entropy", lambda self, z, y: learned.append(y) or original(self, z, y))
    of_first, of_second = labels_of(trainer, unlabeled.strong)
    first, second = seen(trainer.network), seen(trainer.networks["second"])
    losses = {name: value for terms in trainer.training_losses(labeled, unlabeled) for name, value in terms.items()}
    assert list(losses) == ["supervised", "cross", "second_supervised", "second_cross"]
    assert [torch.equal(image, unlabeled.strong) for image in first] == [False, True, False]
    assert torch.equal(first[2], second[2])
    assert torch.equal(second[0], unlabeled.strong)
    mixed = first[2]
    pasted = mixed != unlabeled.strong
    assert torch.equal(mixed[pasted], partner(unlabeled.strong)[pasted])
    assert 0.15 < pasted.float().mean() < 0.55
    for found, whole in zip(learned, (of_second, of_first), strict=True):
        assert torch.equal(found, torch.where(pasted, partner(whole), whole))
    assert not torch.equal(of_first, of_second)


def test_every_voxel_counts(start):
    trainer, labeled, unlabeled = start("CPS", progress=0.99, mixing_probability=0.0)
    terms = list(trainer.training_losses(labeled, unlabeled))
    _, target = labels_of(trainer, unlabeled.strong)
    expected = torch.nn.functional.cross_entropy(trainer.forward_pass(unlabeled.strong).logits, target[:, 0])
    ramp = trainer.observer.step_records["ramp/cross"]
    torch.testing.assert_close(terms[1]["cross"], trainer.cross_weight * ramp * expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_at_batch_size_1_nothing_is_pasted(start, seen, dim):
    trainer, labeled, unlabeled = start("CPS", cell={"dim": dim, "batch_size": 1})
    images = seen(trainer.network)
    list(trainer.training_losses(labeled, unlabeled))
    assert torch.equal(images[-1], unlabeled.strong)


def test_the_labels_of_both_networks_are_watched(start):
    trainer, labeled, unlabeled = start("CPS", progress=0.5)
    trainer.step_of_epoch = 0
    shares = [labels.eq(1).float().mean() for labels in labels_of(trainer, unlabeled.strong)]
    list(trainer.training_losses(labeled, unlabeled))
    records = trainer.observer.step_records
    assert records["pseudo_label/1"] == shares[1]
    assert records["pseudo_label_for_second/1"] == shares[0]
    assert shares[0] != shares[1]
