"""What every trainer of this package promises (design: the promises of the base), over every class in trainers/.

Trainers in the folders that nnUNet_extTrainer names are tested too.
"""

import dataclasses
import json
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

import nnunet_ssl.trainers
from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.stages import MAIN
from tests import gloo_harness
from tests.conftest import assert_equal_weights, is_at_hand, make_trainer, parameters_of, started, state_of
from tests.gloo_harness import (
    CASE,
    CASE_OF_2D,
    IN_FOLDERS,
    OUTSIDE,
    SUPERVISED_LOSSES,
    settings_of_one_step,
    trained_weights,
    trainer_called,
)
from tests.outside_trainer import nnUNetTrainerOutside
from tests.warm_processes import WARM

TRAINERS = sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))

ALL = [*TRAINERS, OUTSIDE, *IN_FOLDERS]

# Each pair of values of two properties stands in some row, and any four rows that follow each other, the first after
# the last, have both dimensions, both architectures, regions, an ignore label, an anisotropic patch and a batch of 1.
# A method for patches of some dimensions is tested in the rows that have them.
MATRIX = [
    {"dim": 2, "residual": False, "num_classes": 2, "batch_size": 1},
    {"dim": 2, "residual": True, "num_classes": 4, "batch_size": 4, "ignore": True},
    {"dim": 3, "residual": False, "num_classes": 4, "batch_size": 4, "regions": True},
    {"dim": 3, "residual": True, "num_classes": 4, "batch_size": 1, "regions": True, "anisotropic": True},
    {"dim": 3, "residual": False, "num_classes": 2, "batch_size": 2, "ignore": True, "masked": True},
    {"dim": 2, "residual": False, "num_classes": 4, "batch_size": 2, "regions": True, "ignore": True},
    {"dim": 3, "residual": True, "num_classes": 2, "batch_size": 2, "anisotropic": True, "masked": True},
]
ROWS_OF_A_TRAINER = 4

# Terms that need an ellipse among the pseudo-labels; the trainer's own tests give it one.
EMPTY_AT_FIRST = {
    "nnUNetTrainerERSR": [f"{name}_{side}" for name in ("perturbed", "mirrored") for side in ("left", "right")]
}
# Epochs in which all networks have learned, where they learn in turn.
EPOCHS_OF_ALL_NETWORKS = {"nnUNetTrainerMN": (0, 1)}
# Steps until nnU-Net's network has learned from an unlabeled sample, where they are drawn into the labeled batch.
STEPS_UNTIL_UNLABELED = {"nnUNetTrainerMN": 3}


def rows_of(name: str) -> list[dict]:
    """Return the rows that a trainer is tested in; the next one begins a row later."""
    rows, start = [row for row in MATRIX if row["dim"] in trainer_called(name).DIMENSIONS], ALL.index(name)
    return [rows[(start + i) % len(rows)] for i in range(min(ROWS_OF_A_TRAINER, len(rows)))]


def cell_name(cell: dict) -> str:
    return "-".join(key if value is True else f"{key}{value}" for key, value in cell.items() if value is not False)


@pytest.fixture(params=ALL)
def trainer_class(request) -> type[SemiSupervisedTrainer]:
    return trainer_called(request.param)


@pytest.fixture
def tiny_dataset(request, tiny_dataset):
    """Return a function that writes a data set, where nothing else is said of dimensions that the trainer is for."""
    if "trainer_class" not in request.fixturenames:
        return tiny_dataset
    dim = max(request.getfixturevalue("trainer_class").DIMENSIONS)
    return lambda **cell: tiny_dataset(**{"dim": dim} | cell)


@pytest.fixture(params=TRAINERS)
def trainer_of_package(request) -> type[SemiSupervisedTrainer]:
    return find_trainer(request.param)


