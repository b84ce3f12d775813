import sys
from itertools import product

import pytest
import torch

from nnunet_ssl.building_blocks.competition import labeled_error
from nnunet_ssl.training.stages import WARMUP
from tests.conftest import parameters_of

SUPERVISED = [["supervised"], ["second_supervised"]]
TERMS = [
    [f"{network}_{term}_{view}" for term in ("cosine", "competition", "contrast")]
    for network in ("first", "second")
    for view in (1, 2)
]


def names_of(trainer, labeled, unlabeled) -> list[list[str]]:
    return [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]


def losses_of(trainer, labeled, unlabeled) -> dict[str, torch.Tensor]:
    return {name: loss for losses in trainer.training_losses(labeled, unlabeled) for name, loss in losses.items()}


def test_each_yield_is_one_networks_pass_of_one_view(start, seen):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    first, second = seen(trainer.network), seen(trainer.networks["second"])
    assert names_of(trainer, labeled, unlabeled) == [*SUPERVISED, *TERMS]
    views = labeled.image, unlabeled.strong, unlabeled.second_strong
    for images, expected in ((first, (0, 2, 1, 2)), (second, (0, 1, 2, 1, 2))):
        assert [[torch.equal(image, view) for view in views].index(True) for image in images] == list(expected)


@pytest.mark.parametrize("cell", [{}, {"dim": 2, "regions": True, "residual": True}], ids=str)
def test_summed_gradients_are_those_of_the_joint_loss(start, monkeypatch, cell):
    """In float64: what each yield leaves in the weights, and autograd of all four passes at once."""
    trainer, labeled, unlabeled = start("C3S3", progress=0.5, cell=cell, competition_weight=50.0, compared_voxels=300)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for one in (*trainer.networks.networks.values(), *trainer.parts.values(), trainer.state["errors"]):
        one.double()
    labeled, unlabeled = (
        type(batch)(**{name: in_double(value) for name, value in vars(batch).items()}) for batch in (labeled, unlabeled)
    )
    drawn, places = [], []
    module = sys.modules[type(trainer).__module__]
    monkeypatch.setattr(module, "complementary_masks", kept_in(drawn, module.complementary_masks))
    monkeypatch.setattr(module, "places_to_compare", kept_in(places, module.places_to_compare))
    modules = torch.nn.ModuleList(m for one in trainer.networks.trained.values() for m in one.modules)
    modules.zero_grad(set_to_none=True)
    for i, losses in enumerate(trainer.training_losses(labeled, unlabeled)):
        sum(losses.values()).backward()
        if i == 1:
            modules.zero_grad(set_to_none=True)  # the supervised ones are nnU-Net's
    found = {name: p.grad.clone() for name, p in modules.named_parameters() if p.grad is not None}

    modules.zero_grad(set_to_none=True)
    # masks are drawn for the first network's second view first, then for the second network's
    masks = dict(zip(("first", "second"), drawn, strict=True))
    loser = "first" if trainer.state["errors"].means.argmax() == 0 else "second"
    joint_loss(trainer, unlabeled, masks, places[0], loser).backward()
    expected = {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}
    assert len(found) == len(expected) > 40
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)


def in_double(value):
    if isinstance(value, list):
        return [in_double(one) for one in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def kept_in(results: list, function):
    """Return the function, whose results are noted."""

    def noting(*given):
        results.append(function(*given))
        return results[-1]

    return noting


def joint_loss(trainer, unlabeled, masks, places, loser) -> torch.Tensor:
    """The paper's sum, written down independently: all four graphs at once."""
    space, regions = trainer.label_space, trainer.label_manager.has_regions
    probs, features, labels = {}, {}, {}
    for network, part in (("first", "projector"), ("second", "second_projector")):
        for view, image in enumerate((unlabeled.strong, unlabeled.second_strong)):
            skips = trainer.encode(image, network)
            found = trainer.decode([m * s for m, s in zip(masks[network][view], skips, strict=True)], network)
            key = network, view
            probs[key] = found.logits.sigmoid() if regions else found.logits.softmax(1)
            points = found.features.flatten(2)
            picked = torch.stack([points[i][:, places[i]] for i in range(len(points))])
            features[key] = trainer.parts[part](picked)
            hard = probs[key].flatten(2) > 0.5 if regions else probs[key].argmax(1, keepdim=True).flatten(2)
            labels[key] = torch.stack([hard[i][:, places[i]] for i in range(len(hard))])
    total = 0.0
    for network in ("first", "second"):
        one, two = probs[network, 0], probs[network, 1]
        if regions:
            one, two = torch.stack([one, 1 - one]), torch.stack([two, 1 - two])
            norms = (one.square().sum(0) * two.square().sum(0)).sqrt()
            cosine = (one * two).sum(0) / norms
        else:
            cosine = (one * two).sum(1) / (one.square().sum(1) * two.square().sum(1)).sqrt()
        total = total + trainer.cosine_weight * (1 - cosine).mean()
    winner = "second" if loser == "first" else "first"
    for view in (0, 1):
        target = probs[winner, view].detach() ** 10
        target = target / (target + (1 - probs[winner, view].detach()) ** 10)
        distance = (probs[loser, view] - target).square().mean()
        total = total + trainer.competition_weight * trainer.ramp("competition") * distance
    foreground = range(space.num_channels) if regions else range(1, space.num_channels)
    for i, j in product((0, 1), (0, 1)):
        a, b = features["first", i], features["second", j]
        similarity = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) / 0.1
        terms = []
        one, two = labels["first", i], labels["second", j]
        for image, channel in product(range(len(a)), foreground):
            m, n = (x[image, channel] if regions else x[image, 0] == channel for x in (one, two))
            agrees, s = (one[image] == two[image]).all(0), similarity[image]
            if (m != n).any():
                negatives = s[m != n].exp().sum()
                members = [s[m & n & agrees], s[~m & ~n & agrees]]
                terms.append(sum((-v + (v.exp() + negatives).log()).mean() for v in members if len(v)))
        assert terms, "there is no disagreement to test with"
        total = total + trainer.contrast_weight * sum(terms) / len(terms)
    return total


