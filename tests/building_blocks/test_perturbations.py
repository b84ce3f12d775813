import pytest
import torch

from nnunet_ssl.building_blocks.perturbations import complementary_masks, drop_channels, mirrorings, with_noise


def test_noise_is_cut_off():
    torch.manual_seed(0)
    noise = with_noise(torch.zeros(1, 1, 100, 100))
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.0957, abs=0.005)  # of a normal distribution cut off at 2 deviations


def test_noise_of_some_channels_leaves_the_others():
    image = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 10, 10)
    noisy = with_noise(image, channels=1)
    assert torch.equal(noisy[:, 1:], image[:, 1:])
    assert not torch.equal(noisy[:, :1], image[:, :1])


def test_mirrorings_are_all_combinations_once():
    assert mirrorings((0, 1)) == [(), (2,), (3,), (2, 3)]
    assert mirrorings(()) == [()]
    assert len(set(mirrorings((0, 1, 2)))) == 8


@pytest.mark.parametrize("spatial", [(6, 6), (4, 4, 4)])
def test_whole_channels_are_dropped(spatial):
    torch.manual_seed(0)
    features = [torch.ones(2, 200, *spatial), torch.ones(2, 100, *spatial)]
    assert all(torch.equal(a, b) for a, b in zip(drop_channels(features, 0.0), features, strict=True))
    for level in drop_channels(features, 0.5):
        of_channel = level.flatten(2)
        assert torch.equal(of_channel.amin(2), of_channel.amax(2))
        assert set(level.unique().tolist()) == {0.0, 2.0}
        assert level.mean().item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("spatial", [(6, 6), (4, 4, 4)])
def test_what_one_view_lacks_the_other_has(spatial):
    torch.manual_seed(0)
    features = [torch.ones(40, 50, *spatial), torch.ones(40, 30, *[1] * len(spatial), dtype=torch.float16)]
    first, second = complementary_masks(features, 0.5)
    whole = []
    for level, one, other in zip(features, first, second, strict=True):
        assert one.shape == (*level.shape[:2], *[1] * len(spatial))
        assert one.dtype == level.dtype
        assert torch.equal(one + other, torch.full_like(one, 2.0))
        of_sample = one.flatten(1)
        whole.append((of_sample == 1).all(1))
        assert torch.equal(whole[-1] | (of_sample != 1).all(1), torch.ones(40, dtype=torch.bool))
        assert of_sample[~whole[-1]].float().mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(*whole), "a sample has its channels dropped at all levels or at none"
    assert 10 < whole[0].sum() < 30


@pytest.mark.parametrize(("probability", "values"), [(0.0, {1.0}), (1.0, {0.0, 2.0})])
def test_probability_of_complementary_masks(probability, values):
    ((mask,), _) = complementary_masks([torch.ones(8, 16, 4, 4)], probability)
    assert set(mask.unique().tolist()) == values
