import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.views import ViewsTransform


def transforms(dim=3, masked=False, dummy_2d=False) -> list:
    return nnUNetTrainer.get_training_transforms(
        (16,) * dim,
        (-0.5, 0.5),
        [[1.0] * dim],
        tuple(range(dim)),
        dummy_2d,
        use_mask_for_norm=[masked],
        regions=[(1, 2), 2],
        ignore_label=3,
    ).transforms


def patch(dim=3, size=20) -> dict:
    axes = torch.meshgrid(*[torch.linspace(0.5, 1.5, size)] * dim, indexing="ij")
    image = sum((i + 1) * axis for i, axis in enumerate(axes))[None].clone()
    return {"image": image, "segmentation": torch.zeros((1, *image.shape[1:]), dtype=torch.int16)}


@pytest.mark.parametrize(("dim", "dummy_2d"), [(2, False), (3, False), (3, True)])
def test_views_share_one_geometry(dim, dummy_2d):
    """Without intensity changes both views are the same patch, whatever rotation, scale and mirror were drawn."""
    views = ViewsTransform(transforms(dim, dummy_2d=dummy_2d), ("weak", "strong"))
    size = 16 if dummy_2d else 20
    for transform in views.intensity.transforms:
        transform.apply_probability = 0.0
    for seed in range(10):
        torch.manual_seed(seed)
        np.random.seed(seed)
        weak, strong = views(**patch(dim, size))["image"]
        assert weak.shape == (1, *[16] * dim)
        assert torch.equal(weak, strong)


def test_strong_view_changes_and_weak_does_not():
    views = ViewsTransform(transforms(), ("weak", "strong"))
    for transform in views.intensity.transforms:
        transform.apply_probability = 1.0
    torch.manual_seed(0)
    np.random.seed(0)
    weak, strong = views(**patch())["image"]
    torch.manual_seed(0)
    np.random.seed(0)
    (only_geometry,) = ViewsTransform(transforms(), ("weak",))(**patch())["image"]
    assert torch.equal(weak, only_geometry)
    assert not torch.allclose(weak, strong)


def test_order_is_that_of_the_views():
    views = ViewsTransform(transforms(), ("strong", "weak"))
    for transform in views.intensity.transforms:
        transform.apply_probability = 1.0
    views.geometric.transforms.clear()
    strong, weak = views(**patch())["image"]
    assert torch.equal(weak, patch()["image"])
    assert not torch.equal(strong, weak)


def test_outside_of_the_image_stays_zero_in_masked_channels():
    views = ViewsTransform(transforms(masked=True), ("weak", "strong"))
    for transform in views.intensity.transforms:
        transform.apply_probability = 1.0
    views.geometric.transforms.clear()
    sample = patch()
    sample["image"][:, :, :5] = 0
    weak, strong = views(**sample)["image"]
    assert (strong[:, :, :5] == 0).all()
    assert (strong[:, :, 5:] != 0).any()
    assert (weak[:, :, :5] == 0).all()


def test_outside_that_is_not_zero_is_masked_by_the_segmentation():
    """Resampling rings: outside the image a preprocessed patch is not exactly zero."""
    views = ViewsTransform(transforms(masked=True), ("weak", "strong"))
    for transform in views.intensity.transforms:
        transform.apply_probability = 1.0
    views.geometric.transforms.clear()
    sample = patch()
    sample["segmentation"][:, :, :5] = -1
    weak, strong = views(**sample)["image"]
    assert (weak[:, :, :5] == 0).all()
    assert (strong[:, :, :5] == 0).all()
    assert (weak[:, :, 5:] != 0).all()


def test_mask_follows_the_geometry():
    views = ViewsTransform(transforms(masked=True), ("weak", "strong"))
    for seed in range(10):
        torch.manual_seed(seed)
        np.random.seed(seed)
        sample = patch()
        sample["image"][:, :10] = 0
        weak, strong = views(**sample)["image"]
        assert torch.equal(weak == 0, strong == 0)


def test_unknown_view_and_unknown_transform_are_refused():
    with pytest.raises(ValueError, match=r"views are some of .* got \('medium',\)"):
        ViewsTransform(transforms(), ("medium",))

    class OfNobody(BasicTransform):
        pass

    with pytest.raises(NotImplementedError, match="no place among the views for OfNobody"):
        ViewsTransform([*transforms(), OfNobody()], ("weak",))


def of_a_cascade(probability_of_change: float = 0.0, **settings) -> ViewsTransform:
    """Return the views of a cascade of two labels, whose intensity transforms are always applied."""
    training = nnUNetTrainer.get_training_transforms(
        (16,) * 3, (-0.5, 0.5), None, (0, 1, 2), False, [False], is_cascaded=True, foreground_labels=[1, 2], **settings
    )
    views = ViewsTransform(training.transforms, ("weak", "strong"))
    for transform in views.intensity.transforms:
        transform.apply_probability = 1.0
    for transform in views.of_previous_stage.transforms:
        transform.apply_probability = probability_of_change
    return views


def patch_of_a_cascade() -> dict:
    """Return a patch whose image is 1, 2, 3 where the segmentation of the previous stage is 0, 1, 2."""
    previous = torch.zeros((1, 20, 20, 20), dtype=torch.int16)
    previous[:, 4:12, 4:12, 4:12], previous[:, 9:17, 9:17, 9:17] = 1, 2
    outside = torch.zeros_like(previous)
    return {"image": 1.0 + previous.float(), "segmentation": torch.cat([outside, previous])}


def test_previous_stage_has_the_images_geometry_and_none_of_its_intensities():
    views = of_a_cascade()
    assert len(views.of_previous_stage.transforms) == 2
    for seed in range(5):
        torch.manual_seed(seed)
        np.random.seed(seed)
        weak, strong = views(**patch_of_a_cascade())["image"]
        assert weak.shape == (3, 16, 16, 16)
        assert torch.equal(weak[1:], strong[1:])
        assert not torch.allclose(weak[0], strong[0])
        for channel, value in ((1, 2.0), (2, 3.0)):
            inside = weak[channel] == 1.0
            assert inside.any()
            assert weak[0][inside].median() == value  # at a border image and labels are interpolated unlike


def test_strong_views_alone_have_nnunets_changes_of_the_previous_stage():
    views = of_a_cascade(probability_of_change=1.0)
    views.geometric.transforms.clear()
    sample, are_changed = patch_of_a_cascade(), []
    expected = torch.cat([sample["segmentation"][1:] == label for label in (1, 2)]).float()
    for seed in range(5):
        torch.manual_seed(seed)
        np.random.seed(seed)
        weak, strong = views(**patch_of_a_cascade())["image"]
        assert torch.equal(weak, torch.cat([sample["image"], expected]))
        are_changed.append(not torch.equal(strong[1:], expected))
        assert set(strong[1:].unique().tolist()) <= {0.0, 1.0}
    assert any(are_changed)


def test_label_of_a_cascade_is_the_last_channel():
    views = of_a_cascade(regions=[(1, 2), 2])
    views.geometric.transforms.clear()
    sample = patch_of_a_cascade()
    label = sample["segmentation"][1:].flip(1)
    views = views(sample["image"], torch.cat([sample["segmentation"], label]))
    assert torch.equal(views["segmentation"], torch.cat([label > 0, label == 2]).short())
    assert torch.equal(views["image"][0, 2], (sample["segmentation"][1] == 2).float())
