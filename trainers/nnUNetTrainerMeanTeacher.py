"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.consistency import mean_squared_error
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerMeanTeacher(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """Mean Teacher: on unlabeled images the student is pulled towards its own moving average.

    A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", NeurIPS 2017, https://arxiv.org/abs/1703.01780

        L  = L_seg(f(x; θ), y) + λ(t) · ⟨(p(u_strong; θ) - p(u_weak; θ'))²⟩
        θ' ← α θ' + (1 - α) θ,    λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    ⟨·⟩ is the mean over voxels and channels; the gradient flows through the student alone.

    Differences from the paper:
        the unit is a voxel, not an image;
        the views share one geometry, and only the student's has intensity changes, because segmentations are compared
        voxel by voxel and nnU-Net has neither dropout nor batch statistics to tell the two networks apart;
        consistency is asked of the unlabeled images only.

    Cost: 3 B labeled, 3 B unlabeled, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above

    ema_decay = 0.99  # α; SSL4MIS; the paper's while its weight grows (here to the end), then 0.999
    consistency_weight = 1.0  # λ; ours, measured: 10 costs up to 2.6 points (README, Results); SSL4MIS has 0.1
    rampup_duration = 1.0  # of the run; SSL4MIS and UA-MT reach the plateau with the last step

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then the consistency."""
        yield {"supervised": self.supervised_loss(labeled)}

        target = self.teacher_probabilities(unlabeled.weak)
        probs = self.probabilities(self.forward_pass(unlabeled.strong).logits)
        self.observe_pseudo_labels(target, probs)
        loss = mean_squared_error(probs, target)
        yield {"consistency": self.consistency_weight * self.ramp("consistency") * loss}
