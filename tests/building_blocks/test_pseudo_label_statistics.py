import math

import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.pseudo_label_statistics import collapsed, foreground_shares, pseudo_label_statistics


def test_softmax_hand_values():
    target = torch.tensor([[0.97, 0.6, 0.01, 0.3], [0.03, 0.4, 0.99, 0.7]])[None, :, None]  # labels 0 0 1 1
    probs = torch.tensor([[0.9, 0.1, 0.2, 0.1], [0.1, 0.9, 0.8, 0.9]])[None, :, None]  # labels 0 1 1 1
    statistics = pseudo_label_statistics(SoftmaxLabels(2), target, probs)
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        {"confident": 0.5, "agreement": 0.75, "pseudo_label/1": 0.5}
    )


def test_region_hand_values():
    target = torch.tensor([[0.99, 0.6], [0.2, 0.03]])[None, :, None]
    statistics = pseudo_label_statistics(SigmoidRegions(2), target, 1 - target)
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        {"confident": 0.5, "agreement": 0.0, "pseudo_label/0": 1.0, "pseudo_label/1": 0.0}
    )


def test_shares_leave_the_ignore_label_out():
    target = torch.tensor([0, 1, 3, 3])[None, None, None]
    shares = foreground_shares(SoftmaxLabels(3, ignore_label=3), target)
    assert {name: value.item() for name, value in shares.items()} == {"1": 0.5, "2": 0.0}


def test_agreement_needs_the_predictions_of_the_same_voxels():
    target = torch.rand(1, 3, 4, 4).softmax(1)
    assert "agreement" not in pseudo_label_statistics(SoftmaxLabels(3), target)


@pytest.mark.parametrize(
    ("shares", "state"),
    [
        ([0.02, 0.02, 0.02], None),
        ([0.02, 0.001, 0.001, 0.001], "vanished"),
        ([0.02, 0.3, 0.3, 0.3], "flooded"),
        ([0.001, 0.001], None),  # too few epochs to say
        ([0.001, 0.001, 0.02, 0.02, 0.001], None),  # a single epoch
        ([0.001, math.nan, 0.001, 0.001], None),  # an epoch that was not observed
    ],
)
def test_collapse_is_told_from_the_last_epochs(shares, state):
    assert collapsed([0.03, math.nan, 0.01], shares) == state


@pytest.mark.parametrize(
    ("prior", "flooded_from"), [(0.001, 0.0099), (0.1, 0.5263), (0.3, 0.8108), (0.5, 0.9091), (0.9, 0.989)]
)
def test_large_structures_flood_too(prior, flooded_from):
    """Tenfold odds by hand: 0.3 is 3 : 7, tenfold 30 : 7, a share of 0.8108."""
    assert collapsed([prior], [flooded_from - 0.001] * 3) is None
    assert collapsed([prior], [flooded_from + 0.001] * 3) == "flooded"
    assert collapsed([prior], [prior / 9] * 3) is None
    assert collapsed([prior], [prior / 11] * 3) == "vanished"


def test_labels_of_chosen_places_are_no_measure_of_the_whole():
    scribbles = [0.4, 0.4]
    for share, state in [(0.0, "vanished"), (0.001, None), (0.98, None), (1.0, "flooded")]:
        assert collapsed(scribbles, [share] * 3, labels_are_complete=False) == state


def test_rare_structure_can_flood_but_not_vanish():
    """Most epochs' random patches lack it: its mean share is 0.01, tenfold odds are 0.0917 by hand."""
    prior = [0.0, 0.0, 0.02, math.nan, 0.0, 0.03]
    for share, state in [(0.0, None), (0.0916, None), (0.0919, "flooded")]:
        assert collapsed(prior, [share] * 3) == state


def test_a_class_that_no_label_has_cannot_collapse():
    assert collapsed([0.0, 0.0], [0.0, 0.0, 0.0]) is None
    assert collapsed([math.nan], [0.5, 0.5, 0.5]) is None
