"""Cross teaching between two architectures (Luo et al., MIDL 2022)."""

from collections.abc import Iterator

from torch import Tensor

from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerCrossTeaching(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """Cross teaching: two networks of different architecture label the unlabeled images for each other.

    X. Luo, M. Hu, T. Song, G. Wang, S. Zhang, "Semi-Supervised Medical Image Segmentation via Cross Teaching between
    CNN and Transformer", MIDL 2022, https://arxiv.org/abs/2112.04894

        L_i = L_seg(f_i(x), y) + λ(t) · (1 - Dice(p_i(u), ŷ_j)),    ŷ_j = argmax p_j(u),    i ≠ j
        λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    The gradient of L_i flows through network i alone. There is no content change: the signal comes from what the two
    architectures see differently.

    Differences from the paper:
        the second network is a residual-encoder U-Net beside the plans' plain one (or the reverse), where the paper has
        a transformer pretrained on natural images, which nnU-Net does not bring;
        Dice is over the foreground channels, not the background.

    Cost: 3 B labeled and 3 B unlabeled forward passes for each network, and 1 B for the second one's labels, to
    nnU-Net's 3 B: 4.33 if both networks cost the same. The residual-encoder U-Net costs more than the plain one:
    measured on a CPU with the plans of benchmarks/, 3d_fullres with features 16 to 128 and batches of 2, a ratio of 5.0
    to 5.6.
    """

    STEP_COST = 5.3  # of nnU-Net's own step, measured; see above
    PASSES = (("first", 6), ("second", 7))  # of a batch; a backward one counts as two

    VIEWS = ("weak",)
    second_architecture = "other"  # paper §2: two architectures
    cross_weight = 0.2  # λ; paper §2.3 has 0.1, x2 for nnU-Net's loss scale
    rampup_duration = 1.0  # of the run; paper §2.3

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield both losses of the first network, then both of the second, whose labels are the first one's."""
        space, image = self.label_space, unlabeled.weak
        yield {"supervised": self.supervised_loss(labeled)}
        second_probs = self.network_probabilities(image, "second")
        probs = self.probabilities(self.forward_pass(image).logits)
        self.observe_pseudo_labels(second_probs, probs.detach())
        self.observe_pseudo_labels(probs.detach(), network="second")
        labels, second_labels = space.pseudo_label(probs), space.pseudo_label(second_probs)
        yield {"cross": self.cross_loss(probs, second_labels)}

        del probs, second_probs  # the second network's passes need the room
        yield {"second_supervised": self.supervised_loss(labeled, "second")}
        probs = self.probabilities(self.forward_pass(image, "second").logits)
        yield {"second_cross": self.cross_loss(probs, labels)}

    def cross_loss(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted Dice loss of one network's probabilities against the other's labels."""
        dice = self.label_space.dice(probs, self.label_space.one_hot(labels))
        return self.cross_weight * self.ramp("cross") * (1.0 - dice)
