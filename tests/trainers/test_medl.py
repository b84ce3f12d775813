import math
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from nnunet_ssl.training.stages import WARMUP

TERMS = ["labeled_part", "pseudo_label", "ordered", "fisher"]
NAMES = [["supervised"], ["second_supervised"], TERMS, [f"second_{name}" for name in TERMS]]
CELLS = [{}, {"ignore": True}, {"dim": 2, "regions": True, "residual": True}, {"regions": True, "ignore": True}]
CELL_NAMES = ["-".join(cell) or "softmax" for cell in CELLS]


def losses_of(trainer, labeled, unlabeled) -> list[dict[str, torch.Tensor]]:
    return list(trainer.training_losses(labeled, unlabeled))


def module_of(trainer):
    return sys.modules[type(trainer).__module__]


def noted(results: list, function):
    """Return the function, whose arguments and results are noted."""

    def noting(*given):
        results.append((given, function(*given)))
        return results[-1][1]

    return noting


def test_a_step_passes_labeled_images_then_weak_then_mixed_ones(start, seen):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7)
    images = {name: seen(trainer.networks[name]) for name in ("first", "second")}
    assert [list(losses) for losses in losses_of(trainer, labeled, unlabeled)] == NAMES
    for name in images:
        first, weak, mixed = images[name]
        assert torch.equal(first, labeled.image)
        assert torch.equal(weak, unlabeled.weak)
        assert torch.equal(mixed, images["first"][2]), "both see the same"
        is_labeled = (mixed == labeled.image).all(1, keepdim=True)
        assert torch.equal(mixed, torch.where(is_labeled, labeled.image, unlabeled.strong))
        box = round(2 / 3 * 16) ** 3
        assert sorted(is_labeled.sum((1, 2, 3, 4)).tolist()) == [box, 16**3 - box]


def test_the_two_networks_are_of_different_architecture(start):
    trainer, *_ = start("MEDL")
    assert type(trainer.networks["first"]) is not type(trainer.networks["second"])


def test_warmup_is_the_evidential_loss_of_both_networks_on_labeled_images(start, seen):
    trainer, labeled, unlabeled = start("MEDL", progress=0.0)
    assert trainer.stages.at(trainer.progress) == WARMUP
    images = {name: seen(trainer.networks[name]) for name in ("first", "second")}
    warm = list(trainer._losses(labeled, unlabeled))
    assert [list(losses) for losses in warm] == NAMES[:2]
    assert all(torch.equal(only, labeled.image) for (only,) in images.values())
    main = losses_of(trainer, labeled, unlabeled)
    assert warm == main[:2]


def evidence(logits: torch.Tensor) -> torch.Tensor:
    """e^z up to 1000, and from there on 1000 (1 + ln(e^z / 1000))."""
    return torch.where(logits <= math.log(1000), logits.clamp_max(7).exp(), 1000 * (1 + logits - math.log(1000)))


