import math

import numpy as np
import pytest

from nnunet_ssl.evaluation.label_priority import (
    Uncertainty,
    disagreement,
    measure_uncertainty,
    normalized_entropy,
    priority,
)


def test_entropy_of_known_distributions():
    """Certain: 0. Uniform: 1. Halves over two of four classes: ln 2 / ln 4 = 0.5."""
    probs = np.array([[1, 0.25, 0.5], [0, 0.25, 0.5], [0, 0.25, 0], [0, 0.25, 0]])
    assert normalized_entropy(probs, is_softmax=True) == pytest.approx([0, 1, 0.5], abs=1e-9)
    regions = np.array([[1.0, 0.5, 1.0], [0.0, 0.1, 0.11]])
    largest = -(0.11 * math.log2(0.11) + 0.89 * math.log2(0.89))
    assert normalized_entropy(regions, is_softmax=False) == pytest.approx([0, 1, largest], abs=1e-9)


def test_entropy_is_that_of_the_foreground_and_its_border():
    """A line of 20 voxels, 3 of them predicted: only these and two at either side count, 7 in all."""
    probs = np.zeros((2, 20))
    probs[0] = 1
    probs[:, 8:11] = [[0.5], [0.5]]
    probs[:, 0] = 0.5  # far away, uncertain
    mask = np.zeros(20, bool)
    mask[8:11] = True
    found = measure_uncertainty(probs, {"organ": mask}, {"organ": 1}, is_softmax=True)
    assert found.entropy == pytest.approx(3 / 7)
    assert found.confidence == {"organ": 0.5}
    assert math.isnan(found.disagreement)


def test_nothing_predicted_is_nan_and_comes_first():
    empty = {"organ": np.zeros(5, bool)}
    found = measure_uncertainty(np.full((2, 5), 0.5), empty, {"organ": 1}, True, empty)
    assert math.isnan(found.entropy)
    assert math.isnan(found.disagreement)
    assert math.isnan(found.confidence["organ"])
    assert priority({"sure": Uncertainty(0.1, 0.1, {}), "empty": found, "unsure": Uncertainty(0.9, 0.9, {})}) == [
        "empty",
        "unsure",
        "sure",
    ]


def test_disagreement_by_hand():
    first = {"a": np.array([1, 1, 0, 0, 0], bool), "b": np.array([0, 0, 1, 0, 0], bool)}
    second = {"a": np.array([1, 0, 1, 0, 0], bool), "b": np.array([0, 0, 0, 0, 0], bool)}
    assert disagreement(first, second) == pytest.approx(2 / 3)
    assert disagreement(first, first) == 0


def test_priority_is_the_mean_of_both_ranks():
    """Ranks by entropy a b c, by disagreement b a c: a and b share the first place, in their order."""
    cases = {"c": (0.1, 0.1), "a": (0.9, 0.5), "b": (0.5, 0.9)}
    assert priority({name: Uncertainty(*values, {}) for name, values in cases.items()}) == ["a", "b", "c"]
    one_network = {name: Uncertainty(entropy, math.nan, {}) for name, (entropy, _) in cases.items()}
    assert priority(one_network) == ["a", "b", "c"]
    assert priority({}) == []
