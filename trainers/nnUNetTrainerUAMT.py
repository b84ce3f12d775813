"""Uncertainty-aware Mean Teacher (Yu et al., MICCAI 2019)."""

from collections.abc import Iterator

from torch import Tensor

from nnunet_ssl.building_blocks.consistency import masked_mean_squared_error
from nnunet_ssl.building_blocks.perturbations import mirrorings, with_noise
from nnunet_ssl.building_blocks.ramps import gaussian_rampup
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerUAMT(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """UA-MT: Mean Teacher, but only where the teacher's prediction stays the same under perturbation.

    L. Yu, S. Wang, X. Li, C.-W. Fu, P.-A. Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left
    Atrium Segmentation", MICCAI 2019, https://arxiv.org/abs/1907.07034

        L = L_seg(f(x; θ), y) + λ(t) · ⟨(p(u_strong; θ) - p(u_weak; θ'))²⟩ where H(p̄) < (¾ + ¼ r(t)) ln C
        p̄ = mean of T passes p(u_weak, perturbed; θ'),    r(t) = exp(-5 (1 - t)²) over the run

    ⟨·⟩ is the mean over the accepted voxels and channels; the gradient flows through the student alone.

    Differences from the paper:
        nnU-Net has no dropout, so that the passes differ by noise on the image and by mirroring, along the axes that
        nnU-Net mirrors, which is undone in the prediction; the target's own pass has neither;
        T is 4, not 8; ln 2 is written for C classes; the teacher predicts, not the student;
        the student sees the strong view, as in our Mean Teacher.

    Cost: 3 B labeled, 3 B unlabeled, (1 + T) B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33 + T/3 = 3.67.
    """

    STEP_COST = 11 / 3  # of nnU-Net's own step; see above

    ema_decay = 0.99  # α; paper §3.1
    consistency_weight = 1.0  # λ; ours, as for Mean Teacher; the paper has 0.1
    rampup_duration = 1.0  # of the run; paper §3.1
    num_passes = 4  # T; the paper has 8

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then the consistency where the teacher is certain."""
        yield {"supervised": self.supervised_loss(labeled)}

        target = self.teacher_probabilities(unlabeled.weak)
        threshold = 0.75 + 0.25 * gaussian_rampup(self.progress, 1.0)
        certain = self.uncertainty(unlabeled.weak) < threshold
        probs = self.probabilities(self.forward_pass(unlabeled.strong).logits)
        self.record({"utilization": certain.float().mean()})
        self.observe_pseudo_labels(target, probs)
        loss = masked_mean_squared_error(probs, target, certain)
        yield {"consistency": self.consistency_weight * self.ramp("consistency") * loss}

    def uncertainty(self, image: Tensor) -> Tensor:
        """Return the entropy of the teacher's mean prediction under perturbation, a share of ln C in [0, 1]."""
        mirrored = mirrorings(self.mirror_axes)
        mean: Tensor | float = 0.0
        for i in range(self.num_passes):
            axes = mirrored[i % len(mirrored)]
            noisy = with_noise(image, self.image_channels)
            probs = self.teacher_probabilities(noisy.flip(axes)).flip(axes)
            mean = mean + probs / self.num_passes
        return self.label_space.entropy(mean)
