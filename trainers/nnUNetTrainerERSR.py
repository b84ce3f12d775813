"""ERSR (Zhou et al., 2025)."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from nnunet_ssl.building_blocks import ellipse_refinement as ellipse
from nnunet_ssl.building_blocks import symmetry
from nnunet_ssl.building_blocks.consistency import masked_mean_squared_error
from nnunet_ssl.building_blocks.dual_score import ScoreTable, dual_scores
from nnunet_ssl.building_blocks.ramps import between
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerERSR(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """ERSR: pseudo-labels of the fetal head are filtered by their shape, drawn to an ellipse, and mirrored at its axis.

    L. Zhou, Z. Chen, Y. Shen et al., "ERSR: An Ellipse-constrained pseudo-label refinement and symmetric regularization
    framework for semi-supervised fetal head segmentation in ultrasound images", 2025, https://arxiv.org/abs/2508.19815

        L = L_seg(f(x), y) + λ(t) [⟨(s - ŷ)²⟩ + mean over halves i of ⟨(s_i - sym_i(s))²⟩ + ⟨(s_i - M(s_i))²⟩]
        ŷ = [p' > τ],    p' = max(p, τ + (1 - d)²) where d ≤ 1,    p exp(-½ (d - 1)) elsewhere,    p = p(u_weak; θ')

    of images whose ½ ⟨|∇p|⟩ + ½ ⟨|Δ distance to the head|⟩ is among the best K(t) of all. The student predicts s of
    u_strong and s_i of u_i, where half i of the head and its mirror image stand, each perturbed; d is 1 on the ellipse
    fitted to [p > τ], M reflects at its long axis, sym_i keeps half i. The gradient flows through s and s_i; the signal
    is the shape's: what the ellipse changes, and mirrored content. The teacher labels what is not head, and predicts.

    Differences from the paper (abstract and code were at hand): a warm-up, no supervised checkpoint; scores by case, of
    a lattice in large patches, no zeros beyond the border, no masks under 1 % (empty ones scored best); ellipses are of
    all border points, none that leaves the patch or fits badly; the head alone is perturbed, not stretched to 0..1.

    Cost: 3 B labeled, 9 B unlabeled, 1 B teacher passes to nnU-Net's 3 B, a ratio of 4.33; 1 in the warm-up.
    """

    STEP_COST = 13 / 3  # of nnU-Net's own step; see above
    DIMENSIONS = (2,)

    elliptic_label: str | None = None  # name or number of the head's label or region; None: the only one
    warmup_fraction = 0.4  # of the run; reconstructed, as for FixMatch; the authors start from a supervised checkpoint
    rampup_duration = 1.0  # of what follows, until λ and K are at their largest; authors' code
    segmentation_weight = 2.0  # λ of the pseudo-label; authors' code has 1, x2 for nnU-Net's loss scale
    perturbed_weight = 2.0  # λ of s_i against s; as above
    mirrored_weight = 2.0  # λ of s_i against its mirror image; as above
    kept_fraction = 0.5  # K after the warm-up, 1 at the end; authors' code; from 1 on only masks below 1 % are left out
    head_threshold = 0.6  # τ; authors' code
    refines = True  # false: p' = p, and the ellipse gives the axis alone; ours, to compare with
    overlap_fraction = 0.8  # intersection over union of ellipse and mask at least; reconstructed

    def check_settings(self) -> None:
        """Refuse several labels of which none is said to be the elliptic one."""
        super().check_settings()
        self.head = ellipse.channel_of(self.dataset_json["labels"], self.label_manager.has_regions, self.elliptic_label)

    def build_state(self) -> dict[str, nn.Module]:
        """Return the scores of all cases."""
        return {"scores": ScoreTable()}

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, that of the pseudo-labels, and those of both symmetric images."""
        space, image, head, ramp = self.label_space, unlabeled.strong, self.head, self.ramp("unlabeled")
        probs = self.teacher_probabilities(unlabeled.weak)
        masks = space.one_hot(space.pseudo_label(probs))[:, head], probs[:, head] > self.head_threshold
        pending = self.on_host(partial(ellipse.examine_masks, unlabeled.keys, self.overlap_fraction), *masks)
        yield {"supervised": self.supervised_loss(labeled)}

        ellipses, contours, cases = pending.result()
        scores = dual_scores(probs[:, head], contours)
        everywhere = (self.gather_over_processes(one, of_batch=True) for one in (cases, scores))
        kept = self.state["scores"].is_kept(scores, *everywhere, between(self.kept_fraction, 1.0, ramp))
        is_elliptic = kept & ellipse.is_fitted(ellipses)
        self.record({"kept": kept.float().mean(), "elliptic": is_elliptic.float().mean()})
        labels = ellipse.pseudo_labels(space, probs, head, ellipses, self.head_threshold, self.refines)
        found = self.probabilities(self.forward_pass(image).logits)
        self.observe_pseudo_labels(labels, found.detach())
        yield {"segmentation": self.segmentation_weight * ramp * masked_mean_squared_error(found, labels, kept)}

        whole, mirror = found[:, head].detach(), symmetry.mirror_at_long_axis(ellipses, image.shape[2:])
        weights = {"perturbed": self.perturbed_weight, "mirrored": self.mirrored_weight}
        for side in ("left", "right") if any(weights.values()) else ():
            del found  # the next pass needs the room
            half = symmetry.symmetric_image(image, labels[:, head], mirror, side)
            found = self.probabilities(self.forward_pass(half.image).logits)[:, head]
            losses = symmetry.symmetric_losses(found, whole, mirror, half, is_elliptic)
            yield {name + f"_{side}": ramp / 2 * weights[name] * losses.pop(name) for name in weights}

    def after_step(self) -> None:
        """Store the scores of the step."""
        self.state["scores"].store()

    def preview_contents(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pseudo-labels, drawn to the ellipses, and these."""
        fit = partial(ellipse.fit_ellipses, self.overlap_fraction)
        ellipses = self.on_host(fit, probs[:, self.head] > self.head_threshold).result()
        labels = ellipse.pseudo_labels(self.label_space, probs, self.head, ellipses, self.head_threshold, self.refines)
        return labels, ellipse.inside_of(ellipses, probs.shape[2:])
