import numpy as np
import pytest

from nnunet_ssl.data.orientation import small, turned_over


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


def test_scans_that_lie_the_same_way_are_told_from_those_that_do_not():
    references, others = scans(2), scans(20, seed=1)
    others[3] = np.flip(others[3], 2)
    others[5] = np.flip(others[5], 0)
    others[7] = np.flip(others[7], (0, 2))
    turned = turned_over(references, (np.ascontiguousarray(one) for one in others), (0, 1, 2))
    assert turned[0] == turned[2] == 2
    assert turned[1] > 3, "a symmetric axis says nothing: mirroring along it is as good as not"


def test_slices_are_images_too():
    flat = [one[:1] for one in scans(12)]
    assert turned_over(flat[:1], flat[1:], (2,)) == {2: 0}
