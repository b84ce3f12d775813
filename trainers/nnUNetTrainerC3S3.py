"""C3S3 (He et al., ICME 2025)."""

from collections.abc import Iterator

from torch import Tensor, nn, no_grad, stack

from nnunet_ssl.building_blocks.competition import SmoothedErrors, labeled_error
from nnunet_ssl.building_blocks.contrast import places_to_compare, projector_of
from nnunet_ssl.building_blocks.perturbations import complementary_masks
from nnunet_ssl.building_blocks.two_views import Weights, losses_of_pass, see
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.step import Losses

NETWORKS, PROJECTORS = ("first", "second"), ("projector", "second_projector")
PAIRS = [(i, k) for i in (0, 1) for k in (0, 1)]  # network and view


class nnUNetTrainerC3S3(DualNetworkTrainer):  # noqa: N801 - nnU-Net's naming
    """C3S3: the worse of two networks learns from the better, and their features tell agreement from disagreement.

    J. He, Y. Lin, J. Chen, H. Xu, J. Zheng, "C3S3: Complementary Competition and Contrastive Selection for
    Semi-Supervised Medical Image Segmentation", ICME 2025, https://arxiv.org/abs/2506.07368

        L = Σ_i (L_seg(f_i(x), y) + ⟨1 - cos(p_i1, p_i2)⟩) + λ(t) Σ_k ⟨(p_ak - sharp(p_bk))²⟩ + w Σ_kl ℓ(g_1k, g_2l)

    p_ik is what network i predicts for view k of u: other intensities, and the encoder's channels times d or 2 - d, d ~
    2 Bernoulli(½). a has the larger smoothed α CE + (1 - α) (1 - Dice) on x, b is the other network. ℓ pulls projected
    features g together where both agree, against where they differ (agreement_contrast). A yield is of one p_ik; other
    p and sharp(p_b) are constant: the gradients sum to L's. The signal: dropped channels and the other architecture.

    Differences from the paper, of which code and README were read:
        ℓ is the text's: in the code masked voxels stay in its denominators, and nothing pulls what agrees together; it
        is by class, at some of the voxels, with a smaller w; cos is over classes; both are of unlabeled images alone;
        the code's two views differ by V-Net's dropout alone, which nnU-Net's networks lack; labeled images have one;
        the error is smoothed; the first network predicts, not the mean of both (export --ensemble hands on both).

    Cost: 3 B labeled and 6 B unlabeled forward passes of each network, B and 2 B without gradient, to nnU-Net's 3 B: 7
    if both networks cost the same; with the two architectures a ratio of 7.4 to 10.5, measured as CrossTeaching's.
    """

    STEP_COST = 9.0  # of nnU-Net's own step, measured; see above
    PASSES = (("first", 10), ("second", 11))  # of a batch; a backward one counts as two
    VIEWS = ("strong", "second_strong")
    second_architecture = "other"  # authors' code: two architectures
    cosine_weight = 1.0  # authors' code
    competition_weight = 0.5  # λ; README, Pancreas-CT (LA: 0.1); the code's supervised loss has nnU-Net's scale
    rampup_duration = 1.0  # of the run, of λ; authors' code, which stops long before
    contrast_weight = 0.01  # w; reconstructed: its gradient is 0.7 to 4 times cos's; the code's is 1, of another ℓ
    temperature = 0.1  # T of sharp(p) = p^(1/T) / (p^(1/T) + (1 - p)^(1/T)), as in README, and of ℓ; authors' code
    cross_entropy_fraction = 0.5  # α; README, Pancreas-CT (LA: 0.8)
    dropout_probability = 1.0  # of a pair of views to have channels dropped; ours
    compared_voxels = 5_000  # of an image, by ℓ, at most an eighth, which is cheap; ours: the code compares all

    def build_parts(self) -> dict[str, nn.Module]:
        """Return a projector of features for each network."""
        return {part: projector_of(self.networks[name]) for part, name in self.networks_of_parts().items()}

    def networks_of_parts(self) -> dict[str, str]:
        """Return the network that each projector is trained with."""
        return dict(zip(PROJECTORS, NETWORKS, strict=True))

    def build_state(self) -> dict[str, nn.Module]:
        """Return the smoothed errors of both networks on labeled images."""
        return {"errors": SmoothedErrors(len(NETWORKS))}

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the supervised loss of each network, then the losses of each network's pass of each view."""
        space, errors = self.label_space, []
        for network, name in zip(NETWORKS, ("supervised", "second_supervised"), strict=True):
            outputs = self.forward_pass(labeled.image, network).outputs
            errors.append(labeled_error(space, outputs[0], labeled.full_target, self.cross_entropy_fraction))
            yield {name: self.supervised_loss(labeled, outputs=outputs)}
            del outputs  # the next pass needs the room
        weights = Weights(self.cosine_weight, self.competition_weight * self.ramp("competition"), self.contrast_weight)
        if not any(weights):
            return
        is_loser = self.state["errors"].is_worst(self.sum_over_processes(stack(errors)))
        self.record({"first_wins": is_loser[1]})
        views, masks = (unlabeled.strong, unlabeled.second_strong), {}
        count = min(self.compared_voxels, unlabeled.strong[0, 0].numel() // 8) if self.contrast_weight else 0
        with no_grad():  # what the first pass with gradient is compared with
            looks = {(i, k): self.look(views[k], i, k, masks) for i, k in PAIRS[1:]}
            places = places_to_compare(space, [probs for probs, _ in looks.values()], count)
            seen = {(i, k): see(space, *looks.pop((i, k)), self.parts[PROJECTORS[i]], places) for i, k in PAIRS[1:]}
        for i, k in PAIRS:
            own = see(space, *self.look(views[k], i, k, masks), self.parts[PROJECTORS[i]], places)
            self.observe_pseudo_labels(seen[1 - i, k].probs, own.probs.detach(), ("", "second")[i])
            losses = losses_of_pass(space, own, seen, (i, k), is_loser[i], weights, self.temperature)
            yield {f"{NETWORKS[i]}_{name}_{k + 1}": loss for name, loss in losses.items()}
            seen[i, k] = own.detached()
            del own, losses  # the next pass needs the room

    def look(self, image: Tensor, i: int, k: int, masks: dict[int, list[list[Tensor]]]) -> tuple[Tensor, Tensor]:
        """Return probabilities and features of network i's pass of view k; the network's masks are drawn once."""
        skips = self.encode(image, NETWORKS[i])
        masks[i] = masks.get(i) or complementary_masks(skips, self.dropout_probability)
        found = self.decode([mask * level for mask, level in zip(masks[i][k], skips, strict=True)], NETWORKS[i])
        return self.probabilities(found.logits), found.features