def in_rows(progress: tuple[float, ...] = ()) -> pytest.MarkDecorator:
    """Run a test for each trainer in each of its rows; in the first one at every progress given."""
    cases = [
        (name, row, *at)
        for name in ALL
        for i, row in enumerate(rows_of(name))
        for at in ([(value,) for value in progress[: None if i == 0 else 1]] if progress else [()])
    ]
    names = ("name", "cell", "progress")[: len(cases[0])]
    return pytest.mark.parametrize(
        names, cases, ids=lambda value: cell_name(value) if isinstance(value, dict) else str(value)
    )


def trained(dataset, trainer_class, **settings):
    trainer = make_trainer(dataset, trainer_class, **{"seed": 1} | settings)
    trainer.run_training()
    return trainer


def unsupervised_weights(trainer_class) -> dict[str, float]:
    """Return the options that switch all unsupervised terms off."""
    return {name: 0.0 for name in vars(trainer_class) if name.endswith("_weight") and not name.startswith("_")}


def test_there_are_trainers():
    assert "nnUNetTrainerMeanTeacher" in TRAINERS


def test_rows_of_each_trainer_have_all_that_matters():
    for name in ALL:
        rows = [{"regions": False, "ignore": False, "anisotropic": False} | row for row in rows_of(name)]
        assert {row["batch_size"] for row in rows} >= {1}, name
        dimensions = trainer_called(name).DIMENSIONS
        assert {row["dim"] for row in rows} == set(dimensions), name
        for key in ("residual", "num_classes", "regions", "ignore", *["anisotropic"] * (3 in dimensions)):
            assert len({row[key] for row in rows}) == 2, (name, key)


@in_rows(progress=(0.5, 0.0))
def test_steps_in_every_setting(tiny_dataset, name, cell, progress):
    """Promise 6: the terms are finite and sum to the loss, the student moves, the validation runs."""
    trainer = started(tiny_dataset(**cell), trainer_called(name))
    trainer.current_epoch = int(progress * trainer.num_epochs)
    before = parameters_of(bare(trainer.network))
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert np.isfinite(loss)
    losses = [values[-1] for name, values in trainer.observer.epoch_records.items() if name.startswith("loss/")]
    assert loss == pytest.approx(sum(losses), rel=1e-5)
    moved = [not torch.equal(value, before[name]) for name, value in parameters_of(bare(trainer.network)).items()]
    assert any(moved)
    result = trainer.validation_step(next(trainer.dataloader_val))
    assert np.isfinite(result["loss"])


@in_rows()
def test_without_unsupervised_terms_the_step_is_nnunets(tiny_dataset, name, cell):
    """Promise 1: same loss and parameters to 1e-6, over several steps."""
    trainer_class = trainer_called(name)
    if trainer_class.CHANGES_SUPERVISED_TERM:
        pytest.skip("declares that it changes the supervised term by its nature")
    dataset = tiny_dataset(**cell)
    ours = started(dataset, trainer_class, **unsupervised_weights(trainer_class))
    plain = make_trainer(dataset, nnUNetTrainer)
    plain.initialize()
    plain.network.load_state_dict(bare(ours.network).state_dict())
    plain.network.train()
    plain.lr_scheduler.step(0)
    for _ in range(3):
        batch = next(ours.dataloader_train)
        copy = {key: batch[key] for key in ("data", "target", "keys")}
        ours.train_step(batch)
        assert ours.observer.epoch_records["loss/supervised"][-1] == pytest.approx(
            plain.train_step(copy)["loss"], abs=1e-6
        )
    reference = parameters_of(plain.network)
    for name, value in parameters_of(bare(ours.network)).items():
        torch.testing.assert_close(value, reference[name], atol=1e-6, rtol=0)


