import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.mixing import (
    alternating,
    cut_mix,
    interpolate,
    mix_labeled_with_unlabeled,
    partner,
    random_blocks,
    random_box,
    random_boxes,
    random_pairs,
    random_shares,
)

CPU = torch.device("cpu")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=3), st.floats(0.01, 1.0))
def test_a_box_is_one_box_of_the_size_asked_for(spatial, side):
    mask = random_box(spatial, side, CPU)
    assert mask.shape == (1, 1, *spatial)
    inside = np.argwhere(mask[0, 0].numpy())
    lengths = inside.max(0) - inside.min(0) + 1
    assert lengths.tolist() == [max(1, round(side * size)) for size in spatial]
    assert len(inside) == np.prod(lengths)


def test_boxes_reach_every_voxel():
    torch.manual_seed(0)
    assert sum(random_box((6, 6), 0.5, CPU).int() for _ in range(200)).min() > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 5), st.floats(0.01, 1.0))
def test_blocks_are_a_grid_of_which_a_share_is_true(spatial, blocks, share):
    masks = random_blocks(3, spatial, blocks, share, CPU)
    assert masks.shape == (3, 1, *spatial)
    grid = [min(blocks, size) for size in spatial]
    place = np.indices(spatial).reshape(len(spatial), -1)
    block_of_voxel = [n * p // s for n, p, s in zip(grid, place, spatial, strict=True)]
    flat = np.ravel_multi_index(block_of_voxel, grid)
    for mask in masks.numpy():
        of_blocks = [set(mask.ravel()[flat == block]) for block in range(np.prod(grid))]
        assert all(len(values) == 1 for values in of_blocks), "a block is whole, and none is empty"
        assert sum(True in values for values in of_blocks) == max(1, round(share * np.prod(grid)))


def test_blocks_of_a_patch_that_is_no_multiple_differ_by_one_voxel():
    sizes = {int(random_blocks(1, (10,), 4, 0.25, CPU).sum()) for _ in range(50)}
    assert sizes == {2, 3}


def test_each_mask_has_blocks_of_its_own_that_reach_everywhere():
    torch.manual_seed(0)
    masks = random_blocks(100, (8, 6), 4, 0.5, CPU)
    assert len({mask.numpy().tobytes() for mask in masks}) > 90
    assert masks.sum(0).min() > 0
    assert masks.sum(0).max() < 100


@pytest.mark.parametrize(("blocks", "share"), [(4, 0.0), (4, 1.1), (0, 0.5)])
def test_blocks_that_cannot_be_are_refused(blocks, share):
    with pytest.raises(ValueError, match="share of its blocks in"):
        random_blocks(1, (8, 8), blocks, share, CPU)


def test_side_that_is_no_fraction_is_refused():
    with pytest.raises(ValueError, match=r"fraction of the patch in \(0, 1\], got 0.0"):
        random_box((4, 4), 0.0, CPU)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_other_sample_is_chosen_and_either_may_be_the_first(batch_size):
    torch.manual_seed(0)
    drawn = [alternating(batch_size, 3, CPU) for _ in range(50)]
    assert all(chosen.shape == (batch_size, 1, 1, 1, 1) for chosen in drawn)
    assert {bool(chosen[0]) for chosen in drawn} == {True, False}
    assert all((chosen[1:] != chosen[:-1]).all() for chosen in drawn)


def test_each_sample_has_its_own_box_or_none():
    torch.manual_seed(0)
    boxes = random_boxes(400, (20, 20), 0.5, (0.25, 0.49), CPU)
    assert boxes.shape == (400, 1, 20, 20)
    sizes = boxes.flatten(1).sum(1)
    assert (sizes > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert 100 <= sizes[sizes > 0].min() < sizes.max() <= 196
    assert not random_boxes(8, (6, 6, 6), 0.0, (0.1, 0.4), CPU).any()
    assert random_boxes(8, (6, 6, 6), 1.0, (1.0, 1.0), CPU).all()


def test_maps_of_an_image_are_cut_and_pasted_alike():
    """Each voxel is that of the same sample in all maps: its own, or in a box the next one's."""
    torch.manual_seed(0)
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10)
    mixed, labels, accepted = cut_mix((image, image.long() + 10, image > 1), 1.0, (0.25, 0.25))
    assert torch.equal(labels, mixed.long() + 10)
    assert torch.equal(accepted, mixed > 1)
    assert ((mixed == image) | (mixed == partner(image))).all()
    assert (mixed != image).sum((1, 2, 3)).tolist() == [25] * 4
    assert torch.equal(cut_mix((image,), 0.0, (0.25, 0.25))[0], image)


def test_partners_are_the_next_ones():
    batch = torch.arange(3)[:, None]
    assert partner(batch).flatten().tolist() == [1, 2, 0]
    assert torch.equal(partner(batch[:1]), batch[:1])


def test_interpolation_by_hand():
    first, second = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 4.0)
    mixed = interpolate(first, second, torch.tensor([0.25, 1.0]))
    assert mixed[:, 0, 0, 0].tolist() == [1.0, 4.0]