@pytest.mark.parametrize("cell", CELLS[:3], ids=CELL_NAMES[:3])
def test_supervised_loss_is_nnunets_of_the_mean_probabilities(start, cell):
    """Of one head against loops over voxels: cross-entropy minus Dice of α / S."""
    trainer, labeled, _ = start("MEDL", cell=cell)
    trainer.loss, trainer.enable_deep_supervision = trainer.loss.loss, False
    labeled = type(labeled)(labeled.image, labeled.full_target, labeled.keys)
    outputs = trainer.forward_pass(labeled.image).logits.detach().double().numpy()
    (found, _) = trainer.warmup_losses(labeled)
    target, regions = labeled.target.numpy(), trainer.label_manager.has_regions
    images, channels = outputs.shape[:2]
    entropies = []
    overlap, size = (np.zeros((images, channels)) for _ in range(2))
    for image, *voxel in np.ndindex(images, *outputs.shape[2:]):
        label = int(target[(image, 0, *voxel)])
        if cell.get("ignore") and label == 4:
            continue
        scores = outputs[(image, slice(None), *voxel)]
        own = [evidence(score).item() for score in torch.tensor(scores)]
        if regions:
            against = [evidence(-score).item() for score in torch.tensor(scores)]
            probs = [(e + 1) / (e + a + 2) for e, a in zip(own, against, strict=True)]
            truth = target[(image, slice(channels), *voxel)]
            entropies += [-math.log(p if y else 1 - p) for p, y in zip(probs, truth, strict=True)]
        else:
            probs = [(e + 1) / (sum(own) + channels) for e in own]
            truth = [float(channel == label) for channel in range(channels)]
            entropies.append(-math.log(probs[label]))
        overlap[image] += np.array(probs) * truth
        size[image] += np.array(probs) + truth
    if trainer.configuration_manager.batch_dice:
        overlap, size = overlap.sum(0), size.sum(0)
    dice = (2 * overlap + 1e-5) / (size + 1e-5)
    expected = np.mean(entropies) - dice[..., 0 if regions else 1 :].mean()
    assert found["supervised"].item() == pytest.approx(expected, rel=1e-5)


