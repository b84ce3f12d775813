import torch


def differing(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first != second).any(1, keepdim=True)


def test_warmup_is_nnunets_own_and_needs_no_teacher(start, seen):
    trainer, labeled, unlabeled = start("BCP", progress=0.0)
    student, teacher = seen(trainer.network), seen(trainer.teacher)
    losses = list(trainer.training_losses(labeled, unlabeled))
    assert [list(terms) for terms in losses] == [["supervised"]]
    assert torch.equal(losses[0]["supervised"], trainer.supervised_loss(labeled))
    assert torch.equal(student[0], labeled.image)
    assert not teacher


def test_both_directions_share_one_box(start, seen):
    trainer, labeled, unlabeled = start("BCP", progress=0.5)
    student, teacher = seen(trainer.network), seen(trainer.teacher)
    names = [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]
    assert names == [["labeled_inwards", "pseudo_label_inwards"], ["labeled_outwards", "pseudo_label_outwards"]]
    assert torch.equal(teacher[0], unlabeled.weak)
    inside = differing(student[0], labeled.image)  # there the first image is unlabeled
    assert torch.equal(student[0], torch.where(inside, unlabeled.strong, labeled.image))
    assert torch.equal(student[1], torch.where(inside, labeled.image, unlabeled.strong))
    assert inside[0].sum() == round(2 / 3 * 16) ** 3


def test_pseudo_labels_count_half_and_labels_only_where_they_are(start):
    """With weight 0 the pseudo-labeled part teaches nothing, and labels are learned where the image is labeled."""
    trainer, labeled, unlabeled = start("BCP", progress=0.5, pseudo_label_weight=0.0)
    for losses in trainer.training_losses(labeled, unlabeled):
        labels, pseudo_labels = losses.values()
        assert pseudo_labels == 0.0
        assert labels != 0.0


def test_a_run_that_starts_from_a_checkpoint_has_no_warmup(start, tmp_path):
    trainer, *_ = start("BCP", progress=0.0)
    assert trainer.in_warmup
    trainer.save_checkpoint(str(tmp_path / "labeled_only.pth"))
    trainer, *_ = start("BCP", progress=0.0, init_checkpoint=str(tmp_path / "labeled_only.pth"))
    assert not trainer.in_warmup


def test_ignored_voxels_teach_nothing_wherever_they_are_pasted(start):
    """A labeled image of which nothing is known leaves the pseudo-labels alone to teach."""
    trainer, labeled, unlabeled = start("BCP", progress=0.5, cell={"ignore": True})
    labeled.target[0].fill_(4)
    for losses in trainer.training_losses(labeled, unlabeled):
        labels, _ = losses.values()
        weight = sum(w for w in trainer.loss.weight_factors)
        torch.testing.assert_close(labels.detach(), torch.tensor(-0.5 * weight, dtype=labels.dtype))
