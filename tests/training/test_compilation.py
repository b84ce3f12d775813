"""torch.compile as nnU-Net switches it on, with the backend that compiles nothing: which graphs are made, and when."""

import pkgutil

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._dynamo.utils import counters

import nnunet_ssl.trainers
from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.stages import MAIN
from tests.conftest import make_trainer, started

# Of each base one, and what learns in several stages or in turn; the others are slow.
FAST = ["nnUNetTrainerMeanTeacher", "nnUNetTrainerCPS", "nnUNetTrainerSPCL", "nnUNetTrainerMN"]
TRAINERS = sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))
# Networks of a library are left to themselves: their slices come in chunks of several sizes.
NOT_COMPILED = {"nnUNetTrainerMN": "SlicewiseNetwork.logits"}
EPOCHS_OF_ALL_NETWORKS = {"nnUNetTrainerMN": 2}  # where they learn in turn


@pytest.fixture
def compiled(monkeypatch):
    """Switch torch.compile on, with its backend that compiles nothing."""
    monkeypatch.setattr(SemiSupervisedTrainer, "_do_i_compile", lambda self: True)
    compile_, compile_module = torch.compile, torch.nn.Module.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: compile_(module, backend="eager"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # rather than go on uncompiled
        yield
    torch._dynamo.reset()


def tiny_run(tiny_dataset, name, trainer_class=None, **settings):
    trainer_class = trainer_class or find_trainer(name)
    dataset = tiny_dataset(dim=max(trainer_class.DIMENSIONS))
    return make_trainer(dataset, trainer_class, seed=1, num_iterations_per_epoch=2, **settings)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TRAINERS]
)
def test_no_graph_is_made_after_the_first_whole_epoch_of_a_stage(tiny_dataset, compiled, name):
    """Steps and validation; a step of an epoch in which a stage begins may make some."""
    trainer_class, graphs = find_trainer(name), {}

    class Counting(trainer_class):
        def on_epoch_end(self):
            first = self.stages.at(self.current_epoch / self.num_epochs)
            super().on_epoch_end()
            if first == self.stages.at((self.current_epoch - 1e-6) / self.num_epochs):
                graphs.setdefault(first, []).append(counters["stats"]["unique_graphs"])

    Counting.__name__ = name
    tiny_run(tiny_dataset, name, Counting, num_epochs=10).run_training()
    settled = EPOCHS_OF_ALL_NETWORKS.get(name, 1)
    assert len(graphs[MAIN]) > settled
    for stage, made in graphs.items():
        assert len({*made[settled - 1 :]}) <= 1, (stage, made)
    unexpected = [why for why in counters["graph_break"] if NOT_COMPILED.get(name, "-") not in why]
    assert not unexpected


def test_a_step_that_takes_other_shapes_is_found(tiny_dataset, compiled):
    """The test above can fail: a method that passes ever other numbers of samples makes ever other graphs."""
    graphs = []

    class Uneven(find_trainer("nnUNetTrainerEntropyMinimization")):
        def training_losses(self, labeled, unlabeled):
            yield {"supervised": self.supervised_loss(labeled)}
            size = 16 + 4 * self.current_epoch
            yield {"uneven": self.forward_pass(torch.randn(2, 1, size, size, size)).logits.mean()}

        def on_epoch_end(self):
            super().on_epoch_end()
            graphs.append(counters["stats"]["unique_graphs"])

    tiny_run(tiny_dataset, "nnUNetTrainerEntropyMinimization", Uneven, num_epochs=3).run_training()
    assert len({*graphs}) > 1


def test_labeled_and_unlabeled_images_have_one_graph(tiny_dataset, compiled):
    trainer = started(tiny_dataset(dim=2), find_trainer("nnUNetTrainerMeanTeacher"))
    labeled, unlabeled = batches_on_device(next(trainer.dataloader_train), trainer.device)
    trainer.forward_pass(labeled.image)
    made = counters["stats"]["unique_graphs"]
    trainer.forward_pass(unlabeled.strong)
    trainer.forward_pass(unlabeled.weak)
    assert counters["stats"]["unique_graphs"] == made == 1
    trainer.teacher_pass(unlabeled.weak)
    assert counters["stats"]["unique_graphs"] == 2  # the teacher is compiled, too
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["MeanTeacher", "CPS"])
def test_compiled_networks_train_validate_and_are_saved_bare(tiny_dataset, compiled, name):
    dataset = tiny_dataset(dim=2)
    settings = {"validate_all_networks": True, "previews": True}
    trainer = make_trainer(dataset, find_trainer(f"nnUNetTrainer{name}"), seed=1, **settings)
    trainer.run_training()
    trainer.perform_actual_validation()
    saved = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    ours = saved["nnunet_ssl"]
    states = [saved["network_weights"], *ours["networks"].values(), *ours["teachers"].values()]
    assert not [key for state in states for key in state if "_orig_mod" in key]
    plain = make_trainer(dataset, nnUNetTrainer)
    plain.initialize()
    plain.network.load_state_dict(saved["network_weights"])


def test_a_pass_of_a_compiled_network_is_one_graph(tiny_dataset, compiled):
    """For each network, with and without gradient; features are taken without a break in it."""
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerUniMatch"), seed=1)
    trainer.initialize()
    image = torch.randn(2, 1, 16, 16)
    expected = trainer.network._orig_mod(image)[0]
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = trainer.forward_pass(image)
    assert torch.equal(found.logits, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert torch.equal(trainer.decode(trainer.encode(image)).logits, expected)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
