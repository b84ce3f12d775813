"""SPCL, self-paced contrastive learning with meta-labels (Peng et al., NeurIPS 2021)."""

from collections.abc import Iterator

from torch import Tensor, nn

from nnunet_ssl.building_blocks import self_paced_contrast as paced
from nnunet_ssl.building_blocks.consistency import mean_squared_error
from nnunet_ssl.building_blocks.mixing import cut_mix
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.data.meta_labels import meta_labels
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerSPCL(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """SPCL: the encoder learns which images are of one position, patient or phase, before and beside segmentation.

    J. Peng, P. Wang, C. Desrosiers, M. Pedersoli, "Self-Paced Contrastive Learning for Semi-supervised Medical Image
    Segmentation with Meta-labels", NeurIPS 2021, https://arxiv.org/abs/2107.13741

        pre-training:  L = λ₀ Σ_k β_k L_k(x, u)
        then:          L = L_seg(f(x; θ), y) + λ Σ_k β_k L_k(u) + r(t) α ⟨(p(u_strong; θ) - p(u_weak; θ'))²⟩
        L_k = ⟨w_ij ℓ_ij⟩ / ⟨w_ij⟩ over i, for each over j alike in k,    w_ij = max(1 - ℓ_ij / γ_k(t), 0)
        ℓ_ij = -log(exp(z_i·z_j / τ) / Σ_{a≠i} exp(z_i·z_a / τ)),    i of two views of each image

    z are the bottleneck's largest features through a projector of k, of u_strong, u_weak and x twice, each second view
    mirrored. The gradient flows through the student, in L_k to its encoder. The signal comes from the meta-labels.

    Differences from the paper, of which poster and code were read:
        one run with nnU-Net's SGD, not two with RAdam: the contrast has a tenth of the weight, and learning rate and
        lengths of weights begin anew; γ grows from ln 2N to twice as far above ln |P(i)|, the least ℓ; z is of the
        largest features, as instance normalisation makes the mean alike in all images; in 3-D the position is along
        the first axis (so far reconstructed); both views have one rotation; each process compares its own images.

    Cost: 3 B labeled, 3 B unlabeled, 1 B teacher passes and 7 B of the encoder (each view sees the other as constant,
    so that memory is that of one pass) to nnU-Net's 3 B, a ratio of 3; 15 B of the encoder in the pre-training, 1.5.
    """

    STEP_COST = 3.0  # of nnU-Net's own step; an encoder is 0.3 of a plain network's pass (0.7 of a residual one's: 4)
    PASSES = (("student", 7), ("encoder", 7))  # of a batch; a backward one counts as two
    ema_decay = 0.99  # of the teacher; SSL4MIS; authors' code: 0.999
    pretrain_fraction = 0.3  # of the run; reconstructed: 57 % of the authors' steps
    position_weight = 1.0  # β of the position along the first axis; authors' scripts
    patient_weight = 0.1  # β of the patient, as patient_pattern in dataset.json says; authors' scripts
    phase_weight = 0.1  # β of the phase, if there is a phase_pattern; authors' scripts
    pretrain_weight = 0.1  # λ₀; ours, measured: Dice 0.48, with 1 0.36 (ACDC, one training each); nothing to RAdam
    contrast_weight = 0.1  # λ; authors' code
    consistency_weight = 1.0  # α; as for Mean Teacher; authors: 0.2 to 1; 0 and predict_with=student: no Mean Teacher
    rampup_duration = 1.0  # of the second stage, until r = 1; as for Mean Teacher
    mixing_probability = 0.0  # that u_strong and its target have a box of the next image (CutMix, as for CPS); ours
    position_bins = 3  # P; authors' code, ACDC; 8 for other data
    phase_pattern: str | None = None  # finds the phase in a case's name; for ACDC "frame01$"
    temperature = 0.07  # τ; authors' code
    pair_weights = "linear"  # w; authors' scripts; "hard": 1 where ℓ ≤ γ; "constant": 1, to compare
    age = "bounds"  # γ lies on the way from ln |P(i)| (0) to ln 2N (1); "quantile": it is one of the pairs' ℓ
    first_age = 1.0  # where γ begins, in each stage; reconstructed; authors' scripts: 1.8 (position); as quantile 0.5
    last_age = 2.0  # where it ends; reconstructed; authors' scripts: 50, which admits wrong pairs; as quantile 0.8

    def check_settings(self) -> None:
        """Refuse words and numbers that mean nothing."""
        super().check_settings()
        paced.refuse(self.pair_weights, self.age, (self.first_age, self.last_age), self.temperature)

    def build_parts(self) -> dict[str, nn.Module]:
        """Return a projector for each meta-label that has a weight."""
        names = [name for name in meta_labels((), 1, None, self.phase_pattern) if getattr(self, f"{name}_weight")]
        return {name: paced.projector_of(self.networks[None]) for name in names}

    def pretraining_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the contrast of all images; where no meta-label has a weight, nnU-Net's loss."""
        if not (self.parts and self.pretrain_weight):
            yield {"supervised": self.supervised_loss(labeled)}
        views = (*[labeled.image] * 2, unlabeled.strong, unlabeled.weak), labeled.places * 2 + unlabeled.places * 2
        yield from self.contrast(*views, self.pretrain_weight, self.progress / self.stages.pretrain_fraction)

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, the contrast of the unlabeled images, and their consistency with the teacher."""
        yield {"supervised": self.supervised_loss(labeled)}
        images, places = (unlabeled.strong, unlabeled.weak), unlabeled.places * 2
        yield from self.contrast(images, places, self.contrast_weight, self.progress_of_main)
        if self.consistency_weight:
            maps = unlabeled.strong, self.teacher_probabilities(unlabeled.weak)
            image, target = cut_mix(maps, self.mixing_probability, (0.25, 0.5))
            probs = self.probabilities(self.forward_pass(image).logits)
            self.observe_pseudo_labels(target, probs)
            weight = self.consistency_weight * self.ramp("consistency")
            yield {"consistency": weight * mean_squared_error(probs, target)}

    def contrast(self, images: tuple[Tensor, ...], places: tuple, weight: float, time: float) -> Iterator[Losses]:
        """Yield Σ_k β_k L_k in parts, one for each view; every other view of `images` is mirrored."""
        images = [paced.mirrored(image, self.mirror_axes) if i % 2 else image for i, image in enumerate(images)]
        labels = meta_labels(places, self.position_bins, self.dataset_json.get("patient_pattern"), self.phase_pattern)
        pace = paced.Pace(self.pair_weights, self.age, (self.first_age, self.last_age), time, self.temperature)
        passes = paced.losses_in_passes(self.encode, images, self.parts, labels, pace) if weight else ()
        for i, found in enumerate(passes):
            self.record({f"admitted/{name}": one.admitted for name, one in found.items()})
            yield {f"contrast_{i + 1}": weight * sum(getattr(self, f"{k}_weight") * found[k].loss for k in found)}
            del found  # the next pass needs the room
