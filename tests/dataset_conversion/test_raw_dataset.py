"""One case that cannot be converted costs no other; what is not a case's fault stops all."""

import errno
import json
from functools import partial
from pathlib import Path

import pytest
import SimpleITK

from nnunet_ssl.conversion.cases import Case, Fault, Role, Scan
from nnunet_ssl.conversion.raw_dataset import Description, left_out, write_raw_dataset
from tests.dataset_conversion.conftest import assert_nothing_left, names, random_labels, random_volume

DESCRIPTION = Description("Any", {0: "MRI"}, {"background": 0, "heart": 1}, "", "", r"^(.+)$")
ITK_ERROR = "Exception thrown in SimpleITK Cast:\nsomewhere.hxx:77:\nsitk::ERROR: Filter does not support it"


def whole() -> Scan:
    return Scan(
        *([SimpleITK.GetImageFromArray(random_volume(0))], SimpleITK.GetImageFromArray(random_labels(0, (0, 1))))
    )


def raising(error: Exception) -> Scan:
    raise error


def case(name, read=whole, role=Role.LABELED):
    return Case(name, role, Path("source") / f"{name}.nii", read)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("b.nii is damaged"), "b.nii is damaged"),
        (ValueError("b.nii is damaged:\n  all of it"), "b.nii is damaged: all of it"),
        (RuntimeError(ITK_ERROR), "source/b.nii: sitk::ERROR: Filter does not support it"),
        (PermissionError(errno.EACCES, "Permission denied", "labels/b.nii"), "labels/b.nii: Permission denied"),
        (OSError("truncated"), "source/b.nii: truncated"),
    ],
)
def test_reason_is_one_line_with_a_file(raw, error, reason):
    listing = [case("a"), case("b", partial(raising, error))]
    with pytest.raises(ValueError, match=f"^b: {reason}; --allow-missing leaves such cases out$"):
        write_raw_dataset(DESCRIPTION, 5, listing, 1)
    assert_nothing_left(raw)
    assert left_out(write_raw_dataset(DESCRIPTION, 5, listing, 1, allow_missing=True)) == [Fault("b", reason)]


def test_faults_of_listing_and_converting_are_collected(raw):
    broken = partial(raising, ValueError("it is damaged"))
    listing = [
        Fault("0", "its label is missing"),
        case("1"),
        case("2", broken),
        case("3"),
        case("4", broken, Role.TEST),
    ]
    folder = write_raw_dataset(DESCRIPTION, 5, listing, 1, allow_missing=True)
    assert [fault.name for fault in left_out(folder)] == ["0", "2", "4"]
    assert names(folder / "labelsTr") == ["1", "3"]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    assert not (folder / "imagesTs").exists()


def test_fault_of_the_listing_is_refused_before_anything_is_read(raw):
    with pytest.raises(ValueError, match="^b: its label is missing; --allow-missing leaves such cases out$"):
        write_raw_dataset(
            DESCRIPTION, 5, [case("a", partial(raising, KeyboardInterrupt())), Fault("b", "its label is missing")]
        )


def test_whole_data_set_has_no_list_of_what_was_left_out(raw):
    folder = write_raw_dataset(DESCRIPTION, 5, [case("a")], 1, allow_missing=True)
    assert left_out(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


@pytest.mark.parametrize(
    "listing", [[Fault("a", "it is gone")], [case("a", partial(raising, ValueError("it is gone")))]]
)
def test_data_set_of_no_case_is_refused(raw, listing):
    with pytest.raises(ValueError, match="^none of 1 cases can be converted; a: it is gone$"):
        write_raw_dataset(DESCRIPTION, 5, listing, 1, allow_missing=True)
    assert_nothing_left(raw)


def test_full_disk_is_no_fault_of_a_case(raw, monkeypatch):
    monkeypatch.setattr(SimpleITK, "WriteImage", lambda *_: raising(RuntimeError("ITK ERROR:\nNo space left")))
    with pytest.raises(OSError, match="a_0000.nii.gz cannot be written: No space left"):
        write_raw_dataset(DESCRIPTION, 5, [case("a"), case("b")], 1, allow_missing=True)
    assert_nothing_left(raw)


def test_disk_that_cannot_be_read_is_no_fault_of_a_case(raw):
    broken = partial(raising, OSError(errno.EIO, "Input/output error", "a.nii"))
    with pytest.raises(OSError, match="Input/output error"):
        write_raw_dataset(DESCRIPTION, 5, [case("a", broken), case("b")], 1, allow_missing=True)
    assert_nothing_left(raw)


def test_damaged_dataset_json_of_the_target_is_named(raw):
    (raw / "Dataset005_Any").mkdir()
    (raw / "Dataset005_Any" / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="Dataset005_Any/dataset.json is no JSON"):
        write_raw_dataset(DESCRIPTION, 5, [case("a")], 1, overwrite=True)
