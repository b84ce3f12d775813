import pytest
import torch

from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import make_trainer


def taught_to(monkeypatch, trainer) -> list[tuple]:
    """Return what the masked loss is given from here on: image, labels, weight."""
    taught, images, pass_ = [], [], trainer.forward_pass
    monkeypatch.setattr(trainer, "forward_pass", lambda image, network=None: images.append(image) or pass_(image))
    monkeypatch.setattr(
        trainer,
        "masked_loss",
        lambda outputs, labels, weight: taught.append((images[-1], labels, weight)) or torch.tensor(2.0),
    )
    return taught


@pytest.mark.parametrize("regions", [False, True])
def test_the_augmented_patch_is_taught_by_the_whole_case_over_all_voxels(start, monkeypatch, regions):
    cell = {"num_classes": 4, "regions": regions}
    trainer, labeled, unlabeled = start("SelfTraining", cell=cell, pseudo_label_weight=0.3)
    taught = taught_to(monkeypatch, trainer)
    monkeypatch.setattr(trainer, "network_probabilities", None)
    losses = list(trainer.training_losses(labeled, unlabeled))
    ((image, labels, weight),) = taught
    assert torch.equal(image, unlabeled.strong)
    assert torch.equal(labels, unlabeled.pseudo_label)
    assert labels.shape[1] == (2 if regions else 1)
    assert (weight == 1).all()
    assert losses[1]["pseudo_label"] == pytest.approx(0.6)


def test_true_labels_as_pseudo_labels_give_nnunets_loss(start):
    """The loss is nnU-Net's form: of one image, whose Dice by sample and by batch are the same, it is nnU-Net's."""
    trainer, labeled, unlabeled = start("SelfTraining", cell={"batch_size": 1, "num_classes": 2})
    found = trainer.forward_pass(labeled.image).outputs
    supervised = trainer.supervised_loss(labeled, outputs=found)
    everywhere = torch.ones_like(labeled.image[:, :1])
    masked = trainer.masked_loss(found, trainer.label_space.labels(labeled.full_target), everywhere)
    assert masked.item() == pytest.approx(supervised.item(), rel=0.02)  # lower heads take other voxels of the labels


def test_online_the_network_labels_the_patch_and_learns_it_turned(start, monkeypatch):
    """What it is taught is the same label at the same voxels, once it is turned back."""
    trainer, labeled, unlabeled = start("SelfTraining", online=True)
    taught, drawn = taught_to(monkeypatch, trainer), set()
    expected = trainer.label_space.pseudo_label(trainer.network_probabilities(unlabeled.strong))
    pairs = torch.cat([unlabeled.strong, expected.float()], 1)
    for _ in range(12):
        list(trainer.training_losses(labeled, unlabeled))
        found = torch.cat([taught[-1][0], taught[-1][1].float()], 1)
        positions = [
            (turns, axes)
            for turns in range(4)
            for axes in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))
            if torch.equal(found, pairs.rot90(turns, (-2, -1)).flip(axes))
        ]
        assert positions
        drawn.add(positions[0])
    assert len(drawn) > 3


@pytest.mark.parametrize(("cell", "axes"), [({"dim": 2}, (0, 1)), ({"dim": 3, "anisotropic": True}, (0, 1, 2))])
def test_turns_keep_the_shape_and_change_the_patch(start, cell, axes):
    trainer, *_ = start("SelfTraining", online=True, cell=cell)
    image = torch.rand(2, 1, *trainer.configuration_manager.patch_size)
    assert trainer.mirror_axes == axes
    assert len({tuple(trainer.turned(image)[0].flatten().tolist()) for _ in range(60)}) > 6
    oblong = image[..., :8]
    mirrored = {tuple(oblong.flip(along).flatten().tolist()) for along in ((), (-1,), (-2,), (-2, -1))}
    found = {tuple(trainer.turned(oblong)[0].flatten().tolist()) for _ in range(150)}
    assert found == mirrored if len(axes) == 2 else found > mirrored


@pytest.mark.parametrize("axes", [None, (0,)])
def test_nothing_is_turned_to_all_sides_where_it_is_not_mirrored(start, axes):
    trainer, *_ = start("SelfTraining", online=True, cell={"dim": 2})
    image = torch.rand(2, 1, *trainer.configuration_manager.patch_size)
    trainer.inference_allowed_mirroring_axes = axes
    found = {tuple(trainer.turned(image)[0].flatten().tolist()) for _ in range(30)}
    assert found == {tuple(one.flatten().tolist()) for one in ([image] if axes is None else [image, image.flip(2)])}


def test_online_needs_no_label_of_the_whole_case(start):
    trainer, labeled, unlabeled = start("SelfTraining", online=True)
    object.__setattr__(unlabeled, "pseudo_label", None)
    names = [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]
    assert names == [["supervised"], ["pseudo_label"]]


def test_stages_and_rounds(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerSelfTraining"), num_epochs=1000)
    trainer.initialize()
    assert trainer.stages.epochs_of_rounds(trainer.prediction_rounds, 1000) == [400, 600, 800]
    assert trainer.inference_network() == "network"
