import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_ssl.building_blocks.self_paced_contrast import (
    Pace,
    age_between_bounds,
    alike,
    paced_loss,
    pair_losses,
    self_paced_weights,
)
from nnunet_ssl.data.places import Place
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.stages import MAIN, PRETRAINING
from tests.conftest import make_trainer, started

TRAINER = find_trainer("nnUNetTrainerSPCL")


def embeddings_of(trainer, images, name: str) -> np.ndarray:
    """Return z of images, in float64."""
    with torch.no_grad():
        features = torch.cat([bare(trainer.network).encoder(image)[-1] for image in images]).double()
        found = trainer.parts[name].double()(features.flatten(2).amax(2))
        trainer.parts[name].float()
    return (found / found.norm(dim=1, keepdim=True)).numpy()


def naive_term(vectors: np.ndarray, labels, temperature: float, share: float) -> float:
    """Return L_k with linear weights between the bounds, pair by pair."""
    number, rows = len(vectors), []
    for i in range(number):
        positives = [j for j in range(number) if j != i and labels[j] == labels[i]]
        if not positives:
            continue
        everything = sum(math.exp(vectors[i] @ vectors[a] / temperature) for a in range(number) if a != i)
        losses = [math.log(everything) - vectors[i] @ vectors[j] / temperature for j in positives]
        gamma = math.log(len(positives)) + share * (math.log(number) - math.log(len(positives)))
        weights = [max(1.0 - loss / gamma, 0.0) if gamma else float(loss <= 0.0) for loss in losses]
        rows.append((np.mean(np.multiply(weights, losses)), np.mean(weights)))
    loss, weight = np.mean(rows, axis=0)
    return float(loss / weight) if weight else 0.0


def naive_contrast(trainer, images, places, share: float) -> float:
    """Return Σ_k β_k L_k of position and patient."""
    bins = [int(3 * place.position) for place in places]
    cases = [place.case for place in places]
    terms = [
        naive_term(embeddings_of(trainer, images, name), labels, 0.07, share)
        for name, labels in (("position", bins), ("patient", cases))
    ]
    return terms[0] + 0.1 * terms[1]


def places_of(*positions: tuple[str, int]) -> tuple[Place, ...]:
    """Return places among 20 slices (or patches)."""
    return tuple(Place(case, (at, 0, 0), (1, 16, 16), (20, 20, 20)) for case, at in positions)


@pytest.fixture
def begin(start):
    """Return a function that starts a trainer whose second views are not mirrored, with places to compare."""

    def make(progress: float, cell: dict | None = None, **settings):
        trainer, labeled, unlabeled = start("SPCL", progress, {"batch_size": 4} | (cell or {}), **settings)
        trainer.inference_allowed_mirroring_axes = None
        object.__setattr__(labeled, "places", places_of(("a1", 0), ("a1", 19), ("b1", 10), ("b1", 1)))
        object.__setattr__(unlabeled, "places", places_of(("a2", 2), ("a2", 12), ("b2", 3), ("a1", 13)))
        return trainer, labeled, unlabeled

    return make


@pytest.mark.parametrize("cell", [{}, {"dim": 2, "residual": True}, {"anisotropic": True, "regions": True}], ids=str)
def test_pretraining_is_the_contrast_of_two_views_of_all_images(begin, cell):
    """A quarter of the stage is over, so that the age is half way."""
    settings = {"pretrain_fraction": 0.5, "pretrain_weight": 0.3, "num_epochs": 8, "last_age": 3.0}
    trainer, labeled, unlabeled = begin(0.25 * 0.5, cell, **settings)
    images = [labeled.image, labeled.image, unlabeled.strong, unlabeled.weak]
    expected = naive_contrast(trainer, images, labeled.places * 2 + unlabeled.places * 2, share=2.0)
    losses = list(trainer.pretraining_losses(labeled, unlabeled))
    assert [list(terms) for terms in losses] == [[f"contrast_{i}"] for i in range(1, 5)]
    found = sum(terms[f"contrast_{i + 1}"].item() for i, terms in enumerate(losses))
    assert found == pytest.approx(0.3 * expected, rel=1e-3)
    assert expected > 0.5


def test_pretraining_without_a_weight_is_nnunets_loss(begin):
    trainer, labeled, unlabeled = begin(0.0, pretrain_weight=0.0)
    assert [list(terms) for terms in trainer.pretraining_losses(labeled, unlabeled)] == [["supervised"]]


