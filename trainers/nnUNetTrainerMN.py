"""M&N (Yeung et al., MLMI 2025)."""

from collections.abc import Iterator

from torch import nn, ones_like
from torch.optim import AdamW, Optimizer

from nnunet_ssl.building_blocks.sampling import draw_unlabeled, samples_at, unlabeled_share, with_samples
from nnunet_ssl.building_blocks.soft_targets import soft_target_loss_of_heads
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.networks_2d import LibraryNetwork, axis_of_slices, network_2d
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses

NETWORKS = ("network", "network_2d")


class nnUNetTrainerMN(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """M&N: a 2-D network that was pretrained on natural images and nnU-Net's 3-D network teach each other in turn.

    P.-H. Yeung, J. Ramesh, P. Lyu, A. Namburete, J. Rajapakse, "Semi-Supervised 3D Medical Segmentation from 2D Natural
    Images Pretrained Model", MLMI 2025, https://arxiv.org/abs/2509.15167

        L_i = 1 - Dice(p_i, q) + KL(q ‖ p_i),    q = y of labeled samples, p_j of unlabeled ones,    i ≠ j

    In even epochs the 2-D network learns, in odd ones the 3-D network; p_j is what the other one predicts for the same
    patch in evaluation mode. Of B samples (B - 1) (1 - lr / lr_0) are unlabeled on average (draw_unlabeled). The 2-D
    network sees slices; its encoder has low-rank adapters. The gradient of L_i flows through network i alone. The
    signal: another dimension, and weights that have seen many images. The 3-D network alone predicts.

    Differences from the paper, of which abstract and code were read:
        the 3-D network has nnU-Net's augmentation, optimiser and deep supervision (of mean targets), both its loss in
        the warm-up; its learning rate, which does not restart, is the share's: the code's grows with the epochs;
        KL is summed over classes, where the code takes their mean; the code adds the image to the 2-D decoder;
        no predictions are saved: there they steer which places are sampled, and nothing else.

    Cost: B forward and backward passes of one network in turn (2-D slices in chunks pass forward twice), up to B - 1
    forward ones of the other. Measured on a CPU as CrossTeaching's, 6.4 to 6.7; with nnU-Net's own 2d network 1.1.
    """

    STEP_COST = 6.4  # of nnU-Net's own step, measured; see above
    PASSES = (("network", 1.62), ("network_2d", 1.62))  # of a batch of 2 at mid-run; a backward one counts as two
    VIEWS = ("strong",)
    DIMENSIONS = (3,)
    CHANGES_SUPERVISED_TERM = True  # labels are targets as probabilities are

    warmup_fraction = 0.125  # of the run, on labeled images alone; authors' code: 500 of 4 000 epochs
    guided_sampling = True  # false: half of B - 1 samples are unlabeled at all times; ours, to compare with
    architecture_2d = "segformer"  # paper; or another one of segmentation-models-pytorch
    encoder = "mit_b2"  # paper; or another one of that library
    encoder_weights = "imagenet"  # on the Hugging Face hub; none starts at random; the code's are of ADE20K
    weights_2d: str | None = None  # a file of weights, or a folder that the library saved, instead of the hub's
    init_2d: str | None = None  # a checkpoint of nnU-Net's 2d network, which is then the 2-D network
    low_rank_adapters = True  # of the library's encoder; false trains all of its weights; paper
    adapter_rank = 64  # authors' code
    adapter_dropout = 0.1  # authors' code
    learning_rate_2d = 1e-3  # of AdamW, of the library's network; authors' code
    slice_axis: int | None = None  # 1, 2 or 3: which axis is cut; None: that of the coarsest spacing
    slices_per_pass = 32  # so many slices' features are in memory at a time; ours

    def build_other_networks(self) -> dict[str, nn.Module]:
        """Return the 2-D network."""
        axis = axis_of_slices(self.configuration_manager.spacing, self.slice_axis)
        sizes = (self.num_input_channels, self.label_space.num_channels, axis, self.slices_per_pass)
        adapters = (self.adapter_rank, self.adapter_dropout) if self.low_rank_adapters else None
        names = (self.architecture_2d, self.encoder, self.encoder_weights)
        library = LibraryNetwork(*names, self.weights_2d, adapters, is_filled_later=self.was_resumed)
        return {"network_2d": network_2d(self.init_2d, library, *sizes)}

    def build_part_optimizers(self) -> dict[str, Optimizer]:
        """Return that of the library's network; nnU-Net's 2d network has nnU-Net's."""
        weights, rate = self.networks["network_2d"].parameters(), self.learning_rate_2d
        return {} if self.init_2d else {"network_2d": AdamW(weights, rate)}

    def warmup_losses(self, labeled: LabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss of both networks."""
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"supervised_2d": self.supervised_loss(labeled, "network_2d")}

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the loss of the network whose turn it is."""
        space, full_target = self.label_space, labeled.full_target
        learner, other = NETWORKS if self.current_epoch % 2 else reversed(NETWORKS)
        maps = (labeled.image, space.one_hot(full_target), space.is_known(full_target).float())
        chosen = draw_unlabeled(len(labeled.image), unlabeled_share(self.progress) if self.guided_sampling else 0.5)
        self.record({"unlabeled_samples": len(chosen)})
        if chosen:
            patches = samples_at(unlabeled.strong, chosen)
            self.networks[other].eval()
            taught = self.network_probabilities(patches, other)
            self.networks[other].train()
            new = (patches, taught, ones_like(taught[:, :1]))
            maps = [with_samples(*pair, chosen) for pair in zip(maps, new, strict=True)]
        outputs = self.forward_pass(maps[0], learner).outputs
        if chosen:
            own = self.probabilities(samples_at(outputs[0].detach(), chosen))
            self.observe_pseudo_labels(taught, own, "" if learner == "network" else "2d")
        loss = soft_target_loss_of_heads(space, outputs, *maps[1:], self.head_weights(outputs))
        yield {f"{learner}_taught": loss}