def test_second_stage_of_a_cascade(tiny_dataset, trainer_class):
    """It learns from the first stage's segmentation of unlabeled cases too, or the class is refused by name."""
    dataset = tiny_dataset(dim=3, num_classes=3, cascade=True)
    if 3 not in trainer_class.DIMENSIONS:
        with pytest.raises(
            NotImplementedError, match=f"{trainer_class.__name__} is for 2-D patches.*3d_cascade_fullres"
        ):
            make_trainer(dataset, trainer_class).initialize()
        return
    weights, batch = [], None
    for factor in (1.0, 0.0):  # with the segmentation, and without
        trainer = started(dataset, trainer_class)
        trainer.current_epoch = 1
        batch = next(trainer.dataloader_train) if batch is None else batch
        views = {name: view.clone() for name, view in batch["unlabeled"].items() if isinstance(view, torch.Tensor)}
        for i, name in enumerate(sorted(views.keys() - {"pseudo_label"}), start=1):
            assert views[name].shape[:2] == batch["data"].shape[:2] == (2, 3)
            assert set(views[name][:, trainer.image_channels :].unique().tolist()) <= {0.0, 1.0}
            views[name] *= torch.tensor([i, factor, factor]).view(1, 3, 1, 1, 1)  # views differ in their intensities
        for _ in range(STEPS_UNTIL_UNLABELED.get(trainer_class.__name__, 1)):
            assert np.isfinite(trainer.train_step(batch | {"unlabeled": batch["unlabeled"] | views})["loss"])
        weights.append(parameters_of(bare(trainer.network)))
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_hidden_labels_never_influence_training(tiny_dataset, trainer_class):
    """Promise 2: labels on disk of unlabeled cases are scrambled; the trained weights stay the same bit for bit."""
    dataset = tiny_dataset(ignore=True, masked=True)
    fold = {"train": ["labeled0", "labeled1"], "val": ["labeled2"], "unlabeled": ["labeled3", "unlabeled0"]}
    dataset.write_splits([fold])
    weights = parameters_of(bare(trained(dataset, trainer_class).network))
    image = (dataset.labeled_folder / "labeled3.b2nd").read_bytes()
    for ending in ("_seg.b2nd", ".pkl"):
        (dataset.labeled_folder / f"labeled3{ending}").write_bytes(b"not a label any more")
    again = trained(dataset, trainer_class)
    assert set(again.dataloader_train.unlabeled.data_loader.indices) == {"labeled3", "unlabeled0"}
    assert (dataset.labeled_folder / "labeled3.b2nd").read_bytes() == image
    assert_equal_weights(weights, parameters_of(bare(again.network)))


def test_hidden_images_do_influence_training(tiny_dataset, trainer_class):
    """The other half of the test above: what it compares reacts to the unlabeled cases at all."""
    dataset = tiny_dataset()
    weights = parameters_of(bare(trained(dataset, trainer_class, num_epochs=4).network))
    for i in range(3):
        dataset.write_case(dataset.unlabeled_folder, f"new{i}", seed=7 + i, has_label=False)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (dataset.unlabeled_folder / f"unlabeled{i}{ending}").unlink()
    again = parameters_of(bare(trained(dataset, trainer_class, num_epochs=4).network))
    assert any(not torch.equal(value, again[name]) for name, value in weights.items())


