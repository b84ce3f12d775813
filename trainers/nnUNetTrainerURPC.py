"""Uncertainty rectified pyramid consistency (Luo et al., MICCAI 2021)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nnunet_ssl.building_blocks.pyramid import rectified_pyramid_consistency, upsampled_probabilities
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerURPC(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """URPC: on unlabeled images the predictions of several resolutions are pulled towards their mean.

    X. Luo, W. Liao, J. Chen et al., "Efficient Semi-Supervised Gross Target Volume of Nasopharyngeal Carcinoma
    Segmentation via Uncertainty Rectified Pyramid Consistency", MICCAI 2021, https://arxiv.org/abs/2012.07042

        L   = mean_s L_seg(f_s(x; θ), y) + λ(t) · mean_s ( ⟨(p̄ - p_s)² e^(-D_s)⟩ / ⟨e^(-D_s)⟩ + ⟨D_s⟩ )
        p_s = p(up(f_s(u_weak; θ))),    p̄ = mean_s p_s,    D_s = KL(p̄ ‖ p_s)
        λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    The gradient flows through every p_s and through p̄.

    Differences from the paper:
        the pyramid is nnU-Net's own deep supervision, its four finest heads at most; all of them are supervised with
        one weight, as in the paper, where nnU-Net halves it with each resolution and leaves the coarsest out;
        the heads have no dropout and feature noise to tell them apart, only their resolution.

    Cost: 3 B labeled, 3 B unlabeled forward passes to nnU-Net's 3 B, a ratio of 2.
    """

    STEP_COST = 2.0  # of nnU-Net's own step; see above
    CHANGES_SUPERVISED_TERM = True  # all heads count the same

    VIEWS = ("weak",)
    consistency_weight = 0.2  # λ; paper §3.1 has 0.1, x2 for nnU-Net's loss scale
    rampup_duration = 1.0  # of the run; paper §3.1
    scales = 4  # S; paper §2.1

    def check_settings(self) -> None:
        """Refuse a network with one head, which has nothing to agree with."""
        heads = min(self.scales, len(self._get_deep_supervision_scales() or [None]))
        if heads < 2:
            raise ValueError(
                "nnUNetTrainerURPC compares the predictions of several deep supervision heads, and here there is one: "
                "leave deep supervision switched on, take plans with three stages or more, and scales=2 or more"
            )

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the supervised loss of all heads, then their consistency."""
        yield {"supervised": self.loss_of_heads(labeled)}

        probs = upsampled_probabilities(self.label_space, self.forward_pass(unlabeled.weak).outputs[: self.scales])
        mean = torch.stack(probs).mean(0)
        self.observe_pseudo_labels(mean, probs[0])
        loss = rectified_pyramid_consistency(self.label_space, probs, mean)
        yield {"consistency": self.consistency_weight * self.ramp("consistency") * loss}

    def loss_of_heads(self, labeled: LabeledBatch) -> Tensor:
        """Return nnU-Net's loss, a mean over the heads with one weight."""
        outputs = self.forward_pass(labeled.image).outputs[: self.scales]
        losses = [self.loss.loss(output, target) for output, target in zip(outputs, labeled.target, strict=False)]
        return sum(losses) / len(losses)
