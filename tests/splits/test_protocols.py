"""The published lists: ids and counts as the papers' lists have them."""

import pytest

from nnunet_ssl.splits.make_splits import check_disjoint, group_by, split_by_protocol
from nnunet_ssl.splits.protocols import benchmark_of, load_benchmark, protocol_names
from tests.conftest import SHARED_DATA

COUNTS = {  # units for training, validation and testing
    "acdc": (70, 10, 20),
    "la": (80, 0, 20),
    "pancreas": (62, 0, 20),
    "brats": (250, 25, 60),
    "hc18": (645, 161, 0),
    "psfhs": (1107, 251, 0),
}


def cases_of(benchmark) -> list[str]:
    """Return one or two made-up cases of each unit for training and validation."""
    units = [*benchmark.train, *benchmark.validation]
    if units[0].startswith("patient"):
        return [f"{unit}_frame{frame}" for unit in units for frame in ("01", "02")]
    return [f"{unit}_HC" for unit in units] if len(units[0]) == 3 else units


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    benchmark = load_benchmark(name)
    assert tuple(map(len, (benchmark.train, benchmark.validation, benchmark.test))) == COUNTS[name]
    units = [*benchmark.train, *benchmark.validation, *benchmark.test]
    assert len(set(units)) == len(units)
    assert len(benchmark.source) > 30


def test_labeled_of_acdc_are_the_published_patients():
    """3 and 7 patients as SSL4MIS, BCP and others name them."""
    three, seven = (
        {c[:10] for c in split_by_protocol(cases_of(load_benchmark("acdc")), load_benchmark("acdc"), name).train}
        for name in ("acdc-3", "acdc-7")
    )
    assert three == {"patient099", "patient038", "patient050"}
    assert seven - three == {"patient021", "patient049", "patient058", "patient100"}
    assert set(load_benchmark("acdc").validation) == {
        f"patient{n:03d}" for n in (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)
    }


def test_labeled_of_la_are_the_published_cases():
    train = load_benchmark("la").train
    assert train[:4] == ("06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX", "1GU15S0GJ6PFNARO469W")
    assert train[7] == "38CWS74285MFGZZXR09Z"
    assert train[15] == "5BHTH9RHH3PQT913I59W"


def test_lists_of_pancreas_are_the_published_ones():
    benchmark = load_benchmark("pancreas")
    start = [int(unit[-4:]) for unit in benchmark.train[:12]]
    assert start == [57, 18, 62, 31, 20, 17, 32, 79, 61, 64, 70, 19]
    test = [50, 59, 37, 60, 40, 74, 4, 46, 8, 54, 5, 73, 1, 39, 6, 67, 25, 51, 21, 9]
    assert [int(unit[-4:]) for unit in benchmark.test] == test
    assert sorted({*benchmark.train, *benchmark.test}) == [f"PANCREAS_{number:04d}" for number in range(1, 83)]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the published list files are not here")
@pytest.mark.parametrize(("folder", "name"), [("ACDC", "acdc"), ("LA", "la")])
def test_lists_equal_the_published_files(folder, name):
    benchmark = load_benchmark(name)
    for part, units in (("train", benchmark.train), ("val", benchmark.validation), ("test", benchmark.test)):
        if units:
            lines = (SHARED_DATA / folder / f"{part}.list").read_text().split()
            assert list(dict.fromkeys(line.split("_")[0] for line in lines)) == list(units)


@pytest.mark.parametrize("protocol", protocol_names())
def test_protocol_is_nested_and_apart(protocol):
    benchmark = benchmark_of(protocol)
    cases = cases_of(benchmark)
    split = split_by_protocol(cases, benchmark, protocol)
    group_of = group_by(cases, benchmark.unit_pattern)
    check_disjoint(split, group_of)
    assert len({group_of[case] for case in split.train}) == benchmark.labeled[protocol]
    assert {*split.train, *split.unlabeled, *split.val} == set(cases)
    for other in benchmark.labeled:
        if benchmark.labeled[other] > benchmark.labeled[protocol]:
            assert set(split.train) < set(split_by_protocol(cases, benchmark, other).train)
    assert (split.val == split.train) == (not benchmark.validation)


def test_missing_and_test_cases_are_named():
    benchmark = load_benchmark("la")
    cases = [*benchmark.train[:20]]
    with pytest.raises(ValueError, match="60 of la-8 are not here: .* and 55 more; --allow-missing goes on without"):
        split_by_protocol(cases, benchmark, "la-8")
    split = split_by_protocol(cases, benchmark, "la-8", allow_missing=True)
    assert (len(split.train), len(split.unlabeled)) == (8, 12)
    with pytest.raises(ValueError, match="of the published test set, but in imagesTr"):
        split_by_protocol([*cases, benchmark.test[0]], benchmark, "la-8", allow_missing=True)
    with pytest.raises(ValueError, match="none of the labeled cases of la-8 is here"):
        split_by_protocol(cases[10:], benchmark, "la-8", allow_missing=True)


def test_unknown_protocol_lists_the_known_ones():
    with pytest.raises(ValueError, match="no protocol 'acdc-5', there are acdc-3, acdc-7, acdc-14, brats-25"):
        benchmark_of("acdc-5")


def test_patients_of_hc18_stay_together():
    benchmark = load_benchmark("hc18")
    patient = benchmark.train[0]
    cases = [f"{patient}_HC", f"{patient}_2HC", f"{patient}_HC_test"]
    split = split_by_protocol(cases, benchmark, "hc18-10", allow_missing=True)
    assert split.train == [f"{patient}_2HC", f"{patient}_HC"]