def test_gradients_reach_all_parameters_and_no_teacher(tiny_dataset, trainer_class):
    """Promise 3: what gets a gradient in nnU-Net gets one here; every term that needs the student has one."""
    dataset = tiny_dataset(num_classes=4)
    trainer = started(dataset, trainer_class)
    trainer.current_epoch = 1
    trainer.train_step(next(trainer.dataloader_train))  # teacher and student differ from here on
    plain = make_trainer(dataset, nnUNetTrainer)
    plain.initialize()
    batch = next(trainer.dataloader_train)
    plain.train_step({key: batch[key] for key in ("data", "target", "keys")})
    not_nnunets = [name for name, parameter in plain.network.named_parameters() if parameter.grad is None]
    coarsest_head = tuple(name.removeprefix("decoder.") for name in not_nnunets)  # in added decoders too

    students = [nn.ModuleList(one.modules) for one in trainer.networks.trained.values()]
    reached = [set() for _ in students]
    for losses in losses_of_all_networks(trainer, batch):
        for student in students:
            student.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        gradients = [{n: p.grad for n, p in s.named_parameters() if p.grad is not None} for s in students]
        moved = [names for names in gradients if any(g.abs().sum() > 0 for g in names.values())]
        if not is_empty_at_first(trainer_class, losses):
            assert len(moved) == 1, f"{list(losses)} moves {len(moved)} networks; each graph is of one"
        for names, found in zip(reached, gradients, strict=True):
            names.update(found)
    for student, names in zip(students, reached, strict=True):
        missing = {name for name, parameter in student.named_parameters() if parameter.requires_grad} - names
        assert all(name.endswith(coarsest_head) for name in missing)
    for teacher in trainer.networks.teachers.values():
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def losses_of_all_networks(trainer, batch: dict):
    """Yield what the trainer yields for a batch, in the epoch that is on or until all networks have learned."""
    for epoch in EPOCHS_OF_ALL_NETWORKS.get(type(trainer).__name__, [trainer.current_epoch]):
        trainer.current_epoch = epoch
        yield from trainer.training_losses(*batches_on_device(batch, trainer.device))


def is_empty_at_first(trainer_class, losses: dict[str, torch.Tensor]) -> bool:
    """Return whether terms are 0 because a network that has learned nothing predicts nothing that they could use."""
    terms = EMPTY_AT_FIRST.get(trainer_class.__name__, ())
    return losses.keys() <= {*terms} and not any(losses.values())


@pytest.mark.parametrize("epochs", [1, 2])
def test_resumed_run_equals_undisturbed_run(tiny_dataset, trainer_class, epochs):
    """Promise 4: stopped, also in a warm-up (most end after 1.6 epochs), and resumed, all parts are bit-equal."""
    dataset = tiny_dataset(num_classes=4)
    undisturbed = trained(dataset, trainer_class, num_epochs=4)
    stopped = make_trainer(dataset, trainer_class, seed=1, num_epochs=4, save_every=1)
    stopped.on_epoch_end = lambda: stop_after(stopped, epochs)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(dataset, trainer_class, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == epochs
    assert (resumed.stages.at(resumed.progress) != MAIN) == (epochs < 4 * resumed.stages.before_main)
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))
    assert undisturbed.optimizer_steps == resumed.optimizer_steps == 8
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice"):
        assert undisturbed.logger.get_value(key, None) == resumed.logger.get_value(key, None)


def test_resumed_in_a_warmup_that_follows_pretraining_equals_undisturbed(tiny_dataset):
    """Of 4 epochs the first is pre-training, and the next two are labeled-only: they load no unlabeled images."""
    dataset, settings = tiny_dataset(dim=2), {"num_epochs": 4, "pretrain_fraction": 0.25, "warmup_fraction": 0.5}
    undisturbed = trained(dataset, nnUNetTrainerOutside, **settings)
    stopped = make_trainer(dataset, nnUNetTrainerOutside, seed=1, save_every=1, **settings)
    stopped.on_epoch_end = lambda: stop_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    assert stopped.dataloader_train.unlabeled is None
    resumed = make_trainer(dataset, nnUNetTrainerOutside, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))


def stop_after(trainer, epochs: int) -> None:
    type(trainer).on_epoch_end(trainer)
    if trainer.current_epoch == epochs:
        raise KeyboardInterrupt


def test_checkpoint_holds_what_nnunet_predicts_with(tiny_dataset, trainer_class):
    """Promise 9: plain nnU-Net's network loads `network_weights`, and they are the inference network's."""
    trainer = trained(tiny_dataset(num_classes=4), trainer_class)
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    network = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads, False
    )
    network.load_state_dict(checkpoint["network_weights"])
    assert_equal_weights(parameters_of(network), parameters_of(trainer.networks[trainer.inference_network()]))
    assert checkpoint["trainer_name"] == trainer_class.__name__


