"""Bidirectional copy-paste (Bai et al., CVPR 2023)."""

from collections.abc import Iterator

import torch

from nnunet_ssl.building_blocks.mixing import random_box
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerBCP(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """BCP: labeled boxes are pasted into unlabeled images and the reverse, with the teacher's pseudo-labels.

    Y. Bai, D. Chen, Q. Li, W. Shen, Y. Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image
    Segmentation", CVPR 2023, https://arxiv.org/abs/2305.00673

        warm-up:  L = L_seg(f(x; θ), y)
        then:     L = ½ ( L_mix(u in x) + L_mix(x in u) ),    ŷ = argmax p(u_weak; θ')
                  L_mix = L_seg over the voxels of x with y + α L_seg over the voxels of u with ŷ

    "b in a" is a with one box at a random place cut out of b, the same place for the whole batch. The gradient flows
    through the student alone.

    Differences from the paper:
        one batch of labeled and one of unlabeled images are pasted both ways, instead of two halves of each;
        the student sees the strong view, and all heads are supervised;
        pseudo-labels are not cut down to their largest component, which not every structure has only one of;
        the warm-up is nnU-Net's own training, not copy-paste among labeled images, from which two cases were learned
        at half the speed; it and the self-training are one run, and the teacher goes on across the border.

    Cost: 6 B mixed, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33; 1 in the warm-up.
    """

    step_cost = 7 / 3  # of nnU-Net's own step; see above
    changes_supervised_term = True  # it sees mixed images only

    ema_decay = 0.99  # of the teacher; paper §4.1
    warmup_fraction = 0.4  # of the run; ours; the authors spend an eighth (LA) or a quarter (ACDC) of far more steps
    box_side = 2 / 3  # of the patch along each axis; paper §4.1
    pseudo_label_weight = 0.5  # α; paper §4.1

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss; after the warm-up those of both directions."""
        if self.in_warmup:
            yield {"supervised": self.supervised_loss(labeled)}
            return
        space, target = self.label_space, labeled.full_target
        labels, known = space.labels(target), space.is_known(target)
        probs = self.teacher_probabilities(unlabeled.weak)
        self.observe_teaching(probs)
        pseudo_label = space.pseudo_label(probs)
        box = random_box(labeled.image.shape[2:], self.box_side, labeled.image.device)
        for direction, is_labeled in (("inwards", ~box), ("outwards", box)):
            outputs = self.student_outputs(torch.where(is_labeled, labeled.image, unlabeled.strong))
            of_pseudo_label = self.masked_loss(outputs, pseudo_label, ~is_labeled)
            yield {
                f"labeled_{direction}": 0.5 * self.masked_loss(outputs, labels, known & is_labeled),
                f"pseudo_label_{direction}": 0.5 * self.pseudo_label_weight * of_pseudo_label,
            }
