"""A step does nothing that waits for a GPU, but for the one transfer at its end."""

import pkgutil
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nnunet_ssl.trainers
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.trainers.nnUNetTrainerEntropyMinimization import nnUNetTrainerEntropyMinimization
from nnunet_ssl.training.host_work import HostWork
from tests.conftest import started

TRAINERS = sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))
# The host has to know values, or how many there are, before it can go on.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
FETCHING = ("tolist", "numpy", "cpu")  # by which the host gets values without an operation that a mode would see
THE_TRANSFER = ["tolist"]  # of the losses and records of a step, at its end
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}  # which look for the places of a mask


class Waits(TorchDispatchMode):
    """Lists the operations that would wait for a GPU, if some tensors and all that is computed from them were on one.

    What is drawn on the host is not: its values are at hand. Nor is what `on_host` copies, beside what is computed.
    """

    def __init__(self, on_device: list[Tensor]) -> None:
        super().__init__()
        self.found: list[str] = []
        self.storages = {one.untyped_storage()._cdata: one.untyped_storage() for one in on_device}

    def __enter__(self):
        self.patches, self.is_copying = ExitStack(), False
        for name in FETCHING:
            self.patches.enter_context(mock.patch.object(Tensor, name, self.noticing(name)))
        self.patches.enter_context(mock.patch.object(HostWork, "_copies_on_host", self.unnoticed()))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def noticing(self, name):
        fetch = getattr(Tensor, name)

        def noticed(tensor, *args, **kwargs):
            if not self.is_copying and tensor.untyped_storage()._cdata in self.storages:
                self.found.append(name)
            return fetch(tensor, *args, **kwargs)

        return noticed

    def unnoticed(self):
        copy = HostWork._copies_on_host

        def copied(*args):
            self.is_copying = True
            try:
                return copy(*args)
            finally:
                self.is_copying = False

        return copied

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, given = operation.overloadpacket.__name__, tensors_in((args, kwargs))
        is_on_device = any(one.untyped_storage()._cdata in self.storages for one in given)
        by_mask = name in BY_MASK and any(one.dtype == torch.bool for one in tensors_in(args[1]))
        if is_on_device and (name in WAITING or by_mask):
            self.found.append(name)
        result = operation(*args, **(kwargs or {}))
        if is_on_device:  # held, so that no other tensor takes their place in memory
            self.storages |= {one.untyped_storage()._cdata: one.untyped_storage() for one in tensors_in(result)}
        return result


def tensors_in(tree: object) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def waits_of_a_step(trainer) -> list[str]:
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)  # what is made once is made now
    trainer.step_of_epoch = 0  # in which everything is observed
    networks = trainer.networks
    modules = [*networks.networks.values(), *networks.teachers.values(), *networks.parts.values()]
    modules += [one for one in trainer.state.values() if isinstance(one, nn.Module)]
    weights = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    with Waits([*tensors_in(batch), *weights]) as waits:
        trainer.train_step(batch)
    return waits.found


@pytest.mark.parametrize("turn", [0, 1])  # networks of some learn in turn
@pytest.mark.parametrize("name", TRAINERS)
def test_no_operation_of_a_step_waits_for_the_device(tiny_dataset, name, turn):
    trainer_class = find_trainer(name)
    trainer = started(tiny_dataset(dim=max(trainer_class.DIMENSIONS)), trainer_class)
    trainer.current_epoch = 1 + turn
    assert waits_of_a_step(trainer) == THE_TRANSFER


WAYS = {
    "_local_scalar_dense": lambda probs: float(probs.mean()),
    "index": lambda probs: probs[probs > 0.5].sum(),
    "nonzero": lambda probs: (probs > 0.5).nonzero(),
    "masked_select": lambda probs: probs.masked_select(probs > 0.5),
    "tolist": lambda probs: probs.mean((0, 2, 3)).tolist(),
    "numpy": lambda probs: probs.numpy(),
    "cpu": lambda probs: probs.cpu(),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_waits_is_found(tiny_dataset, way):
    class Waiting(nnUNetTrainerEntropyMinimization):
        def training_losses(self, labeled, unlabeled):
            yield {"supervised": self.supervised_loss(labeled)}
            WAYS[way](self.probabilities(self.forward_pass(unlabeled.weak).logits.detach()))

    assert sorted(waits_of_a_step(started(tiny_dataset(dim=2), Waiting))) == sorted([way, *THE_TRANSFER])
