"""TransMedSeg (Wang et al., 2025)."""

from collections.abc import Iterator

from torch import Tensor, nn, stack

from nnunet_ssl.building_blocks import semantic_augmentation as semantic
from nnunet_ssl.building_blocks.graph import GraphClustering
from nnunet_ssl.building_blocks.mixing import alternating, mix_labeled_with_unlabeled, random_box
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.step import Losses
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer


class nnUNetTrainerTransMedSeg(TeacherStudentTrainer):  # noqa: N801 - nnU-Net's naming
    """TransMedSeg: BCP, with the features of labeled images augmented towards the teacher's of unlabeled ones.

    M. Wang et al., "TransMedSeg: A Transferable Semantic Framework for Semi-Supervised Medical Image Segmentation",
    2025, https://arxiv.org/abs/2505.14753; there is no code: reconstructed from its abstract, summaries and TSA's code

        L = L_BCP + β(t) ⟨CE(ẑ, y)⟩,    ẑ_k = z_k + λ dᵀ(μ'_y - μ_y) + min(½ λ dᵀ Σ'_y d, limit),    d = w_k - w_y

    ẑ bounds the mean cross-entropy of features f ~ N(f + λ (μ'_y - μ_y), λ Σ'_y), those of the last decoder stage; w
    are weights of the last convolution, μ class means of the student's labeled features, μ' and Σ' moments of the
    teacher's unlabeled ones; regions have its binary form. The gradient flows through z and w. The signal is BCP's.

    Differences from the paper: our BCP; running moments of a lattice of voxels, no memory; the limit; no mutual
    information; GraphCL's graph is off, and a side branch: its cluster loss, a mean over pairs, trains the encoder.

    Cost: 3 B labeled, 3 B mixed, 1 B teacher passes to nnU-Net's 3 B, 2.33, and the term, measured; 1 in the warm-up.
    """

    STEP_COST = 2.4  # of nnU-Net's own step; the term takes up to 7 % of BCP's, measured
    CHANGES_SUPERVISED_TERM = True  # labels are learned from mixed images too

    augmented = "labeled"  # as above; "unlabeled": the teacher's towards the student's, gradient to w alone; abstract
    augmented_weight = 0.5  # β; reconstructed
    rampup_duration = 0.2  # of what follows the warm-up, until the weight is β; reconstructed
    augmentation_fraction = 0.25  # λ₀, when all that follows the warm-up is over; TSA's code
    largest_margin = 5.0  # the limit, in logits; reconstructed: on hippocampus (2d, tuning fold) at most 3 was seen
    statistics_decay = 0.99  # of the moments, in a step; reconstructed
    statistics_threshold = 0.8  # of the confidence of a pseudo-label for its features to count; reconstructed
    graph_weight = 0.0  # κ; GraphCL has 0.01, of a sum of unknown scale; 0: there is no graph
    warmup_fraction = 0.4  # of the run; as for BCP
    box_side = 2 / 3  # of the patch along each axis; as for BCP
    pseudo_label_weight = 0.5  # of the pasted pseudo-labels; as for BCP

    def check_settings(self) -> None:
        """Refuse another word for what is augmented, and a limit below 0."""
        super().check_settings()
        semantic.refuse(augmented=self.augmented, largest_margin=self.largest_margin)

    def build_parts(self) -> dict[str, nn.Module]:
        """Return the graph, if it is switched on."""
        return {"graph": GraphClustering(self.networks[None].encoder)} if self.graph_weight else {}

    def build_state(self) -> dict[str, nn.Module]:
        """Return the running moments of both streams' features."""
        return {"moments": semantic.RunningMoments(self.label_space, self.networks[None].decoder.seg_layers[-1])}

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss and the augmented one, then both losses of the mixed images."""
        space, target, self.moments = self.label_space, labeled.full_target, []
        found = self.forward_pass(labeled.image)
        losses = {"supervised": self.supervised_loss(labeled, outputs=found.outputs)}
        yield losses | self.augmented_loss("labeled", found.features, target, space.is_known(target))
        del found, losses  # the next passes need the room
        found = self.teacher_pass(unlabeled.weak)
        probs = self.probabilities(found.logits)
        self.observe_pseudo_labels(probs)
        pseudo_label, is_sure = space.pseudo_label(probs), space.confidence(probs) > self.statistics_threshold
        if losses := self.augmented_loss("unlabeled", found.features, pseudo_label, is_sure):
            yield losses
        del found, losses, probs, is_sure
        shape, device = target.shape, target.device
        is_labeled = random_box(shape[2:], self.box_side, device) ^ alternating(shape[0], len(shape) - 2, device)
        pairs = (labeled.image, target), (unlabeled.strong, pseudo_label)
        image, labels, parts = mix_labeled_with_unlabeled(space, is_labeled, *pairs)
        found = self.forward_pass(image)
        known, taught = self.masked_losses(found.outputs, labels, parts)
        graph = {name: self.graph_weight * part.loss(found.skips[-1]) for name, part in self.parts.items()}
        yield {"labeled_part": known, "pseudo_label": self.pseudo_label_weight * taught} | graph

    def augmented_loss(self, stream: str, features: Tensor, labels: Tensor, weight: Tensor) -> Losses:
        """Note the moments of a stream's features; return their augmented loss, if it is these that are augmented."""
        classes = semantic.class_maps(self.label_space, labels, weight)
        self.moments.append(semantic.class_moments(features, classes))
        if stream != self.augmented or not self.augmented_weight * self.augmentation_fraction:
            return {}
        moved = self.state["moments"].transfer(stream, self.augmentation_fraction * self.progress_of_main)
        classifier = self.networks[None].decoder.seg_layers[-1]
        augmented = semantic.augment(self.label_space, classifier, features, classes, moved, self.largest_margin)
        self.record({"margin": augmented.margin, "clamped": augmented.clamped})
        return {"augmented": self.augmented_weight * self.ramp("augmented") * augmented.loss}

    def after_step(self) -> None:
        """Add the moments of all processes to those of the steps before."""
        if moments := getattr(self, "moments", []):
            self.state["moments"].update(self.sum_over_processes(stack(moments)), self.statistics_decay)
