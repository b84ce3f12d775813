import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.dual_score import NO_CASE, case_numbers
from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_within
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.stages import WARMUP
from tests.building_blocks.test_dual_score import naive_boundary_consistency, naive_contour_regularity
from tests.building_blocks.test_ellipse_refinement import naive_refined
from tests.conftest import make_trainer, state_of

SHAPE = (16, 16)
SYMMETRIC = [f"{name}_{side}" for side in ("left", "right") for name in ("perturbed", "mirrored")]
ALL_TERMS = ["supervised", "segmentation", *SYMMETRIC]
ROUND, CUT, EMPTY = Ellipse(7.6, 8.2, 5.2, 4.0, 0.6), Ellipse(1.0, 9.0, 5.0, 4.0, 0.2), None


def head_logits(ellipses, channels: int, head: int) -> torch.Tensor:
    """Logits of a structure that fades out, over others that are random."""
    logits = torch.randn(len(ellipses), channels, *SHAPE, generator=torch.Generator().manual_seed(5))
    logits[:, head] = -6.0
    y, x = np.indices(SHAPE)
    for row, ellipse in zip(logits, ellipses, strict=True):
        if ellipse is not None:
            turned = ((x - ellipse.center_x) + 1j * (y - ellipse.center_y)) * np.exp(-1j * ellipse.angle_rad)
            d = (turned.real / ellipse.semi_axis_a) ** 2 + (turned.imag / ellipse.semi_axis_b) ** 2
            row[head] = torch.from_numpy(6.0 * (1.0 - d).clip(-2)).float()
    return logits


@pytest.fixture
def begin(start, monkeypatch):
    """Return a function that gives a trainer whose teacher sees certain heads, and a batch."""

    def make(ellipses=(ROUND, CUT, ROUND, EMPTY), progress: float = 0.75, **settings):
        cell = {"dim": 2, "batch_size": len(ellipses)} | settings.pop("cell", {})
        trainer, labeled, unlabeled = start("ERSR", progress=progress, cell=cell, **settings)
        torch.manual_seed(3)
        logits = head_logits(ellipses, trainer.label_space.num_channels, trainer.head.start)
        taught = trainer.probabilities(logits)
        monkeypatch.setattr(trainer, "teacher_probabilities", lambda image: taught.clone())
        return trainer, labeled, unlabeled, taught

    return make


def terms_of(trainer, labeled, unlabeled) -> dict[str, torch.Tensor]:
    return {name: value for losses in trainer.training_losses(labeled, unlabeled) for name, value in losses.items()}