def test_seeded_runs_are_equal(tiny_dataset, trainer_class):
    dataset = tiny_dataset()
    first, second = (parameters_of(bare(trained(dataset, trainer_class).network)) for _ in range(2))
    assert_equal_weights(first, second)
    other = parameters_of(bare(trained(dataset, trainer_class, seed=2).network))
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_nonfinite_losses_skip_and_then_stop(tiny_dataset, trainer_class):
    """Promise 8: weights, optimiser and teacher stay as they are; K in a row stop with the case names."""
    trainer = started(tiny_dataset(), trainer_class, max_nonfinite_steps=2)
    trainer.train_step(next(trainer.dataloader_train))
    before = state_of(trainer)
    bad = next(trainer.dataloader_train)
    bad["data"] = torch.full_like(bad["data"], torch.nan)
    assert np.isnan(trainer.train_step(bad)["loss"])
    assert trainer.skipped_steps.of_epoch == 1
    with pytest.raises(RuntimeError, match=r"not finite in 2 steps in a row.*labeled[01].*unlabeled[012]"):
        trainer.train_step(bad)
    assert_equal_weights(state_of(trainer), before)


def test_one_bad_step_does_not_count_towards_the_next_row(tiny_dataset, trainer_class):
    trainer = started(tiny_dataset(), trainer_class, max_nonfinite_steps=2)
    for value in (torch.nan, 1.0, torch.nan, 1.0):
        batch = next(trainer.dataloader_train)
        batch["data"] = batch["data"] * value
        trainer.train_step(batch)
    assert trainer.skipped_steps.of_epoch == 2


def test_source_of_each_trainer_keeps_the_rules(trainer_of_package):
    """A link, differences and cost in the docstring; a reason for each number; no __init__; under 100 lines."""
    trainer_class = trainer_of_package
    source = Path(sys.modules[trainer_class.__module__].__file__).read_text()
    assert source.count("\n") < 100
    assert "__init__" not in vars(trainer_class)
    assert "https://" in trainer_class.__doc__
    assert "Differences from the paper" in trainer_class.__doc__
    assert "Cost" in trainer_class.__doc__
    for name, value in vars(trainer_class).items():
        if not name.startswith("_") and isinstance(value, int | float | str):
            assert re.search(rf"^    {name}\b.*=.*  # \S", source, re.MULTILINE), f"{name} has no reason on its line"
    bases = trainer_class.__bases__
    assert all(base.__module__.startswith("nnunet_ssl.training") for base in bases), "methods inherit from no method"


def test_each_module_imports_alone():
    """In a process of its own, forked from one that has loaded what all of them need from elsewhere."""
    script = (
        "import os, sys, nnunet_ssl.training.dual_network_trainer, nnunet_ssl.training.teacher_student_trainer\n"
        f"for name in {TRAINERS}:\n"
        "    if os.fork() == 0:\n"
        "        __import__(f'nnunet_ssl.trainers.{name}')\n"
        "        loaded = [m for m in sys.modules if m.startswith('nnunet_ssl.trainers.')]\n"
        "        os._exit(loaded != [f'nnunet_ssl.trainers.{name}'])\n"
        "    assert os.wait()[1] == 0, name\n"
    )
    process = WARM.Process(target=exec, args=(script, {}))
    process.start()
    process.join(timeout=120)
    process.kill()
    assert process.exitcode == 0


def test_every_trainer_is_in_the_readme_with_its_cost(trainer_of_package):
    readme = Path(__file__).parent.parent / "README.md"
    row = next(line for line in readme.read_text().splitlines() if f"| `{trainer_of_package.__name__}` |" in line)
    assert row.split("|")[3].strip() == f"{trainer_of_package.STEP_COST:.2f}".removesuffix(".00")


