"""The graph of a feature map and its cluster loss against naive float64 references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ssl.building_blocks.graph import (
    CLUSTERS,
    GraphClustering,
    affinity,
    cluster_loss,
    nodes_of,
    normalized_adjacency,
)


class Encoder(nn.Module):
    """What the graph asks of an encoder."""

    def __init__(self, dimensions: int, features: int) -> None:
        super().__init__()
        self.conv_op = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.output_channels = [2, features]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def graph_of(dimensions: int, features: int) -> GraphClustering:
    torch.manual_seed(0)
    return GraphClustering(Encoder(dimensions, features))


def test_nodes_are_the_places_of_the_map():
    features = torch.arange(12.0).view(1, 2, 3, 2)
    assert nodes_of(features)[0].tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]


def test_affinity_is_the_cosine():
    nodes = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    half = 0.5**0.5
    expected = [
        [1.0, 0.0, -1.0, half, 0.0],
        [0.0, 1.0, 0.0, half, 0.0],
        [-1.0, 0.0, 1.0, -half, 0.0],
        [half, half, -half, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(affinity(nodes)[0], torch.tensor(expected))


def test_adjacency_is_normalised_by_the_degrees_of_both_ends():
    weights = torch.tensor([[[1.0, 3.0, 0.0], [3.0, 1.0, 5.0], [0.0, 5.0, 4.0]]])
    degrees = np.array([4.0, 9.0, 9.0])
    expected = weights[0].numpy() / np.sqrt(degrees[:, None] * degrees[None])
    np.testing.assert_allclose(normalized_adjacency(weights)[0].numpy(), expected, rtol=1e-6)


def test_adjacency_of_nodes_without_edges_is_zero():
    weights = torch.zeros(1, 3, 3, requires_grad=True)
    found = normalized_adjacency(weights)
    assert found.abs().max() == 0.0
    found.sum().backward()
    assert weights.grad.isfinite().all()


def naive_loss(nodes: np.ndarray, assignments: np.ndarray, temperature: float) -> float:
    """Return -Tr(W S Sᵀ) / N² as sums over pairs, the mean over images, in float64."""
    losses = []
    for f, s in zip(nodes, assignments, strict=True):
        unit = [one / np.linalg.norm(one) for one in f]
        cosines = [[one @ other for other in unit] for one in unit]
        threshold = max(max(row) for row in cosines) / temperature
        number = len(f)
        pairs = [(cosines[i][j] - threshold) * (s[j] @ s[i]) for i in range(number) for j in range(number)]
        losses.append(-sum(pairs) / number**2)
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_cluster_loss_is_that_of_the_naive_reference(temperature):
    nodes, assignments = normal(2, 7, 4), normal(2, 7, 3, seed=1).softmax(2)
    expected = naive_loss(nodes.double().numpy(), assignments.double().numpy(), temperature)
    assert cluster_loss(nodes, assignments, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_cluster_loss_by_hand():
    """Two pairs of opposite nodes: W is ½ within a pair and -1½ between them."""
    nodes = torch.tensor([[[1.0], [2.0], [-1.0], [-4.0]]])
    apart = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert cluster_loss(nodes, apart, 2.0).item() == pytest.approx(-8 * 0.5 / 16)
    assert cluster_loss(nodes, apart[..., :1] * 0 + 1.0, 2.0).item() == pytest.approx(-(8 * 0.5 - 8 * 1.5) / 16)


def test_assignments_that_are_free_join_what_is_alike_and_part_the_rest():
    """Of ten clusters as many are used as there are groups."""
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    nodes = (torch.eye(3)[groups] + 0.1 * normal(7, 3))[None]
    scores = (0.1 * normal(1, 7, CLUSTERS, seed=1)).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        cluster_loss(nodes, scores.softmax(2)).backward()
        optimizer.step()
    clusters = scores[0].argmax(1)
    assert torch.equal(clusters[:, None] == clusters, groups[:, None] == groups)


def test_nodes_are_constant_in_the_loss():
    nodes, assignments = normal(1, 5, 3).requires_grad_(), normal(1, 5, 2).softmax(2).requires_grad_()
    cluster_loss(nodes, assignments).backward()
    assert nodes.grad is None
    assert assignments.grad.abs().min() > 0.0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_assignments_are_those_of_the_naive_reference(dimensions):
    graph, features = graph_of(dimensions, 4), normal(2, 4, *(3,) * dimensions)
    found = graph(features)
    assert found.shape == (2, 3**dimensions, CLUSTERS)
    graph = graph.double()
    structure = graph.structure_analyser(features.double()).flatten(2).detach().numpy()
    nodes = features.double().flatten(2).numpy()
    for image in (0, 1):
        x, s = nodes[image].T, structure[image].T
        unit = s / np.linalg.norm(s, axis=1, keepdims=True)
        edges = np.maximum(unit @ unit.T, 0.0)
        d = np.diag(edges.sum(1) ** -0.5)
        z = graph.graph_convolution(torch.from_numpy(d @ edges @ d @ x))
        expected = graph.assignment(z).softmax(1)
        torch.testing.assert_close(found[image].double(), expected, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_all_of_the_graph_and_the_features():
    graph, features = graph_of(3, 4), normal(1, 4, 2, 3, 2).requires_grad_()
    loss = graph.loss(features)
    torch.testing.assert_close(loss, cluster_loss(nodes_of(features), graph(features)))
    loss.backward()
    assert all(parameter.grad.abs().max() > 0.0 for parameter in graph.parameters())
    assert features.grad.abs().max() > 0.0


def test_features_that_are_all_alike_or_zero_have_a_finite_gradient():
    graph = graph_of(2, 4)
    for features in (torch.zeros(1, 4, 3, 3), torch.ones(1, 4, 1, 1)):
        features.requires_grad_()
        graph.loss(features).backward()
        assert features.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in graph.parameters())


def test_mixed_precision_leaves_the_graph_in_float32():
    graph, features = graph_of(2, 4), normal(1, 4, 5, 5).half()
    expected = graph.loss(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(graph.loss(features), expected)


def test_free_features_are_not_drawn_into_one_cluster():
    """With features and graph trained together, unlike groups of places stay in clusters of their own."""
    graph = graph_of(2, 4)
    groups = torch.zeros(1, 4, 4, 4)
    groups[:, 0, :2], groups[:, 1, 2:] = 1.0, 1.0
    features = (groups + 0.05 * normal(1, 4, 4, 4)).requires_grad_()
    optimizer = torch.optim.Adam([features, *graph.parameters()], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        graph.loss(features).backward()
        optimizer.step()
    similarity = F.cosine_similarity(features[0, :, 0, 0], features[0, :, 3, 0], dim=0)
    clusters = graph(features)[0].argmax(1).view(4, 4)
    assert clusters[0, 0] != clusters[3, 0]
    assert similarity < 0.5
