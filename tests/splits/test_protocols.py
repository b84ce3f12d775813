"""The published lists: ids and counts as the papers' lists have them."""

import hashlib
import random
from collections import defaultdict
from dataclasses import replace

import pytest
import SimpleITK

from nnunet_ssl.data.patients import groups_of
from nnunet_ssl.splits.make_splits import check_disjoint, split_by_protocol
from nnunet_ssl.splits.protocols import FOLDER, benchmark_names, benchmark_of, load_benchmark, protocol_names
from tests.conftest import SHARED_DATA

COUNTS = {  # units for training, validation and testing
    "acdc": (70, 10, 20),
    "la": (80, 0, 20),
    "pancreas": (62, 0, 20),
    "brats": (250, 25, 60),
    "hc18": (645, 161, 0),
    "hc18-v1": (645, 161, 0),
    "psfhs": (1068, 213, 0),
    "psfhs-v1": (1107, 251, 0),
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
    assert not set(units) & set(benchmark.left_out)


def test_all_lists_are_counted_here():
    assert benchmark_names() == ["acdc", "brats", "hc18", "la", "pancreas", "psfhs", "hc18-v1", "psfhs-v1"]
    assert set(COUNTS) == set(benchmark_names())


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
    group_of = groups_of(cases, benchmark.unit_pattern)
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


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("hc18-v1", "341f99be8d4af3549a4793c8fe4434f4a28486adfce115324b49948f24bebe10"),
        ("psfhs-v1", "7bf09f4d02b50be56015ad9d3bd3b2609a4fafd42b931dc1fc9330fcfa490289"),
    ],
)
def test_earlier_lists_never_change(name, digest):
    assert hashlib.sha256((FOLDER / f"{name}.json").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("protocol", ["hc18-10", "hc18-20", "psfhs-10", "psfhs-20"])
def test_earlier_lists_stay_selectable(protocol):
    now, before = benchmark_of(protocol), benchmark_of(f"{protocol}-v1")
    assert set(now.labeled).isdisjoint(before.labeled)
    assert before.left_out == {}
    assert now.left_out
    assert set(now.train) <= set(before.train)
    assert set(now.validation) <= set(before.validation)
    assert (now.unit, now.unit_pattern) == (before.unit, before.unit_pattern)
    assert set(now.train[: now.labeled[protocol]]) <= set(before.train[: before.labeled[f"{protocol}-v1"]])


def test_current_protocols_stand_before_the_earlier_ones():
    assert protocol_names()[-4:] == ["hc18-10-v1", "hc18-20-v1", "psfhs-10-v1", "psfhs-20-v1"]
    assert not any("-v" in name for name in protocol_names()[:-4])


@pytest.mark.parametrize(
    ("protocol", "unit"), [("acdc-7", "patients"), ("hc18-10", "patients"), ("psfhs-10", "images")]
)
def test_units_are_called_what_they_are(protocol, unit):
    assert benchmark_of(protocol).unit == unit


def test_lists_of_psfhs_are_made_as_their_source_says():
    numbers = range(3744, 5102)
    blocks = [numbers[start : start + 27] for start in range(0, len(numbers), 27)]
    random.Random(219).shuffle(blocks)
    side = {number: "validation" for block in blocks[:10] for number in block}
    left_out = {4316}
    for number in numbers[:-1]:
        if side.get(number) != side.get(number + 1):
            left_out |= {number - 1, number, number + 1, number + 2}
    chosen = [[f"{number:05d}" for number in block if number not in left_out] for block in blocks]
    benchmark = load_benchmark("psfhs")
    assert list(benchmark.train) == sum(chosen[10:], [])
    assert list(benchmark.validation) == sorted(sum(chosen[:10], []))
    assert benchmark.labeled == {"psfhs-10": len(sum(chosen[10:14], [])), "psfhs-20": len(sum(chosen[10:18], []))}
    assert set(benchmark.left_out) == {f"{number:05d}" for number in left_out}


def test_lists_of_hc18_are_made_as_their_source_says():
    patients = [f"{number:03d}" for number in range(806)]
    random.Random(18).shuffle(patients)
    for name in ("hc18", "hc18-v1"):
        benchmark = load_benchmark(name)
        assert list(benchmark.train) == patients[161:]
        assert list(benchmark.validation) == sorted(patients[:161])
        assert list(benchmark.labeled.values()) == [65, 129]


def test_no_image_of_psfhs_is_a_near_neighbour_of_the_other_side():
    """Between the sides lie four images at least, and every image has its place, or a reason to have none."""
    benchmark = load_benchmark("psfhs")
    train, validation = (set(map(int, units)) for units in (benchmark.train, benchmark.validation))
    assert min(abs(number - other) for number in validation for other in train) == 5
    assert train | validation | set(map(int, benchmark.left_out)) == set(range(3744, 5102))
    assert len(benchmark.left_out) == 4 * 19 + 1  # 19 borders


def test_of_two_names_of_one_image_one_is_left_out():
    psfhs, hc18 = load_benchmark("psfhs"), load_benchmark("hc18")
    assert "04398" in psfhs.validation
    assert "04398" in psfhs.reason_left_out("04316")
    split = split_by_protocol(["392_HC", "392_2HC", "392_3HC"], hc18, "hc18-10", allow_missing=True)
    assert split.train == ["392_3HC", "392_HC"]
    assert hc18.reason_left_out("392_2HC") == "the same image as 392_HC"
    assert hc18.reason_left_out("392_HC") is hc18.reason_left_out("no_case") is None
    split = split_by_protocol(["392_HC", "392_2HC"], benchmark_of("hc18-10-v1"), "hc18-10-v1", allow_missing=True)
    assert split.train == ["392_2HC", "392_HC"]


def test_unit_can_be_left_out_with_all_its_cases():
    benchmark = replace(load_benchmark("acdc"), left_out={"patient099": "damaged"})
    assert benchmark.reason_left_out("patient099_frame01") == "damaged"
    assert benchmark.unit_of("patient099_frame01") is None
    assert benchmark.unit_of("patient038_frame01") == "patient038"


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real images are not here")
@pytest.mark.parametrize(("name", "pattern"), [("hc18", "HC18/*_set/*HC.png"), ("psfhs", "PSFHS/image_mha/*.mha")])
def test_no_two_real_images_of_a_list_are_the_same(name, pattern):
    benchmark, of_content = load_benchmark(name), defaultdict(list)
    for file in sorted(SHARED_DATA.glob(pattern)):
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        if benchmark.reason_left_out(file.stem) is None:
            of_content[(pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest())].append(file.stem)
    assert len(of_content) > 80
    assert [names for names in of_content.values() if len(names) > 1] == []
