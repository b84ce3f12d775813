"""Bidirectional copy-paste (Bai et al., CVPR 2023)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.mixing import alternating, mix_labeled_with_unlabeled, random_box
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerBCP(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """BCP: labeled boxes are pasted into unlabeled images and the reverse, with the teacher's pseudo-labels.

    Y. Bai, D. Chen, Q. Li, W. Shen, Y. Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image
    Segmentation", CVPR 2023, https://arxiv.org/abs/2305.00673

        warm-up:  L = L_seg(f(x; θ), y)
        then:     L = L_seg(f(x; θ), y) + L_mix,    ŷ = argmax p(u_weak; θ')
                  L_mix = L_seg over the voxels of x with y + α L_seg over the voxels of u with ŷ

    of mixed images: every other one is x with a box of u, the others are u with a box of x, the same box for the whole
    batch; at batch size 1 which of the two is drawn in each step. The gradient flows through the student alone.

    Differences from the paper:
        labeled images are also learned unmixed, which gained most of all (0.77 to 0.79; tuning fold);
        one mixed batch of both directions, instead of two halves of each: as good (0.80) and faster;
        the student sees the strong view, and all heads are supervised; the teacher predicts, not the student;
        pseudo-labels are not cut down to their largest component, which not every structure has only one of;
        the warm-up is nnU-Net's own training, not copy-paste among labeled images, from which two cases were learned
        at half the speed; it and the self-training are one run, and the teacher goes on across the border.

    Cost: 3 B labeled, 3 B mixed, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33; 1 in the warm-up.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above
    CHANGES_SUPERVISED_TERM = True  # labels are learned from mixed images too

    ema_decay = 0.99  # of the teacher; paper §4.1
    warmup_fraction = 0.4  # of the run; ours; the authors spend an eighth (LA) or a quarter (ACDC) of far more steps
    box_side = 2 / 3  # of the patch along each axis; paper §4.1
    pseudo_label_weight = 0.5  # α; paper §4.1

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss; after the warm-up also both losses of the mixed images."""
        yield {"supervised": self.supervised_loss(labeled)}

        space, probs = self.label_space, self.teacher_probabilities(unlabeled.weak)
        self.observe_pseudo_labels(probs)
        batch_size, _, *spatial = labeled.image.shape
        box = random_box(spatial, self.box_side, labeled.image.device)
        is_labeled = box ^ alternating(batch_size, len(spatial), labeled.image.device)
        pairs = (labeled.image, labeled.full_target), (unlabeled.strong, space.pseudo_label(probs))
        del probs  # the student's pass needs the room
        image, labels, parts = mix_labeled_with_unlabeled(space, is_labeled, *pairs)
        labeled_part, pseudo_label = self.masked_losses(self.forward_pass(image).outputs, labels, parts)
        yield {"labeled_part": labeled_part, "pseudo_label": self.pseudo_label_weight * pseudo_label}
