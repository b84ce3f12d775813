import pytest
import torch

from nnunet_ssl.building_blocks.consistency import mutual_consistency


def test_three_decoders_learn_the_labels_and_each_other(start):
    trainer, labeled, unlabeled = start("MCNet", progress=0.99)
    terms = list(trainer.training_losses(labeled, unlabeled))
    names = [list(losses) for losses in terms]
    assert names == [
        ["supervised", "supervised_linear", "supervised_nearest", "labeled_consistency"],
        ["consistency"],
    ]
    torch.testing.assert_close(terms[0]["supervised"], trainer.supervised_loss(labeled))
    assert len({round(terms[0][name].item(), 6) for name in names[0][:3]}) == 3


def test_consistency_is_weighted_half_for_each_kind_of_image(start):
    trainer, labeled, unlabeled = start("MCNet", progress=0.5, consistency_weight=0.8)
    terms = {name: value for losses in trainer.training_losses(labeled, unlabeled) for name, value in losses.items()}
    ramp = trainer.observer.step_records["ramp/consistency"]
    for name, image in (("labeled_consistency", labeled.image), ("consistency", unlabeled.weak)):
        outputs = trainer.outputs_of_decoders(image)
        probs = [trainer.probabilities(heads[0]) for heads in outputs.values()]
        expected = 0.4 * ramp * mutual_consistency(probs, 0.1)
        torch.testing.assert_close(terms[name], expected)


def test_one_encoder_serves_all_decoders(start, seen):
    trainer, labeled, unlabeled = start("MCNet")
    images = seen(trainer.network)
    list(trainer.training_losses(labeled, unlabeled))
    assert len(images) == 2
    assert torch.equal(images[0], labeled.image)
    assert torch.equal(images[1], unlabeled.weak)


@pytest.mark.parametrize("cell", [{"dim": 2, "residual": True}, {"anisotropic": True, "regions": True}], ids=str)
def test_prediction_is_that_of_nnunets_own_decoder(start, cell, tmp_path):
    trainer, labeled, unlabeled = start("MCNet", cell=cell)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_space.num_channels, True
    )
    network.load_state_dict(saved["network_weights"])
    outputs = trainer.outputs_of_decoders(unlabeled.weak)
    assert torch.equal(network(unlabeled.weak)[0], outputs["supervised"][0])