def test_views_lack_in_complement_what_each_network_drops_once(start, monkeypatch):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    decoded = {"first": [], "second": []}
    decode = trainer.decode
    monkeypatch.setattr(trainer, "decode", lambda s, name: decoded[name].append(s) or decode(s, name))
    list(trainer.training_losses(labeled, unlabeled))
    orders = {"first": (1, 0, 1), "second": (0, 1, 0, 1)}  # of views: without gradient, then with it
    gone = {}
    for network, order in orders.items():
        for view, levels in zip(order, decoded[network], strict=True):
            whole = trainer.encode((unlabeled.strong, unlabeled.second_strong)[view], network)
            for i, (level, full) in enumerate(zip(levels, whole, strict=True)):
                dropped = (level == 0).flatten(2).all(2)
                torch.testing.assert_close(level[~dropped], 2 * full[~dropped])
                assert torch.equal(gone.setdefault((network, view, i), dropped), dropped), "drawn once"
    for network, i in product(orders, range(3)):
        assert torch.equal(gone[network, 0, i], ~gone[network, 1, i])
    assert any(not torch.equal(gone["first", 0, i], gone["second", 0, i]) for i in range(3))


@pytest.mark.parametrize("loser", [0, 1])
def test_the_loser_alone_learns_from_the_winner(start, loser):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    trainer.state["errors"].means[loser] = 1e3
    losses = losses_of(trainer, labeled, unlabeled)
    for i, network in enumerate(("first", "second")):
        for view in (1, 2):
            assert (losses[f"{network}_competition_{view}"] > 0) == (i == loser)
    assert trainer.observer.step_records["first_wins"] == float(loser == 1)


def test_the_competition_is_by_smoothed_errors_of_all_processes_on_labeled_images(start, monkeypatch):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9, cross_entropy_fraction=0.3)
    monkeypatch.setattr(trainer, "sum_over_processes", lambda errors: 2 * errors)  # two alike
    for _ in range(2):
        list(trainer.training_losses(labeled, unlabeled))
    outputs = [trainer.forward_pass(labeled.image, network).logits for network in ("first", "second")]
    errors = [labeled_error(trainer.label_space, one, labeled.full_target, 0.3) for one in outputs]
    assert errors[0] != errors[1]
    torch.testing.assert_close(trainer.state["errors"].means, 2 * torch.stack(errors) * (0.1 + 0.09))


@pytest.mark.parametrize("off", ["cosine", "competition", "contrast"])
def test_a_component_can_be_switched_off(start, monkeypatch, off):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9, **{f"{off}_weight": 0.0})
    projected = []
    for part in trainer.parts.values():
        part.register_forward_hook(lambda *_: projected.append(1))
    expected = [[name for name in names if off not in name] for names in TERMS]
    assert names_of(trainer, labeled, unlabeled) == [*SUPERVISED, *expected]
    assert len(projected) == (0 if off == "contrast" else 7)


def test_without_all_of_them_no_unlabeled_image_is_passed(start, seen):
    weights = {f"{name}_weight": 0.0 for name in ("cosine", "competition", "contrast")}
    trainer, labeled, unlabeled = start("C3S3", progress=0.9, **weights)
    images = seen(trainer.network)
    assert names_of(trainer, labeled, unlabeled) == SUPERVISED
    assert len(images) == 1