@pytest.mark.parametrize("cell", [{}, {"dim": 2, "regions": True, "ignore": True}], ids=str)
def test_second_stage_adds_the_contrast_of_unlabeled_images(begin, cell):
    """A quarter of the main stage is over: the age has begun anew, and the ramp is at exp(-5 · 0.75²)."""
    settings = {"pretrain_fraction": 0.5, "num_epochs": 8, "last_age": 3.0, "consistency_weight": 2.0}
    trainer, labeled, unlabeled = begin(0.625, cell, contrast_weight=0.2, **settings)
    for parameter in trainer.networks["teacher"].parameters():
        parameter.mul_(0.5)
    expected = naive_contrast(trainer, [unlabeled.strong, unlabeled.weak], unlabeled.places * 2, share=2.0)
    probs = trainer.probabilities(trainer.network(unlabeled.strong)[0]).double()
    target = trainer.probabilities(trainer.networks["teacher"](unlabeled.weak)).double()
    losses = list(trainer.training_losses(labeled, unlabeled))
    assert [list(terms) for terms in losses] == [["supervised"], ["contrast_1"], ["contrast_2"], ["consistency"]]
    assert torch.equal(losses[0]["supervised"], trainer.supervised_loss(labeled))
    found = losses[1]["contrast_1"] + losses[2]["contrast_2"]
    assert found.item() == pytest.approx(0.2 * expected, rel=1e-3)
    consistency = 2.0 * math.exp(-5 * 0.75**2) * (probs - target).square().mean()
    assert losses[3]["consistency"].item() == pytest.approx(consistency.item(), rel=1e-4)
    assert expected > 0.1
    assert consistency > 0.0


def test_phase_is_contrasted_if_there_is_a_pattern(begin):
    trainer, labeled, unlabeled = begin(0.0, phase_pattern="1$", phase_weight=0.5, pretrain_weight=1.0)
    assert set(trainer.parts) == {"position", "patient", "phase"}
    images, places = [labeled.image, labeled.image, unlabeled.strong, unlabeled.weak], [*labeled.places * 2]
    places += unlabeled.places * 2
    phases = [place.case[1] for place in places]
    expected = naive_contrast(trainer, images, places, share=1.0)
    expected += 0.5 * naive_term(embeddings_of(trainer, images, "phase"), phases, 0.07, 1.0)
    losses = list(trainer.pretraining_losses(labeled, unlabeled))
    assert sum(sum(terms.values()).item() for terms in losses) == pytest.approx(expected, rel=1e-3)


def test_patients_are_those_of_the_data_set(begin):
    """Cases a1 and a2 are one patient: other pairs are alike than without a pattern."""
    for pattern in (None, "^(.)"):
        trainer, labeled, unlabeled = begin(0.0, position_weight=0.0)
        trainer.dataset_json["patient_pattern"] = pattern
        images, places = (unlabeled.strong, unlabeled.weak), unlabeled.places * 2
        patients = [place.case[0] if pattern else place.case for place in places]
        expected = 0.1 * naive_term(embeddings_of(trainer, images, "patient"), patients, 0.07, 1.0)
        losses = list(trainer.contrast(images, places, 1.0, 0.0))
        assert sum(sum(terms.values()).item() for terms in losses) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_second_views_are_mirrored_each_for_itself(start, seen, dim):
    trainer, labeled, unlabeled = start("SPCL", 0.0, {"dim": dim, "batch_size": 4})
    images = seen(trainer.network)
    list(trainer.pretraining_losses(labeled, unlabeled))
    assert len(images) == 3 + 4, "three without gradient, then all four"
    first, second, third, fourth = images[3:]
    assert torch.equal(first, labeled.image)
    assert torch.equal(third, unlabeled.strong)
    for view, source in ((second, labeled.image), (fourth, unlabeled.weak)):
        for one, before in zip(view, source, strict=True):
            assert not torch.equal(one, before)
            flips = [axes for axes in subsets(dim) if torch.equal(one, before.flip([axis + 1 for axis in axes]))]
            assert flips
            assert set(flips[0]) <= set(trainer.mirror_axes)
    assert torch.equal(images[0], second), "the view is drawn once"


def subsets(dim: int) -> list[tuple[int, ...]]:
    return [tuple(axis for axis in range(dim) if number >> axis & 1) for number in range(1, 2**dim)]


def moved_by(trainer, loss: torch.Tensor) -> dict[str, set[str]]:
    """Return which parameters of the student and of the projectors a loss moves."""
    modules = {"student": bare(trainer.network), **trainer.parts}
    for module in modules.values():
        module.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0.0}
        for name, module in modules.items()
    }


def test_contrast_moves_encoder_and_projectors_and_nothing_of_decoder_or_teacher(begin):
    trainer, labeled, unlabeled = begin(0.0)
    for losses in trainer.pretraining_losses(labeled, unlabeled):
        moved = moved_by(trainer, sum(losses.values()))
        assert all(name.startswith("encoder.") for name in moved["student"])
        assert any(name.startswith("encoder.stages.0") for name in moved["student"])
        assert len(moved["position"]) == len(moved["patient"]) == 4
    assert all(parameter.grad is None for parameter in trainer.networks["teacher"].parameters())


