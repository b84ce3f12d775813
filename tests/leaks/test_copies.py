"""Copies of a scan are found whatever was done to them, and neighbours are not taken for copies."""

import json
import os
import weakref

import numpy as np
import pytest

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.candidates import MOST_CANDIDATES, candidates
from nnunet_ssl.leaks.confirmation import COPY, likeness
from nnunet_ssl.leaks.copies import compare_all, copies_for_split, few_values, known_copies, scans_of, unread
from nnunet_ssl.leaks.index import INDEX, SMALL_IMAGES, Index
from nnunet_ssl.leaks.signatures import averaged, one_channel, small_image
from planted_copies import kinds_of_copies
from tests.conftest import SHARED_DATA
from tests.leaks.scans import SHAPE, RawScans, scan

KINDS = list(kinds_of_copies(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a data set with a copy of each kind in imagesUn, each of another labeled case."""
    dataset = RawScans.new(tmp_path_factory.mktemp("planted"))
    for seed, change in enumerate(kinds_of_copies(np.random.default_rng(0)).values()):
        dataset.add("imagesTr", f"case{seed:02d}", scan(seed))
        dataset.add("imagesUn", f"other{seed:02d}", change(scan(seed)[None])[0])
    for seed in range(100, 106):
        dataset.add("imagesTs", f"test{seed}", scan(seed))
    return dataset


@pytest.fixture(scope="module")
def found(planted):
    raw = RawDataset.open(planted.raw)
    return known_copies(compare_all(raw, planted.preprocessed), scans_of(raw))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_copy_is_found(found, kind):
    number = KINDS.index(kind)
    pair = found[f"imagesTr/case{number:02d}", f"imagesUn/other{number:02d}"]
    assert pair.is_equal == (kind == "equal")
    assert pair.likeness > 0.8


def test_no_other_pair_is_a_copy(found):
    assert len(found) == len(KINDS)


def test_what_is_unchanged_is_not_read_again(planted, found, monkeypatch):
    raw = RawDataset.open(planted.raw)
    monkeypatch.setattr(DatasetReader, "read_channels", lambda *_: pytest.fail("voxels were read"))
    monkeypatch.setattr("nnunet_ssl.leaks.copies.candidates", lambda *_: pytest.fail("scans were compared"))
    assert known_copies(compare_all(raw, planted.preprocessed), scans_of(raw)) == found


def three(tmp_path) -> tuple[RawScans, RawDataset]:
    dataset = RawScans.new(tmp_path)
    for folder, case, seed in (("imagesTr", "a", 1), ("imagesUn", "b", 1), ("imagesTs", "c", 2)):
        dataset.add(folder, case, scan(seed))
    return dataset, RawDataset.open(dataset.raw)


def copies(dataset: RawScans, raw: RawDataset) -> list[tuple[str, str]]:
    return list(known_copies(compare_all(raw, dataset.preprocessed), scans_of(raw)))


def test_a_changed_file_is_read_again(tmp_path):
    dataset, raw = three(tmp_path)
    assert copies(dataset, raw) == [("imagesTr/a", "imagesUn/b")]
    dataset.add("imagesUn", "b", scan(3))
    assert known_copies(Index.read(dataset.preprocessed), scans_of(raw)) == {}  # before anybody has read it
    assert copies(dataset, raw) == []
    dataset.add("imagesTs", "c", scan(1))
    assert copies(dataset, raw) == [("imagesTr/a", "imagesTs/c")]
    (dataset.raw / "imagesTs" / "c_0000.nii.gz").unlink()
    assert copies(dataset, raw) == []
    assert "imagesTs/c" not in Index.read(dataset.preprocessed).scans


@pytest.mark.parametrize("damaged", [INDEX, SMALL_IMAGES])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", None])
def test_a_damaged_index_is_made_again(tmp_path, damaged, content):
    dataset, raw = three(tmp_path)
    expected = copies(dataset, raw)
    file = dataset.preprocessed / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    assert copies(dataset, raw) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"scans": {"imagesTr/a": {"marks": "?"}}},
        {"pairs": [["imagesTr/a", "imagesUn/b", [], "1", True]]},
        {"pairs": [["imagesTr/a"]]},
        {"scans": []},
    ],
)
def test_an_index_of_a_wrong_shape_is_made_again(tmp_path, change):
    dataset, raw = three(tmp_path)
    expected = copies(dataset, raw)
    file = dataset.preprocessed / INDEX
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert Index.read(dataset.preprocessed) == Index()
    assert copies(dataset, raw) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_only_read_costs_nothing_but_time(tmp_path):
    dataset, raw = three(tmp_path)
    dataset.preprocessed.chmod(0o500)
    assert compare_all(raw, dataset.preprocessed).pairs
    assert not [*dataset.preprocessed.iterdir()]


def test_an_interruption_loses_no_scan_that_was_read(tmp_path, monkeypatch):
    dataset, raw = three(tmp_path)
    read, count = DatasetReader.read_channels, []

    def interrupted(self, files):
        count.append(files)
        if len(count) == 3:
            raise KeyboardInterrupt
        return read(self, files)

    monkeypatch.setattr(DatasetReader, "read_channels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_all(raw, dataset.preprocessed)
    assert sorted(Index.read(dataset.preprocessed).scans) == ["imagesTr/a", "imagesUn/b"]


def test_what_cannot_be_compared_is_named(tmp_path):
    dataset, raw = three(tmp_path)
    dataset.add("imagesUn", "flat", np.ones(SHAPE))
    (dataset.raw / "imagesUn" / "cut_0000.nii.gz").write_bytes(b"\x1f\x8b")
    scans = compare_all(raw, dataset.preprocessed).scans
    assert scans["imagesUn/flat"].problem == "all its voxels are nearly alike"
    assert "cut_0000.nii.gz" in scans["imagesUn/cut"].problem
    assert copies(dataset, raw) == [("imagesTr/a", "imagesUn/b")]


def test_a_split_keeps_what_the_audit_has_found_together(tmp_path):
    dataset, raw = three(tmp_path)
    dataset.add("imagesTs", "c", np.flip(scan(1)))
    assert copies_for_split(raw, dataset.preprocessed, {}) == [["a", "b"]]  # of equal voxels, without an audit
    compare_all(raw, dataset.preprocessed)
    assert copies_for_split(raw, dataset.preprocessed, {}) == [["a", "b", "c (imagesTs)"]]


def test_what_is_nearly_one_image_of_one_patient_is_no_copy_for_a_split(tmp_path):
    """As the phases of a heart: they are learned from, on one side. Equal voxels are one image all the same."""
    dataset, raw = three(tmp_path)
    noise = np.random.default_rng(9).normal(size=SHAPE)
    dataset.add("imagesUn", "near", scan(1) + 0.01 * noise)
    compare_all(raw, dataset.preprocessed)
    of_others = copies_for_split(raw, dataset.preprocessed, {})
    assert any("near" in names for names in of_others)
    of_one = copies_for_split(raw, dataset.preprocessed, dict.fromkeys(("a", "b", "near"), "patient"))
    assert of_one == [["a", "b"]]


def test_a_case_that_was_moved_to_another_folder_is_known_as_before(tmp_path):
    """`split --hide` moves images: the same words then have to see the same copies."""
    dataset, raw = three(tmp_path)
    dataset.add("imagesTr", "far", scan(7))
    dataset.add("imagesTr", "near", scan(7) + 0.01 * np.random.default_rng(9).normal(size=SHAPE))
    compare_all(raw, dataset.preprocessed)
    before = copies_for_split(raw, dataset.preprocessed, {})
    assert ["far", "near"] in before
    (dataset.raw / "imagesTr" / "near_0000.nii.gz").rename(dataset.raw / "imagesUn" / "near_0000.nii.gz")
    raw = RawDataset.open(dataset.raw)
    assert copies_for_split(raw, dataset.preprocessed, {}) == before
    index = Index.read(dataset.preprocessed)
    assert unread(index, scans_of(raw)) == []
    assert ("imagesTr/far", "imagesUn/near") in known_copies(index, scans_of(raw))


def test_only_some_candidates_of_a_scan_are_looked_at():
    small = np.stack(
        [small_image(scan(0)[None] + np.random.default_rng(i).normal(0, 1, SHAPE)[None]) for i in range(9)]
    )
    found = candidates(small, [SHAPE] * 9)
    assert len(found) < 9 * 8 / 2
    assert all(sum(number in (one.first, one.second) for one in found) >= MOST_CANDIDATES for number in range(9))


@pytest.mark.parametrize("shape", [(61, 45), (1, 61, 45), (17, 9, 33), (64, 100), (5, 40, 40), (2000,)])
def test_any_number_of_axes_channels_and_voxels(shape):
    volumes = [np.stack([scan(seed + 10 * channel, shape) for channel in range(3)]) for seed in (0, 1)]
    copy = 3 * np.flip(volumes[0], -1) + 7
    images = [one_channel(voxels) for voxels in (*volumes, copy)]
    small = np.stack([small_image(voxels) for voxels in (*volumes, copy)])
    (best,) = candidates(small, [image.shape for image in images])[:1]
    assert (best.first, best.second) == (0, 2)
    assert likeness(images[0], images[2], best.flipped) > 0.99
    assert likeness(images[0], images[1], best.flipped) < 0.6


@pytest.mark.parametrize("shape", [(150, 160), (48, 52, 50)])
def test_a_field_of_view_that_scans_share_makes_no_copies(shape):
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    volumes = [scan(seed, shape)[None] for seed in (0, 1)]
    for voxels in volumes:
        voxels[0][np.linalg.norm(places, axis=0) > 0.95] = -1000  # a sharp edge, far stronger than all details
    first, second = map(one_channel, volumes)
    assert likeness(first, second, ()) < 0.4
    noisy = volumes[0] + np.random.default_rng(0).normal(0, 5, volumes[0].shape)  # nothing is empty in it
    assert likeness(first, one_channel(noisy), ()) > 0.9


def test_one_scan_is_in_memory_at_a_time(tmp_path, monkeypatch):
    dataset, raw = three(tmp_path)
    for seed in range(4, 8):
        dataset.add("imagesUn", f"more{seed}", scan(seed))
        dataset.add("imagesTs", f"copy{seed}", scan(seed))
    read, held = DatasetReader.read_channels, []

    def counting(self, files):
        held[:] = [one for one in held if one() is not None]
        assert len(held) <= 2  # of a pair, while the next one is read
        voxels, properties = read(self, files)
        held.append(weakref.ref(voxels))
        return voxels, properties

    monkeypatch.setattr(DatasetReader, "read_channels", counting)
    assert len(copies(dataset, raw)) == 5


def test_a_scan_without_a_slice_lies_upon_the_whole_one():
    image = one_channel(scan(0, (10, 40, 40))[None])
    assert likeness(image, image[1:], ()) > 0.999
    assert likeness(image[:, :, :-2], image, ()) > 0.999


def test_a_scan_that_is_nearly_all_empty_is_compared_whole():
    image = np.zeros((60, 60), np.float32)
    image[20:28, 30:38] = scan(0, (8, 8))
    assert likeness(image, image, ()) > 0.999


def test_too_few_voxels_are_alike_by_chance():
    small = scan(0, (8, 8, 8))
    assert likeness(small, small, ()) == 0


def test_averages_keep_the_mean_and_know_shares_of_voxels():
    np.testing.assert_allclose(averaged(np.array([1.0, 2.0, 3.0]), (2,)), [4 / 3, 8 / 3], rtol=1e-6)
    np.testing.assert_allclose(averaged(np.array([1.0, 3.0]), (4,)), [1, 1, 3, 3], rtol=1e-6)
    image = scan(3, (7, 11, 13))
    np.testing.assert_allclose(averaged(image, (24, 5, 13)).mean(), image.mean(), rtol=1e-5)


def test_one_odd_voxel_changes_nothing_but_where_all_others_are_equal():
    image = scan(0)[None]
    odd = image.copy()
    odd[0, 3, 4, 5] = 1e9
    np.testing.assert_allclose(one_channel(odd)[8:], one_channel(image)[8:], atol=0.01)
    assert one_channel(np.zeros((2, 4, 4))) is None
    sparse = np.zeros((1, 40, 40))
    sparse[0, 0, 0] = 2
    assert one_channel(sparse)[0, 0] == 1


def test_few_values():
    assert few_values(np.array([2.0, 0, 2])) == [0, 2]
    many = np.zeros(50_000)
    many[1::2] = np.arange(25_000)  # which a sample of every second voxel would miss
    assert few_values(many) is None


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "Dataset004_Hippocampus").is_dir(), reason="the real data are not here")
def test_no_copy_among_real_hippocampi_and_each_planted_one(tmp_path):
    raw = RawDataset.open(SHARED_DATA / "Dataset004_Hippocampus")
    index = compare_all(raw, tmp_path)
    assert known_copies(index, scans_of(raw)) == {}
    assert max(pair.likeness for pair in index.pairs.values()) < COPY - 0.05
    assert len(index.scans) == 200
