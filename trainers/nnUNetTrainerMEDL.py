"""MEDL, mutual evidential deep learning (He et al., 2025)."""

from collections.abc import Generator, Iterator

from torch import no_grad

from nnunet_ssl.building_blocks import evidence
from nnunet_ssl.building_blocks.asymptotic_weights import Weights, asymptotic_weights, losses_by_weight, refuse
from nnunet_ssl.building_blocks.mixing import alternating, mix_labeled_with_unlabeled, random_box
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses

NETWORKS = {"first": "", "second": "second_"}  # and how the names of their losses begin


class nnUNetTrainerMEDL(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """MEDL: two architectures give evidence, and learn what it says together, at first where it is certain.

    Y. He, Y. Bi, L. Li, C.-M. Pun, W. Jiao, Z. Jin, "Mutual Evidential Deep Learning for Medical Image Segmentation",
    2025, https://arxiv.org/abs/2505.12418

        e_i = exp(f_i),  α = e + 1,  S = Σ α,  p = α / S;    b̃, ũ = fusion of (e_1, K) / S_1 and (e_2, K) / S_2
        L_i = L_seg(p_i(x), y) + L_seg(p_i(m), y) + ⟨ω CE(p_i(m), y)⟩ + L_seg(p_i(m), ŷ; R) + λ(t) ⟨ω ℓ(e_i(m), ŷ)⟩

    m are labeled images x with a box of u_strong, or the reverse, as in BCP; both networks see the same. Terms with y
    are over the voxels of x, those with ŷ = argmax b̃(u_weak) over the voxels of u, weighted by R, how reliable b̃ is. ω
    goes by the rank of ½ u_i(x) + ½ ũ(x), or of ũ(u_weak), in the whole image; ℓ is fisher_information_loss. The
    gradient of L_i flows through network i, not through ŷ, R, ω. The signal: the boxes and the other architecture.

    Differences from the paper, of which there is no code:
        exp, Ξ, λ, λ₂, that R is a weight, and all of the boxes but their size are reconstructed; that x is also
        learned whole, and the warm-up, after which ω begins, are our BCP's; R is of p̃, not b̃: see reliability;
        one network predicts, as argmax f = argmax e; what export --ensemble hands on averages softmax(f), not p.

    Cost: for each network 3 B labeled, 3 B mixed and 1 B weak forward passes to nnU-Net's 3 B, a ratio of 4.67 if both
    cost the same, and the terms; 2 in the warm-up. Measured as CrossTeaching's, and beside it: 6.0, where that had 5.2.
    """

    STEP_COST = 6.0  # of nnU-Net's own step, measured; see above
    PASSES = (("first", 7), ("second", 7))  # of a batch; a backward one counts as two
    CHANGES_SUPERVISED_TERM = True  # labels are learned by evidence, and from mixed images too
    second_architecture = "other"  # paper: two architectures
    warmup_fraction = 0.4  # of the run, on labeled images alone; as for BCP
    fusion = "full"  # κ = 1 / (1 + K), or "rest": 1 / K, the paper has both; "mean" of both opinions, to compare
    asymptotic_weight = 0.5  # Ξ, how far ω goes from 1; reconstructed; 0: all voxels count alike
    ordered_weight = 1.0  # of the labeled term with ω; paper
    pseudo_label_weight = 1.0  # of the term with R; paper
    fisher_weight = 0.1  # λ; reconstructed; 0 leaves its term out
    rampup_duration = 1.0  # of what follows the warm-up, until λ; paper
    determinant_weight = 0.05  # λ₂ of ℓ; reconstructed: I-EDL's code
    mixing = True  # paper, ACDC; False: m are whole images, every other one an x, the others u_strong; to compare
    box_side = 2 / 3  # of the patch along each axis; paper: 170 of 256

    def check_settings(self) -> None:
        """Refuse another fusion, and weights of voxels below 0."""
        super().check_settings()
        refuse(self.fusion, self.asymptotic_weight)

    def warmup_losses(self, labeled: LabeledBatch) -> Generator[Losses, None, list[evidence.Opinion]]:
        """Yield the first term of both networks; return what they say of the labeled images."""
        opinions = []
        for network, prefix in NETWORKS.items():
            outputs = self.forward_pass(labeled.image, network).outputs
            opinions.append(evidence.opinion_of(self.label_space, outputs[0]))
            learned = [evidence.expected_logits(self.label_space, one) for one in outputs]
            yield {f"{prefix}supervised": self.supervised_loss(labeled, outputs=learned)}
            del outputs, learned  # the next pass needs the room
        return opinions

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the first term of both networks, then all others of each."""
        space, target, change = self.label_space, labeled.full_target, (self.progress_of_main, self.asymptotic_weight)
        opinions = yield from self.warmup_losses(labeled)
        fused, known = evidence.combine(*opinions, self.fusion), space.is_known(target)
        ranked = [(one.uncertainty + fused.uncertainty) / 2 for one in opinions]
        of_labels = [asymptotic_weights(one, known, *change) for one in ranked]
        with no_grad():
            opinions = [evidence.opinion_of(space, self.forward_pass(unlabeled.weak, name).logits) for name in NETWORKS]
        fused = evidence.combine(*opinions, self.fusion)
        probs, trust = evidence.expected_probabilities(space, fused), evidence.reliability(fused)
        self.observe_pseudo_labels(probs, evidence.expected_probabilities(space, opinions[0]))
        self.record(evidence.means(opinions, fused, trust))
        order = asymptotic_weights(fused.uncertainty, None, *change)
        box = random_box(target.shape[2:], self.box_side, target.device) & self.mixing
        is_labeled = box ^ alternating(len(target), target.ndim - 2, target.device)
        pairs = (labeled.image, target), (unlabeled.strong, space.pseudo_label(probs))
        mixed = mix_labeled_with_unlabeled(space, is_labeled, *pairs)
        weights = Weights(self.ordered_weight, self.fisher_weight * self.ramp("fisher"), self.determinant_weight)
        del opinions, ranked, fused, probs, pairs  # the passes need the room
        for (network, prefix), of_label in zip(NETWORKS.items(), of_labels, strict=True):
            outputs = self.forward_pass(mixed.image, network).outputs
            learned = [evidence.expected_logits(space, one) for one in outputs]
            parts = mixed.parts[0], trust * mixed.parts[1]
            labeled_part, pseudo_label = self.masked_losses(learned, mixed.labels, parts)
            losses = {"labeled_part": labeled_part, "pseudo_label": self.pseudo_label_weight * pseudo_label}
            losses |= losses_by_weight(space, outputs[0], learned[0], mixed, (of_label, order), weights)
            yield {prefix + name: loss for name, loss in losses.items()}
            del outputs, learned, labeled_part, pseudo_label, losses
