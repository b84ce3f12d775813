"""How many samples are unlabeled, and which."""

from collections import Counter

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ssl.building_blocks.sampling import draw_unlabeled, samples_at, unlabeled_share, with_samples


def test_share_is_one_minus_nnunets_learning_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = PolyLRScheduler(optimizer, 0.01, 1000)
    for epoch in (0, 125, 500, 999):
        schedule.step(epoch)
        assert unlabeled_share(epoch / 1000) == pytest.approx(1 - optimizer.param_groups[0]["lr"] / 0.01)
    assert unlabeled_share(0.0) == 0.0
    assert unlabeled_share(1.0) == 1.0


def counts(batch_size: int, share: float, times: int = 2000) -> list[int]:
    torch.manual_seed(0)
    return [len(draw_unlabeled(batch_size, share)) for _ in range(times)]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_number_is_the_expected_one_and_one_sample_is_labeled(batch_size, share):
    found, expected = counts(batch_size, share), (batch_size - 1) * share
    assert {*found} <= {int(expected), int(expected) + 1}
    assert max(found) <= batch_size - 1
    assert sum(found) / len(found) == pytest.approx(expected, abs=0.04)


def test_half_of_the_samples_are_unlabeled_at_most_at_batch_size_one():
    """Two steps are as one with two samples."""
    for share in (0.4, 1.0):
        assert Counter(counts(1, share))[1] / 2000 == pytest.approx(share / 2, abs=0.04)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_over_the_run_as_many_are_unlabeled_as_by_the_floor(batch_size):
    """The mean of ⌊B f⌋ over f in [0, 1) is (B - 1) / 2."""
    shares = [(i + 0.5) / 1000 for i in range(1000)]
    torch.manual_seed(0)
    drawn = sum(len(draw_unlabeled(batch_size, share)) for share in shares)
    assert drawn / 1000 == pytest.approx(sum(int(batch_size * share) for share in shares) / 1000, abs=0.05)


def test_each_place_is_drawn_equally_often_and_once():
    torch.manual_seed(0)
    drawn = [draw_unlabeled(5, 0.5) for _ in range(2000)]
    assert all(places == sorted({*places}) for places in drawn)
    frequency = Counter(place for places in drawn for place in places)
    assert {*frequency} == {0, 1, 2, 3, 4}
    assert all(count / 2000 == pytest.approx(0.4, abs=0.05) for count in frequency.values())


def test_draws_are_those_of_the_seed():
    torch.manual_seed(5)
    first = [draw_unlabeled(4, 0.5) for _ in range(20)]
    torch.manual_seed(5)
    assert first == [draw_unlabeled(4, 0.5) for _ in range(20)]


def test_samples_stand_at_their_places():
    batch, samples = torch.arange(8.0).view(4, 2), torch.tensor([[10.0, 11.0], [20.0, 21.0]])
    found = with_samples(batch, samples, [1, 3])
    assert found.tolist() == [[0, 1], [10, 11], [4, 5], [20, 21]]
    assert torch.equal(samples_at(found, [1, 3]), samples)
    assert batch[1, 0] == 2.0, "the batch itself is as it was"
    with pytest.raises(ValueError, match="zip"):
        with_samples(batch, samples, [1])


def test_gradient_flows_through_batch_and_samples():
    batch, samples = torch.zeros(2, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    (with_samples(batch, samples, [0]) * torch.tensor([[2.0], [3.0]])).sum().backward()
    assert batch.grad.flatten().tolist() == [0.0, 3.0]
    assert samples.grad.item() == 2.0


def test_type_is_the_batchs():
    assert with_samples(torch.zeros(2, 1), torch.zeros(1, 1, dtype=torch.float16), [1]).dtype == torch.float32
