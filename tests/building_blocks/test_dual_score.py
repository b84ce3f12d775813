import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks import dual_score
from nnunet_ssl.building_blocks.dual_score import (
    NO_CASE,
    ScoreTable,
    boundary_consistency,
    case_numbers,
    contour_regularity,
    dual_scores,
)
from nnunet_ssl.building_blocks.ellipses import Ellipse

HEAD = Ellipse(20.0, 17.0, 13.0, 10.0, 0.5).filled((36, 42))


def at(maps: np.ndarray, y: int, x: int) -> float:
    """A pixel; beyond the border the nearest one."""
    return float(maps[min(max(y, 0), maps.shape[0] - 1), min(max(x, 0), maps.shape[1] - 1)])


def naive_boundary_consistency(p: np.ndarray) -> float:
    total, smooth, steps = 0.0, (1, 2, 1), (-1, 0, 1)
    for y, x in np.ndindex(p.shape):
        gx = sum(w * (at(p, y + i, x + 1) - at(p, y + i, x - 1)) for i, w in zip(steps, smooth, strict=True)) / 8
        gy = sum(w * (at(p, y + 1, x + i) - at(p, y - 1, x + i)) for i, w in zip(steps, smooth, strict=True)) / 8
        total += math.sqrt(gx * gx + gy * gy)
    return total / p.size


def naive_contour_regularity(mask: np.ndarray) -> float:
    inside, distance = np.argwhere(mask), np.zeros(mask.shape)
    for y, x in np.ndindex(mask.shape):
        distance[y, x] = min(math.dist((y, x), one) for one in inside)
    total = 0.0
    for y, x in np.ndindex(mask.shape):
        neighbors = at(distance, y - 1, x) + at(distance, y + 1, x) + at(distance, y, x - 1) + at(distance, y, x + 1)
        total += abs(neighbors - 4 * distance[y, x])
    return total / mask.size


def test_boundary_consistency_of_a_ramp():
    """A slope of 0.1 along x, on both columns of the border halved by what stands beyond it."""
    ramp = (0.1 * torch.arange(5.0)).expand(1, 1, 4, 5)
    assert boundary_consistency(ramp).tolist() == pytest.approx([0.1 * (3 + 2 * 0.5) / 5])
    assert boundary_consistency(ramp.mT).tolist() == pytest.approx([0.1 * (3 + 2 * 0.5) / 5])


def test_boundary_consistency_is_that_of_its_formula():
    probs = torch.rand(3, 1, 7, 9)
    expected = [naive_boundary_consistency(p[0].double().numpy()) for p in probs]
    assert boundary_consistency(probs).tolist() == pytest.approx(expected, rel=1e-5)


def test_contour_regularity_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    for mask in (HEAD, rng.random((13, 11)) > 0.8):
        assert contour_regularity(mask) == pytest.approx(naive_contour_regularity(mask))


def test_contour_regularity_of_a_straight_edge():
    """Distances 0 0 1 2 3 in each row: bent by 1 at the edge, and by 1 at the border, beyond which 3 goes on."""
    mask = np.zeros((6, 5), bool)
    mask[:, :2] = True
    assert contour_regularity(mask) == pytest.approx(2 / 5)


def test_notches_leaks_and_noise_make_a_contour_less_regular():
    smooth = contour_regularity(HEAD)
    notched, leaking = HEAD.copy(), HEAD.copy()
    notched[15:20, 5:15] = False
    leaking[15:20, 30:40] = True
    assert contour_regularity(notched) > 1.02 * smooth
    assert contour_regularity(leaking) > 1.02 * smooth
    assert contour_regularity(np.random.default_rng(0).random(HEAD.shape) > 0.9) > 3 * smooth


def test_empty_and_tiny_masks_are_not_rated():
    mask = np.zeros((50, 50), bool)
    assert contour_regularity(mask) == math.inf
    mask.flat[:24] = True
    assert contour_regularity(mask) == math.inf, "24 of 2500 pixels are less than 1 %"
    mask.flat[24] = True
    assert contour_regularity(mask) < math.inf


