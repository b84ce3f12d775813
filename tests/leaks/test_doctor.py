"""What the doctor says of leaks: what stops a training as a problem, the rest as notes, and nothing twice."""

import pytest

from nnunet_ssl.commands.leak_checks import check_leaks
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.copies import compare_all
from tests.leaks.conftest import LABELED, SHAPE
from tests.leaks.scans import scan, write
from tests.leaks.test_audit import changed

READ = DatasetReader.read_channels


@pytest.fixture
def look(dataset, monkeypatch):
    """Return a function that gives what the doctor says: {name: (state, is a problem)}."""
    monkeypatch.setattr(DatasetReader, "read_channels", lambda *_: pytest.fail("voxels were read"))

    def run() -> dict[str, tuple[str, bool]]:
        found = check_leaks(RawDataset.open(dataset.raw), dataset.preprocessed, "nnUNetPlans", [])
        return {finding.name: (finding.state, finding.is_problem) for finding in found}

    return run


def test_clean_data(look):
    assert look() == {}


def test_copies_that_an_audit_has_found(dataset, look, monkeypatch):
    dataset.add("imagesUn", "p13_a", changed(3))
    dataset.add("imagesTr", "p4_a", changed(0))
    line = "changed copies under other names were not looked for in 2 of 12 scans"
    assert look() == {"copies": (line, False)}
    with monkeypatch.context() as patched:
        patched.setattr(DatasetReader, "read_channels", READ)
        compare_all(RawDataset.open(dataset.raw), dataset.preprocessed)
    found = look()
    assert {name: is_problem for name, (_, is_problem) in found.items()} == {
        "fold 0, one image in unlabeled and in validation": True,
        "fold 0, one image in training and in validation": False,
    }


def test_one_file_under_two_names_needs_no_audit(dataset, look):
    (dataset.raw / "imagesUn" / "p13_a_0000.nii.gz").hardlink_to(dataset.raw / "imagesTr" / "p3_a_0000.nii.gz")
    assert look()["fold 0, one image in unlabeled and in validation"] == ("p3_a = p13_a", True)


def test_what_the_other_checks_say_is_not_said_again(dataset, look):
    dataset.add("imagesTr", "p0_b", scan(0, SHAPE))
    dataset.split({"train": LABELED[:4], "val": [*LABELED[3:], "p0_b"], "unlabeled": ["p2_a"]})
    assert not [name for name in look() if name != "copies"]
    (dataset.preprocessed / "splits_final.json").unlink()  # of nnU-Net's own split they say nothing of patients
    assert [name.rpartition(", ")[2] for name in look() if name != "copies"] == [
        "a patient in training and in validation"
    ]


def test_labels_beside_images_and_a_damaged_split(dataset, look):
    write(scan(0, SHAPE), dataset.raw / "imagesUn" / "p10_a_seg.nii.gz")
    (dataset.preprocessed / "splits_final.json").write_text("{")
    assert look() == {"labels in imagesUn": ("by their names these are labels: p10_a_seg.nii.gz", False)}