def test_pretraining_leaves_the_decoder_as_it_is(tiny_dataset):
    trainer = started(tiny_dataset(dim=2, batch_size=4), TRAINER, pretrain_fraction=1.0)
    before = {name: value.clone() for name, value in bare(trainer.network).state_dict().items()}
    trainer.train_step(next(trainer.dataloader_train))
    changed = {
        name for name, value in bare(trainer.network).state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert not [name for name in changed if name.startswith("decoder.") and "decoder.encoder." not in name]


def test_stages_follow_each_other_in_one_run(tiny_dataset):
    """Of 4 epochs with 2 steps the first 1.2 pre-train: 3 steps; the second epoch has a step of each stage."""
    trainer = make_trainer(tiny_dataset(dim=2, batch_size=4), TRAINER, seed=1, num_epochs=4)
    trainer.initialize()
    assert [trainer.stages.at(step / 8) for step in (2, 3)] == [PRETRAINING, MAIN]
    trainer.run_training()
    curves = trainer.observer.curves.values
    assert np.isnan(curves["loss/supervised"][0])
    assert np.isfinite(curves["loss/supervised"][1:]).all()
    assert np.isfinite(curves["loss/contrast_4"][:2]).all()
    assert np.isnan(curves["loss/contrast_4"][2:]).all()
    assert np.isfinite(curves["loss/contrast_2"]).all()
    assert all(0.0 < value <= 1.0 for value in curves["admitted/position"])


def test_without_contrast_in_the_second_stage_nothing_is_encoded_for_it(begin, seen):
    trainer, labeled, unlabeled = begin(0.5, contrast_weight=0.0)
    images = seen(trainer.network)
    assert [list(terms) for terms in trainer.training_losses(labeled, unlabeled)] == [["supervised"], ["consistency"]]
    assert len(images) == 2


def test_without_mean_teacher_the_student_predicts(tiny_dataset, begin):
    trainer, labeled, unlabeled = begin(0.5, consistency_weight=0.0, predict_with="student")
    names = [list(terms) for terms in trainer.training_losses(labeled, unlabeled)]
    assert names == [["supervised"], ["contrast_1"], ["contrast_2"]]
    assert trainer.inference_network() == "student"


def test_meta_labels_without_weight_have_no_projector(begin):
    trainer, *_ = begin(0.5, patient_weight=0.0)
    assert set(trainer.parts) == {"position"}
    trainer, labeled, unlabeled = begin(0.0, patient_weight=0.0, position_weight=0.0)
    assert trainer.parts == {}
    losses = list(trainer.pretraining_losses(labeled, unlabeled))
    assert [list(terms) for terms in losses] == [["supervised"]]


def test_one_unlabeled_image_has_nothing_to_be_compared_with(start):
    trainer, labeled, unlabeled = start("SPCL", 0.5, {"batch_size": 1})
    losses = {name: term for terms in trainer.training_losses(labeled, unlabeled) for name, term in terms.items()}
    assert losses["contrast_1"].item() == losses["contrast_2"].item() == 0.0
    trainer, labeled, unlabeled = start("SPCL", 0.0, {"batch_size": 1}, pretrain_weight=1.0)
    losses = list(trainer.pretraining_losses(labeled, unlabeled))
    assert sum(sum(terms.values()).item() for terms in losses) > 0.1, "a labeled and an unlabeled one are two"


def test_mixed_boxes_reach_image_and_target_of_the_consistency_alone(begin, seen):
    trainer, labeled, unlabeled = begin(0.5, mixing_probability=1.0)
    for parameter in trainer.networks["teacher"].parameters():
        parameter.mul_(0.5)
    images = seen(trainer.network)
    losses = list(trainer.training_losses(labeled, unlabeled))
    supervised, second_view, first_view, second_again, mixed = images
    assert torch.equal(first_view, unlabeled.strong)
    is_pasted = (mixed != unlabeled.strong).any(1, keepdim=True)
    assert torch.equal(mixed, torch.where(is_pasted, unlabeled.strong.roll(-1, 0), unlabeled.strong))
    assert 0.1 < is_pasted.float().mean() < 0.6
    target = trainer.probabilities(trainer.networks["teacher"](unlabeled.weak)).double()
    target = torch.where(is_pasted, target.roll(-1, 0), target)
    probs = trainer.probabilities(trainer.network(mixed)[0]).double()
    expected = trainer.ramp("consistency") * (probs - target).square().mean()
    assert losses[-1]["consistency"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_unlabeled_batches_are_spread_over_the_positions(tiny_dataset):
    trainer = started(tiny_dataset(dim=2, batch_size=4), TRAINER, position_bins=2)
    for _ in range(5):
        places = next(trainer.dataloader_train)["unlabeled"]["places"]
        bins = [int(2 * place.position) for place in places]
        assert sorted(bins[:2]) == sorted(bins[2:]) == [0, 1]
        assert [place.case for place in places[:2]] == [places[0].case] * 2


def test_more_pairs_count_as_time_goes_on():
    """With the default ages; of images that are told apart, but not by their meta-labels."""
    torch.manual_seed(0)
    losses = pair_losses(F.normalize(torch.randn(60, 256), dim=1), TRAINER.temperature)
    is_alike = alike([0, 1, 2] * 20, torch.device("cpu"))
    admitted = []
    for time in (0.0, 0.25, 1.0):
        pace = Pace(TRAINER.pair_weights, TRAINER.age, (TRAINER.first_age, TRAINER.last_age), time, TRAINER.temperature)
        admitted.append(paced_loss(losses, is_alike, pace).admitted.item())
    assert 0.0 < admitted[0] < admitted[1] < admitted[2] <= 1.0
    assert admitted[2] > 1.5 * admitted[0]


def test_constant_weights_admit_all_pairs(begin):
    admitted = []
    for kind in ("constant", "hard"):
        trainer, labeled, unlabeled = begin(0.0, pair_weights=kind, first_age=0.9)
        list(trainer.pretraining_losses(labeled, unlabeled))
        admitted.append(trainer.observer.step_records["admitted/position"].item())
    assert admitted[0] == 1.0
    assert admitted[1] < 1.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pair_weights": "soft"}, "pair_weights is linear, hard or constant, got 'soft'"),
        ({"age": "quantile"}, r"first_age|last_age is a fraction in \[0, 1\], of the pairs, got 2.0"),
        ({"phase_pattern": "("}, "is no regular expression"),
        ({"temperature": 0.0}, "temperature is more than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_dataset, option, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_dataset(), TRAINER, **option).initialize()


def test_phase_pattern_that_tells_no_cases_apart_is_refused_before_the_first_step(tiny_dataset):
    with pytest.raises(ValueError, match="phase_pattern .* frame01- finds nothing in all"):
        make_trainer(tiny_dataset(), TRAINER, phase_pattern="frame01-").on_train_start()


def test_wrong_meta_labels_end_with_lower_weights_than_right_ones(begin):
    """Two kinds of images, striped along one axis or the other; one of each four has the other kind's position."""
    trainer, labeled, unlabeled = begin(0.0, {"dim": 2, "batch_size": 8}, patient_weight=0.0, num_epochs=1)
    trainer.stages = type(trainer.stages)(1.0)
    rng = torch.Generator().manual_seed(0)
    stripes = (torch.arange(16) // 2 % 2).float().expand(16, 16)
    is_wrong, positions = [], []
    for batch, names in ((labeled, ("image",)), (unlabeled, ("strong", "weak"))):
        kinds = [i % 2 for i in range(8)]
        patterns = torch.stack([stripes if kind else stripes.T for kind in kinds])[:, None]
        for name in names:
            noisy = 2.0 * patterns + 0.3 * torch.randn(8, 1, 16, 16, generator=rng)
            object.__setattr__(batch, name, noisy)
        wrong = [i >= 6 for i in range(8)]
        told = [kind ^ is_one for kind, is_one in zip(kinds, wrong, strict=True)]
        object.__setattr__(batch, "places", places_of(*(("x", 19 * one) for one in told)))
        is_wrong += wrong * 2
        positions += told * 2
    trainer.num_iterations_per_epoch = steps = 150
    for step in range(steps):
        trainer.step_of_epoch = step
        trainer.observer.start_step(step)
        trainer.step.run(trainer.pretraining_losses(labeled, unlabeled), {})
    images = [labeled.image, labeled.image, unlabeled.strong, unlabeled.weak]
    vectors = torch.tensor(embeddings_of(trainer, images, "position")).float()
    is_alike = torch.tensor([[a == b for b in positions] for a in positions]) & ~torch.eye(32, dtype=torch.bool)
    similarity = (vectors @ vectors.T / 0.07).masked_fill(torch.eye(32, dtype=torch.bool), -torch.inf)
    losses = similarity.logsumexp(1, keepdim=True) - similarity
    now = Pace("linear", "bounds", (1.0, 2.0), 1.0, 0.07)
    weights = self_paced_weights(losses, is_alike, age_between_bounds(is_alike, now.share))
    wrong = torch.tensor(is_wrong)
    mixed, right = is_alike & (wrong[:, None] != wrong[None]), is_alike & ~wrong[:, None] & ~wrong[None]
    assert weights[mixed].mean() < 0.5 * weights[right].mean()
