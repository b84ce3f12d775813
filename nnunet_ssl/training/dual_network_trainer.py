"""The base of the methods in which two networks teach each other."""

from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssl.building_blocks.second_network import other_architecture
from nnunet_ssl.training import distributed
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer


class DualNetworkTrainer(SemiSupervisedTrainer):
    """Adds a second network with its own start, optimiser and learning rate; the first one is what predicts.

    `second_network` is passed to `student`, `student_outputs`, `student_probabilities` and `supervised_loss`. Both are
    clipped and stepped each for itself. `-pretrained_weights` and `init_checkpoint` go into the first network alone:
    two networks that start alike would have nothing to teach each other.
    """

    second_architecture = "same"  # or "other": residual-encoder beside a plain U-Net, and the reverse
    name_of_inference_network = "first"

    def initialize(self) -> None:
        """Build the first network as nnU-Net does, then the second one with other random numbers."""
        super().initialize()
        if self.second_architecture not in ("same", "other"):
            raise ValueError(f"second_architecture is same or other, got {self.second_architecture!r}")
        self.second_network = self._build_second_network().to(self.device)
        if self._do_i_compile():
            self.second_network = torch.compile(self.second_network)
        with self.network_in_place(self.second_network):
            self.second_optimizer, self.second_lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.second_network = distributed.wrap_for_distributed_training(self.second_network, self.device)

    def _build_second_network(self) -> nn.Module:
        channels = (self.num_input_channels, self.label_manager.num_segmentation_heads)
        plans, configuration = self.plans_manager, self.configuration_manager
        if self.second_architecture == "same":
            return self.build_network_architecture(plans, configuration, *channels, self.enable_deep_supervision)
        name, arguments = other_architecture(
            configuration.network_arch_class_name, configuration.network_arch_init_kwargs
        )
        imports = configuration.network_arch_init_kwargs_req_import
        return get_network_from_plans(
            name, arguments, imports, *channels, deep_supervision=self.enable_deep_supervision
        )

    def on_train_epoch_start(self) -> None:
        """Start an epoch's steps with both networks at one learning rate."""
        super().on_train_epoch_start()
        self.second_network.train()
        self.second_lr_scheduler.step(self.current_epoch)

    def trained_networks(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """Return both networks with their optimisers."""
        return [*super().trained_networks(), (self.second_network, self.second_optimizer)]

    def stateful_parts(self) -> dict[str, Any]:
        """Return both networks and the second optimiser; the first one's is in nnU-Net's checkpoint."""
        return {
            **super().stateful_parts(),
            "second": distributed.unwrap(self.second_network),
            "second_optimizer": self.second_optimizer,
        }

    def other_networks(self) -> dict[str, nn.Module]:
        """Return the second network."""
        return {"second": self.second_network}
