import shutil

import pytest

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.copies import compare_all
from tests.leaks.scans import RawScans, scan

SHAPE = (14, 16, 15)
LABELED = [f"p{number}_a" for number in range(6)]
UNLABELED = ["p10_a", "p11_a", "p12_a"]
TEST = ["p20_a", "p21_a"]


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory):
    """Write a data set without a leak, audited once: 6 labeled cases, 3 unlabeled ones, 2 for testing, one fold."""
    root = tmp_path_factory.mktemp("clean")
    dataset = RawScans.new(root, patient_pattern=r"^(p\d+)_")
    cases = [("imagesTr", LABELED), ("imagesUn", UNLABELED), ("imagesTs", TEST)]
    for seed, (folder, case) in enumerate((folder, case) for folder, names in cases for case in names):
        dataset.add(folder, case, scan(seed, SHAPE))
    dataset.split({"train": LABELED[:3], "val": LABELED[3:]})
    compare_all(RawDataset.open(dataset.raw), dataset.preprocessed)
    return root


@pytest.fixture
def dataset(clean_root, tmp_path, monkeypatch):
    """Return a copy of the data set, with nnU-Net's variables set to it."""
    shutil.copytree(clean_root, tmp_path / "data", copy_function=shutil.copy2)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / "data" / name))
    return RawScans(tmp_path / "data")
