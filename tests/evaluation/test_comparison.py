import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssl.evaluation.comparison import Comparison, Prediction, patient_pattern, patients_of, trainers_apart
from nnunet_ssl.evaluation.folders import Row
from nnunet_ssl.evaluation.metrics import Metrics


def predictions(*numbers: int, training: str = "fold 0") -> set[Prediction]:
    return {Prediction(training, f"case{number:02}") for number in numbers}


ALL, MOST, TWO, REST = (predictions(*numbers) for numbers in (range(10), range(6), (0, 1), range(10, 20)))


@pytest.mark.parametrize(
    ("have", "apart"),
    [
        ({"a": ALL}, ()),
        ({"a": ALL, "b": ALL, "c": MOST}, ()),  # 6 of 10 are left
        ({"a": ALL, "b": ALL, "c": predictions(*range(5))}, ()),  # just half
        ({"a": ALL, "b": ALL, "c": predictions(*range(4))}, ("c",)),
        ({"a": ALL, "b": TWO}, ("b",)),
        ({"a": TWO, "b": ALL, "c": ALL}, ("a",)),  # the baseline is nothing special
        ({"a": ALL, "b": ALL, "c": TWO, "d": TWO}, ("c", "d")),  # neither of them alone would help
        ({"a": ALL, "b": ALL, "c": TWO, "d": predictions(1, 2)}, ("c", "d")),
        ({"a": ALL, "b": TWO, "c": TWO}, ()),  # a has more than the others, who cost nobody else anything
        ({"a": ALL, "b": predictions(*range(6)), "c": predictions(*range(4, 10))}, ("c",)),  # 2 with it, 6 without
        ({"a": ALL, "b": REST}, ("b",)),
        ({"a": ALL, "b": REST, "c": ALL}, ("b",)),
        ({"a": ALL, "b": REST, "c": predictions(*range(20, 30))}, ("b", "c")),
        ({"a": ALL, "b": ALL, "c": REST, "d": REST}, ("c", "d")),
        # each lacks another case: none of them would cost half
        ({str(i): predictions(*range(12)) - predictions(i) for i in range(10)}, ()),
    ],
)
def test_trainers_that_cost_more_than_half_of_the_cases_are_apart(have, apart):
    assert trainers_apart(have) == apart


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6))
def test_those_that_are_not_apart_always_have_something_in_common(sets):
    have = {str(index): predictions(*numbers) for index, numbers in enumerate(sets)}
    apart = trainers_apart(have)
    listed = [own for trainer, own in have.items() if trainer not in apart]
    assert set.intersection(*listed)


def comparison(**have: set[Prediction]) -> Comparison:
    metrics = Metrics(0.5, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 9, 9)
    results = {
        trainer: {prediction: [Row(prediction.case, "organ", metrics)] for prediction in sorted(own)}
        for trainer, own in have.items()
    }
    return Comparison("D", results, {})


def test_means_are_over_what_all_listed_trainers_have():
    found = comparison(a=ALL, b=MOST, c=TWO)
    assert set(found.common) == set(found.shown("a")) == set(found.shown("b")) == MOST
    assert found.listed == ("a", "b")
    assert set(found.shown("c")) == TWO
    assert [row.case for row in found.rows("c")] == ["case00", "case01"]


def test_what_is_not_in_the_table_of_means_is_said_and_because_of_whom():
    others = predictions(0, 1, 2, training="fold 1")
    warnings = comparison(a=ALL | others, b=ALL | others, c=MOST | predictions(0, 1, training="fold 1"), d=TWO)
    assert warnings.warnings() == [
        "d stands in a table apart, because it would cost more than half of the cases: it has 2 of the 8 predictions "
        "of the table of means",
        "the table of means leaves out 5 of 13 predictions: c lacks 4 of fold 0, 1 of fold 1",
    ]
    assert comparison(a=ALL, b=ALL).warnings() == []
    test_set = comparison(a=predictions(1, 2, 3, training=""), b=predictions(1, 2, training=""))
    assert test_set.warnings() == ["the table of means leaves out 1 of 3 predictions: b lacks 1"]


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (None, ["p1_a", "p1_b", "q2_a"]),
        (r"^(.+)_", ["p1", "p1", "q2"]),
        (r"[pq]\d", ["p1", "p1", "q2"]),  # no group: the match
        (r"^(p)?", ["p", "p", "q2_a"]),  # a group that does not take part
        (r"^(p\d)", ["p1", "p1", "q2_a"]),
    ],
)
def test_patient_is_what_the_pattern_finds(pattern, patients):
    found, warnings = patients_of(["p1_a", "p1_b", "q2_a"], pattern)
    assert list(found.values()) == patients
    where = "in 1 of 3 case ids, each of which counts as a patient: q2_a"
    alone = pattern is not None and "q2_a" in patients
    assert warnings == ([f"patient_pattern {pattern!r} of dataset.json finds no patient {where}"] if alone else [])


@pytest.mark.parametrize("pattern", ["(", "[a-", 5])
def test_pattern_that_is_no_regular_expression_is_said(pattern):
    with pytest.raises(ValueError, match="^patient_pattern in dataset.json is no regular expression: "):
        patients_of(["a"], pattern)


def test_pattern_is_the_first_that_there_is(tmp_path):
    files = [tmp_path / f"{name}.json" for name in ("missing", "without", "with", "second")]
    for file, content in zip(files[1:], ({}, {"patient_pattern": "^a"}, {"patient_pattern": "^b"}), strict=True):
        file.write_text(json.dumps(content))
    assert patient_pattern(*files) == "^a"
    assert patient_pattern(*files[:2]) is None
