"""The masked loss against nnU-Net's own and naive float64 references."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.masked_loss import (
    deep_supervision_loss,
    masked_cross_entropy_and_dice,
    resize_nearest,
)

DICE = {"batch_dice": True, "smooth": 1e-5, "ddp": False}


def masked_loss(space, z, y, weight):
    return masked_cross_entropy_and_dice(space, z, y, [weight])[0]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0, classes: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def test_without_mask_it_is_nnunets_loss_of_labels():
    z, y = logits(2, 3, 6, 5), labels(2, 1, 6, 5)
    reference = DC_and_CE_loss({**DICE, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)(z, y)
    ours = masked_loss(SoftmaxLabels(3), z, y, torch.ones(2, 1, 6, 5))
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)


def test_without_mask_it_is_nnunets_loss_of_regions():
    z, y = logits(2, 2, 6, 5), labels(2, 2, 6, 5, classes=2)
    loss = DC_and_BCE_loss({}, {**DICE, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    ours = masked_loss(SigmoidRegions(2), z, y, torch.ones(2, 1, 6, 5))
    torch.testing.assert_close(ours, loss(z, y.float()), atol=1e-6, rtol=0)


def test_masked_voxels_are_nnunets_ignored_voxels():
    z, y = logits(2, 3, 6, 5), labels(2, 1, 6, 5)
    known = labels(2, 1, 6, 5, seed=1, classes=2).bool()
    loss = DC_and_CE_loss({**DICE, "do_bg": False}, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    reference = loss(z, torch.where(known, y, 3))
    ours = masked_loss(SoftmaxLabels(3), z, y, known)
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)


@pytest.mark.parametrize("space", [SoftmaxLabels(3), SigmoidRegions(3)], ids=lambda space: type(space).__name__)
def test_masked_voxels_get_no_gradient(space):
    z = logits(2, 3, 6, 5).requires_grad_()
    y = space.pseudo_label(space.probabilities(logits(2, 3, 6, 5, seed=2)))
    mask = labels(2, 1, 6, 5, seed=1, classes=2).bool()
    masked_loss(space, z, y, mask).backward()
    assert z.grad[~mask.expand_as(z)].abs().max() == 0.0
    assert z.grad[mask.expand_as(z)].abs().min() > 0.0


def test_empty_mask_is_constant():
    z = logits(2, 3, 6, 5).requires_grad_()
    loss = masked_loss(SoftmaxLabels(3), z, labels(2, 1, 6, 5), torch.zeros(2, 1, 6, 5))
    loss.backward()
    assert loss.item() == -1.0
    assert z.grad.abs().max() == 0.0


def test_regions_have_masks_of_their_own():
    space, z, y = SigmoidRegions(2), logits(1, 2, 4, 4), labels(1, 2, 4, 4, classes=2)
    mask = torch.zeros(1, 2, 4, 4)
    mask[:, 0] = 1.0
    p = z.double().sigmoid().numpy()
    g = y.double().numpy()
    bce = -(g * np.log(p) + (1 - g) * np.log(1 - p))[:, 0].mean()
    dice = [(2 * (p * g)[:, 0].sum() + 1e-5) / ((p + g)[:, 0].sum() + 1e-5), 1.0]
    assert masked_loss(space, z, y, mask).item() == pytest.approx(bce - np.mean(dice), rel=1e-5)


def test_heads_are_weighted_and_those_without_weight_left_out():
    space, y, weight = SoftmaxLabels(3), labels(2, 1, 8, 8), labels(2, 1, 8, 8, seed=1, classes=2).float()
    outputs = [logits(2, 3, 8, 8), logits(2, 3, 4, 4, seed=1), torch.full((2, 3, 2, 2), torch.nan)]
    small = (resize_nearest(y, (4, 4)), resize_nearest(weight, (4, 4)))
    expected = 0.7 * masked_loss(space, outputs[0], y, weight)
    expected += 0.3 * masked_loss(space, outputs[1], *small)
    torch.testing.assert_close(deep_supervision_loss(space, outputs, y, [weight], (0.7, 0.3, 0.0))[0], expected)


@pytest.mark.parametrize("space", [SoftmaxLabels(3), SigmoidRegions(3)], ids=lambda space: type(space).__name__)
def test_several_weights_at_once_are_as_one_by_one(space):
    outputs = [logits(2, 3, 8, 8).requires_grad_(), logits(2, 3, 4, 4, seed=1).requires_grad_()]
    y = space.pseudo_label(space.probabilities(logits(2, 3, 8, 8, seed=2)))
    weights = [labels(2, 1, 8, 8, seed=seed, classes=2).bool() for seed in (3, 4)]
    together = deep_supervision_loss(space, outputs, y, weights, (0.7, 0.3))
    alone = [deep_supervision_loss(space, outputs, y, [weight], (0.7, 0.3))[0] for weight in weights]
    assert len(together) == 2
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, expected)
        gradients = torch.autograd.grad(ours, outputs, retain_graph=True)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, outputs))


def test_resizing_takes_the_nearest_voxel():
    maps = torch.arange(16).reshape(1, 1, 4, 4)
    assert resize_nearest(maps, (2, 2)).flatten().tolist() == [5, 7, 13, 15]
    assert resize_nearest(maps, (4, 4)).dtype == torch.float32
    assert set(resize_nearest(labels(1, 1, 5, 7, 3), (2, 3, 2)).flatten().tolist()) <= {0.0, 1.0, 2.0}