class Reference:
    """The paper's loss with both networks' graphs at once, written down independently of the building blocks."""

    def __init__(self, trainer, labeled, unlabeled, box: torch.Tensor, alternating: torch.Tensor) -> None:
        self.trainer, self.regions = trainer, trainer.label_manager.has_regions
        self.channels = trainer.label_manager.num_segmentation_heads
        self.labeled, self.unlabeled = labeled, unlabeled
        target = labeled.full_target
        if self.regions:
            self.known = target[:, -1:] == 0 if target.shape[1] > self.channels else torch.ones_like(target[:, :1]) > 0
            self.truth = target[:, : self.channels].long() * self.known
        else:
            self.known = target < self.channels
            self.truth = target.long() * self.known
        pasted = box.long() if trainer.mixing else torch.zeros_like(box.long())
        self.is_labeled = (pasted + alternating.long()) % 2 == 1

    def alpha(self, logits: torch.Tensor) -> torch.Tensor:
        """Return α with the hypotheses last."""
        if self.regions:
            return 1 + torch.stack([evidence(logits), evidence(-logits)], -1)
        return 1 + evidence(logits).movedim(1, -1)[:, None]

    def fused(self, image: torch.Tensor, names=("first", "second")) -> tuple[torch.Tensor, torch.Tensor, list]:
        beliefs, doubts = [], []
        for name in names:
            alpha = self.alpha(self.trainer.forward_pass(image, name).logits.detach())
            strength = alpha.sum(-1)
            beliefs.append((alpha - 1) / strength[..., None])
            doubts.append(alpha.shape[-1] / strength)
        count = beliefs[0].shape[-1]
        if self.trainer.fusion == "mean":
            return sum(beliefs) / 2, sum(doubts) / 2, doubts
        factor = {"full": 1 / (count + 1), "rest": 1 / count}[self.trainer.fusion]
        joint = beliefs[0] * beliefs[1]
        joint = joint + factor * (beliefs[0] * doubts[1][..., None] + beliefs[1] * doubts[0][..., None])
        total = joint.sum(-1) + doubts[0] * doubts[1]
        return joint / total[..., None], doubts[0] * doubts[1] / total, doubts

    def order(self, doubt: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        result, zeta = torch.zeros_like(doubt), 2 * self.trainer.progress_of_main - 1
        for image in range(len(doubt)):
            for q in range(doubt.shape[1]):
                mask = known[image, 0]
                values = doubt[image, q][mask]
                ranks = values.to(torch.float32).argsort(stable=True).argsort() + 1  # the first of equal ones is lower
                psi = 2 * ranks.double() / len(values) - 1
                result[image, q][mask] = 1 + self.trainer.asymptotic_weight * torch.tanh(psi * zeta)
        return result

    def loss_of_heads(self, outputs, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        total = 0.0
        for logits, share in zip(outputs, self.trainer.loss.weight_factors, strict=True):
            if not share:
                continue
            alpha = self.alpha(logits)
            probs = alpha / alpha.sum(-1, keepdim=True)  # (B, Q, *spatial, K)
            here = functional.interpolate(labels.double(), logits.shape[2:], mode="nearest-exact").long()
            w = functional.interpolate(weight.double(), logits.shape[2:], mode="nearest-exact")
            chosen = 1 - here if self.regions else here
            entropy = -probs.gather(-1, chosen[..., None])[..., 0].log()
            w = w.expand_as(entropy)
            loss = (w * entropy).sum() / w.sum().clamp_min(1)
            dices = []
            for channel in range(self.channels) if self.regions else range(1, self.channels):
                p = probs[:, channel, ..., 0] if self.regions else probs[:, 0, ..., channel]
                g = (here[:, channel] if self.regions else here[:, 0] == channel).double()
                v = w[:, channel] if self.regions else w[:, 0]
                dices.append((2 * (v * p * g).sum() + 1e-5) / ((v * p).sum() + (v * g).sum() + 1e-5))
            total = total + share * (loss - sum(dices) / len(dices))
        return total

    def losses(self) -> dict[str, torch.Tensor]:
        trainer, labeled = self.trainer, self.labeled
        _, doubt_of_labels, doubts = self.fused(labeled.image)
        belief, doubt, _ = self.fused(self.unlabeled.weak)
        count = belief.shape[-1]
        probs = belief + doubt[..., None] / count
        trust = (doubt * (probs * probs.log2()).sum(-1)).exp()
        pseudo = belief.argmax(-1)
        pseudo = 1 - pseudo if self.regions else pseudo  # of a region the first hypothesis is inside
        is_labeled, everywhere = self.is_labeled, torch.ones_like(self.known)
        order = self.order(doubt, everywhere)
        image = torch.where(is_labeled, labeled.image, self.unlabeled.strong)
        labels = torch.where(is_labeled, self.truth, pseudo)
        known = is_labeled & self.known
        losses = {}
        for prefix, name, own in zip(("", "second_"), ("first", "second"), doubts, strict=True):
            outputs = trainer.forward_pass(labeled.image, name).outputs
            losses[prefix + "supervised"] = self.nnunets(outputs)
            outputs = trainer.forward_pass(image, name).outputs
            losses[prefix + "labeled_part"] = self.loss_of_heads(outputs, labels, known)
            taught = self.loss_of_heads(outputs, labels, trust * ~is_labeled)
            losses[prefix + "pseudo_label"] = trainer.pseudo_label_weight * taught
            alpha = self.alpha(outputs[0])
            strength = alpha.sum(-1)
            chosen = 1 - labels if self.regions else labels
            entropy = strength.log() - alpha.gather(-1, chosen[..., None])[..., 0].log()
            of_label = self.order(own / 2 + doubt_of_labels / 2, self.known)
            ordered = (of_label * entropy)[known.expand_as(entropy)].mean()
            losses[prefix + "ordered"] = trainer.ordered_weight * ordered
            truth = functional.one_hot(chosen, count)
            p, psi = alpha / strength[..., None], torch.polygamma(1, alpha)
            fisher = (psi * ((truth - p) ** 2 + p * (1 - p) / (strength[..., None] + 1))).sum(-1)
            rest = 1 - (torch.polygamma(1, strength)[..., None] / psi).sum(-1)
            fisher = fisher - trainer.determinant_weight * (psi.log().sum(-1) + rest.log())
            fisher = (order * fisher)[~is_labeled.expand_as(fisher)].mean()
            losses[prefix + "fisher"] = trainer.fisher_weight * trainer.ramp("fisher") * fisher
        return losses

    def nnunets(self, outputs) -> torch.Tensor:
        means = []
        for logits in outputs:
            alpha = self.alpha(logits)
            log = alpha.log() - alpha.sum(-1, keepdim=True).log()
            means.append(log[..., 0] - log[..., 1] if self.regions else log[:, 0].movedim(-1, 1))
        return self.trainer.loss(means, self.labeled.target)


ROWS = [
    *((cell, {}) for cell in CELLS),
    (CELLS[1], {"fusion": "rest"}),
    (CELLS[2], {"fusion": "rest"}),
    (CELLS[0], {"fusion": "mean"}),
    (CELLS[3], {"fusion": "mean"}),
    (CELLS[0], {"asymptotic_weight": 0.0}),
    (CELLS[3], {"mixing": False}),
    (CELLS[0], {"determinant_weight": 0.0}),
]


@pytest.mark.parametrize(("cell", "options"), ROWS, ids=str)
def test_terms_and_gradients_are_those_of_the_joint_loss(start, monkeypatch, cell, options):
    """In float64: each term, and what all yields leave in the weights, against autograd of everything at once."""
    settings = {"fisher_weight": 3.0, "ordered_weight": 0.7, "pseudo_label_weight": 1.3} | options
    trainer, labeled, unlabeled = start("MEDL", progress=0.75, cell=cell, **settings)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for network in trainer.networks.networks.values():
        network.double()
    labeled, unlabeled = (
        type(batch)(**{name: in_double(value) for name, value in vars(batch).items()}) for batch in (labeled, unlabeled)
    )
    drawn = {name: [] for name in ("random_box", "alternating")}
    for name, results in drawn.items():
        monkeypatch.setattr(module_of(trainer), name, noted(results, getattr(module_of(trainer), name)))
    modules = torch.nn.ModuleDict({name: trainer.networks[name] for name in ("first", "second")})
    modules.zero_grad(set_to_none=True)
    found = {}
    for losses in trainer.training_losses(labeled, unlabeled):
        sum(losses.values()).backward()
        found |= losses
    gradients = {name: p.grad.clone() for name, p in modules.named_parameters() if p.grad is not None}

    modules.zero_grad(set_to_none=True)
    expected = Reference(trainer, labeled, unlabeled, *(results[0][1] for results in drawn.values())).losses()
    assert set(found) == set(expected) == {name for names in NAMES for name in names}
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].double(), loss, rtol=1e-6, atol=1e-9, msg=name)
    sum(expected.values()).backward()
    reference = {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}
    assert len(gradients) == len(reference) > 40
    for name, gradient in reference.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-9)


