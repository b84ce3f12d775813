"""The .h5 form of ACDC: a stack that lacks slices which a list beside it names is refused."""

import h5py
import pytest

from nnunet_ssl.commands.cli import main
from nnunet_ssl.dataset_conversion.Dataset027_ACDC import convert
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import (
    assert_left_out,
    assert_nothing_left,
    names,
    random_labels,
    random_volume,
    read,
)

VALUES, COUNT = (0, 1, 2, 3), 10
SHAPE = (COUNT, 8, 6)
BROKEN, WHOLE = "patient003_frame01", "patient003_frame02"


def write_stack(folder, case, numbers=range(1, COUNT + 1)):
    folder.mkdir(parents=True, exist_ok=True)
    image, label = random_volume(1, SHAPE), random_labels(1, VALUES, SHAPE)
    for number in numbers:
        with h5py.File(folder / f"{case}_slice_{number}.h5", "w") as opened:
            opened["image"], opened["label"] = image[number - 1], label[number - 1]


def write_list(file, *cases, line="{case}_slice_{number}", count=COUNT):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line.format(case=case, number=n) + "\n" for case in cases for n in range(count, 0, -1)))


@pytest.fixture(params=["data", "data/slices", "slices", ""])
def slices(request, source):
    """Return where the slices are, for each place that is known; the list is above."""
    write_stack(source / request.param, WHOLE)
    write_list(source / "train_slices.list", BROKEN, WHOLE)
    return source / request.param


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (range(1, 8), [8, 9, 10]),
        (range(1, 10), [10]),
        (range(4, 11), [1, 2, 3]),
        ([1, 2, 5, 6, 7, 8], [3, 4, 9, 10]),
    ],
)
def test_truncated_stack_is_refused_with_the_missing_files(raw, slices, source, there, missing, capsys):
    write_stack(slices, BROKEN, there)
    files = ", ".join(f"{BROKEN}_slice_{number}.h5" for number in missing)
    folder = assert_left_out(
        "ACDC", source, raw, capsys, {BROKEN: f"{slices}/{files} {'is' if len(missing) == 1 else 'are'} missing"}
    )
    assert names(folder / "labelsTr") == [WHOLE]


@pytest.mark.parametrize("inside", ["data", "data/slices"])
def test_lists_above_the_folder_named_are_heeded(raw, source, inside):
    write_stack(source / "data" / "slices", BROKEN, range(1, 8))
    write_list(source / "train_slices.list", BROKEN)
    with pytest.raises(
        ValueError, match=rf"{BROKEN}_slice_10.h5 are missing, there are 7 of 10 that train_slices.list names"
    ):
        convert(source / inside, num_processes=1)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("all_slices.list", "{case}_slice_{number}"),
        ("data/train_slices.txt", "{case}_slice_{number}"),
        ("val.list", "slices/{case}_slice_{number}.h5"),
        ("train.txt", "{case}_slice_{number}.h5\r"),
    ],
)
def test_any_list_that_names_slices_counts(raw, source, name, line):
    write_stack(source / "data", BROKEN, range(1, 8))
    write_list(source / name, BROKEN, line=line)
    with pytest.raises(
        ValueError, match=f"slice_8.h5, .*are missing, there are 7 of 10 that {name.rpartition('/')[2]} names"
    ):
        convert(source, num_processes=1)


def test_slices_that_no_list_names_are_taken_as_they_are(raw, source):
    """A list of the labeled slices alone, of other patients, of cases: none of them says that a slice is missing."""
    write_stack(source / "data", WHOLE)
    write_list(source / "labeled.list", WHOLE, count=3)
    write_list(source / "all_slices.list", "patient007_frame01")
    (source / "train.list").write_text(f"{WHOLE}\n\nnothing\n")
    assert read(convert(source, num_processes=1) / "labelsTr" / f"{WHOLE}.nii.gz").shape == SHAPE


def test_volume_with_fewer_slices_than_are_named_is_refused(raw, source, capsys):
    write_stack(source / "data", WHOLE)
    write_list(source / "all_slices.list", BROKEN, WHOLE)
    with h5py.File(source / "data" / f"{BROKEN}.h5", "w") as opened:
        opened["image"], opened["label"] = random_volume(1, (7, 8, 6)), random_labels(1, VALUES, (7, 8, 6))
    reason = f"{BROKEN}.h5 has 7 slices, by the lists or slices beside it there are 10"
    assert_left_out("ACDC", source, raw, capsys, {BROKEN: reason})


def test_cases_of_the_lists_that_are_not_here_are_said(raw, source, capsys):
    write_stack(source / "data", WHOLE)
    write_list(source / "all_slices.list", BROKEN, WHOLE, "patient007_frame01")
    (source / "test.list").write_text("patient011_frame01\n")
    assert main(["convert", "ACDC", "-i", str(source), "-np", "1"]) == 0
    assert (
        "note: cases of all_slices.list and test.list that are not here: 3 "
        "(patient003_frame01, patient007_frame01, patient011_frame01)\n"
    ) in capsys.readouterr().out


def group_for_label(file):
    with h5py.File(file, "w") as opened:
        opened["image"] = random_volume(1, SHAPE)[0]
        opened.create_group("label")


def words_for_image(file):
    with h5py.File(file, "w") as opened:
        opened["image"], opened["label"] = [b"a", b"b"], [0, 1]


def other_shape(file):
    with h5py.File(file, "w") as opened:
        opened["image"], opened["label"] = random_volume(1, (8, 7)), random_labels(1, VALUES, (8, 7))


def cut_off(file):
    file.write_bytes(file.read_bytes()[:900])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (group_for_label, "slice_4.h5 has no array 'label' of numbers"),
        (words_for_image, "slice_4.h5 has no array 'image' of numbers"),
        (other_shape, f"slice_4.h5 has the shape (8, 7), {BROKEN}_slice_1.h5 (8, 6)"),
        (cut_off, "slice_4.h5 is damaged, or no HDF5 file"),
    ],
)
def test_broken_slice_costs_its_stack_only(raw, source, damage, reason, capsys):
    write_stack(source / "data", BROKEN)
    write_stack(source / "data", WHOLE)
    damage(source / "data" / f"{BROKEN}_slice_4.h5")
    assert_left_out("ACDC", source, raw, capsys, {BROKEN: reason})


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real ACDC data are not here")
@pytest.mark.parametrize(
    "lists", [["train_slices.list"], ["all_slices.list"], ["all_slices.list", "train_slices.list"]]
)
def test_real_stack_without_its_last_slices_is_refused(raw, source, lists):
    (source / "data").mkdir()
    for file in (SHARED_DATA / "ACDC" / "data").glob("patient004_frame01_slice_*"):
        (source / "data" / file.name).symlink_to(file)
    for name in lists:
        (source / name).symlink_to(SHARED_DATA / "ACDC" / name)
    count = len(list((source / "data").iterdir()))
    for number in (count - 1, count):
        (source / "data" / f"patient004_frame01_slice_{number}.h5").unlink()
    with pytest.raises(ValueError, match=f"patient004_frame01_slice_{count}.h5 are missing, there are {count - 2}"):
        convert(source, num_processes=1)
    assert_nothing_left(raw)
