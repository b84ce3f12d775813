import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssl.data.patients import groups_of
from nnunet_ssl.data.split_file import split_digest
from nnunet_ssl.splits.make_splits import (
    Split,
    check_disjoint,
    count_of,
    covering_order,
    split_at_random,
    write_splits,
)


@st.composite
def labeled_cases(draw):
    """Return patients with 1 to 3 cases each and the classes of every case."""
    patients = draw(st.integers(8, 14))
    group_of, classes_of = {}, {}
    for patient in range(patients):
        for frame in range(draw(st.integers(1, 3))):
            case = f"patient{patient:03d}_frame{frame:02d}"
            group_of[case] = f"patient{patient:03d}"
            classes_of[case] = draw(st.frozensets(st.integers(1, 4), max_size=4))
    return group_of, classes_of


@settings(max_examples=60, deadline=None)
@given(data=labeled_cases(), seed=st.integers(0, 5), folds=st.integers(2, 4))
def test_no_patient_stands_on_two_sides_and_nothing_is_lost(data, seed, folds):
    group_of, classes_of = data
    extra = {"patient000_phase": "patient000", "other_phase": "other"}
    group_of = group_of | extra
    splits = split_at_random(group_of, classes_of, 4, folds, seed, extra)  # four patients can hold all four classes
    assert sorted(case for split in splits for case in split.val) == sorted(classes_of)
    for split in splits:
        patients = [{group_of[case] for case in cases} for cases in (split.train, split.val, split.unlabeled)]
        assert not patients[0] & patients[1]
        assert not patients[2] & patients[1]
        assert not set(split.train) & set(split.unlabeled)
        assert {*split.train, *split.val, *split.unlabeled} >= set(classes_of)
        assert "other_phase" in split.unlabeled
        assert ("patient000_phase" in split.unlabeled) == ("patient000" not in patients[1])
        training = [case for case in {*split.train, *split.unlabeled} if case in classes_of]
        wanted = frozenset().union(*(classes_of[case] for case in training))
        assert frozenset().union(*(classes_of[case] for case in split.train)) == wanted


