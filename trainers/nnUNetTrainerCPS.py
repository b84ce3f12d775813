"""Cross pseudo supervision (Chen et al., CVPR 2021)."""

from collections.abc import Iterator

from torch import Tensor

from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerCPS(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """CPS: two networks that started differently label the unlabeled images for each other.

    X. Chen, Y. Yuan, G. Zeng, J. Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision",
    CVPR 2021, https://arxiv.org/abs/2106.01226

        L_i = L_seg(f(x; θ_i), y) + λ(t) · ⟨CE(f(u_strong; θ_i), ŷ_j)⟩,    ŷ_j = argmax p(u_strong; θ_j),    i ≠ j
        λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    No threshold: every voxel counts. The gradient of L_i flows through network i alone.

    Differences from the paper:
        no CutMix; the networks label the unlabeled images alone for each other, not the labeled ones too;
        the weight grows over the run, as the field does it (SSL4MIS), because both networks start from nothing.

    Cost: 3 B labeled and 3 B unlabeled forward passes for each network, and 1 B for the second one's labels, to
    nnU-Net's 3 B: the first one's labels come from the pass that trains it. A ratio of 4.33.
    """

    STEP_COST = 13 / 3  # of nnU-Net's own step; see above

    VIEWS = ("strong",)
    second_architecture = "same"  # paper §3.1
    cross_weight = 0.2  # λ; SSL4MIS has 0.1, x2 for nnU-Net's loss scale; the paper has 1.5 for natural images
    rampup_duration = 1.0  # of the run; SSL4MIS

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield both losses of the first network, then both of the second, whose labels are the first one's."""
        space, image = self.label_space, unlabeled.strong
        yield {"supervised": self.supervised_loss(labeled)}
        second_probs = self.network_probabilities(image, "second")
        logits = self.forward_pass(image).logits
        probs = self.probabilities(logits.detach())
        self.observe_pseudo_labels(second_probs, probs)
        self.observe_pseudo_labels(probs, network="second")
        labels, second_labels = space.pseudo_label(probs), space.pseudo_label(second_probs)
        yield {"cross": self.cross_loss(logits, second_labels)}

        del logits, probs, second_probs  # the second network's passes need the room
        yield {"second_supervised": self.supervised_loss(labeled, "second")}
        yield {"second_cross": self.cross_loss(self.forward_pass(image, "second").logits, labels)}

    def cross_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross-entropy of one network's logits against the other's labels."""
        loss = self.label_space.cross_entropy(logits, labels).mean()
        return self.cross_weight * self.ramp("cross") * loss
