import copy
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from nnunet_ssl.building_blocks.label_space import SigmoidRegions
from nnunet_ssl.building_blocks.semantic_augmentation import class_maps, class_moments
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks import bare
from tests.conftest import Case, TinyDataset, assert_equal_weights, draw_no_progress, make_trainer, started, state_of
from tests.warm_processes import WARM

TRAINER = find_trainer("nnUNetTrainerTransMedSeg")
STREAMS = ("labeled", "unlabeled")


def fill(trainer, seed: int = 0) -> None:
    """Give all classes of both streams moments of some random features."""
    moments = trainer.state["moments"]
    _, classes, size, _ = moments.moments.shape
    steps = []
    for stream in range(2):
        features = stream + torch.randn((1, size - 1, 10, 10), generator=torch.Generator().manual_seed(seed + stream))
        steps.append(class_moments(features, torch.ones(1, classes, 10, 10)))
    moments.update(torch.stack(steps), 0.99)


def naive_loss(space, classifier, features, labels, weight, moved, limit: float) -> float:
    """Return the mean of the closed form over voxels (and regions) with weight, one after the other, in float64."""
    f, y, m, w, b, shift, covariance = (
        one.detach().double().numpy()
        for one in (features, labels, weight, classifier.weight.flatten(1), classifier.bias, *moved)
    )
    m = np.broadcast_to(m, y.shape)
    losses = []
    for place in np.ndindex(f.shape[0], *f.shape[2:]):
        z = w @ f[(place[0], slice(None), *place[1:])] + b
        answers = y[(place[0], slice(None), *place[1:])].astype(int)
        for i, answer in enumerate(answers):
            if not m[(place[0], i, *place[1:])]:
                continue
            if isinstance(space, SigmoidRegions):
                c = i + len(z) * answer
                d = -w[i] if answer else w[i]
                wrong = [(-z[i] if answer else z[i]) + d @ shift[c] + min(0.5 * d @ covariance[c] @ d, limit)]
            else:
                directions = [w[k] - w[answer] for k in range(len(z)) if k != answer]
                others = np.delete(z, answer) - z[answer]
                wrong = [
                    one + d @ shift[answer] + min(0.5 * d @ covariance[answer] @ d, limit)
                    for one, d in zip(others, directions, strict=True)
                ]
            losses.append(np.log1p(np.sum(np.exp(wrong))))
    return float(np.mean(losses))


def naive_spreads(space, weight, covariance) -> list[float]:
    """Return what the covariance would add for each class and wrong answer, without a limit."""
    w, sigma = weight.detach().double().numpy(), covariance.double().numpy()
    number = len(w)
    if isinstance(space, SigmoidRegions):
        return [0.5 * w[c % number] @ sigma[c] @ w[c % number] for c in range(2 * number)]
    pairs = [(y, w[k] - w[y]) for y in range(number) for k in range(number) if k != y]
    return [0.5 * d @ sigma[y] @ d for y, d in pairs]


@pytest.mark.parametrize("augmented", STREAMS)
def test_one_pass_of_each_image_and_the_terms_of_its_graph(start, seen, augmented):
    trainer, labeled, unlabeled = start("TransMedSeg", augmented=augmented)
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    names = [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]
    first = [["supervised", "augmented"]] if augmented == "labeled" else [["supervised"], ["augmented"]]
    assert names == [*first, ["labeled_part", "pseudo_label"]]
    assert len(student) == 2
    assert torch.equal(student[0], labeled.image)
    is_unlabeled = (student[1] != labeled.image).any(1, keepdim=True)
    assert torch.equal(student[1], torch.where(is_unlabeled, unlabeled.strong, labeled.image))
    assert len(teacher) == 1
    assert torch.equal(teacher[0], unlabeled.weak)


