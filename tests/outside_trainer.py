"""A method as somebody may write it outside of the package, with all that the base can carry at once."""

import torch
from torch import nn

from nnunet_ssl.building_blocks.consistency import mean_squared_error
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer

FEATURES = 3  # of the projector


class Memory(nn.Module):
    """The moving mean of each class's projected features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(channels, FEATURES))


class nnUNetTrainerOutside(SemiSupervisedTrainer):  # noqa: N801 - nnU-Net's naming
    """Two students of two architectures with a teacher each, a projector, an adversary, a memory, and three stages."""

    FIRST_NETWORK = "left"
    VIEWS = ("weak", "strong")
    CHANGES_SUPERVISED_TERM = True  # the projector learns from labels too

    pretrain_fraction = 0.25
    warmup_fraction = 0.2
    rampup_duration = 0.2
    ema_decay = 0.9
    cross_weight = 0.3
    adversarial_weight = 0.1

    def build_other_networks(self):
        return {"right": self.new_network("other")}

    def build_teachers(self):
        return {"left_teacher": "left", "right_teacher": "right"}

    def build_parts(self):
        convolution = nn.Conv2d if self.patch_dimensions() == 2 else nn.Conv3d
        features = self.networks["left"].decoder.seg_layers[-1].in_channels
        channels = self.label_space.num_channels
        critic = nn.Sequential(convolution(channels, 4, 3, padding=1), nn.LeakyReLU(), convolution(4, 1, 1))
        return {"projector": convolution(features, FEATURES, 1), "critic": critic}

    def patch_dimensions(self) -> int:
        return len(self.configuration_manager.patch_size)

    def build_part_optimizers(self):
        return {"critic": torch.optim.Adam(self.parts["critic"].parameters(), lr=1e-3)}

    def build_state(self):
        return {"memory": Memory(self.label_space.num_channels)}

    def inference_network(self):
        return "left_teacher"

    def pretraining_losses(self, labeled, unlabeled):
        yield {"pretraining": self.forward_pass(unlabeled.strong).features.square().mean()}
        yield {"right_pretraining": self.forward_pass(labeled.image, "right").features.square().mean()}

    def warmup_losses(self, labeled):
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"right_supervised": self.supervised_loss(labeled, "right")}

    def training_losses(self, labeled, unlabeled):
        found = self.forward_pass(labeled.image)
        projected = self.parts["projector"](found.features)
        self.sums = self.class_sums(projected.detach(), labeled.full_target)
        distance = self.distance_from_memory(projected, labeled.full_target)
        yield {"supervised": self.supervised_loss(labeled, outputs=found.outputs), "projection": distance}
        del found, projected, distance  # the next pass needs the room
        yield {"right_supervised": self.supervised_loss(labeled, "right")}

        ramp = self.ramp("cross")
        probs = {}
        for name, teacher in (("left", "right_teacher"), ("right", "left_teacher")):
            target = self.teacher_probabilities(unlabeled.weak, teacher)
            probs[name] = self.probabilities(self.forward_pass(unlabeled.strong, name).logits)
            with self.frozen(self.parts["critic"]):
                fooled = (self.parts["critic"](probs[name]) - 1.0).square().mean()
            self.observe_pseudo_labels(target, probs[name].detach(), network=name)
            cross = ramp * self.cross_weight * mean_squared_error(probs[name], target)
            yield {f"{name}_cross": cross, f"{name}_adversarial": ramp * self.adversarial_weight * fooled}

        real = self.label_space.one_hot(self.label_space.labels(labeled.full_target))
        judged = self.parts["critic"](torch.cat([real, probs["left"].detach()]))
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(judged) - len(real))]).to(judged)
        yield {"critic": (judged - truth.view(-1, *[1] * (judged.ndim - 1))).square().mean()}

    def after_step(self):
        if hasattr(self, "sums"):
            sums, counts = self.sum_over_processes(self.sums).split([FEATURES, 1], dim=1)
            self.state["memory"].means.lerp_(sums / counts.clamp_min(1.0), 0.1)
            del self.sums

    def class_sums(self, projected, target):
        """Return the sum of features and the number of voxels of each channel, (C, FEATURES + 1)."""
        maps = self.label_space.one_hot(self.label_space.labels(target))
        sums = torch.einsum("bcn,bfn->cf", maps.flatten(2), projected.flatten(2))
        return torch.cat([sums, maps.flatten(2).sum((0, 2))[:, None]], 1)

    def distance_from_memory(self, projected, target):
        maps = self.label_space.one_hot(self.label_space.labels(target)).flatten(2)
        wanted = torch.einsum("bcn,cf->bfn", maps, self.state["memory"].means.clone())
        return 0.01 * (projected.flatten(2) - wanted).square().mean()
