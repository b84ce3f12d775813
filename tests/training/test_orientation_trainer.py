"""With keeps_orientation no patch is turned over, labeled or unlabeled, and predictions are not mirrored either."""

from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import started

MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")


def transforms_of(trainer) -> list[list]:
    """Return the geometric transforms of the labeled stream and of the unlabeled one."""
    labeled, unlabeled = (stream.transforms for stream in trainer.streams)
    return [labeled.transforms, unlabeled.geometric.transforms]


@pytest.mark.parametrize(("dim", "largest"), [(2, 15), (3, 30)])
def test_nothing_is_turned_over(tiny_dataset, dim, largest):
    trainer = started(tiny_dataset(dim=dim), MEAN_TEACHER, keeps_orientation=True)
    for transforms in transforms_of(trainer):
        assert not [one for one in transforms if isinstance(one, MirrorTransform)]
        (spatial,) = [one for one in transforms if isinstance(one, SpatialTransform)]
        assert np.rad2deg(spatial.rotation) == pytest.approx([-largest, largest])
    assert trainer.mirror_axes == ()


def test_without_it_patches_are_turned_as_in_nnunet(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), MEAN_TEACHER)
    for transforms in transforms_of(trainer):
        assert len([one for one in transforms if isinstance(one, MirrorTransform)]) == 1
        (spatial,) = [one for one in transforms if isinstance(one, SpatialTransform)]
        assert np.rad2deg(spatial.rotation) == pytest.approx([-180, 180])
    assert trainer.mirror_axes == (0, 1)


def test_a_model_is_not_mirrored_when_it_predicts(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), MEAN_TEACHER, keeps_orientation=True)
    file = Path(trainer.output_folder, "checkpoint.pth")
    trainer.save_checkpoint(str(file))
    assert torch.load(file, weights_only=False)["inference_allowed_mirroring_axes"] is None
