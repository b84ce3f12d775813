"""What a checkpoint holds, and those of before its networks had roles."""

import numpy as np
import pytest
import torch

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.run_state import options_to_go_on_with
from tests.conftest import assert_equal_weights, make_trainer, state_of


def in_the_earlier_form(checkpoint: dict, first: str) -> dict:
    """Return a checkpoint as it was written before: networks, teacher and second optimiser side by side in `parts`."""
    ours = checkpoint["nnunet_ssl"]
    networks = {("student" if name == first else name): state for name, state in ours.pop("networks").items()}
    optimizers = {f"{name}_optimizer": state for name, state in ours.pop("optimizers").items()}
    ours["parts"] = networks | ours.pop("teachers") | optimizers
    del ours["state"]
    return checkpoint


@pytest.mark.parametrize(
    ("name", "first"), [("MeanTeacher", "student"), ("CPS", "first"), ("EntropyMinimization", "network")]
)
def test_run_goes_on_from_an_earlier_checkpoint(tiny_dataset, name, first):
    dataset = tiny_dataset(dim=2)
    trainer = make_trainer(dataset, find_trainer(f"nnUNetTrainer{name}"), seed=1)
    trainer.run_training()
    file = f"{trainer.output_folder}/checkpoint_final.pth"
    torch.save(in_the_earlier_form(torch.load(file, weights_only=False), first), file)
    resumed = make_trainer(dataset, type(trainer), resume=True)
    resumed.load_checkpoint(file)
    assert_equal_weights(state_of(trainer), state_of(resumed))


def test_roles_in_a_checkpoint(tiny_dataset):
    found = {}
    for name in ("MeanTeacher", "CPS", "MCNet"):
        trainer = make_trainer(tiny_dataset(dim=2), find_trainer(f"nnUNetTrainer{name}"))
        trainer.on_train_start()
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)["nnunet_ssl"]
        kinds = ("networks", "teachers", "parts", "optimizers", "state")
        found[name] = {kind: list(saved[kind]) for kind in kinds if saved[kind]}
    assert found == {
        "MeanTeacher": {"networks": ["student"], "teachers": ["teacher"]},
        "CPS": {"networks": ["first", "second"], "optimizers": ["second"]},
        "MCNet": {"networks": ["network"], "parts": ["linear", "nearest"]},
    }


def test_a_checkpoint_needs_nothing_of_numpy_to_be_read(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerMeanTeacher"), seed=1)
    trainer.run_training()
    file = f"{trainer.output_folder}/checkpoint_final.pth"
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert unsafe == []
    saved = torch.load(file, weights_only=True)
    assert {type(value) for value in saved["logging"]["mean_fg_dice"]} == {float}


def test_run_goes_on_from_a_checkpoint_with_numbers_of_numpy(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    trainer = make_trainer(dataset, find_trainer("nnUNetTrainerMeanTeacher"), seed=1)
    trainer.run_training()
    file = f"{trainer.output_folder}/checkpoint_final.pth"
    saved = torch.load(file, weights_only=True)
    saved["logging"]["mean_fg_dice"] = [np.float32(one) for one in saved["logging"]["mean_fg_dice"]]
    torch.save(saved | {"_best_ema": np.float64(saved["_best_ema"])}, file)  # as earlier versions, and nnU-Net
    resumed = make_trainer(dataset, type(trainer), resume=True)
    resumed.load_checkpoint(file)
    assert_equal_weights(state_of(trainer), state_of(resumed))


def test_options_of_nnunet_that_a_run_was_not_given_are_compared_with_nnunets_defaults(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerMeanTeacher"))
    trainer.num_epochs = 1000
    assert options_to_go_on_with(trainer, {"seed": 1}, {"num_epochs": 2000}) == {"seed": 1, "num_epochs": 2000}
    assert options_to_go_on_with(trainer, {}, {"initial_lr": 0.01}) == {"initial_lr": 0.01}
    with pytest.raises(ValueError, match="started with num_epochs=1000, now nnUNet_ssl_options says num_epochs=10;"):
        options_to_go_on_with(trainer, {"seed": 1}, {"num_epochs": 10})
    with pytest.raises(ValueError, match="started without seed, now nnUNet_ssl_options says seed=2;"):
        options_to_go_on_with(trainer, {}, {"seed": 2})


class OfInit(find_trainer("nnUNetTrainerSSL")):
    """Is set up as variants of nnU-Net's trainer are."""

    initial_lr = 0.02

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device=torch.device("cuda")):  # noqa: B008 - as nnU-Net's
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 3
        self.warmup_fraction = 0.1
        self.mirroring = "none"


def test_what_a_constructor_sets_holds_unless_an_option_says_otherwise(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    trainer = make_trainer(dataset, OfInit)
    trainer.options = {"ema_decay": 0.5, "mirroring": "auto"}
    trainer.initialize()
    names = ("num_epochs", "warmup_fraction", "mirroring", "ema_decay", "initial_lr", "weight_decay", "box_side")
    assert [getattr(trainer, name) for name in names] == [3, 0.1, "auto", 0.5, 0.02, 3e-5, 2 / 3]


def test_a_run_that_goes_on_is_compared_with_what_its_constructor_sets(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), OfInit)
    assert options_to_go_on_with(trainer, {}, {"num_epochs": 4, "warmup_fraction": 0.1}) == {
        "num_epochs": 4,
        "warmup_fraction": 0.1,
    }
    with pytest.raises(ValueError, match="started with num_epochs=3, now nnUNet_ssl_options says num_epochs=2;"):
        options_to_go_on_with(trainer, {}, {"num_epochs": 2})
    with pytest.raises(ValueError, match="started with warmup_fraction=0.1, now"):
        options_to_go_on_with(trainer, {}, {"warmup_fraction": 0.4})


def test_a_base_that_loads_checkpoints_past_ours_is_refused(tiny_dataset):
    dataset = tiny_dataset(dim=2)

    class Past(find_trainer("nnUNetTrainerMeanTeacher")):
        def load_checkpoint(self, filename_or_checkpoint):
            self.initialize()
            self.current_epoch = 1

    trainer = make_trainer(dataset, Past)
    trainer.load_checkpoint("somewhere")
    with pytest.raises(ValueError, match="Past replaces load_checkpoint without calling that of its other bases"):
        trainer.run_training()
