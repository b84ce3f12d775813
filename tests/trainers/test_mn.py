"""M&N: whose turn it is, what is learned from whom, and how many samples are unlabeled."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.building_blocks.label_space import SigmoidRegions
from nnunet_ssl.building_blocks.masked_loss import masked_cross_entropy_and_dice
from nnunet_ssl.building_blocks.sampling import unlabeled_share
from nnunet_ssl.building_blocks.slicewise_network import SlicewiseNetwork
from nnunet_ssl.commands.cli import main
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.networks_2d import LIBRARY
from tests.building_blocks.test_soft_targets import loss_by_hand
from tests.conftest import (
    OPTIONS_OF_NETWORKS,
    assert_equal_weights,
    is_at_hand,
    make_trainer,
    parameters_of,
    started,
    state_of,
)

SEGFORMER, UNET = {"encoder": "mit_b0"}, {"architecture_2d": "unet", "encoder": "resnet18"}
TURNS = [(0, "network_2d", "network"), (1, "network", "network_2d")]
MN = find_trainer("nnUNetTrainerMN")
needs_library = pytest.mark.skipif(not is_at_hand(MN), reason="segmentation-models-pytorch is not installed")


@pytest.fixture
def choose(monkeypatch):
    """Return a function that lets the next steps take some samples from the unlabeled stream, and notes the shares."""
    shares: list[float] = []

    def to(chosen: list[int]) -> list[float]:
        module = sys.modules[MN.__module__]
        monkeypatch.setattr(module, "draw_unlabeled", lambda _, share: shares.append(share) or chosen)
        return shares

    return to


def at_epoch(start, epoch: int, **settings):
    trainer, labeled, unlabeled = start("MN", **{"num_epochs": 4} | settings)
    trainer.current_epoch, trainer.step_of_epoch = epoch, 1
    return trainer, labeled, unlabeled


def losses_of(trainer, labeled, unlabeled) -> dict[str, torch.Tensor]:
    return {name: loss for losses in trainer.training_losses(labeled, unlabeled) for name, loss in losses.items()}


def coarse(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Return mean values of cubes, by numpy."""
    factors = [side // new for side, new in zip(maps.shape[2:], size, strict=True)]
    b, c, *_ = maps.shape
    cubes = maps.numpy().reshape(b, c, *(n for pair in zip(size, factors, strict=True) for n in pair))
    return torch.from_numpy(cubes.mean(axis=(3, 5, 7)))


@needs_library
@pytest.mark.parametrize(("turn", "learner", "other"), TURNS)
@pytest.mark.parametrize("cell", [{}, {"regions": True, "residual": True}, {"num_classes": 2, "ignore": True}], ids=str)
def test_loss_equals_a_loop_over_voxels(start, choose, cell, turn, learner, other):
    """Of a labeled sample and an unlabeled one, whose target is what the other network makes of it."""
    trainer, labeled, unlabeled = at_epoch(start, turn, cell=cell)
    choose([1])
    found = losses_of(trainer, labeled, unlabeled)
    assert [*found] == [f"{learner}_taught"]

    space, target = trainer.label_space, labeled.full_target
    networks = trainer.networks
    with torch.no_grad():
        taught = networks.forward_pass(unlabeled.strong[1:], other).logits
        outputs = networks.forward_pass(torch.cat([labeled.image[:1], unlabeled.strong[1:]]), learner).outputs
    probs = taught.sigmoid() if isinstance(space, SigmoidRegions) else taught.softmax(1)
    known = torch.ones_like(target[:1, :1])
    if cell.get("ignore"):
        known = (target[:1] != space.ignore_label).float()
        assert 0 < known.sum() < known.numel()
    classes = range(space.num_channels)
    labels = target[:1] if isinstance(space, SigmoidRegions) else torch.cat([target[:1] == c for c in classes], 1)
    q, w = torch.cat([labels.float(), probs]), torch.cat([known, torch.ones_like(known)]).float()
    head_weights = trainer.loss.weight_factors if learner == "network" else (1.0,)
    assert len(outputs) == len(head_weights)
    expected = 0.0
    for logits, head_weight in zip(outputs, head_weights, strict=True):
        weight = coarse(w, logits.shape[2:])
        means = coarse(w * q, logits.shape[2:]) / weight.clamp_min(1e-30)
        if head_weight:
            expected += head_weight * loss_by_hand(space, logits, means, weight)
    assert found[f"{learner}_taught"].item() == pytest.approx(expected, rel=1e-4)


@needs_library
@pytest.mark.parametrize(("turn", "learner", "other"), TURNS)
def test_one_network_learns_and_the_other_is_as_it_was(start, choose, turn, learner, other):
    trainer, _, _ = at_epoch(start, turn)
    choose([0])
    before = {name: parameters_of(trainer.networks[name]) for name in (learner, other)}
    trainer.train_step(next(trainer.dataloader_train))
    assert_equal_weights(parameters_of(trainer.networks[other]), before[other])
    after = parameters_of(trainer.networks[learner])
    assert any(not torch.equal(value, before[learner][name]) for name, value in after.items())
    assert all(parameter.grad is None for parameter in trainer.networks[other].parameters())


@needs_library
@pytest.mark.parametrize(("turn", "learner", "other"), TURNS)
def test_who_teaches_is_in_evaluation_mode_and_sees_the_unlabeled_samples_alone(start, choose, turn, learner, other):
    trainer, labeled, unlabeled = at_epoch(start, turn)
    choose([1])
    modes = {learner: [], other: []}
    for name, seen in modes.items():
        network = trainer.networks[name]
        first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
        first.register_forward_pre_hook(
            lambda _, x, n=network, s=seen: s.append((n.training, torch.is_grad_enabled(), x[0].shape))
        )
    losses_of(trainer, labeled, unlabeled)
    assert {mode[:2] for mode in modes[other]} == {(False, False)}
    assert {mode[:2] for mode in modes[learner]} == {(True, True)}
    assert trainer.networks[other].training, "it learns again in its turn"
    slices = 16
    assert modes["network"][0][2][0] == (1 if other == "network" else 2)
    assert modes["network_2d"][0][2][0] == (slices if other == "network_2d" else 2 * slices)


@needs_library
@pytest.mark.parametrize("turn", [0, 1])
def test_without_unlabeled_samples_nobody_teaches(start, choose, turn):
    trainer, labeled, unlabeled = at_epoch(start, turn)
    choose([])
    unlabeled.strong.fill_(torch.nan)
    (loss,) = losses_of(trainer, labeled, unlabeled).values()
    assert loss.isfinite()


@needs_library
def test_share_of_unlabeled_samples_is_guided_by_the_learning_rate(start, choose):
    shares = choose([])
    for epoch in (1, 2, 3):
        losses_of(*at_epoch(start, epoch))
    assert shares == [unlabeled_share((epoch + 0.5) / 4) for epoch in (1, 2, 3)]
    shares.clear()
    losses_of(*at_epoch(start, 3, guided_sampling=False))
    assert shares == [0.5]


@needs_library
def test_warmup_is_nnunets_loss_of_both_networks_on_labeled_images(start):
    trainer, labeled, _ = start("MN", progress=0.0)
    first, second = trainer.warmup_losses(labeled)
    outputs = bare(trainer.network)(labeled.image)
    assert first["supervised"].item() == pytest.approx(trainer.loss(outputs, labeled.target).item())
    logits = trainer.networks["network_2d"].logits(labeled.image)
    whole = trainer.loss.loss(logits, labeled.target[0])  # nnU-Net's loss of several heads would count a part of it
    assert second["supervised_2d"].item() == pytest.approx(whole.item())
    maps = labeled.target[0], [torch.ones_like(labeled.target[0])]
    (masked,) = masked_cross_entropy_and_dice(trainer.label_space, logits, *maps)
    assert trainer.masked_losses([logits], *maps)[0].item() == pytest.approx(masked.item())
    trainer.train_step(next(trainer.dataloader_train))
    assert {name for name in trainer.observer.epoch_records if name.startswith("loss/")} == {
        "loss/supervised",
        "loss/supervised_2d",
    }


@needs_library
def test_optimisers_and_learning_rates(start):
    trainer, _, _ = start("MN", num_epochs=4)
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    first, second = (trainer.networks.trained[name].optimizer for name in ("network", "network_2d"))
    assert type(first) is torch.optim.SGD
    assert type(second) is torch.optim.AdamW
    share = 0.5**0.9
    assert first.param_groups[0]["lr"] == pytest.approx(trainer.initial_lr * share)
    assert second.param_groups[0]["lr"] == pytest.approx(1e-3 * share)


@needs_library
@pytest.mark.parametrize("settings", [SEGFORMER, UNET, {"low_rank_adapters": False}], ids=str)
def test_frozen_weights_stay_and_others_learn(start, settings):
    """Two architectures and three encoders of the library; without adapters there is nothing that stays."""
    trainer, _, _ = at_epoch(start, 2, **settings)
    network = trainer.networks["network_2d"]
    before = parameters_of(network)
    trainer.train_step(next(trainer.dataloader_train))
    kept = {name for name, value in parameters_of(network).items() if torch.equal(value, before[name])}
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen <= kept
    assert all(".encoder." in name for name in frozen)
    assert bool(frozen) == settings.get("low_rank_adapters", True)
    no_gradient_yet = ("down.weight", "bias", "q.up.weight")  # up is 0 at first; of one key there is no attention
    assert all(name.endswith(no_gradient_yet) for name in kept - frozen)


@needs_library
def test_slices_are_cut_along_the_coarsest_axis(start):
    cell = {"anisotropic": True}
    trainer, _, _ = start("MN", cell=cell)
    assert trainer.networks["network_2d"].axis == 0
    trainer, labeled, unlabeled = start("MN", cell=cell, slice_axis=3, slices_per_pass=5)
    assert (trainer.networks["network_2d"].axis, trainer.networks["network_2d"].slices_per_pass) == (2, 5)
    assert losses_of(trainer, labeled, unlabeled)


@needs_library
def test_2d_is_refused_by_name(tiny_dataset):
    with pytest.raises(NotImplementedError, match="nnUNetTrainerMN is for 3-D patches"):
        make_trainer(tiny_dataset(dim=2), MN).initialize()


@needs_library
def test_segformer_with_adapters_and_chunks_resumes_bit_for_bit(tiny_dataset):
    """Dropout in the adapters, chunks that are computed twice, and both turns after the interruption."""
    dataset, settings = tiny_dataset(), {**SEGFORMER, "num_epochs": 4, "slices_per_pass": 7, "save_every": 1, "seed": 1}
    undisturbed = make_trainer(dataset, MN, **settings)
    undisturbed.run_training()
    stopped = make_trainer(dataset, MN, **settings)
    stopped.on_epoch_end = lambda: stop(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(dataset, MN, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))


def stop(trainer) -> None:
    type(trainer).on_epoch_end(trainer)
    raise KeyboardInterrupt


# ---- nnU-Net's own 2d network ----


@pytest.fixture
def trained_2d(tiny_dataset, tmp_path):
    """Return a function that trains nnU-Net's 2d network for a step, and gives its checkpoint and network."""

    def make(**cell):
        trainer = make_trainer(tiny_dataset(dim=2, **cell), nnUNetTrainer)
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        file = str(tmp_path / f"network_2d{len(list(tmp_path.iterdir()))}.pth")
        trainer.save_checkpoint(file)
        return file, trainer.network

    return make


@pytest.mark.parametrize("cell", [{}, {"residual": True}, {"regions": True, "num_classes": 4}], ids=str)
def test_nnunets_2d_network_sees_slices(tiny_dataset, trained_2d, cell):
    file, network = trained_2d(**cell)
    trainer = started(tiny_dataset(**cell), MN, init_2d=file)
    second = trainer.networks["network_2d"]
    assert isinstance(second, SlicewiseNetwork)
    network.decoder.deep_supervision = False
    image = torch.randn(1, 1, 4, 16, 16)
    for i in range(4):
        torch.testing.assert_close(second.logits(image)[:, :, i], network(image[:, :, i]), atol=1e-5, rtol=1e-4)
    assert type(trainer.networks.trained["network_2d"].optimizer) is torch.optim.SGD
    assert all(parameter.requires_grad for parameter in second.parameters())
    before = parameters_of(second)
    trainer.current_epoch, trainer.step_of_epoch = 0, 1
    trainer.train_step(next(trainer.dataloader_train))
    moved = {name for name, value in parameters_of(second).items() if not torch.equal(value, before[name])}
    heads = {name for name in before if ".seg_layers." in name}
    assert {*before} - heads <= moved | {name for name in before if name.endswith("conv.bias")}


def test_run_with_nnunets_2d_network(tiny_dataset, trained_2d, tmp_path, capsys):
    """The whole of it: both turns, the validation of both networks, and what the checkpoint holds."""
    file, _ = trained_2d()
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, MN, seed=1, num_epochs=4, init_2d=file, validate_all_networks=True)
    trainer.run_training()
    trainer.perform_actual_validation()
    curves = trainer.observer.curves.values
    assert np.isfinite(curves["dice/network_2d"]).all()
    for epoch in range(4):
        for turn, learner, _ in TURNS:
            has_loss = np.isfinite(curves[f"loss/{learner}_taught"][epoch])
            assert has_loss == (epoch % 2 == turn), (epoch, learner)
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    assert_equal_weights(checkpoint["network_weights"], bare(trainer.network).state_dict())
    assert {*checkpoint["nnunet_ssl"]["networks"]} == {"network", "network_2d"}
    out = str(tmp_path / "model.zip")
    assert main(["export", "-d", "999", "-c", "3d_fullres", "-tr", "nnUNetTrainerMN", "-o", out, "--ensemble"]) == 2
    assert "network network_2d of" in capsys.readouterr().err, "the 2-D network predicts nothing in nnU-Net"


