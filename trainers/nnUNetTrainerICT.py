"""Interpolation consistency training (Verma et al., IJCAI 2019)."""

from collections.abc import Iterator

from nnunet_ssl.building_blocks.consistency import mean_squared_error
from nnunet_ssl.building_blocks.mixing import interpolate, partner, random_shares
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerICT(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """ICT: the prediction of a mixture of two unlabeled images is pulled towards the mixture of their predictions.

    V. Verma, K. Kawaguchi, A. Lamb et al., "Interpolation Consistency Training for Semi-Supervised Learning",
    IJCAI 2019, https://arxiv.org/abs/1903.03825

        L = L_seg(f(x; θ), y) + w(t) · ⟨(p(M(u, u'); θ) - M(p(u; θ'), p(u'; θ')))²⟩
        M(a, b) = (1 - m) a + m b,    m ~ Beta(α, α) for each pair

    u' is the next image of the batch; the gradient flows through the student alone.

    Differences from the paper:
        the unit is a voxel, not an image;
        every image of the batch is mixed with the next one, instead of two halves with each other; at batch size 1
        there is none, and the method is Mean Teacher on the weak view.

    Cost: 3 B labeled, 3 B unlabeled, 1 B teacher forward passes to nnU-Net's 3 B, a ratio of 2.33.
    """

    STEP_COST = 7 / 3  # of nnU-Net's own step; see above

    VIEWS = ("weak",)
    ema_decay = 0.99  # of the teacher; SSL4MIS
    consistency_weight = 1.0  # w; ours, as for Mean Teacher; SSL4MIS has 0.1
    rampup_duration = 1.0  # of the run; SSL4MIS
    mixing_concentration = 0.2  # α; SSL4MIS

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then the consistency of mixtures."""
        yield {"supervised": self.supervised_loss(labeled)}

        image, target = unlabeled.weak, self.teacher_probabilities(unlabeled.weak)
        self.observe_pseudo_labels(target)
        share = random_shares(len(image), self.mixing_concentration, image.device)
        probs = self.probabilities(self.forward_pass(interpolate(image, partner(image), share)).logits)
        loss = mean_squared_error(probs, interpolate(target, partner(target), share))
        yield {"consistency": self.consistency_weight * self.ramp("consistency") * loss}
