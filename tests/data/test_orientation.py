import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_ssl.data.orientation import filled, overlap_of_mirrored, small, turned_over


def scans(number: int, seed: int = 0) -> list[np.ndarray]:
    """Return images of one body, bright at the beginning of axis 0 and the end of axis 2, symmetric along axis 1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (20, 30, 24)), indexing="ij")
    return [x - z + 4 * (y - 0.5) ** 2 + 0.3 * rng.standard_normal(z.shape) for _ in range(number)]


def test_small_images_have_the_order_of_intensities_alone():
    image = scans(1)[0]
    found = small(image)
    assert found.shape == (16, 16, 16)
    assert found.sum().item() == pytest.approx(0, abs=1e-4)
    assert found.square().sum().item() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found, small(1000 * image + 5)), "brightness and contrast change nothing"


def turned(images: list[np.ndarray], axes: tuple[int, ...] = (0, 1, 2)) -> dict[int, int]:
    return turned_over((np.ascontiguousarray(one) for one in images), axes)


def test_scans_that_lie_the_same_way_are_told_from_those_that_do_not():
    """Axis 1 is symmetric: there both ways are as good."""
    images = scans(24)
    assert turned(images, (0, 2)) == {0: 0, 2: 0}
    assert turned(images)[1] > 3
    images[3] = np.flip(images[3], 2)
    images[5] = np.flip(images[5], 0)
    images[7] = np.flip(images[7], (0, 2))
    images[9] = images[9].transpose(2, 1, 0)
    assert turned(images, (0, 2)) == {0: 3, 2: 3}


def test_a_background_of_zeros_says_nothing_of_the_way():
    """Equal voxels are in no order: half of these bodies are turned over, along one axis."""
    rng, images = np.random.default_rng(0), []
    for i in range(32):
        image = np.zeros((24, 24, 24), np.float32)
        image[4:12, 6:18, 6:18] = 1.0
        image[4:8, 8:12, 8:12] += rng.uniform(0.5, 1.5)
        image = np.roll(image, rng.integers(-2, 3, 3), (0, 1, 2))
        images.append(np.flip(image, 0) if i % 2 else image)
    assert turned(images, (0,))[0] > 8


def test_images_without_contrast_say_nothing():
    assert turned([np.zeros((9, 9, 9))] * 12) == {0: 12, 1: 12, 2: 12}


def test_slices_are_images_too():
    flat = [one[:1] for one in scans(12)]
    assert turned(flat, (2,)) == {2: 0}


@pytest.mark.parametrize("shape", [(20, 33, 64), (1, 16, 15), (5, 40, 17)])
def test_shares_of_all_classes_are_the_pooled_masks_of_each(shape):
    labels = np.random.default_rng(0).integers(-1, 7, shape).astype(np.int8)  # -1: nnU-Net's outside; 6: to be ignored
    classes = [4, 1, 5]
    masks = torch.stack([torch.from_numpy((labels == value).astype(np.float32)) for value in classes])
    found = filled(labels, classes)
    torch.testing.assert_close(found, F.adaptive_avg_pool3d(masks, 16))
    assert 0 < found.mean() < 1


def two_structures(shift: int) -> np.ndarray:
    """Return labels, 1 before 2 along axis 0, both in the middle of axis 1; 2 is nearly in the middle of axis 2."""
    labels = np.zeros((16, 16, 16), np.int8)
    labels[4 + shift : 8 + shift, 6:10, 4:12] = 1
    labels[8 + shift : 12 + shift, 6:10, 5:12] = 2
    return labels


def test_labels_of_one_place_overlap_mirrored_only_where_they_are_alike_on_both_sides():
    overlap = overlap_of_mirrored([two_structures(shift) for shift in (0, 1)], (1, 2), (0, 1, 2))
    assert overlap[1] == pytest.approx(1.0)
    # Unmirrored 3 of 4 planes are common; mirrored along axis 0 1 of 4 planes of label 1, and none of label 2.
    assert overlap[0] == pytest.approx((1 / 4 + 0) / 2 / (3 / 4))
    # Along axis 2 all of label 1, and of label 2 6 of 7 planes, are common: (1 + 6 / 7) / 2.
    assert overlap[2] == pytest.approx(13 / 14)


def test_the_overlap_is_a_mean_over_pairs_of_cases():
    cases = [two_structures(shift) for shift in (0, 1, 2)]
    of_pairs = [overlap_of_mirrored([cases[i], cases[j]], (1, 2), (0,))[0] for i, j in ((0, 1), (0, 2), (1, 2))]
    shares = [3 / 4, 2 / 4, 3 / 4]  # of planes in common, unmirrored
    expected = np.dot(of_pairs, shares) / sum(shares)
    assert overlap_of_mirrored(cases, (1, 2), (0,))[0] == pytest.approx(expected)


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_cases_say_nothing(number):
    assert np.isnan(overlap_of_mirrored([two_structures(0)] * number, (1, 2), (0,))[0])


def test_labels_that_never_meet_may_be_mirrored():
    """Small lesions, each in another place: none of them is told by its place."""
    far = np.zeros((16, 16, 16), np.int8)
    far[:2, :2, :2] = 1
    assert overlap_of_mirrored([far, np.flip(far, (0, 1, 2))], (1,), (0, 1)) == {0: 1.0, 1: 1.0}
    assert overlap_of_mirrored([np.zeros_like(far)] * 2, (1,), (0,)) == {0: 1.0}


def test_labels_may_be_of_another_size_in_each_case():
    large = np.kron(two_structures(0), np.ones((2, 2, 3), np.int8))
    alone = overlap_of_mirrored([two_structures(0)] * 2, (1, 2), (0, 1, 2))
    assert overlap_of_mirrored([large, two_structures(0)], (1, 2), (0, 1, 2)) == pytest.approx(alone)