def in_double(value):
    if isinstance(value, list):
        return [in_double(one) for one in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def test_each_voxel_is_taught_by_the_image_it_is_from(start, monkeypatch):
    """Labels, reliability and order of unlabeled voxels are those of the same place of the weak image."""
    trainer, labeled, unlabeled = start("MEDL", progress=0.7, cell={"ignore": True})
    labeled.target[0][0, :, :8] = 4  # ignored
    masked, ordered, fused = [], [], []
    monkeypatch.setattr(trainer, "masked_losses", noted(masked, trainer.masked_losses))
    monkeypatch.setattr(module_of(trainer), "losses_by_weight", noted(ordered, module_of(trainer).losses_by_weight))
    monkeypatch.setattr(module_of(trainer).evidence, "combine", noted(fused, module_of(trainer).evidence.combine))
    losses_of(trainer, labeled, unlabeled)
    (belief, uncertainty), target = fused[1][1], labeled.target[0]
    for ((_, labels, (known, trust)), _), ((*_, mixed, (of_label, order), _), _) in zip(masked, ordered, strict=True):
        is_labeled = (mixed.image == labeled.image).all(1, keepdim=True)
        assert torch.equal(known, is_labeled & (target != 4))
        assert torch.equal(trust > 0, ~is_labeled)
        assert trust.max() <= 1.0
        assert torch.equal(labels[known], target[known].long())
        assert torch.equal(labels[~is_labeled], belief.argmax(0)[~is_labeled])
        assert torch.equal(of_label > 0, target != 4)
        assert (order > 0).all()
        most = order.flatten(2).argmax(2)  # late: the most uncertain voxel of the whole image
        assert torch.equal(most, uncertainty.flatten(2).argmax(2))
    assert not torch.equal(ordered[0][0][4][0], ordered[1][0][4][0]), "each network ranks by its own uncertainty too"
    assert torch.equal(ordered[0][0][4][1], ordered[1][0][4][1])


def test_nothing_that_teaches_carries_a_gradient(start, monkeypatch):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7)
    fused, masked, ordered = [], [], []
    module = module_of(trainer)
    monkeypatch.setattr(module.evidence, "combine", noted(fused, module.evidence.combine))
    monkeypatch.setattr(trainer, "masked_losses", noted(masked, trainer.masked_losses))
    monkeypatch.setattr(module, "losses_by_weight", noted(ordered, module.losses_by_weight))
    losses_of(trainer, labeled, unlabeled)
    for given, result in fused:
        assert not any(one.requires_grad for opinion in (*given[:2], result) for one in opinion)
    for (outputs, labels, parts), _ in masked:
        assert all(one.requires_grad for one in outputs)
        assert not any(one.requires_grad for one in (labels, *parts))
    for given, _ in ordered:
        assert not any(one.requires_grad for one in given[4])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_without_mixing_images_are_whole(start, seen, batch_size):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7, cell={"batch_size": batch_size}, mixing=False)
    images, drawn = seen(trainer.network), set()
    for _ in range(8):
        images.clear()
        for losses in trainer.training_losses(labeled, unlabeled):
            assert all(loss.isfinite() for loss in losses.values())
        kinds = []
        for one, known, other in zip(images[2], labeled.image, unlabeled.strong, strict=True):
            assert torch.equal(one, known) != torch.equal(one, other)
            kinds.append(torch.equal(one, known))
        assert all(a != b for a, b in zip(kinds[:-1], kinds[1:], strict=True))
        drawn.add(kinds[0])
    assert drawn == {True, False}


