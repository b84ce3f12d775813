import json

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import label as connected

from nnunet_ssl.demonstration.synthetic_scans import SHAPE, SPACING_MM, Counts, synthetic_scan, write_dataset


@pytest.mark.parametrize("seed", range(5))
def test_scan_has_both_structures_in_one_body_and_little_contrast(seed):
    image, labels = synthetic_scan(np.random.default_rng(seed))
    assert image.shape == labels.shape == SHAPE
    assert image.dtype == np.float32
    assert set(np.unique(labels)) == {0, 1, 2}
    sizes = np.bincount(connected(labels > 0)[0].ravel())[1:]
    assert sizes.max() > 0.95 * sizes.sum()
    outside, organ, second = (image[labels == value] for value in range(3))
    assert outside.mean() < organ.mean() < second.mean()
    assert np.quantile(outside, 0.9) > np.quantile(organ, 0.1)  # no threshold tells them apart


def test_seed_decides_every_voxel():
    first, again, other = (synthetic_scan(np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dataset_is_in_nnunets_raw_format(tmp_path):
    write_dataset(tmp_path, Counts(labeled=2, unlabeled=3, held_out=1), seed=0)
    folders = {folder: len(list((tmp_path / folder).iterdir())) for folder in ("imagesTr", "labelsTr", "imagesUn")}
    assert folders == {"imagesTr": 2, "labelsTr": 2, "imagesUn": 3}
    assert {path.name for path in (tmp_path / "imagesTs").iterdir()} == {"heldout_000_0000.nii.gz"}
    assert {path.name for path in (tmp_path / "labelsTs").iterdir()} == {"heldout_000.nii.gz"}
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert (description["numTraining"], description["file_ending"]) == (2, ".nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "imagesTr" / "labeled_000_0000.nii.gz"))
    assert image.GetSize() == SHAPE[::-1]
    assert image.GetSpacing() == pytest.approx(SPACING_MM[::-1])