@settings(max_examples=40, deadline=None)
@given(data=labeled_cases(), seed=st.integers(0, 5))
def test_labeled_are_nested_over_their_number(data, seed):
    group_of, classes_of = data
    train = []
    for number in range(1, len(set(group_of.values())) // 2):
        try:
            train.append(set(split_at_random(group_of, classes_of, number, 2, seed)[0].train))
        except ValueError:
            assert not train  # a larger number never fails after a smaller one succeeded
    assert all(small < large for small, large in zip(train, train[1:], strict=False))


@settings(max_examples=80, deadline=None)
@given(sets=st.lists(st.frozensets(st.integers(1, 5), max_size=3), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_cover_is_the_smallest_there_is(sets, seed):
    """Against all subsets, by brute force."""
    from itertools import combinations

    classes = {f"g{i}": held for i, held in enumerate(sets)}
    wanted = frozenset().union(*sets)
    order = covering_order(list(classes), classes, np.random.default_rng(seed))
    assert sorted(order) == sorted(classes)
    smallest = next(
        size
        for size in range(len(sets) + 1)
        if any(frozenset().union(*chosen) == wanted for chosen in combinations(sets, size))
    )
    assert frozenset().union(*(classes[group] for group in order[:smallest])) == wanted


def test_cover_of_many_classes_takes_no_time():
    """60 patients and 30 classes: too many combinations to look at them all."""
    rng = np.random.default_rng(0)
    classes = {f"g{i}": frozenset(np.flatnonzero(rng.random(30) < 0.15).tolist()) for i in range(60)}
    start = time.monotonic()
    order = covering_order(list(classes), classes, rng)
    assert time.monotonic() - start < 5
    wanted = frozenset().union(*classes.values())
    assert frozenset().union(*(classes[group] for group in order[:20])) == wanted


def test_seed_decides_and_matters():
    cases = {f"case{i:02d}": f"case{i:02d}" for i in range(20)}
    classes = dict.fromkeys(cases, frozenset({1}))
    first, again, other = (split_at_random(cases, classes, 4, 5, seed) for seed in (0, 0, 1))
    assert first == again
    assert first[0].train != other[0].train
    assert [len(split.train) for split in first] == [4] * 5


def test_each_fold_draws_its_labeled_groups_for_itself():
    """And not those that stand at the same places of each fold's training part."""
    cases = {f"case{i:02d}": f"case{i:02d}" for i in range(20)}
    for seed in range(3):
        splits = split_at_random(cases, dict.fromkeys(cases, frozenset({1})), 4, 5, seed)
        training = [sorted(split.train + split.unlabeled) for split in splits]
        places = {tuple(part.index(case) for case in split.train) for part, split in zip(training, splits, strict=True)}
        assert len(places) == 5


def patients(number: int, frames: int, classes: int) -> tuple[dict[str, str], dict[str, frozenset[int]]]:
    """Return patients with 1 to `frames` cases, the group of each case, and the one or two classes that it holds."""
    group_of, classes_of = {}, {}
    for patient in range(number):
        for frame in range(1 + patient % frames):
            case = f"patient{patient:03d}_frame{frame:02d}"
            group_of[case] = f"patient{patient:03d}"
            classes_of[case] = frozenset({1 + (3 * patient + frame) % classes, 1 + patient * patient % classes})
    return group_of, classes_of


WITHOUT_LABEL = {"patient000_phase": "patient000", "patient007_phase": "patient007", "other": "other"}
# The arguments of `patients`, labeled, folds, seed, whether WITHOUT_LABEL; then the digest of each fold. The last but
# one has too many classes for the smallest cover.
SPLITS = [
    ((20, 1, 1), 4, 5, 0, False, ["651f8a3dada9", "2ea595f59208", "418ded729a36", "2c7d44c43ab5", "3e21b26ab848"]),
    ((20, 1, 1), 4, 5, 1, False, ["227626fcdcb5", "7a43e61f5fff", "19f49cfc1dfd", "f7dd5b0727d3", "386d43e76574"]),
    ((20, 1, 1), 0.3, 5, 12, False, ["485ee762364a", "e0bc6f8fc93d", "1c0ad8b9bf71", "aea28008451b", "c2a0997161fb"]),
    ((23, 3, 4), 5, 5, 0, False, ["ba2cf135fce6", "ee6f088d9996", "5d47c2d86f4a", "2c8002c62028", "3822ad0381c5"]),
    ((23, 3, 4), 5, 1, 0, False, ["ba2cf135fce6"]),
    ((23, 3, 4), 5, 5, 0, True, ["ced1ff58b05b", "03ce95e8355a", "857c928d10e9", "f750ed4d51fb", "e5229b7c03da"]),
    ((23, 3, 4), 0.25, 3, 7, True, ["13677d75a7dd", "73f7e2b5cdc4", "8af61f153489"]),
    ((12, 2, 6), 5, 1, 2, True, ["14c6a0f54439"]),
    ((4, 3, 3), 2, 1, 0, False, ["f03fa480e8f6"]),
    ((60, 2, 14), 10, 2, 3, False, ["430b4bc8010c", "fdd44ad556f6"]),
    ((60, 2, 30), 20, 2, 3, False, ["60c60709f418", "b427cadf5c96"]),
    ((40, 3, 24), 14, 2, 5, True, ["96a3c62d00ce", "bc572f6cc8cb"]),
]


@pytest.mark.parametrize(("cases", "labeled", "folds", "seed", "has_more", "digests"), SPLITS)
def test_random_splits_are_those_of_earlier_versions(cases, labeled, folds, seed, has_more, digests):
    """Bit for bit: published results name a split by its seed."""
    group_of, classes_of = patients(*cases)
    without_label = WITHOUT_LABEL if has_more else {}
    splits = split_at_random(group_of | without_label, classes_of, labeled, folds, seed, without_label)
    assert [split_digest(split.train, split.val, split.unlabeled) for split in splits] == digests
    for split in splits:
        assert all(cases == sorted(cases) for cases in asdict(split).values())


@pytest.mark.parametrize(
    ("labeled", "available", "number"), [(3, 10, 3), (0.1, 70, 7), (0.05, 80, 4), (0.01, 20, 1), (1.0, 8, 8)]
)
def test_number_or_share(labeled, available, number):
    assert count_of(labeled, available) == number


def test_impossible_numbers_are_refused():
    cases = {f"case{i}": f"case{i}" for i in range(6)}
    rare = dict.fromkeys(cases, frozenset({1})) | {"case1": frozenset({2}), "case2": frozenset({2})}
    with pytest.raises(ValueError, match=r"no 1 labeled groups .* hold all classes \[1, 2\], \[2\] would be missing"):
        split_at_random(cases, {c: rare[c] if c in ("case1", "case2") else frozenset({1}) for c in cases}, 1, 3)
    with pytest.raises(ValueError, match="--labeled is from 1 to 4 groups"):
        split_at_random(cases, rare, 5, 3)
    with pytest.raises(ValueError, match="--folds is from 1 to 6, .* got 7"):
        split_at_random(cases, rare, 2, 7)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [(r"^(patient\d+)", ["patient001", "patient001"]), (r"frame\d+", ["frame01", "frame12"])],
)
def test_group_is_the_first_group_or_the_match(pattern, groups):
    assert list(groups_of(["patient001_frame01", "patient001_frame12"], pattern).values()) == groups


@pytest.mark.parametrize(("pattern", "message"), [("(", "is no regular expression"), ("x", "does not occur in .* a$")])
def test_wrong_pattern_is_named(pattern, message):
    with pytest.raises(ValueError, match=message):
        groups_of(["a"], pattern)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(["a1"], ["a2"], []), "a: on the validation side and on the training side"),
        (Split(["a1"], ["b1"], ["b2"]), "b: on the validation side"),
        (Split(["a1"], ["a1"], ["a2"]), "a: on the validation side"),
        (Split(["a1"], ["b1"], ["a1"]), "a1: both labeled and unlabeled"),
    ],
)
def test_overlaps_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        check_disjoint(split, {"a1": "a", "a2": "a", "b1": "b", "b2": "b"})


def test_validation_on_the_labeled_cases_is_let_through():
    check_disjoint(Split(["a1"], ["a1"], ["b1"]), {"a1": "a", "b1": "b"})


def test_existing_split_is_kept_unless_it_may_be_replaced(tmp_path):
    file = tmp_path / "dataset" / "splits_final.json"
    first, second = [Split(["a"], ["b"], ["c"])], [Split(["a"], ["b"], [])]
    assert write_splits(file, first) is None
    assert json.loads(file.read_text()) == [{"train": ["a"], "val": ["b"], "unlabeled": ["c"]}]
    assert write_splits(file, first) is None
    with pytest.raises(ValueError, match="exists with another split: replace it with --overwrite"):
        write_splits(file, second)
    copy = write_splits(file, second, overwrite=True)
    assert json.loads(copy.read_text()) == [asdict(split) for split in first]
    assert json.loads(file.read_text()) == [asdict(split) for split in second]


def test_digest_depends_on_the_lists_and_not_on_their_order():
    digests = {split_digest(["a", "b"], ["c"], ["d"]), split_digest(["b", "a"], ["c"], ["d"])}
    assert len(digests) == 1
    assert split_digest(["a"], ["c"], ["b", "d"]) not in digests