def test_weights_and_the_ramp_of_the_fisher_term_alone(start):
    weights = {"pseudo_label_weight": 2.0, "ordered_weight": 3.0, "fisher_weight": 4.0}
    trainer, labeled, unlabeled = start("MEDL", progress=0.75, **weights)
    torch.manual_seed(0)
    heavy = losses_of(trainer, labeled, unlabeled)
    ramp = trainer.observer.step_records["ramp/fisher"]
    assert 0.0 < ramp < 0.9
    trainer.rampup_duration = 0.0
    trainer.pseudo_label_weight = trainer.ordered_weight = trainer.fisher_weight = 1.0
    torch.manual_seed(0)
    light = losses_of(trainer, labeled, unlabeled)
    for of_heavy, of_light in zip(heavy, light, strict=True):
        for name, loss in of_light.items():
            factors = {"pseudo_label": 2.0, "ordered": 3.0, "fisher": 4.0 * ramp}
            torch.testing.assert_close(of_heavy[name], factors.get(name.removeprefix("second_"), 1.0) * loss)


def test_without_the_fisher_term_it_is_not_computed(start, monkeypatch):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7, fisher_weight=0.0)
    monkeypatch.setattr(torch, "polygamma", None)
    expected = [[name for name in names if "fisher" not in name] for names in NAMES]
    assert [list(losses) for losses in losses_of(trainer, labeled, unlabeled)] == expected


def test_certain_voxels_are_learned_first(start, monkeypatch):
    """Right after the warm-up certain voxels of both streams count more, at the end of the run uncertain ones."""
    for progress, early in ((0.5, True), (0.75, False)):
        trainer, labeled, unlabeled = start("MEDL", progress=progress)
        ordered = []
        module = module_of(trainer)
        monkeypatch.setattr(module, "asymptotic_weights", noted(ordered, module.asymptotic_weights))
        losses_of(trainer, labeled, unlabeled)
        assert len(ordered) == 3
        for (uncertainty, *_), weights in ordered:
            is_certain = uncertainty < uncertainty.flatten(2).median(2).values.view(-1, 1, 1, 1, 1)
            assert (weights[is_certain].mean() > weights[~is_certain].mean()) == early


