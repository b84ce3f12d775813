import pytest
import torch

from nnunet_ssl.building_blocks.pyramid import rectified_pyramid_consistency, upsampled_probabilities
from nnunet_ssl.building_blocks.ramps import gaussian_rampup
from nnunet_ssl.discovery.variants import find_trainer

SIX_STAGES = {"dim": 2, "num_classes": 4, "stages": 6}  # five heads


@pytest.mark.parametrize("cell", [{"num_classes": 4}, SIX_STAGES], ids=["two heads", "five heads"])
def test_finest_four_heads_are_supervised_with_one_weight(start, cell):
    trainer, labeled, unlabeled = start("URPC", cell=cell)
    outputs, targets = trainer.forward_pass(labeled.image).outputs[:4], labeled.target[:4]
    losses = [trainer.loss.loss(output, target) for output, target in zip(outputs, targets, strict=True)]
    supervised = next(trainer.training_losses(labeled, unlabeled))["supervised"]
    assert supervised.item() == pytest.approx(sum(losses).item() / len(losses), rel=1e-6)


def test_consistency_is_that_of_the_finest_heads_on_the_weak_view(start):
    trainer, labeled, unlabeled = start("URPC", cell=SIX_STAGES, consistency_weight=0.3)
    space = trainer.label_space
    probs = upsampled_probabilities(space, trainer.forward_pass(unlabeled.weak).outputs[:4])
    distance = rectified_pyramid_consistency(space, probs, torch.stack(probs).mean(0))
    expected = 0.3 * gaussian_rampup(0.5, 1.0) * distance.item()
    consistency = list(trainer.training_losses(labeled, unlabeled))[1]["consistency"]
    assert consistency.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.0


@pytest.mark.parametrize("why", ["no deep supervision", "two stages", "scales=1"])
def test_a_single_head_is_refused(start, monkeypatch, why):
    if why == "no deep supervision":
        build = find_trainer("nnUNetTrainerURPC").initialize

        def initialize(self) -> None:
            self.enable_deep_supervision = False
            build(self)

        monkeypatch.setattr(find_trainer("nnUNetTrainerURPC"), "initialize", initialize)
    cell = {"stages": 2} if why == "two stages" else {}
    with pytest.raises(ValueError, match="URPC compares .* several deep supervision heads, and here there is one"):
        start("URPC", cell=cell, **({"scales": 1} if why == "scales=1" else {}))