def test_two_gloo_processes_stay_in_step(tiny_dataset, tmp_path, monkeypatch):
    """Promise 7, over all trainers in one pair of processes: same weights, same teacher, same parts."""
    dataset, of_2d = (tiny_dataset(**dataclasses.asdict(case)) for case in (CASE, CASE_OF_2D))
    report = tmp_path / "report.json"
    for place in ("raw", "preprocessed", "results"):  # put back afterwards
        monkeypatch.setenv(f"nnUNet_{place}", str(dataset.root / place))
    gloo_harness.run(dataset.root, of_2d.root, report, [name for name in ALL if is_at_hand(trainer_called(name))])
    found = json.loads(report.read_text())
    for counts in found.pop("collectives"):
        for name, losses in SUPERVISED_LOSSES.items():
            assert counts[name]["loss"] > 0, "the Dice is over all processes here"
            after = counts[name]["step"] - losses * counts[name]["loss"]
            assert after == 2, "that no loss follows, and one averaging of gradients"
    assert found.pop("collectives_of_3d") == [1, 1], "one averaging of gradients"
    for messages in found.pop("refused"):
        assert len(messages) == 2
        assert all("equally often in each process, or use masked_loss" in message for message in messages)
    for message in found.pop("refused_batches"):
        assert message.startswith("the plans' batches of 3 cannot be divided evenly over 2 processes")
    first, second = found.pop("uneven")
    assert first["state"] == second["state"]
    assert second["share"] == pytest.approx(0.5), "a gradient that one of two processes lacks counts as zero there"
    assert found.pop("gathered") == [[[0.0], [10.0], [1.0], [11.0]]] * 2
    assert found.pop("gathered_of_batches") == [[0, 1, 10]] * 2
    assert first["nowhere"] == second["nowhere"] == {"has_gradient": False, "moved": False}
    logs = [log.read_text() for log in (dataset.root / "results").rglob("training_log*.txt")]
    assert any("WARNING: each process has a batch of one patch: methods that mix" in log for log in logs)
    for name, ranks in found.items():
        assert ranks[0] == ranks[1], name
        assert ranks[0]["steps"] == 4, name
        assert ranks[0]["summed"] == [1, 2], name
        cases = ranks[0]["stopped_with"].rpartition(": ")[2]
        assert "the_bad_case" in cases, name
        trainer_class = trainer_called(name)
        is_of_3d = 3 in trainer_class.DIMENSIONS
        if is_of_3d:  # in 2d, by a Dice over all processes, both are ill
            assert "labeled0" not in cases.replace("unlabeled0", ""), f"{name} names cases of the healthy rank"
        gloo_harness.point_to(dataset if is_of_3d else of_2d)
        assert_one_step_equals_one_process(dataset if is_of_3d else of_2d, trainer_class, tmp_path)


def assert_one_step_equals_one_process(dataset, trainer_class, folder: Path) -> None:
    """Two processes with a sample each step as one process with both: wholly, or on labeled images."""
    kept = [torch.load(folder / f"{trainer_class.__name__}{rank}.pth", weights_only=False) for rank in (0, 1)]
    first, second = (one["batch"] for one in kept)
    for batch in (first, second):
        views = [value for value in batch["unlabeled"].values() if isinstance(value, torch.Tensor)]
        sizes = {len(value) for value in (batch["data"], batch["keys"], *views, batch["unlabeled"]["keys"])}
        assert sizes == {CASE.batch_size // 2}, "the plans' batch size is divided over the processes"
    batch = {
        "data": torch.cat([first["data"], second["data"]]),
        "target": [torch.cat(levels) for levels in zip(first["target"], second["target"], strict=True)],
        "keys": [*first["keys"], *second["keys"]],
        "unlabeled": {
            name: torch.cat([value, second["unlabeled"][name]]) if isinstance(value, torch.Tensor) else list(value) * 2
            for name, value in first["unlabeled"].items()
        },
    }
    trainer = started(dataset, trainer_class, **settings_of_one_step(trainer_class.__name__))
    trainer.train_step(batch)
    for name, value in trained_weights(trainer).items():
        torch.testing.assert_close(value, kept[0]["weights"][name], atol=1e-5, rtol=1e-4)