def test_shares_follow_the_beta_distribution():
    torch.manual_seed(0)
    shares = random_shares(20000, 0.2, CPU)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.005)


def test_mixing_labeled_with_unlabeled_by_hand():
    """Four voxels: labeled, labeled but ignored, unlabeled twice; the ignore label (2) counts as background."""
    is_labeled = torch.tensor([[[True, True, False, False]]])
    image, other = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[5.0, 6.0, 7.0, 8.0]]])
    target, pseudo_label = torch.tensor([[[1, 2, 1, 2]]]), torch.tensor([[[0, 1, 1, 0]]])
    space = SoftmaxLabels(2, ignore_label=2)
    mixed = mix_labeled_with_unlabeled(space, is_labeled, (image, target), (other, pseudo_label))
    assert mixed.image.tolist() == [[[1.0, 2.0, 7.0, 8.0]]]
    assert mixed.labels.tolist() == [[[1, 0, 1, 0]]]
    assert [part.tolist() for part in mixed.parts] == [[[[True, False, False, False]]], [[[False, False, True, True]]]]


def test_mixing_with_regions_takes_the_ignore_channel_from_the_labeled_image():
    is_labeled = torch.tensor([[[True, True, False]]])
    target = torch.tensor([[[1, 0, 1], [0, 0, 1], [0, 1, 1]]])
    images = torch.zeros(1, 1, 3), torch.ones(1, 1, 3)
    pseudo_label = torch.tensor([[[0, 0, 0], [1, 1, 1]]])
    mixed = mix_labeled_with_unlabeled(
        SigmoidRegions(2, ignore_label=3), is_labeled, (images[0], target), (images[1], pseudo_label)
    )
    assert mixed.labels.tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert [part.tolist() for part in mixed.parts] == [[[[True, False, False]]], [[[False, False, True]]]]


def test_pairs_are_drawn_as_often_as_asked_for():
    box = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    box[..., :2, :2] = True
    torch.manual_seed(0)
    is_labeled, is_next = random_pairs(box, 4000, 0.4)
    labeled_inside = (is_labeled == box).flatten(1).all(1)
    labeled_outside = (is_labeled == ~box).flatten(1).all(1)
    unlabeled = (is_next == box).flatten(1).all(1)
    assert (labeled_inside.int() + labeled_outside.int() + unlabeled.int() == 1).all()
    assert not (is_labeled & is_next).any()
    assert not is_labeled[unlabeled].any()
    assert not is_next[~unlabeled].any()
    shares = [kind.float().mean().item() for kind in (labeled_inside, labeled_outside, unlabeled)]
    assert shares == pytest.approx([0.3, 0.3, 0.4], abs=0.03)


def test_a_single_image_has_no_next_one():
    box = torch.zeros(1, 1, 4, dtype=torch.bool)
    box[..., :2] = True
    for _ in range(20):
        is_labeled, is_next = random_pairs(box, 1, 1.0)
        assert not is_next.any()
        assert is_labeled.sum() == 2