def test_a_2d_network_that_learned_validation_cases_is_refused(tiny_dataset, trained_2d, tmp_path):
    file, _ = trained_2d()  # of fold 0
    dataset = tiny_dataset()
    split = json.loads((dataset.folder / "splits_final.json").read_text())[0]
    dataset.write_splits([split, split | {"train": split["val"], "val": split["train"]}])
    started(dataset, MN, init_2d=file)
    with pytest.raises(ValueError, match=r"init_2d: .*pth was trained with the labels of cases that validate"):
        make_trainer(dataset, MN, fold=1, seed=1, init_2d=file).on_train_start()


def test_without_the_library_nnunets_2d_network_is_what_remains(tiny_dataset, trained_2d, monkeypatch):
    file, _ = trained_2d()
    dataset = tiny_dataset()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == LIBRARY else found(name, *of))
    with pytest.raises(ModuleNotFoundError, match=r"pip install nnunet_ssl\[mn\], or give .* init_2d=PATH"):
        make(dataset, {}).initialize()
    make(dataset, {"init_2d": file}).initialize()


def make(dataset, options):
    """Make a trainer also where the library is not installed."""
    plans, cpu = dataset.case.plans() | {"continue_training": False}, torch.device("cpu")
    trainer = MN(plans, "3d_fullres", 0, dataset.case.dataset_json(), cpu)
    trainer.options = options
    return trainer


def test_coarse_means_of_the_reference():
    """The reference of the tests above, by torch."""
    maps = torch.randn(2, 3, 4, 4, 2)
    torch.testing.assert_close(coarse(maps, (2, 1, 2)), F.avg_pool3d(maps, (2, 4, 1)))


def test_options_of_the_tests_are_the_trainers():
    assert all(hasattr(MN, name) for name in OPTIONS_OF_NETWORKS)
