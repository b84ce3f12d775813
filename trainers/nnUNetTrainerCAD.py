"""CAD, confidence-aware adaptive displacement (Xiao et al., 2025)."""

from collections.abc import Iterator
from functools import partial

import torch

from nnunet_ssl.building_blocks.consistency import mean_squared_error
from nnunet_ssl.building_blocks.displacement import Search, displaced, displaced_shares, find_boxes, maps_to_search
from nnunet_ssl.building_blocks.ramps import between, gaussian_rampup
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerCAD(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """CAD: what the teachers are least sure of in an image is replaced by a box of another one that they are sure of.

    W. Xiao, Z. Xu, G. Liang, Y. Deng, Y. Xiao, "CAD: Confidence-Aware Adaptive Displacement for Semi-Supervised Medical
    Image Segmentation", 2025, https://arxiv.org/abs/2502.00536; from ABD, CVPR 2024, https://arxiv.org/abs/2405.00378

        L_i = L_seg(f_i(x), y) + r [α L_seg(f_i(u), argmax p_j) + β ⟨(p_i - q_i)²⟩ + γ L_seg(f_i(D(u)), D(argmax q_j))]

    for students i ≠ j; u = u_strong, p_i = p(u; θ_i), and of the teachers q_i = p(u_weak; θ'_i). D displaces image,
    labels and their acceptance (FixMatch's; other voxels are left out) alike: the box of the largest connected region
    with c < max(τ(t), Q_κ(t)(c)), of at most s(t) of each side, takes the content of a sure box of another image that
    holds predicted foreground; c is the confidence of ½ (q_1 + q_2). τ and κ grow by exp(-5 (1 - t)²), s by t. The
    gradient of L_i flows through student i alone. The signal comes from displaced content, and the other student.

    Differences from the paper: only its abstract was at hand, and no code. Mean Teacher, CPS, the largest region, and
    that threshold and largest size change are the abstract's; all else is reconstructed, partly from ABD. The quantile
    Q is ours: networks are soon surer of nearly everything than any constant. The box has its source's label; ABD's
    networks label displaced images anew. At batch size 1 the source is another place of the same image.

    Cost: for each student 3 B labeled, 3 B whole, 3 B displaced and 1 B teacher forward passes, and 1 B for the second
    one's labels, to nnU-Net's 3 B, a ratio of 7; 2 in the warm-up. The host searches beside the labeled passes.
    """

    STEP_COST = 7.0  # of nnU-Net's own step; see above

    ema_decay = 0.99  # of both teachers; reconstructed, as for Mean Teacher
    warmup_fraction = 0.4  # of the run, on labeled images alone; reconstructed, as for FixMatch
    rampup_duration = 0.2  # of what follows, until r = 1; reconstructed, as for FixMatch
    cross_weight = 0.2  # α; reconstructed: ABD's code has 0.1, x2 for nnU-Net's loss scale
    consistency_weight = 1.0  # β; reconstructed, as for Mean Teacher
    displaced_weight = 0.5  # γ; reconstructed, as FixMatch and BCP weigh pseudo-labels
    confidence_threshold = 0.95  # of displaced images' labels; reconstructed, as for FixMatch
    displacement_probability = 1.0  # of each image; reconstructed
    first_unsure_threshold = 0.6  # τ after the warm-up; reconstructed
    last_unsure_threshold = 0.95  # τ at the end; reconstructed
    first_unsure_fraction = 0.02  # κ after the warm-up; reconstructed; 0 leaves τ alone
    last_unsure_fraction = 0.1  # κ at the end; reconstructed
    first_box_side = 1 / 8  # s after the warm-up; reconstructed
    last_box_side = 1 / 2  # s at the end; reconstructed
    smallest_side = 1 / 32  # of a box with as many voxels as a region needs; reconstructed
    random_places = False  # true replaces boxes of the same sizes at random places; ours, to compare with

    def build_teachers(self) -> dict[str, str]:
        """Return a teacher of each student."""
        return {"first_teacher": "first", "second_teacher": "second"}

    def inference_network(self) -> str:
        """Return the first teacher."""
        return "first_teacher"

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss of both students, then what each learns from whole and from displaced images."""
        space, image, search, ramp = self.label_space, unlabeled.strong, self.search(), self.ramp("unlabeled")
        targets = [self.teacher_probabilities(unlabeled.weak, teacher) for teacher in self.build_teachers()]
        pending = self.on_host(partial(find_boxes, space, search), *maps_to_search(space, search, targets))
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"second_supervised": self.supervised_loss(labeled, "second")}

        labels = space.pseudo_label(self.network_probabilities(image, "second"))
        boxes = pending.result()
        self.record(displaced_shares(boxes, image.shape))
        for student, target, other in (("first", *targets), ("second", *reversed(targets))):
            found = self.forward_pass(image, student)
            probs = self.probabilities(found.logits)
            cross = self.cross_weight * ramp * self.masked_loss(found.outputs, labels, torch.ones_like(labels))
            consistency = self.consistency_weight * ramp * mean_squared_error(probs, target)
            labels = space.pseudo_label(probs) if student == "first" else None  # which the second one learns
            self.observe_pseudo_labels(other, probs.detach(), student)
            yield {f"{student}_cross": cross, f"{student}_consistency": consistency}

            del found, probs, cross, consistency  # the next pass needs the room
            maps = (image, space.pseudo_label(other), space.is_accepted(other, self.confidence_threshold))
            mixed, *learned = displaced(maps, boxes)
            self.record({f"utilization_for_{student}": learned[1].float().mean()})
            loss = self.masked_loss(self.forward_pass(mixed, student).outputs, *learned)
            yield {f"{student}_displaced": self.displaced_weight * ramp * loss}

    def search(self) -> Search:
        """Return which boxes are looked for at this time of the run."""
        rise = gaussian_rampup(self.progress_of_main, 1.0)
        threshold = between(self.first_unsure_threshold, self.last_unsure_threshold, rise)
        fraction = between(self.first_unsure_fraction, self.last_unsure_fraction, rise)
        side = between(self.first_box_side, self.last_box_side, self.progress_of_main)
        return Search(threshold, fraction, side, self.smallest_side, self.displacement_probability, self.random_places)