@pytest.mark.parametrize(
    "cell",
    [
        {},
        {"ignore": True},
        {"regions": True, "ignore": True},
        {"dim": 2, "regions": True},
        {"dim": 2, "residual": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("augmented", STREAMS)
def test_augmented_loss_is_that_of_the_naive_reference(start, augmented, cell):
    """Two thirds of the main stage are over, and the ramp is at its end; half of the voxels are sure."""
    trainer, labeled, unlabeled = start(
        "TransMedSeg", progress=0.75, cell=cell, augmented=augmented, augmented_weight=0.3, warmup_fraction=0.25
    )
    fill(trainer)
    space, classifier = trainer.label_space, bare(trainer.network).decoder.seg_layers[-1]
    found = trainer.teacher_pass(unlabeled.weak)
    probs = trainer.probabilities(found.logits)
    trainer.statistics_threshold = space.confidence(probs).median().item()
    if augmented == "labeled":
        features, labels = trainer.forward_pass(labeled.image).features, space.labels(labeled.full_target)
        weight = space.is_known(labeled.full_target)
        assert weight.all() != bool(cell.get("ignore"))
    else:
        features, labels = found.features, space.pseudo_label(probs)
        weight = space.confidence(probs) > trainer.statistics_threshold
        assert 0.3 < weight.float().mean() < 0.7
    moments, source, fraction = trainer.state["moments"], STREAMS.index(augmented), 0.25 * (0.75 - 0.25) / 0.75
    moved = fraction * (moments.means[1 - source] - moments.means[source]), fraction * moments.covariances[1 - source]
    trainer.largest_margin = np.median(naive_spreads(space, classifier.weight.flatten(1), moved[1]))
    expected = naive_loss(space, classifier, features, labels, weight, moved, trainer.largest_margin)
    losses = next(terms for terms in trainer.training_losses(labeled, unlabeled) if "augmented" in terms)
    assert trainer.observer.step_records["ramp/augmented"] == 1.0
    assert losses["augmented"].item() == pytest.approx(0.3 * expected, rel=1e-4)
    assert trainer.observer.step_records["clamped"] == pytest.approx(0.5)
    assert 0.0 < trainer.observer.step_records["margin"] < trainer.largest_margin


def test_weight_grows_with_the_ramp_and_the_augmentation_with_the_run(start):
    """At the beginning of the main stage nothing is moved, and the weight is exp(-5) of its maximum."""
    trainer, labeled, unlabeled = start("TransMedSeg", progress=0.5, warmup_fraction=0.5)
    fill(trainer)
    losses = next(trainer.training_losses(labeled, unlabeled))
    logits, target = trainer.forward_pass(labeled.image).logits, labeled.full_target
    plain = trainer.label_space.cross_entropy(logits, target).mean()
    torch.testing.assert_close(losses["augmented"], 0.5 * np.exp(-5.0).item() * plain)
    assert trainer.observer.step_records["margin"] == 0.0


@pytest.mark.parametrize("cell", [{}, {"dim": 2, "regions": True, "ignore": True}], ids=str)
@pytest.mark.parametrize("augmented", STREAMS)
def test_moments_of_a_step_are_of_labeled_and_of_sure_unlabeled_features(start, augmented, cell):
    """The weights move in the step: the features are those of before."""
    trainer, labeled, unlabeled = start("TransMedSeg", cell=cell, augmented=augmented, warmup_fraction=0.0)
    space, before = trainer.label_space, trainer.forward_pass(labeled.image).features
    known = space.is_known(labeled.full_target)
    found = trainer.teacher_pass(unlabeled.weak)
    probs = trainer.probabilities(found.logits)
    trainer.statistics_threshold = space.confidence(probs).median().item()
    is_sure = space.confidence(probs) > trainer.statistics_threshold
    assert 0.3 < is_sure.float().mean() < 0.7
    batch = {
        "data": labeled.image,
        "target": labeled.target,
        "keys": labeled.keys,
        "unlabeled": {"weak": unlabeled.weak, "strong": unlabeled.strong, "keys": unlabeled.keys},
    }
    trainer.train_step(batch)
    expected = [
        class_moments(before, class_maps(space, labeled.full_target, known)),
        class_moments(found.features, class_maps(space, space.pseudo_label(probs), is_sure)),
    ]
    torch.testing.assert_close(trainer.state["moments"].moments, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_warmup_and_skipped_steps_leave_the_moments_as_they_are(start):
    trainer, *_ = start("TransMedSeg", progress=0.0)
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.state["moments"].moments.abs().max() == 0.0
    trainer, *_ = start("TransMedSeg", progress=0.5)
    trainer.train_step(next(trainer.dataloader_train))
    before = trainer.state["moments"].moments.clone()
    assert (before[:, :, 0, 0].sum(1) > 0).all()
    batch = next(trainer.dataloader_train)
    bad = copy.deepcopy(batch)
    bad["unlabeled"]["strong"] = bad["unlabeled"]["strong"] * torch.nan
    trainer.train_step(bad)
    assert trainer.skipped_steps.of_epoch == 1
    assert torch.equal(trainer.state["moments"].moments, before)
    trainer.train_step(batch)
    added = trainer.state["moments"].counts - 0.99 * before[:, :, 0, 0]
    counted = class_moments(batch["data"], torch.ones_like(batch["data"]))[0, 0, 0]
    assert added[0].sum().item() == pytest.approx(counted.item(), rel=1e-3), "the bad step is not made up for"


def gradients_of(trainer, loss: torch.Tensor) -> set[str]:
    """Return the names of the student's parameters that a loss moves."""
    trainer.network.zero_grad(set_to_none=True)
    loss.backward()
    named = bare(trainer.network).named_parameters()
    return {name for name, parameter in named if parameter.grad is not None and parameter.grad.abs().max() > 0.0}


def test_labeled_features_send_the_gradient_to_encoder_decoder_and_the_last_head(start):
    trainer, labeled, unlabeled = start("TransMedSeg", augmented="labeled")
    fill(trainer)
    moved = gradients_of(trainer, next(trainer.training_losses(labeled, unlabeled))["augmented"])
    heads = {name for name in moved if ".seg_layers." in name}
    last = len(bare(trainer.network).decoder.seg_layers) - 1
    assert heads == {f"decoder.seg_layers.{last}.weight", f"decoder.seg_layers.{last}.bias"}
    assert any(name.startswith("encoder.stages.0") for name in moved)


def test_unlabeled_features_send_the_gradient_to_the_last_head_alone(start):
    trainer, labeled, unlabeled = start("TransMedSeg", augmented="unlabeled", statistics_threshold=0.0)
    fill(trainer)
    losses = list(trainer.training_losses(labeled, unlabeled))[1]
    last = len(bare(trainer.network).decoder.seg_layers) - 1
    assert gradients_of(trainer, losses["augmented"]) == {
        f"decoder.seg_layers.{last}.weight",
        f"decoder.seg_layers.{last}.bias",
    }


@pytest.mark.parametrize(
    ("augmented", "option"), [("labeled", {"augmented_weight": 0.0}), ("unlabeled", {"augmentation_fraction": 0.0})]
)
def test_without_augmentation_it_is_bcp_bit_for_bit(tiny_dataset, option, augmented):
    dataset, weights = tiny_dataset(dim=2, num_classes=4), []
    runs = (("nnUNetTrainerBCP", {}), (TRAINER.__name__, {"augmented": augmented, **option}))
    for name, options in (*runs, (TRAINER.__name__, {"augmented": augmented})):
        trainer = make_trainer(dataset, find_trainer(name), seed=1, num_epochs=5, **options)
        trainer.run_training()
        weights.append(state_of(trainer))
        weights[-1].pop("state/moments/moments", None)
    assert_equal_weights(weights[0], weights[1])
    assert any(not torch.equal(value, weights[0][name]) for name, value in weights[2].items())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"augmented": "both"}, "augmented is labeled or unlabeled, got 'both'"),
        ({"augmented": ""}, "augmented is labeled or unlabeled, got ''"),
        ({"largest_margin": -1.0}, r"largest_margin is 0 or more, got -1\.0"),
        ({"statistics_threshold": 1.5}, r"statistics_threshold is a fraction in \[0, 1\], got 1\.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_dataset, option, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_dataset(), TRAINER, **option).initialize()


def test_curves_say_how_much_is_added_and_clamped(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), TRAINER, seed=1, num_epochs=5, largest_margin=1e-9)
    trainer.run_training()
    curves = trainer.observer.curves.values
    assert np.isnan(curves["clamped"][:2]).all()
    assert curves["clamped"][-1] > 0.0
    assert 0.0 < curves["margin"][-1] <= 1e-9


def test_checkpoint_keeps_the_moments(tiny_dataset, tmp_path):
    dataset = tiny_dataset()
    trainer = started(dataset, TRAINER, warmup_fraction=0.0)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make_trainer(dataset, TRAINER, resume=True)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    moments = trainer.state["moments"].moments
    assert (moments[:, :, 0, 0].sum(1) > 0).all()
    assert torch.equal(resumed.state["moments"].moments, moments)


# ---- the graph ----


def test_there_is_no_graph_unless_it_has_a_weight(start):
    trainer, *_ = start("TransMedSeg")
    assert trainer.parts == {}


@pytest.mark.parametrize("cell", [{}, {"dim": 2, "residual": True}, {"anisotropic": True, "regions": True}], ids=str)
def test_graph_is_a_side_branch_of_the_mixed_images_bottleneck(start, cell):
    """Its loss moves all of its own weights and the encoder, and not the decoder, which predicts."""
    trainer, labeled, unlabeled = start("TransMedSeg", cell=cell, graph_weight=0.2)
    images = []
    trainer.network.encoder.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0].detach().clone()))
    losses = list(trainer.training_losses(labeled, unlabeled))[-1]
    assert list(losses) == ["labeled_part", "pseudo_label", "graph"]
    graph = trainer.parts["graph"]
    expected = 0.2 * graph.loss(trainer.encode(images[-1])[-1])
    torch.testing.assert_close(losses["graph"], expected)
    moved = gradients_of(trainer, losses["graph"])
    assert moved
    assert all(name.startswith("encoder.") for name in moved)
    assert all(parameter.grad.abs().max() > 0.0 for parameter in graph.parameters())
    optimized = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
    assert {id(one) for one in graph.parameters()} <= optimized


