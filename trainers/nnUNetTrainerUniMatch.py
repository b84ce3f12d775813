"""UniMatch (Yang et al., CVPR 2023)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.mixing import cut_mix
from nnunet_ssl.building_blocks.perturbations import drop_channels
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerUniMatch(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """UniMatch: sure labels of the weak view are those of two strong views, and of the weak view with dropped features.

    L. Yang, L. Qi, L. Feng, W. Zhang, Y. Shi, "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
    Segmentation", CVPR 2023, https://arxiv.org/abs/2208.09910

        ŷ = argmax p(u_weak; θ),    m = [max p(u_weak; θ) ≥ τ]
        L = L_seg(f(x; θ), y) + λ(t) ( ¼ L(f(s_1; θ), ŷ_1, m_1) + ¼ L(f(s_2; θ), ŷ_2, m_2)
                                       + ½ L(g(drop(e(u_weak; θ))), ŷ, m) )

    s_i is a strong view with a box cut out of the next image's strong view; ŷ_i and m_i are mixed alike; e and g are
    encoder and decoder; L(., ŷ, m) is L_seg over the voxels with m. The gradient flows through all but ŷ and m.

    Differences from the paper:
        the loss is cross-entropy and Dice at all heads, where the authors' medical branch has Dice alone;
        a box has the shape of the patch; labels come from one pass without gradient, for CutMix too;
        the threshold follows the confidence of each class, as in our FixMatch;
        there is a labeled-only warm-up, after which the weight grows; at batch size 1 there is no box.

    Cost: 3 B labeled, 3 x 3 B unlabeled, 1 B for the labels, to nnU-Net's 3 B forward passes, a ratio of 4.33; 1 in the
    warm-up.
    """

    STEP_COST = 13 / 3  # of nnU-Net's own step; see above

    VIEWS = ("weak", "strong", "second_strong")
    confidence_threshold = 0.95  # τ; paper §4.1
    pseudo_label_weight = 1.0  # λ; paper §3.3
    warmup_fraction = 0.4  # of the run; as for FixMatch
    rampup_duration = 0.2  # of what follows; as for FixMatch
    feature_dropout = 0.5  # paper §4.1
    mixing_probability = 0.5  # of a box; authors' medical branch
    smallest_box = 0.02  # share of the patch; authors' medical branch
    largest_box = 0.4  # share of the patch; authors' medical branch

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then those of both strong views and of dropped features."""
        yield {"supervised": self.supervised_loss(labeled)}

        labels, accepted = self.accepted_pseudo_labels(self.network_probabilities(unlabeled.weak))
        weight = self.pseudo_label_weight * self.ramp("pseudo_label")
        for name, view in (("strong", unlabeled.strong), ("second_strong", unlabeled.second_strong)):
            shares = (self.smallest_box, self.largest_box)
            mixed, *target = cut_mix((view, labels, accepted), self.mixing_probability, shares)
            yield {name: 0.25 * weight * self.masked_loss(self.forward_pass(mixed).outputs, *target)}

        skips = drop_channels(self.encode(unlabeled.weak), self.feature_dropout)
        outputs = self.decode(skips).outputs
        yield {"dropped_features": 0.5 * weight * self.masked_loss(outputs, labels, accepted)}
