"""Cross pseudo supervision (Chen et al., CVPR 2021)."""

from collections.abc import Iterator

from torch import Tensor

from nnunet_ssl.building_blocks.mixing import cut_mix
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerCPS(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """CPS: two networks that started differently label the unlabeled images for each other.

    X. Chen, Y. Yuan, G. Zeng, J. Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision",
    CVPR 2021, https://arxiv.org/abs/2106.01226

        L_i = L_seg(f(x; θ_i), y) + λ(t) · ⟨CE(f(mix(u_strong); θ_i), mix(ŷ_j))⟩
        ŷ_j = argmax p(u_strong; θ_j),    i ≠ j,    λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    mix pastes a box of the next image and its label (CutMix), the same box for both networks; it is where the signal
    comes from: on whole images both networks predict the same nearly everywhere. No threshold: every voxel counts. The
    gradient of L_i flows through network i alone.

    Differences from the paper:
        the networks label the unlabeled images alone for each other, not the labeled ones too;
        one box of the patch's shape, where the authors' code has three; at batch size 1 there is none;
        the weight grows over the run, as the field does it (SSL4MIS), because both networks start from nothing.

    Cost: for each network 3 B labeled and 3 B mixed forward passes, and 1 B for the labels of the whole images, to
    nnU-Net's 3 B, a ratio of 4.67.
    """

    STEP_COST = 14 / 3  # of nnU-Net's own step; see above

    VIEWS = ("strong",)
    second_architecture = "same"  # paper §3.1
    cross_weight = 0.2  # λ; SSL4MIS has 0.1, x2 for nnU-Net's loss scale; the paper has 1.5 for natural images
    rampup_duration = 1.0  # of the run; SSL4MIS
    mixing_probability = 1.0  # of a box; paper §3.2
    smallest_box = 0.25  # share of the patch; authors' code
    largest_box = 0.5  # share of the patch; authors' code

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield both losses of the first network, then both of the second."""
        space, image = self.label_space, unlabeled.strong
        yield {"supervised": self.supervised_loss(labeled)}
        probs, second_probs = (self.network_probabilities(image, name) for name in ("first", "second"))
        self.observe_pseudo_labels(second_probs, probs)
        self.observe_pseudo_labels(probs, network="second")
        maps = (image, space.pseudo_label(probs), space.pseudo_label(second_probs))
        del probs, second_probs  # the passes need the room
        mixed, labels, second_labels = cut_mix(maps, self.mixing_probability, (self.smallest_box, self.largest_box))
        yield {"cross": self.cross_loss(self.forward_pass(mixed).logits, second_labels)}

        yield {"second_supervised": self.supervised_loss(labeled, "second")}
        yield {"second_cross": self.cross_loss(self.forward_pass(mixed, "second").logits, labels)}

    def cross_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross-entropy of one network's logits against the other's labels."""
        loss = self.label_space.cross_entropy(logits, labels).mean()
        return self.cross_weight * self.ramp("cross") * loss