def test_one_graph_is_alive_at_a_time(start):
    trainer, *_ = start("MEDL", progress=0.7)
    order = []
    for name in ("first", "second"):
        network = trainer.networks[name]
        network.encoder.register_forward_hook(lambda *_, n=name: order.append(n) if torch.is_grad_enabled() else None)
        next(iter(network.parameters())).register_hook(lambda _, n=name: order.append(f"{n} back"))
    trainer.train_step(next(trainer.dataloader_train))
    assert order == [event for name in ("first", "second") * 2 for event in (name, f"{name} back")]


def test_ignored_images_teach_nothing_wherever_they_are_pasted(start):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7, cell={"ignore": True})
    labeled.target[0].fill_(4)
    nothing = torch.tensor(-sum(trainer.loss.weight_factors), dtype=torch.float32)
    for losses in losses_of(trainer, labeled, unlabeled)[2:]:
        for name, loss in losses.items():
            if name.endswith("labeled_part"):
                torch.testing.assert_close(loss.detach().float(), nothing)
            elif name.endswith("ordered"):
                assert loss == 0.0
            else:
                assert loss.isfinite()


@pytest.mark.parametrize("cell", [{}, {"regions": True}], ids=["softmax", "regions"])
def test_stock_nnunet_predicts_what_has_most_evidence(start, cell):
    """Softmax and argmax, or sigmoid and a half, of network one's logits."""
    trainer, labeled, _ = start("MEDL", cell=cell)
    assert trainer.inference_network() == "first"
    logits = trainer.forward_pass(labeled.image).logits.detach()[0]
    for scale in (1.0, 1e2, 1e4):
        alpha = 1 + evidence(scale * logits.double())
        stock = trainer.label_manager.convert_logits_to_segmentation(scale * logits.clone())
        if cell:
            against = 1 + evidence(-scale * logits.double())
            expected = trainer.label_manager.convert_probabilities_to_segmentation((alpha / (alpha + against)).float())
            assert torch.equal(expected, stock)
        else:
            has_evidence = alpha.amax(0) > 1
            assert torch.equal(alpha.argmax(0)[has_evidence], stock[has_evidence])
            assert has_evidence.float().mean() > 0.5
        assert len(stock.unique()) > 1


def test_losses_are_single_precision_under_mixed_precision(start):
    trainer, labeled, unlabeled = start("MEDL", progress=0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(trainer, labeled, unlabeled)
    for losses in found:
        for loss in losses.values():
            assert loss.dtype == torch.float32
            assert loss.isfinite()


def test_evidence_far_beyond_the_limit_leaves_the_step_finite(start):
    trainer, *_ = start("MEDL", progress=0.7)
    with torch.no_grad():
        for name in ("first", "second"):
            for layer in trainer.networks[name].decoder.seg_layers:
                layer.weight.mul_(1e6)
    batch = next(trainer.dataloader_train)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert trainer.skipped_steps.of_epoch == 0


def test_curves_have_uncertainty_and_reliability(start):
    trainer, labeled, unlabeled = start("MEDL", progress=0.75)
    trainer.step_of_epoch = 0
    losses_of(trainer, labeled, unlabeled)
    records = trainer.observer.step_records
    for name in ("uncertainty/first", "uncertainty/second", "uncertainty/fused", "reliability"):
        assert 0.0 < records[name] <= 1.0
    assert {"agreement", "pseudo_label/1", "ramp/fisher"} <= records.keys()


def test_settings_that_make_no_sense_are_refused(start):
    with pytest.raises(ValueError, match="fusion is one of full, rest, mean, got 'sum'"):
        start("MEDL", fusion="sum")
    with pytest.raises(ValueError, match="asymptotic_weight is less than 1.313"):
        start("MEDL", asymptotic_weight=1.4)
