"""A started trainer and a batch of it, for what is particular to each method."""

import pytest
import torch

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import make_trainer


@pytest.fixture
def start(tiny_dataset):
    """Return a function that gives a trainer at some progress of its run, and both halves of a batch."""

    def make(name: str, progress: float = 0.5, cell: dict | None = None, **settings):
        dataset = tiny_dataset(**{"num_classes": 4} | (cell or {}))
        trainer = make_trainer(dataset, find_trainer(f"nnUNetTrainer{name}"), **{"seed": 1} | settings)
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.current_epoch = int(progress * trainer.num_epochs)
        trainer.step_of_epoch = round((progress * trainer.num_epochs) % 1 * trainer.num_iterations_per_epoch)
        return trainer, *batches_on_device(next(trainer.dataloader_train), trainer.device)

    return make


@pytest.fixture
def seen():
    """Return a function that notes what a network is given from then on."""

    def watch(network: torch.nn.Module) -> list[torch.Tensor]:
        images: list[torch.Tensor] = []
        network.encoder.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0].detach().clone()))
        return images

    return watch
