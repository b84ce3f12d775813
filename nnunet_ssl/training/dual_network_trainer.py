"""The base of the methods in which two networks learn from each other."""

from collections.abc import Iterator

from torch import nn

from nnunet_ssl.data.loaders import LabeledBatch
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.step import Losses


class DualNetworkTrainer(SemiSupervisedTrainer):
    """Adds the network "second", with its own start and optimiser; the first one is what predicts.

    `-pretrained_weights` and `init_checkpoint` go into the first network alone: two networks that start alike would
    learn nothing from each other.
    """

    FIRST_NETWORK = "first"

    second_architecture = "same"  # or "other": residual-encoder beside a plain U-Net, and the reverse

    def check_settings(self) -> None:
        """Refuse another architecture than the two."""
        super().check_settings()
        if self.second_architecture not in ("same", "other"):
            raise ValueError(f"second_architecture is same or other, got {self.second_architecture!r}")

    def warmup_losses(self, labeled: LabeledBatch) -> Iterator[Losses]:
        """Yield nnU-Net's loss of both networks."""
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"second_supervised": self.supervised_loss(labeled, "second")}

    def build_other_networks(self) -> dict[str, nn.Module]:
        """Return the second network."""
        return {"second": self.new_network(self.second_architecture)}
