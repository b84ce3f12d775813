"""MC-Net+ (Wu et al., Medical Image Analysis 2022)."""

from collections.abc import Iterator

from torch import Tensor, nn

from nnunet_ssl.building_blocks.consistency import mutual_consistency
from nnunet_ssl.building_blocks.decoders import other_decoder
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerMCNet(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """MC-Net+: decoders that differ in their up-sampling learn from each other's sharpened predictions.

    Y. Wu, Z. Ge, D. Zhang, M. Xu, L. Zhang, Y. Xia, J. Cai, "Mutual consistency learning for semi-supervised medical
    image segmentation", Medical Image Analysis 2022, https://arxiv.org/abs/2109.09960

        L = Σ_i L_seg(g_i(e(x)), y) + λ(t) · mean_(i ≠ j) ⟨(p_i - sharp(p_j))²⟩ over x and u
        sharp(p) = p^(1/T) / (p^(1/T) + (1 - p)^(1/T)),    λ(t) = λ exp(-5 (1 - t)²) until t = 1, then λ

    One encoder e; g_1 is nnU-Net's decoder, with transposed convolutions, and what predicts; g_2 up-samples linearly,
    g_3 by the nearest voxel, each followed by a convolution. The gradient flows through every p_i, and not through
    sharp(p_j).

    Differences from the paper:
        the sharpened targets are constant: in the authors' code the gradient flows through them too;
        the mean over pairs, not their sum, with six times their λ;
        the supervised loss is nnU-Net's, at all heads.

    Cost: labeled and unlabeled passes of one encoder and three decoders, whose graphs are alive at once; a decoder that
    interpolates costs more than nnU-Net's own, by its convolution at the higher resolution. Measured on a CPU with the
    plans of benchmarks/, 3d_fullres with features 16 to 128 and batches of 2: a ratio of 5.7 to 6.4, and 2.2 times
    nnU-Net's peak memory.
    """

    STEP_COST = 6.1  # of nnU-Net's own step, measured; see above
    CHANGES_SUPERVISED_TERM = True  # three decoders learn the labels

    VIEWS = ("weak",)
    consistency_weight = 1.2  # λ; authors' code, 2-D: 0.1 of the sum over six pairs, x2 for nnU-Net's loss scale
    rampup_duration = 1.0  # of the run; authors' code
    temperature = 0.1  # T; paper §4.1

    def build_parts(self) -> dict[str, nn.Module]:
        """Return the two decoders beside nnU-Net's own."""
        return {name: other_decoder(self.networks[None], name) for name in ("linear", "nearest")}

    def warmup_losses(self, labeled: LabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss of all decoders."""
        outputs = self.outputs_of_decoders(labeled.image)
        yield {name: self.supervised_loss(labeled, outputs=heads) for name, heads in outputs.items()}

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of all decoders on labeled images, then their consistency on unlabeled ones."""
        weight = 0.5 * self.consistency_weight * self.ramp("consistency")  # half of it for each kind of image
        outputs = self.outputs_of_decoders(labeled.image)
        losses = {name: self.supervised_loss(labeled, outputs=heads) for name, heads in outputs.items()}
        probs = [self.probabilities(heads[0]) for heads in outputs.values()]
        yield {**losses, "labeled_consistency": weight * mutual_consistency(probs, self.temperature)}

        del outputs, losses, probs  # the next passes need the room
        outputs = self.outputs_of_decoders(unlabeled.weak)
        probs = [self.probabilities(heads[0]) for heads in outputs.values()]
        self.observe_pseudo_labels(probs[1].detach(), probs[0].detach())
        yield {"consistency": weight * mutual_consistency(probs, self.temperature)}

    def outputs_of_decoders(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Return the outputs of each decoder, by the name of its supervised loss."""
        skips = self.encode(image)
        others = {f"supervised_{name}": self.decode(skips, decoder=part).outputs for name, part in self.parts.items()}
        return {"supervised": self.decode(skips).outputs, **others}
