from types import SimpleNamespace

import pytest
import torch

from nnunet_ssl.building_blocks.mixing import partner
from nnunet_ssl.training.stages import WARMUP


def test_two_strong_views_of_which_one_has_what_the_other_lacks(start, seen, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatchV2", progress=0.9, dropout_probability=1.0)
    student, teacher, decoded = seen(trainer.network), seen(trainer.networks["teacher"]), []
    decode = trainer.decode
    monkeypatch.setattr(trainer, "decode", lambda skips: decoded.append(skips) or decode(skips))
    names = [name for losses in trainer.training_losses(labeled, unlabeled) for name in losses]
    assert names == ["supervised", "strong", "second_strong"]
    assert [torch.equal(image, unlabeled.weak) for image in teacher] == [True]
    mixed = student[1:]
    for image, view in zip(mixed, (unlabeled.strong, unlabeled.second_strong), strict=True):
        own, pasted = image == view, image == partner(view)
        assert (own | pasted).all()
        assert 0.0 < (~own).float().mean() < 0.45
    dropped = []
    for image, levels in zip(mixed, decoded, strict=True):
        whole = trainer.encode(image)
        dropped.append([(level == 0).flatten(2).all(2) for level in levels])
        for level, full, gone in zip(levels, whole, dropped[-1], strict=True):
            torch.testing.assert_close(level[~gone], 2 * full[~gone])
    for first, second in zip(*dropped, strict=True):
        assert torch.equal(first, ~second)


def test_without_dropout_features_stay(start, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatchV2", progress=0.9, dropout_probability=0.0, mixing_probability=0.0)
    decoded = []
    decode = trainer.decode
    monkeypatch.setattr(trainer, "decode", lambda skips: decoded.append(skips) or decode(skips))
    list(trainer.training_losses(labeled, unlabeled))
    for image, levels in zip((unlabeled.strong, unlabeled.second_strong), decoded, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(levels, trainer.encode(image), strict=True))


def test_labels_are_mixed_as_the_images_are(start, monkeypatch):
    """Take the image itself for the label and accept it where it is bright: mixed alike, all three stay together."""
    trainer, labeled, unlabeled = start("UniMatchV2", progress=0.9, dropout_probability=0.0)
    unlabeled = SimpleNamespace(weak=unlabeled.weak, strong=unlabeled.strong, second_strong=unlabeled.strong)
    monkeypatch.setattr(trainer, "accepted_pseudo_labels", lambda _: (unlabeled.strong, unlabeled.strong > 0))
    monkeypatch.setattr(trainer, "encode", lambda image: [image])
    monkeypatch.setattr(trainer, "decode", lambda skips: SimpleNamespace(outputs=skips))
    given = []
    monkeypatch.setattr(trainer, "masked_loss", lambda *maps: given.append(maps) or torch.zeros(()))
    list(trainer.training_losses(labeled, unlabeled))
    for (image,), labels, accepted in given:
        assert torch.equal(image, labels)
        assert torch.equal(image > 0, accepted)
        assert not torch.equal(image, unlabeled.strong)
    assert not torch.equal(given[0][1], given[1][1]), "each view has a box of its own"


def test_each_view_counts_half(start, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatchV2", progress=0.9, pseudo_label_weight=0.8)
    monkeypatch.setattr(trainer, "masked_loss", lambda *_: 1.0)
    losses = {name: value for terms in trainer.training_losses(labeled, unlabeled) for name, value in terms.items()}
    del losses["supervised"]
    assert losses == pytest.approx({"strong": 0.4, "second_strong": 0.4})


def test_warmup_is_labeled_only(start):
    trainer, labeled, unlabeled = start("UniMatchV2", progress=0.0)
    assert trainer.stages.at(trainer.progress) == WARMUP
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"]]
