from types import SimpleNamespace

import torch

from nnunet_ssl.training.stages import WARMUP


def differing(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first != second).any(1, keepdim=True)


def test_warmup_is_nnunets_own_and_needs_no_teacher(start, seen):
    trainer, labeled, unlabeled = start("BCP", progress=0.0)
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    losses = list(trainer._losses(labeled, unlabeled))
    assert [list(terms) for terms in losses] == [["supervised"]]
    assert torch.equal(losses[0]["supervised"], trainer.supervised_loss(labeled))
    assert torch.equal(student[0], labeled.image)
    assert not teacher


def test_both_directions_share_one_box(start, seen):
    trainer, labeled, unlabeled = start("BCP", progress=0.5)
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    names = [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]
    assert names == [["supervised"], ["labeled_part", "pseudo_label"]]
    assert torch.equal(student[0], labeled.image)
    assert torch.equal(teacher[0], unlabeled.weak)
    is_unlabeled = differing(student[1], labeled.image)
    assert torch.equal(student[1], torch.where(is_unlabeled, unlabeled.strong, labeled.image))
    assert torch.equal(is_unlabeled[0], ~is_unlabeled[1])
    box = round(2 / 3 * 16) ** 3
    assert sorted(is_unlabeled.sum((1, 2, 3, 4)).tolist()) == [box, 16**3 - box]


def test_each_voxel_is_taught_by_the_labels_of_the_image_it_is_from(start, monkeypatch):
    """Teach the images themselves: the labels of both parts together are the mixed image."""
    trainer, labeled, unlabeled = start("BCP", progress=0.5)
    space, taught = type(trainer.label_space), []
    monkeypatch.setattr(space, "labels", lambda self, target: labeled.image)
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_pseudo_labels", lambda *_: None)
    monkeypatch.setattr(trainer, "forward_pass", lambda image: SimpleNamespace(outputs=image))
    monkeypatch.setattr(trainer, "masked_losses", lambda *given: taught.append(given) or (1.0, 1.0))
    losses = list(trainer.training_losses(labeled, unlabeled))[1]
    ((image, labels, (is_labeled, is_unlabeled)),) = taught
    assert torch.equal(labels, image)
    assert torch.equal(is_labeled, ~is_unlabeled)
    assert torch.equal(image, torch.where(is_labeled, labeled.image, unlabeled.strong))
    assert losses == {"labeled_part": 1.0, "pseudo_label": 0.5}


def test_a_run_that_starts_from_a_checkpoint_has_no_warmup(start, tmp_path):
    trainer, *_ = start("BCP", progress=0.0)
    assert trainer.stages.at(trainer.progress) == WARMUP
    trainer.save_checkpoint(str(tmp_path / "labeled_only.pth"))
    trainer, *_ = start("BCP", progress=0.0, init_checkpoint=str(tmp_path / "labeled_only.pth"))
    assert trainer.stages.at(trainer.progress) != WARMUP


def test_ignored_voxels_teach_nothing_wherever_they_are_pasted(start):
    """A labeled image of which nothing is known leaves the pseudo-labels alone to teach."""
    trainer, labeled, unlabeled = start("BCP", progress=0.5, cell={"ignore": True})
    labeled.target[0].fill_(4)
    losses = list(trainer.training_losses(labeled, unlabeled))[1]
    nothing = torch.tensor(-sum(trainer.loss.weight_factors), dtype=losses["labeled_part"].dtype)
    torch.testing.assert_close(losses["labeled_part"].detach(), nothing)