def test_prediction_with_a_graph_is_that_of_nnunets_network(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), TRAINER, seed=1, graph_weight=0.1)
    trainer.run_training()
    saved = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_space.num_channels, True
    )
    network.load_state_dict(saved["network_weights"])
    assert saved["nnunet_ssl"]["parts"]["graph"].keys() == trainer.parts["graph"].state_dict().keys()


# ---- two processes ----


OF_TWO_PROCESSES = {"warmup_fraction": 0.0, "statistics_threshold": 0.3}


def step_in_process(rank: int, root: Path, port: int, folder: Path) -> None:
    """Take two steps in one of two processes, each with a batch of its own, and save what came of them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    draw_no_progress()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    trainer = started(TinyDataset(Case(num_classes=4), root), TRAINER, **OF_TWO_PROCESSES)
    batches, moments = [], []
    for _ in range(2):
        batches.append(next(trainer.dataloader_train))
        trainer.train_step(batches[-1])
        moments.append(trainer.state["moments"].moments.clone())
    torch.save({"batches": batches, "moments": moments}, folder / f"{rank}.pth")
    del trainer
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_moments_of_one_with_both_batches(tiny_dataset, tmp_path):
    dataset = tiny_dataset(num_classes=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (dataset.root, port, tmp_path)
    processes = [WARM.Process(target=step_in_process, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in (0, 1))
    for ours, others in zip(first["moments"], second["moments"], strict=True):
        assert torch.equal(ours, others)
    assert (first["moments"][0][:, :, 0, 0].sum(1) > 0).all()
    halves = [kept["batches"][0] for kept in (first, second)]
    assert not torch.equal(halves[0]["data"], halves[1]["data"])
    trainer = started(dataset, TRAINER, **OF_TWO_PROCESSES)
    views = {name: torch.cat([half["unlabeled"][name] for half in halves]) for name in ("weak", "strong")}
    trainer.train_step(
        {
            "data": torch.cat([half["data"] for half in halves]),
            "target": [torch.cat(levels) for levels in zip(*(half["target"] for half in halves), strict=True)],
            "keys": [key for half in halves for key in half["keys"]],
            "unlabeled": views | {"keys": [key for half in halves for key in half["unlabeled"]["keys"]]},
        }
    )
    torch.testing.assert_close(trainer.state["moments"].moments, first["moments"][0], rtol=1e-4, atol=1e-3)
