"""UniMatch V2 (Yang, Zhao & Zhao, TPAMI 2025)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.mixing import cut_mix
from nnunet_ssl.building_blocks.perturbations import complementary_masks
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerUniMatchV2(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """UniMatch V2: sure labels of a teacher for two strong views whose features are dropped in complement.

    L. Yang, Z. Zhao, H. Zhao, "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI 2025,
    https://arxiv.org/abs/2410.10777

        ŷ = argmax p(u_weak; θ'),    m = [max p(u_weak; θ') ≥ τ],    d ~ 2 Bernoulli(½) for each channel
        L = L_seg(f(x; θ), y) + λ(t) ( ½ L(g(d e(s_1; θ)), ŷ_1, m_1) + ½ L(g((2 - d) e(s_2; θ)), ŷ_2, m_2) )

    s_i is a strong view with a box cut out of the next image's strong view; ŷ_i and m_i are mixed alike; e and g are
    encoder and decoder; L(., ŷ, m) is L_seg over the voxels with m. The gradient flows through the student alone. The
    signal comes from the boxes and the dropped features: nnU-Net's augmentation lets the student overlook intensity
    changes.

    Differences from the paper:
        a mask for each level of a U-Net's encoder, where the authors have one for four layers of a transformer; whether
        a pair of views has channels dropped is drawn for each sample, where they take half of the batch;
        both views are passed one after the other, with the same d, so that one graph is alive at a time;
        the loss is cross-entropy and Dice at all heads; the threshold follows the confidence of each class, as in our
        FixMatch; there is a labeled-only warm-up, after which the weight grows; at batch size 1 there is no box.

    Cost: 3 B labeled, 2 x 3 B unlabeled, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 3.33; 1 in the
    warm-up.
    """

    STEP_COST = 10 / 3  # of nnU-Net's own step; see above

    VIEWS = ("weak", "strong", "second_strong")
    ema_decay = 0.99  # of the teacher; as for FixMatch; the authors have 0.996
    confidence_threshold = 0.95  # τ; paper §4.1
    pseudo_label_weight = 1.0  # λ; authors' code
    warmup_fraction = 0.4  # of the run; as for FixMatch
    rampup_duration = 0.2  # of what follows; as for FixMatch
    dropout_probability = 0.5  # of a pair of views to have channels dropped; authors' code
    mixing_probability = 1.0  # of a box; as for FixMatch; authors' code 0.5
    smallest_box = 0.02  # share of the patch; UniMatch's medical branch
    largest_box = 0.4  # share of the patch; UniMatch's medical branch

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then those of both strong views."""
        yield {"supervised": self.supervised_loss(labeled)}

        labels, accepted = self.accepted_pseudo_labels(self.teacher_probabilities(unlabeled.weak))
        weight = 0.5 * self.pseudo_label_weight * self.ramp("pseudo_label")
        shares, masks = (self.smallest_box, self.largest_box), None
        for i, name in enumerate(("strong", "second_strong")):
            maps = (getattr(unlabeled, name), labels, accepted)
            mixed, *target = cut_mix(maps, self.mixing_probability, shares)
            skips = self.encode(mixed)
            masks = masks or complementary_masks(skips, self.dropout_probability)  # drawn once for both views
            outputs = self.decode([mask * level for mask, level in zip(masks[i], skips, strict=True)]).outputs
            del skips  # the next view's passes need the room
            yield {name: weight * self.masked_loss(outputs, *target)}
