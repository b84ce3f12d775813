"""FixMatch (Sohn et al., NeurIPS 2020)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.mixing import cut_mix
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerFixMatch(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """FixMatch: what the teacher is sure of on the weak view is the label of the strong view.

    K. Sohn, D. Berthelot, C.-L. Li et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
    Confidence", NeurIPS 2020, https://arxiv.org/abs/2001.07685

        ŷ = argmax p(u_weak; θ'),    m = [max p(u_weak; θ') ≥ τ_ŷ],    τ_c = τ s_c / max_k s_k
        L = L_seg(f(x; θ), y) + λ(t) · L_seg(f(mix(u_strong); θ), mix(ŷ)) where mix(m)

    s_c is the mean confidence of the voxels that the batch predicts as class c; voxels without m are left out, never
    background. The gradient flows through the student alone.

    Differences from the paper:
        the unit is a voxel, not an image; the loss is cross-entropy and Dice over the accepted voxels, at all heads;
        the labels are made by the moving average of the network, which is steadier;
        the threshold follows the confidence of each class (as in FlexMatch, https://arxiv.org/abs/2110.08263, and
        FreeMatch, https://arxiv.org/abs/2205.07246): with one threshold small structures are left out for long;
        the strong view is nnU-Net's intensity transforms and a box of the next image (CutMix), with its labels: with
        intensities alone the student learned its own mistakes; at batch size 1 there is no box;
        pseudo-labels begin after a labeled-only warm-up, and their weight then grows.

    Cost: 3 B labeled, 3 B unlabeled, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33; 1 in the warm-up.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above

    ema_decay = 0.99  # of the teacher; as for Mean Teacher
    confidence_threshold = 0.95  # τ; paper §4.1
    pseudo_label_weight = 0.5  # λ; ours, half of the paper's, as BCP weighs pseudo-labels
    warmup_fraction = 0.4  # of the run; ours: without one the pseudo-labels held the learning up
    rampup_duration = 0.2  # of what follows; ours
    mixing_probability = 1.0  # of a box; ours: Dice 0.77, without 0.69 (tuning fold; the ramp or λ differed too)
    smallest_box = 0.02  # share of the patch; UniMatch's medical branch
    largest_box = 0.4  # share of the patch; UniMatch's medical branch

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then that of the accepted pseudo-labels."""
        yield {"supervised": self.supervised_loss(labeled)}

        labels, accepted = self.accepted_pseudo_labels(self.teacher_probabilities(unlabeled.weak))
        shares = (self.smallest_box, self.largest_box)
        image, labels, accepted = cut_mix((unlabeled.strong, labels, accepted), self.mixing_probability, shares)
        loss = self.masked_loss(self.forward_pass(image).outputs, labels, accepted)
        yield {"pseudo_label": self.pseudo_label_weight * self.ramp("pseudo_label") * loss}
