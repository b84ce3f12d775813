"""A graph of the places of a feature map: their affinity, features averaged along it, and clusters of them.

M. Wang, H. Su, J. Li, C. Li, N. Yin, L. Shen, J. Guo, "GraphCL: Graph-based Clustering for Semi-Supervised Medical
Image Segmentation", ICML 2025, https://arxiv.org/abs/2411.13147; its loss is that of A. Aflalo, S. Bagon, T. Kashti,
Y. Eldar, "DeepCut: Unsupervised Segmentation using Graph Neural Networks Clustering", ICCV Workshops 2023,
https://arxiv.org/abs/2212.05853
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLUSTERS = 10  # at most: how many are used is learned; DeepCut's code
TEMPERATURE = 2.0  # τ; GraphCL


class GraphClustering(nn.Module):
    """Assigns the places of a feature map to clusters, by features that are averaged over places alike."""

    def __init__(self, encoder: nn.Module, clusters: int = CLUSTERS) -> None:
        """Start with random numbers.

        Args:
            encoder: of a U-Net as nnU-Net builds it, whose last features have the places.
            clusters: at most.
        """
        super().__init__()
        features = encoder.output_channels[-1]
        self.structure_analyser = encoder.conv_op(features, features, 3, padding=1)
        self.graph_convolution = nn.Linear(features, features)
        self.assignment = nn.Sequential(
            nn.ELU(), nn.Linear(features, features), nn.ELU(), nn.Linear(features, clusters)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return how much each place belongs to each cluster: float32 (B, N, clusters), a softmax; with gradient.

        Args:
            features: (B, F, *spatial) with N places; the gradient flows through.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            structure = nodes_of(self.structure_analyser(features))
            adjacency = normalized_adjacency(affinity(structure).relu())
            return self.assignment(self.graph_convolution(adjacency @ nodes_of(features))).softmax(2)

    def loss(self, features: Tensor) -> Tensor:
        """Return `cluster_loss` of the places of a feature map (B, F, *spatial) and of how it assigns them."""
        return cluster_loss(nodes_of(features), self(features))


def nodes_of(features: Tensor) -> Tensor:
    """Return the places of a feature map (B, F, *spatial) as nodes (B, N, F)."""
    return features.flatten(2).transpose(1, 2)


def affinity(nodes: Tensor) -> Tensor:
    """Return the cosine of the features of each two nodes: (B, N, N) in [-1, 1], 1 with itself; gradient to the nodes.

    Args:
        nodes: (B, N, F).
    """
    nodes = F.normalize(nodes, dim=2)
    return nodes @ nodes.transpose(1, 2)


def normalized_adjacency(weights: Tensor) -> Tensor:
    """Return D^(-½) A D^(-½) of the weights A of edges (B, N, N), D being the sums over their rows.

    Args:
        weights: symmetric and ≥ 0; a node without an edge keeps none. The gradient flows through.
    """
    scale = weights.sum(2).clamp_min(torch.finfo(weights.dtype).eps).rsqrt()
    return scale[:, :, None] * weights * scale[:, None, :]


def cluster_loss(nodes: Tensor, assignments: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return -Tr(W S Sᵀ) / N² with W = F Fᵀ - max(F Fᵀ) / τ, a mean over pairs of nodes and over images, as a scalar.

    Two nodes gain by a common cluster where they are more alike than the threshold max / τ, and lose by it elsewhere;
    correlation clustering needs both. F is normalised, so that W is of cosines, and constant: with gradient to F the
    smallest loss would be one cluster of equal nodes.

    Args:
        nodes: F (B, N, F); taken as constant.
        assignments: S (B, N, clusters) in [0, 1]; the gradient flows here.
        temperature: τ ≥ 1.
    """
    with torch.autocast(nodes.device.type, enabled=False):
        weights = affinity(nodes.detach().float())
        weights = weights - weights.amax((1, 2), keepdim=True) / temperature
        together = assignments @ assignments.transpose(1, 2)
        return -(weights * together).mean()
