import re

import pytest

from nnunet_ssl.data.meta_labels import meta_labels, refuse_pattern_of_one_phase
from nnunet_ssl.data.places import Place


def slice_of(case: str, index: int, number: int = 9) -> Place:
    return Place(case, (index, 0, 0), (1, 8, 8), (number, 8, 8))


PLACES = [slice_of("patient01_frame01", 0), slice_of("patient01_frame02", 4), slice_of("patient02_frame01", 8)]


def test_position_and_patient():
    labels = meta_labels(PLACES, 3, r"^(patient\d+)", None)
    assert labels == {"position": [0, 1, 2], "patient": ["patient01", "patient01", "patient02"]}


def test_without_a_pattern_each_case_is_a_patient():
    labels = meta_labels([*PLACES, PLACES[0]], 1, None, None)
    assert labels["position"] == [0] * 4
    assert labels["patient"] == [place.case for place in [*PLACES, PLACES[0]]]


def test_cases_without_a_patient_are_their_own():
    assert meta_labels(PLACES, 1, r"^(patient01)", None)["patient"] == ["patient01", "patient01", "patient02_frame01"]


@pytest.mark.parametrize(
    ("pattern", "expected"), [("frame01$", ["frame01", None, "frame01"]), (r"frame(\d+)", ["01", "02", "01"])]
)
def test_phase_is_what_a_pattern_finds_and_that_it_finds_nothing(pattern, expected):
    assert meta_labels(PLACES, 3, None, pattern)["phase"] == expected


def test_no_images_have_empty_labels():
    assert meta_labels((), 3, None, None) == {"position": [], "patient": []}
    assert list(meta_labels((), 3, None, "frame01")) == ["position", "patient", "phase"]


def test_phase_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        meta_labels((), 3, None, "(")


@pytest.mark.parametrize(("pattern", "found"), [("frame03", "nothing"), ("frame", "frame"), (r"patient(\d)", "0")])
def test_phase_pattern_that_tells_no_cases_apart_is_refused(pattern, found):
    cases = [place.case for place in PLACES]
    with pytest.raises(ValueError, match=f"{re.escape(pattern)} finds {found} in all 3, patient01_frame01 for example"):
        refuse_pattern_of_one_phase(pattern, cases)


@pytest.mark.parametrize("pattern", [None, "frame01$", r"frame(\d+)"])
def test_phase_pattern_that_tells_cases_apart_is_taken(pattern):
    refuse_pattern_of_one_phase(pattern, [place.case for place in PLACES])
    refuse_pattern_of_one_phase(pattern, ["a case alone"])