def noted_passes(trainer, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Note what the student is given and what it predicts."""
    noted, forward_pass = [], trainer.forward_pass

    def noting(image, network=None):
        found = forward_pass(image, network)
        noted.append((image.detach().clone(), trainer.probabilities(found.logits)))
        return found

    monkeypatch.setattr(trainer, "forward_pass", noting)
    return noted


def ramp_at(progress: float) -> float:
    """The warm-up takes 0.4 of the run, the ramp what follows."""
    return math.exp(-5 * (1 - (progress - 0.4) / 0.6) ** 2)


def naive_labels(trainer, probs: np.ndarray, head: np.ndarray) -> np.ndarray:
    """One-hot maps of one image (C, Y, X)."""
    number, maps = trainer.head.start, np.zeros(probs.shape)
    for y, x in np.ndindex(head.shape):
        others = {c: probs[c, y, x] for c in range(len(probs)) if c != number}
        if head[y, x] > 0.6:
            maps[number, y, x] = 1
        if type(trainer.label_space).__name__ == "SigmoidRegions":
            for c, p in others.items():
                maps[c, y, x] = p > 0.5
        elif head[y, x] <= 0.6:
            maps[max(others, key=others.get), y, x] = 1
    return maps


@pytest.mark.parametrize("kind", ["softmax", "regions"])
@pytest.mark.parametrize("refines", [True, False])
def test_segmentation_term_is_that_of_its_formula(begin, monkeypatch, kind, refines):
    """Of four images two have an ellipse, one is cut off by the border and not refined, and one has no head."""
    cell = {"regions": kind == "regions"}
    trainer, labeled, unlabeled, taught = begin(cell=cell, refines=refines, segmentation_weight=0.7)
    passes = noted_passes(trainer, monkeypatch)
    found = terms_of(trainer, labeled, unlabeled)
    assert list(found) == ALL_TERMS
    image, student = passes[1]
    assert torch.equal(image, unlabeled.strong)
    total = count = 0.0
    for i, ellipse in enumerate((ROUND, CUT, ROUND)):
        p, s = taught[i].double().numpy(), student[i].detach().double().numpy()
        head = p[trainer.head.start]
        if refines and ellipse is ROUND:
            head = naive_refined(head, fitted_to(head > 0.6), 0.6)
        difference = (s - naive_labels(trainer, p, head)) ** 2
        total, count = total + difference.sum(), count + difference.size
    assert found["segmentation"].item() == pytest.approx(0.7 * ramp_at(0.75) * total / count, rel=1e-4)
    records = trainer.observer.step_records
    assert (float(records["kept"]), float(records["elliptic"])) == (0.75, 0.5)


def fitted_to(mask: np.ndarray) -> Ellipse:
    ellipse = ellipse_within(mask, 0.8)
    assert ellipse is not None
    return ellipse


def test_symmetric_terms_are_those_of_their_formulas(begin, monkeypatch):
    settings = {"perturbed_weight": 0.3, "mirrored_weight": 0.9}
    trainer, labeled, unlabeled, taught = begin(**settings)
    passes = noted_passes(trainer, monkeypatch)
    found = terms_of(trainer, labeled, unlabeled)
    head = trainer.head.start
    whole = passes[1][1].detach().double().numpy()
    for side, (image, probs) in zip(("left", "right"), passes[2:], strict=True):
        perturbed_terms, mirrored_terms = [], []
        for i in (0, 2):  # those with an ellipse
            p, s = probs[i, head].detach().double().numpy(), whole[i, head]
            teacher = taught[i].double().numpy()
            ellipse = fitted_to(teacher[head] > 0.6)
            is_head = naive_refined(teacher[head], ellipse, 0.6) > 0.6
            known, source, mirrored = {}, {}, {}
            for y, x in np.ndindex(SHAPE):
                axis = complex(math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad))
                turned = (complex(x, y) - complex(ellipse.center_x, ellipse.center_y)) / axis
                other = complex(ellipse.center_x, ellipse.center_y) + turned.conjugate() * axis
                m = round(other.imag), round(other.real)
                is_inside = 0 <= m[0] < SHAPE[0] and 0 <= m[1] < SHAPE[1]
                mirrored[y, x] = m if is_inside else None
                if (turned.imag < 0) == (side == "left"):
                    known[y, x], source[y, x] = True, (y, x)
                else:
                    known[y, x] = is_inside and (is_head[m] or not is_head[y, x])
                    source[y, x] = m
            for at in np.ndindex(SHAPE):
                if known[at]:
                    perturbed_terms.append((p[at] - s[source[at]]) ** 2)
                if known[at] and mirrored[at] and known[mirrored[at]]:
                    mirrored_terms.append((p[at] - p[mirrored[at]]) ** 2)
        scale = ramp_at(0.75) / 2
        assert found[f"perturbed_{side}"].item() == pytest.approx(0.3 * scale * np.mean(perturbed_terms), rel=1e-3)
        assert found[f"mirrored_{side}"].item() == pytest.approx(0.9 * scale * np.mean(mirrored_terms), rel=1e-3)
        assert not torch.equal(image[0], unlabeled.strong[0])
        assert torch.equal(image[3], unlabeled.strong[3]), "which has no head"


def test_teacher_sees_the_weak_view_and_the_student_the_strong_one_and_two_symmetric_ones(start, seen):
    trainer, labeled, unlabeled = start("ERSR", progress=0.75, cell={"dim": 2})
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    terms_of(trainer, labeled, unlabeled)
    assert [len(student), len(teacher)] == [4, 1], "the passes that the cost counts"
    assert torch.equal(teacher[0], unlabeled.weak)
    assert torch.equal(student[0], labeled.image)
    assert torch.equal(student[1], unlabeled.strong)


def test_gradient_flows_through_each_prediction_of_the_student(begin):
    trainer, labeled, unlabeled, _ = begin(ellipses=(ROUND, ROUND))
    for losses in trainer.training_losses(labeled, unlabeled):
        for name, loss in losses.items():
            trainer.network.zero_grad(set_to_none=True)
            loss.backward(retain_graph=True)
            moved = [p.grad for p in trainer.network.parameters() if p.grad is not None and p.grad.any()]
            assert moved, name
    assert all(p.grad is None for p in trainer.networks["teacher"].parameters())


def test_images_without_a_head_teach_nothing(begin):
    trainer, labeled, unlabeled, _ = begin(ellipses=(EMPTY, EMPTY))
    for losses in trainer.training_losses(labeled, unlabeled):
        trainer.network.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        has_gradient = any(p.grad is not None and p.grad.any() for p in trainer.network.parameters())
        assert has_gradient == ("supervised" in losses)
    assert float(trainer.observer.step_records["kept"]) == 0.0


def test_images_without_an_ellipse_have_the_first_term_alone(begin):
    trainer, labeled, unlabeled, _ = begin(ellipses=(CUT, CUT))
    found = terms_of(trainer, labeled, unlabeled)
    assert found["segmentation"] > 0
    assert [found[name].item() for name in SYMMETRIC] == [0.0] * 4


@pytest.mark.parametrize(
    ("off", "passes", "zero"),
    [
        (("perturbed_weight",), 4, {"perturbed_left", "perturbed_right"}),
        (("mirrored_weight",), 4, {"mirrored_left", "mirrored_right"}),
        (("segmentation_weight",), 4, {"segmentation"}),
        (("perturbed_weight", "mirrored_weight"), 2, set()),
    ],
)
def test_each_level_can_be_switched_off(begin, seen, off, passes, zero):
    trainer, labeled, unlabeled, _ = begin(ellipses=(ROUND, ROUND), **dict.fromkeys(off, 0.0))
    student = seen(trainer.network)
    found = terms_of(trainer, labeled, unlabeled)
    assert len(student) == passes
    assert {name for name, value in found.items() if value == 0} == zero
    assert set(found) == set(ALL_TERMS if passes == 4 else ALL_TERMS[:2])


# ---- the filter ----


def test_score_is_that_of_its_formula_and_stored_by_case_after_the_step(begin):
    trainer, labeled, unlabeled, taught = begin()
    terms_of(trainer, labeled, unlabeled)
    assert (trainer.state["scores"].cases == NO_CASE).all(), "the step may still be skipped"
    trainer.after_step()
    stored = dict(zip(trainer.state["scores"].cases.tolist(), trainer.state["scores"].scores.tolist(), strict=True))
    expected = {}
    for i, (key, number) in enumerate(zip(unlabeled.keys, case_numbers(unlabeled.keys), strict=True)):
        probs = taught[i].double().numpy()
        mask = probs.argmax(0) == trainer.head.start
        score = 0.5 * naive_boundary_consistency(probs[trainer.head.start])
        score += 0.5 * naive_contour_regularity(mask) if mask.any() else math.inf
        expected[int(number)] = pytest.approx(score, rel=1e-4)
        assert key
    assert {number: score for number, score in stored.items() if number != NO_CASE} == expected


def test_share_that_is_kept_rises_from_a_half_to_all(begin, monkeypatch):
    shares = []
    for progress in (0.5, 0.75):  # the run has 4 steps
        trainer, labeled, unlabeled, _ = begin(progress=progress)
        table = trainer.state["scores"]
        monkeypatch.setattr(table, "is_kept", noting_last(table.is_kept, shares))
        terms_of(trainer, labeled, unlabeled)
    assert shares == pytest.approx([0.5 + 0.5 * ramp_at(progress) for progress in (0.5, 0.75)])


def noting_last(function, noted: list):
    return lambda *given: noted.append(given[-1]) or function(*given)


def test_bad_images_are_filtered_out(begin):
    """What is stored is better than the batch: the last one of four equal ones is left out; without a filter none."""
    for kept_fraction, share in ((0.5, 0.75), (1.0, 1.0)):
        trainer, labeled, unlabeled, _ = begin(ellipses=(ROUND,) * 4, kept_fraction=kept_fraction)
        table = trainer.state["scores"]
        table.cases[:20], table.scores[:20] = torch.arange(1, 21), 0.0
        terms_of(trainer, labeled, unlabeled)
        records = trainer.observer.step_records
        assert (float(records["kept"]), float(records["elliptic"])) == (share, share)


def test_warmup_has_neither_scores_nor_a_teachers_pass(start, seen):
    trainer, labeled, unlabeled = start("ERSR", progress=0.0, cell={"dim": 2})
    assert trainer.stages.at(trainer.progress) == WARMUP
    teacher = seen(trainer.networks["teacher"])
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"]]
    before = state_of(trainer)["state/scores/scores"]
    trainer.after_step()
    assert torch.equal(state_of(trainer)["state/scores/scores"], before)
    assert teacher == []


# ---- which label, which patches ----


def test_several_labels_are_refused_without_the_option(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2, num_classes=3), find_trainer("nnUNetTrainerERSR"))
    del trainer.options["elliptic_label"]
    with pytest.raises(ValueError, match="option elliptic_label says.*class1, class2"):
        trainer.initialize()


@pytest.mark.parametrize(("wanted", "channel"), [("class2", 2), ("1", 1)])
def test_label_of_the_option(tiny_dataset, wanted, channel):
    trainer = make_trainer(tiny_dataset(dim=2, num_classes=4), find_trainer("nnUNetTrainerERSR"), elliptic_label=wanted)
    trainer.initialize()
    assert trainer.head == slice(channel, channel + 1)


def test_settings_of_all_teachers_are_checked(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerERSR"), predict_with="pupil")
    with pytest.raises(ValueError, match="predict_with is teacher or student"):
        trainer.initialize()


def test_3d_is_refused_by_name(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=3), find_trainer("nnUNetTrainerERSR"))
    with pytest.raises(NotImplementedError, match="nnUNetTrainerERSR is for 2-D patches.*3d_fullres are 3-D"):
        trainer.initialize()


# ---- the picture ----


@pytest.mark.parametrize("refines", [True, False])
def test_preview_shows_what_is_learned_and_the_ellipse(begin, refines):
    """What is more than a half and less than the threshold is no head, in the picture as in the loss."""
    trainer, *_, taught = begin(refines=refines)
    taught[1, :, 0] = 0.0
    taught[1, 0, 0], taught[1, trainer.head, 0] = 0.45, 0.55
    shown, outlined = trainer.preview_contents(taught)
    head = taught[0, trainer.head.start].double().numpy()
    new = naive_refined(head, fitted_to(head > 0.6), 0.6) if refines else head
    is_clear = np.abs(new - 0.6) > 1e-5
    np.testing.assert_array_equal((shown[0, trainer.head.start].numpy() > 0.5)[is_clear], (new > 0.6)[is_clear])
    assert not shown[1, trainer.head.start, 0].any()
    assert outlined[0].any()
    assert not outlined[0].all()
    assert not outlined[1].any(), "no ellipse"
    trainer.host_work.close()


def test_the_ellipse_is_drawn(begin, tmp_path, monkeypatch):
    trainer, _, unlabeled, _ = begin()
    drawn = []
    monkeypatch.setattr("nnunet_ssl.training.preview.draw_border", lambda _, mask: drawn.append(mask.shape))
    contents = trainer.preview_contents

    def with_a_border(probs):
        return contents(probs)[0], torch.ones_like(probs[:, :1], dtype=torch.bool)

    monkeypatch.setattr(trainer, "preview_contents", with_a_border)
    trainer.draw_preview(unlabeled, tmp_path / "p.png")
    assert drawn == [unlabeled.strong.shape[2:]] * 2 * len(unlabeled.keys)
    trainer.host_work.close()