def test_weights_and_the_ramp_of_the_competition_alone(start):
    weights = {"cosine_weight": 2.0, "competition_weight": 3.0, "contrast_weight": 4.0}
    trainer, labeled, unlabeled = start("C3S3", progress=0.5, **weights)
    torch.manual_seed(0)
    heavy = losses_of(trainer, labeled, unlabeled)
    ramp = trainer.observer.step_records["ramp/competition"]
    assert 0.0 < ramp < 0.5
    trainer.rampup_duration = 0.0
    trainer.cosine_weight = trainer.competition_weight = trainer.contrast_weight = 1.0
    torch.manual_seed(0)
    light = losses_of(trainer, labeled, unlabeled)
    for name, loss in light.items():
        factors = {"cosine": 2.0, "competition": 3.0 * ramp, "contrast": 4.0, "supervised": 1.0}
        factor = next(factor for term, factor in factors.items() if term in name)
        torch.testing.assert_close(heavy[name], factor * loss)


def test_each_projector_is_trained_with_its_network(start):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    first, second = trainer.networks.trained.values()
    assert first.modules == (trainer.networks["first"], trainer.parts["projector"])
    assert second.modules == (trainer.networks["second"], trainer.parts["second_projector"])
    before = {name: parameters_of(part) for name, part in trainer.parts.items()}
    trainer.train_step(next(trainer.dataloader_train))
    for name, part in trainer.parts.items():
        assert any(not torch.equal(value, before[name][key]) for key, value in parameters_of(part).items())


def test_one_graph_is_alive_at_a_time(start):
    """A network's pass with gradient is back-propagated before the next one begins."""
    trainer, *_ = start("C3S3", progress=0.9)
    order = []
    for name in ("first", "second"):
        network = trainer.networks[name]
        network.encoder.register_forward_hook(lambda *_, n=name: order.append(n) if torch.is_grad_enabled() else None)
        next(iter(network.parameters())).register_hook(lambda _, n=name: order.append(f"{n} back"))
    trainer.train_step(next(trainer.dataloader_train))
    passes = ["first", "second", "first", "first", "second", "second"]
    assert order == [event for name in passes for event in (name, f"{name} back")]


def test_what_passes_give_to_each_other_holds_no_graph(start, monkeypatch):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    module = sys.modules[type(trainer).__module__]
    original, given = module.losses_of_pass, []
    monkeypatch.setattr(module, "losses_of_pass", lambda *g: given.append(dict(g[2])) or original(*g))
    list(trainer.training_losses(labeled, unlabeled))
    assert [len(seen) for seen in given] == [3, 4, 4, 4]
    for seen in given:
        assert not any(one.requires_grad for kept in seen.values() for one in kept)


def test_each_term_of_a_pass_moves_its_network_alone(start):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9)
    modules = {name: torch.nn.ModuleList(one.modules) for name, one in trainer.networks.trained.items()}
    trainer.state["errors"].means[1] = 1e3  # the second one loses
    for losses in list(trainer.training_losses(labeled, unlabeled))[2:]:
        for name, loss in losses.items():
            for module in modules.values():
                module.zero_grad(set_to_none=True)
            loss.backward(retain_graph=True)
            norms = {
                of: sum(p.grad.abs().sum() for p in m.parameters() if p.grad is not None) for of, m in modules.items()
            }
            own, other = ("first", "second") if name.startswith("first") else ("second", "first")
            assert norms[other] == 0, name
            assert (norms[own] > 0) == (name[:17] != "first_competition"), name


def test_pseudo_labels_of_both_networks_are_watched(start):
    trainer, labeled, unlabeled = start("C3S3", progress=0.5)
    trainer.step_of_epoch = 0
    list(trainer.training_losses(labeled, unlabeled))
    names = {"agreement", "pseudo_label/1", "agreement_for_second", "pseudo_label_for_second/1"}
    assert names <= trainer.observer.step_records.keys()


@pytest.mark.parametrize("cell", [{"regions": True, "ignore": True}, {"ignore": True, "batch_size": 1}], ids=str)
def test_regions_and_the_ignore_label(start, cell):
    trainer, labeled, unlabeled = start("C3S3", progress=0.9, cell=cell)
    losses = losses_of(trainer, labeled, unlabeled)
    assert all(loss.isfinite() for loss in losses.values())
    assert trainer.state["errors"].means.isfinite().all()
    assert (trainer.state["errors"].means > 0).all()


def test_a_warmup_is_labeled_only(start):
    trainer, labeled, unlabeled = start("C3S3", progress=0.0, warmup_fraction=0.5)
    assert trainer.stages.at(trainer.progress) == WARMUP
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == SUPERVISED
