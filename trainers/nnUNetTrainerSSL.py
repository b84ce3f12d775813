"""The recommended trainer: copy-paste and CutMix in one pass."""

from collections.abc import Iterator

import torch

from nnunet_ssl.building_blocks.mixing import mix_labeled_with_unlabeled, partner, random_box, random_pairs
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerSSL(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """SSL: every mixed image is a pair, labeled with unlabeled or unlabeled with unlabeled; the teacher labels.

    Ours. It puts together what was seen to act in other methods: boxes pasted between labeled and unlabeled images
    (BCP, Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673) and between unlabeled ones (CutMix, Yun et al.,
    ICCV 2019, https://arxiv.org/abs/1905.04899), and the teacher's sure labels (FixMatch, Sohn et al., NeurIPS 2020,
    https://arxiv.org/abs/2001.07685), in one pass of the student.

        warm-up:  L = L_seg(f(x; θ), y)
        then:     L = L_seg(f(x; θ), y) + L_seg over the voxels of z with y + λ(t) α L_seg over those with ŷ and m

    z is for each sample one of three pairs around one box: (x, u) or (u, x) with probability (1 - r)/2 each, or (u, the
    next u) with r; u is a strong view, ŷ = argmax p(u_weak; θ'), and m where the teacher is as sure as FixMatch's
    threshold asks for the class. The gradient flows through the student alone. The signal comes from the content that
    changes: what is pasted, and what is around it. With r = 0 and all voxels accepted it is BCP, with r = 1 FixMatch.

    Differences from the papers, beside those of our BCP and FixMatch:
        each mixed image is of one kind, drawn by chance, so that one pass has both kinds; one box for the whole batch,
        as in BCP, also where both images are unlabeled; the pseudo-labels weigh as much as the labels, as only the sure
        ones are learned; patches are not turned over where the scans all lie the same way and labels are not alike
        on both sides: the place of a structure then says what it is.

    Cost: 3 B labeled, 3 B mixed, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33; 1 in the warm-up.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above
    CHANGES_SUPERVISED_TERM = True  # labels are learned from mixed images too

    mirroring = "auto"  # ours, measured: Dice 0.84, with nnU-Net's 0.80 (hippocampus, tuning fold; no axis is mirrored)
    ema_decay = 0.99  # of the teacher; as for BCP
    confidence_threshold = 0.95  # as for FixMatch
    pseudo_label_weight = 1.0  # α; ours
    warmup_fraction = 0.4  # of the run; as for BCP; a quarter is too short for small structures in 1 250 steps
    rampup_duration = 0.2  # of what follows; as for FixMatch
    box_side = 2 / 3  # of the patch along each axis; as for BCP
    unlabeled_pair_fraction = 0.5  # r; ours

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then both losses of the mixed images."""
        yield {"supervised": self.supervised_loss(labeled)}

        pseudo_label, accepted = self.accepted_pseudo_labels(self.teacher_probabilities(unlabeled.weak))
        batch_size, _, *spatial = labeled.image.shape
        box = random_box(spatial, self.box_side, labeled.image.device)
        is_labeled, is_next = random_pairs(box, batch_size, self.unlabeled_pair_fraction)
        image, pseudo_label, accepted = (
            torch.where(is_next, partner(whole), whole) for whole in (unlabeled.strong, pseudo_label, accepted)
        )
        pairs = (labeled.image, labeled.full_target), (image, pseudo_label)
        image, labels, (known, pasted) = mix_labeled_with_unlabeled(self.label_space, is_labeled, *pairs)
        outputs = self.forward_pass(image).outputs
        labeled_part, pseudo_label = self.masked_losses(outputs, labels, (known, pasted & accepted))
        weight = self.pseudo_label_weight * self.ramp("pseudo_label")
        yield {"labeled_part": labeled_part, "pseudo_label": weight * pseudo_label}