def test_of_large_images_pixels_are_left_out(monkeypatch):
    expected = contour_regularity(HEAD[::3, ::3])
    monkeypatch.setattr(dual_score, "LARGEST_IMAGE", HEAD.size // 4 - 1)
    assert contour_regularity(HEAD) == expected


def test_dual_score_is_the_mean_of_both_and_infinite_where_one_is_no_number():
    probs = torch.stack(
        [torch.zeros(1, 4, 5), (0.1 * torch.arange(5.0)).expand(1, 4, 5), torch.full((1, 4, 5), torch.nan)]
    )
    scores = dual_scores(probs, torch.tensor([math.inf, 0.5, 0.5]))
    assert scores.tolist() == pytest.approx([math.inf, (0.08 + 0.5) / 2, math.inf])


# ---- the table ----


def filled(capacity: int = 8, **scores: float) -> ScoreTable:
    table = ScoreTable(capacity)
    add(table, scores)
    return table


def add(table: ScoreTable, scores: dict[str, float]) -> None:
    table.is_kept(torch.tensor([*scores.values()]), numbers(*scores), torch.tensor([*scores.values()]), 1.0)
    table.store()


def numbers(*cases: str) -> torch.Tensor:
    return torch.from_numpy(case_numbers(cases))


def content(table: ScoreTable) -> dict[int, float]:
    return {c: s for c, s in zip(table.cases.tolist(), table.scores.tolist(), strict=True) if c != NO_CASE}


def expected(**scores: float) -> dict[int, float]:
    return {int(numbers(case)): pytest.approx(score) for case, score in scores.items()}


def test_numbers_of_cases_are_fixed_and_differ():
    """Another number would lose the scores of a run that goes on."""
    assert case_numbers(["010_HC", ""]).tolist() == [-8194742201683914683, -5426141060434712859]
    many = [f"case{i}" for i in range(10000)]
    found = case_numbers(many)
    assert len({*found.tolist()}) == 10000
    assert NO_CASE not in found
    assert np.array_equal(found, case_numbers(many))


def test_each_case_has_its_last_score():
    table = filled(a=0.3, b=0.2)
    add(table, {"a": 0.1, "c": 0.5})
    assert content(table) == expected(a=0.1, b=0.2, c=0.5)


def test_of_a_case_that_a_batch_has_twice_the_last_score_counts():
    table = ScoreTable(8)
    table.is_kept(torch.zeros(1), numbers("a", "b", "a"), torch.tensor([0.3, 0.2, 0.1]), 1.0)
    table.store()
    assert content(table) == expected(a=0.1, b=0.2)


def test_a_full_table_forgets_what_was_seen_the_longest_time_ago():
    table = filled(capacity=3, a=0.1, b=0.2, c=0.3)
    add(table, {"a": 0.4})
    assert content(table) == expected(a=0.4, b=0.2, c=0.3)
    add(table, {"d": 0.5})
    assert content(table) == expected(a=0.4, c=0.3, d=0.5)


def test_what_is_not_stored_changes_nothing():
    table = filled(a=0.3)
    before = {name: value.clone() for name, value in table.state_dict().items()}
    table.is_kept(torch.tensor([0.1]), numbers("b"), torch.tensor([0.1]), 1.0)
    assert all(torch.equal(value, before[name]) for name, value in table.state_dict().items())
    table.store()
    table.store()
    assert content(table) == expected(a=0.3, b=0.1)


def test_table_comes_back_from_its_state():
    table, other = filled(a=0.3, b=math.inf), ScoreTable(8)
    other.load_state_dict(table.state_dict())
    assert content(other) == content(table) == expected(a=0.3, b=math.inf)
    used = filled(c=0.1)
    used.load_state_dict(table.state_dict())
    used.store()
    assert content(used) == content(table), "nothing waited any more"


# ---- the filter ----


def naive_kept(scores: list[float], stored: dict[str, float], fraction: float) -> list[bool]:
    """Go through the batch from its best image on."""
    finite = sorted(one for one in stored.values() if math.isfinite(one))
    limit = {score for i, score in enumerate(finite) if i < fraction * len(finite)}
    kept, least = [False] * len(scores), max(1, math.floor(0.8 * len(scores)))
    for place, i in enumerate(sorted(range(len(scores)), key=lambda i: scores[i])):
        kept[i] = math.isfinite(scores[i]) and (scores[i] in limit or place < least)
    return kept


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 13])
def test_filter_is_that_of_its_definition(batch_size):
    rng = np.random.default_rng(batch_size)
    for fraction in (0.0, 0.3, 0.5, 0.9, 1.0):
        before = {f"case{i}": float(np.float32(rng.random())) for i in range(20)}
        scores = [float(np.float32(one)) for one in rng.random(batch_size)]
        for i in rng.choice(batch_size, batch_size // 4, replace=False):
            scores[i] = math.inf
        names = [f"case{i}" for i in rng.choice(40, batch_size, replace=False)]
        stored = before | dict(zip(names, scores, strict=True))
        table = filled(64, **before)
        kept = table.is_kept(torch.tensor(scores), numbers(*names), torch.tensor(scores), fraction)
        assert kept.shape == (batch_size, 1, 1, 1)
        assert kept.flatten().tolist() == naive_kept(scores, stored, fraction)


def test_at_least_four_fifths_of_a_batch_are_kept_and_one_of_a_single_image():
    table = filled(32, **{f"good{i}": 0.01 * i for i in range(10)})
    for batch_size, least in ((1, 1), (2, 1), (4, 3), (5, 4), (8, 6)):
        scores = torch.linspace(2.0, 1.0, batch_size)  # all worse than what is stored
        kept = table.is_kept(scores, numbers(*map(str, range(batch_size))), scores, 0.5).flatten()
        assert kept.tolist() == [False] * (batch_size - least) + [True] * least


def test_images_with_an_infinite_score_are_never_kept():
    table = ScoreTable(8)
    scores = torch.tensor([math.inf, 0.5, math.inf, math.inf])
    assert table.is_kept(scores, numbers(*"abcd"), scores, 1.0).flatten().tolist() == [False, True, False, False]
    scores = torch.full((2,), math.inf)
    assert not table.is_kept(scores, numbers(*"ab"), scores, 1.0).any()


def test_all_are_kept_at_the_end():
    table = filled(32, **{f"good{i}": 0.0 for i in range(10)})
    scores = torch.tensor([3.0, 1.0, 1.0, 2.0])
    assert table.is_kept(scores, numbers(*"abcd"), scores, 1.0).all()


def test_a_case_that_a_batch_has_twice_is_kept_twice_at_the_end():
    table = filled(32, good=0.1)
    scores = torch.tensor([0.9, 0.2])
    assert table.is_kept(scores, numbers("a", "a"), scores, 1.0).all(), "only the second score is stored"


def test_equal_scores_are_not_kept_beyond_the_floor():
    table = filled(32, **{f"good{i}": 0.0 for i in range(10)})
    scores = torch.ones(8)
    assert table.is_kept(scores, numbers(*"abcdefgh"), scores, 0.5).sum() == 6


def test_scores_of_other_processes_count():
    """The own image is the third best of four, of which two others are another process's."""
    table = filled(8, a=0.4)
    own, everywhere = torch.tensor([0.3, 9.0]), torch.tensor([0.3, 9.0, 0.1, 0.2])
    kept = {k: table.is_kept(own, numbers(*"bcde"), everywhere, k).flatten().tolist() for k in (0.3, 1.0)}
    assert kept == {0.3: [True, False], 1.0: [True, True]}
    assert table.with_scores(numbers(*"bcde"), everywhere)[1].isfinite().sum() == 5
