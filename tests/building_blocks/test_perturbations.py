import pytest
import torch

from nnunet_ssl.building_blocks.perturbations import FeatureDropout, mirrorings, with_noise


def test_noise_is_cut_off():
    torch.manual_seed(0)
    noise = with_noise(torch.zeros(1, 1, 100, 100))
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.0957, abs=0.005)  # of a normal distribution cut off at 2 deviations


def test_mirrorings_are_all_combinations_once():
    assert mirrorings((0, 1)) == [(), (2,), (3,), (2, 3)]
    assert mirrorings(()) == [()]
    assert len(set(mirrorings((0, 1, 2)))) == 8


@pytest.mark.parametrize("spatial", [(6, 6), (4, 4, 4)])
def test_whole_channels_are_dropped_while_switched_on(spatial):
    torch.manual_seed(0)
    dropout, features = FeatureDropout(0.5), [torch.ones(2, 200, *spatial), torch.ones(2, 100, *spatial)]
    assert all(torch.equal(a, b) for a, b in zip(dropout(features), features, strict=True))
    with dropout.switched_on():
        dropped = dropout(features)
    for level in dropped:
        of_channel = level.flatten(2)
        assert torch.equal(of_channel.amin(2), of_channel.amax(2))
        assert set(level.unique().tolist()) == {0.0, 2.0}
        assert level.mean().item() == pytest.approx(1.0, abs=0.2)
    assert not dropout.is_on


def test_it_is_switched_off_after_an_error():
    dropout = FeatureDropout(0.5)
    with pytest.raises(RuntimeError), dropout.switched_on():
        raise RuntimeError
    assert not dropout.is_on
