"""Mutual mask mix with high-level and low-level feature consistency (Liu et al., MICCAI 2025)."""

from collections.abc import Iterator

from torch import Tensor

from nnunet_ssl.building_blocks.feature_consistency import cosine_distance, mean_absolute_difference, of_own_and_next
from nnunet_ssl.building_blocks.mixing import (
    alternating,
    mix_labeled_with_unlabeled,
    random_blocks,
    random_box,
)
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerM3HL(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """M3HL: blocks of labeled and unlabeled images change places, and features are pulled towards the teacher's.

    Y. Liu, Z. Zhang, J. Yue, W. Guo, D. Li, "M3HL: Mutual Mask Mix with High-Low Level Feature Consistency for
    Semi-Supervised Medical Image Segmentation", MICCAI 2025, https://arxiv.org/abs/2508.03752

        x_1 = u_a ⊙ M + l_a ⊙ (1 - M),    x_2 = l_b ⊙ M + u_b ⊙ (1 - M)
        L = L_seg(f(l; θ), y) + L_mix + w (L_high + L_low)
        L_mix = L_seg over the voxels of l with y + α L_seg over the voxels of u with argmax p(u_weak; θ')
        L_high = ¼ Σ_ij (1 - cos(h(x_i; θ), h(u_j; θ'))),    L_low = ¼ Σ_ij ⟨|e(x_i; θ) - e(u_j; θ')|⟩

    M is a random grid of blocks, one for each two pairs (a, b) of a labeled and an unlabeled image, whose roles are
    swapped; h are the features at the bottleneck, e those before the classifier. The gradient flows through the
    student alone. The signal comes from the blocks.

    Differences from the paper:
        how the share of the blocks in M changes is ours, since the released code has a constant half: it grows evenly,
        so that the images exchange little at first and half of themselves in the end;
        blocks of a quarter of the patch along each axis, in 3-D too, where the released code masks nothing;
        the teacher starts as the student's copy, not at random, after a labeled-only warm-up; it predicts;
        as in our BCP, labeled images are also learned unmixed, the student sees the strong view, all heads are
        supervised, and pseudo-labels keep all of their components; u_b is the next unlabeled image.

    Cost: 3 B labeled, 3 B mixed, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33; 1 in the warm-up.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above
    CHANGES_SUPERVISED_TERM = True  # labels are learned from mixed images too

    ema_decay = 0.99  # of the teacher; authors' code
    warmup_fraction = 0.4  # of the run; as for BCP
    blocks_per_axis = 4  # of the grid; authors' code; 0: one box as in BCP, to compare
    box_side = 2 / 3  # of that box; BCP's
    first_share = 0.125  # of the blocks that are exchanged, at the end of the warm-up; reconstructed
    last_share = 0.5  # the same at the end of the run; authors' code, there constant
    pseudo_label_weight = 0.5  # α; authors' code
    consistency_weight = 0.5  # w; authors' code
    low_level_of_own_voxels = False  # True: L_low only where x_i is u_i itself, which has one place for one thing; ours

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss; then, of one pass of the mixed images, the losses of both parts and of the features."""
        yield {"supervised": self.supervised_loss(labeled)}

        taught = self.teacher_pass(unlabeled.weak)
        probs = self.probabilities(taught.logits)
        self.observe_pseudo_labels(probs)
        pairs = (labeled.image, labeled.full_target), (unlabeled.strong, self.label_space.pseudo_label(probs))
        high, low = taught.skips[-1], taught.features
        del taught, probs  # the student's pass needs the room
        is_labeled = self.places_of_labels(labeled.image)
        image, labels, parts = mix_labeled_with_unlabeled(self.label_space, is_labeled, *pairs)
        found = self.forward_pass(image)
        labeled_part, pseudo_label = self.masked_losses(found.outputs, labels, parts)
        losses = {"labeled_part": labeled_part, "pseudo_label": self.pseudo_label_weight * pseudo_label}
        if weight := self.consistency_weight:
            losses["high_level"] = weight * of_own_and_next(cosine_distance, found.skips[-1], high)
            if self.low_level_of_own_voxels:
                losses["low_level"] = weight * mean_absolute_difference(found.features, low, ~is_labeled)
            else:
                losses["low_level"] = weight * of_own_and_next(mean_absolute_difference, found.features, low)
        yield losses

    def places_of_labels(self, image: Tensor) -> Tensor:
        """Return where mixed images are the labeled ones, bool (B, 1, *spatial); every other one has the complement."""
        batch_size, _, *spatial = image.shape
        if self.blocks_per_axis:
            share = self.first_share + (self.last_share - self.first_share) * self.progress_of_main
            self.record({"exchanged": share})
            masks = random_blocks((batch_size + 1) // 2, spatial, self.blocks_per_axis, share, image.device)
            masks = masks.repeat_interleave(2, 0)[:batch_size]
        else:
            masks = random_box(spatial, self.box_side, image.device)
        return masks ^ alternating(batch_size, len(spatial), image.device)
