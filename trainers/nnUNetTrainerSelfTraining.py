"""Iterative self-training (Huang et al., FLARE 2022)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses


class nnUNetTrainerSelfTraining(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """Self-training: the network predicts all unlabeled cases whole, learns from that, and predicts them again.

    Z. Huang, H. Wang, J. Ye et al., "Revisiting nnU-Net for Iterative Pseudo Labeling and Efficient Sliding Window
    Inference", FLARE 2022, https://doi.org/10.1007/978-3-031-23911-3_16; `online=true` is the form of nnFilterMatch,
    2025, https://arxiv.org/abs/2509.19746

        warm-up:  L = L_seg(f(x; θ), y)
        then:     L = L_seg(f(x; θ), y) + λ L_seg(f(u; θ), ŷ)
        ŷ is cut out of what the network, as it was when the round began, predicts for the whole case of u
        online:   L_seg(f(T u; θ), T ŷ),    ŷ = argmax p(u; θ) of the patch itself,    T turns and mirrors

    L_seg of ŷ is cross-entropy and Dice at all heads, over all voxels. The cases whose prediction changes most between
    rounds, by the mean over labels of 1 - Dice, are left out. Patches of u are drawn around predicted foreground as
    nnU-Net draws those of x. The signal is what a whole case tells more than a patch of it, and nnU-Net's mirrorings of
    it, under other augmentation than the patch then has; online that of a patch in another position.

    Differences from the paper:
        one run: a round goes on with the network, where the authors train a new one; so rounds are shorter;
        the change of a case is by label, where the authors count all foreground voxels: small structures count as much;
        a case in which nothing is predicted counts as unstable; true and pseudo-labels have a batch each;
        the authors label with large networks, at first five of them, and train a small one at the end: here it is one;
        online: turned about one axis, and mirrored from the beginning; the filter is that of whole cases.

    Cost: 3 B labeled, 3 B unlabeled forward passes to nnU-Net's 3 B, a ratio of 2, online B more: 2.33; 1 in the
    warm-up. Beside it each round predicts all unlabeled cases: docs/architecture.md says what share of a run that is.
    """

    STEP_COST = 2.0  # of nnU-Net's own step; see above
    VIEWS = ("strong", "pseudo_label")

    online = False  # true: labels by the network as it is in each step; rounds then only filter and place patches
    warmup_fraction = 0.4  # of the run; ours, as for FixMatch; the authors train to the end before the first round
    prediction_rounds = 3  # authors
    unstable_fraction = 0.04  # of the cases; authors: the worst 4 %
    pseudo_foreground_probability = 0.33  # nnU-Net's own, of labeled patches
    pseudo_label_weight = 1.0  # λ; authors: pseudo-labels count as labels

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss, then that of the pseudo-labels."""
        yield {"supervised": self.supervised_loss(labeled)}

        image, labels = unlabeled.strong, unlabeled.pseudo_label
        if self.online:
            labels = self.label_space.pseudo_label(self.network_probabilities(image))
            image, labels = self.turned(image, labels)
        self.observe_pseudo_labels(self.label_space.one_hot(labels))
        loss = self.masked_loss(self.forward_pass(image).outputs, labels, torch.ones_like(image[:, :1]))
        yield {"pseudo_label": self.pseudo_label_weight * loss}

    def turned(self, *maps: Tensor) -> list[Tensor]:
        """Return maps (B, ?, *spatial) turned in the plane of the last two axes, and mirrored along some others.

        By 90, 180 or 270 degrees, which needs a square plane; by 180 otherwise; not at all where one of the two axes is
        not mirrored along. One draw is for the whole batch.
        """
        *_, rows, columns = maps[0].shape
        turns = int(torch.randint(1, 4, ())) if rows == columns else 2
        if not {maps[0].ndim - 4, maps[0].ndim - 3} <= {*self.mirror_axes}:
            turns = 0
        axes = [axis + 2 for axis in self.mirror_axes if torch.rand(()) < 0.5]
        return [one.rot90(turns, (-2, -1)).flip(axes) for one in maps]
