"""Whether patches are mirrored, labeled and unlabeled alike, and predictions: always, never, or as the scans lie."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.mirrored_folds import how_to_predict
from nnunet_ssl.training.mirroring_trainer import _spread
from tests.conftest import make_trainer, started
from tests.data.test_orientation import scans

MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")
HIDING = [  # as `nnunet_ssl split` with few labels writes them: what one fold trains on is unlabeled in another
    {"train": ["labeled0", "labeled1"], "val": ["labeled3"], "unlabeled": ["labeled2", "unlabeled0"]},
    {"train": ["labeled1", "labeled2"], "val": ["labeled3"], "unlabeled": ["labeled0", "unlabeled0"]},
]


def transforms_of(trainer) -> list[list]:
    """Return the geometric transforms of the labeled stream and of the unlabeled one."""
    labeled, unlabeled = (stream.transforms for stream in trainer.streams)
    return [labeled.transforms, unlabeled.geometric.transforms]


@pytest.mark.parametrize(("dim", "largest"), [(2, 15), (3, 30)])
def test_nothing_is_turned_over(tiny_dataset, dim, largest):
    trainer = started(tiny_dataset(dim=dim), MEAN_TEACHER, mirroring="none")
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


@pytest.mark.parametrize("name", ["NoMirroring", "NoDA", "_onlyMirror01"])
@pytest.mark.parametrize("mirroring", ["all", "none", "auto"])
@pytest.mark.parametrize("is_first", [False, True])
def test_nnunets_variants_keep_what_they_do_with_axes(tiny_dataset, name, mirroring, is_first):
    variant = recursive_find_trainer_class_by_name(f"nnUNetTrainer{name}")

    class Both(*((variant, MEAN_TEACHER) if is_first else (MEAN_TEACHER, variant))):
        pass

    trainer = started(tiny_dataset(dim=3), Both, mirroring=mirroring)
    allowed = (0, 1) if name == "_onlyMirror01" and (is_first or mirroring != "none") else ()
    assert trainer.mirror_axes == allowed
    labeled, unlabeled = transforms_of(trainer)
    for transforms in (labeled, unlabeled):
        mirrors = [one for one in transforms if isinstance(one, MirrorTransform)]
        assert [tuple(one.allowed_axes) for one in mirrors] == [allowed] * bool(allowed)


def test_a_model_is_not_mirrored_when_it_predicts(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), MEAN_TEACHER, mirroring="none")
    file = Path(trainer.output_folder, "checkpoint.pth")
    trainer.save_checkpoint(str(file))
    assert torch.load(file, weights_only=False)["inference_allowed_mirroring_axes"] is None


def lie_as(monkeypatch, images: list[np.ndarray], alike_along: tuple[int, ...] = ()) -> None:
    """Let the scans of a data set be these, labeled alike on both sides of some axes.

    `scans` are symmetric along axis 1 alone.
    """
    label = np.zeros((16, 16, 16), np.int8)
    label[tuple(slice(None) if axis in alike_along else slice(4) for axis in range(3))] = 1
    monkeypatch.setattr(MEAN_TEACHER, "labels_of_all_folds", lambda self: iter([label, label]))
    named = {f"scan{i:02d}": np.ascontiguousarray(image) for i, image in enumerate(images)}
    dataset = SimpleNamespace(identifiers=[*named], load_case=lambda case: (named[case][None],))
    monkeypatch.setattr(MEAN_TEACHER, "images_of_all_cases", lambda self: dataset)


@pytest.mark.parametrize(("dim", "axes"), [(2, (0,)), (3, (1,))])
def test_mirrored_are_the_axes_along_which_scans_lie_both_ways(tiny_dataset, monkeypatch, dim, axes):
    """Axis 1 of the images is the first of 2-D patches."""
    lie_as(monkeypatch, scans(22))
    trainer = started(tiny_dataset(dim=dim), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == axes
    for transforms in transforms_of(trainer):
        (mirror,) = [one for one in transforms if isinstance(one, MirrorTransform)]
        assert tuple(mirror.allowed_axes) == axes
        (spatial,) = [one for one in transforms if isinstance(one, SpatialTransform)]
        assert max(np.rad2deg(spatial.rotation)) == pytest.approx(15 if dim == 2 else 30)
    log = Path(trainer.log_file).read_text()
    assert f"Mirroring along axes {axes[0]}: of 22 scans lie another way" in log


def test_two_scans_in_twenty_that_lie_another_way_are_enough_to_mirror(tiny_dataset, monkeypatch):
    images = scans(22)
    for i in (4, 9):
        images[i] = np.flip(images[i], (0, 2))
    lie_as(monkeypatch, images)
    assert started(tiny_dataset(), MEAN_TEACHER, mirroring="auto").mirror_axes == (0, 1, 2)


@pytest.mark.parametrize(("alike_along", "axes"), [((), (1,)), ((0,), (0, 1)), ((0, 2), (0, 1, 2))])
def test_what_is_labeled_alike_on_both_sides_is_mirrored_though_scans_lie_the_same_way(
    tiny_dataset, monkeypatch, alike_along, axes
):
    lie_as(monkeypatch, scans(22), alike_along)
    trainer = started(tiny_dataset(), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == axes
    overlaps = ", ".join(f"{1.0 if axis in alike_along else 0.0:.2f} along axis {axis}" for axis in (0, 2))
    assert (
        f"labels overlap with mirrored ones, by what they do otherwise: {overlaps}"
        in Path(trainer.log_file).read_text()
    )


def test_a_single_labeled_case_does_not_say_what_lies_alike(tiny_dataset, monkeypatch):
    lie_as(monkeypatch, scans(22), (0, 1, 2))
    monkeypatch.setattr(MEAN_TEACHER, "labels_of_all_folds", lambda self: iter([np.ones((4, 4, 4))]))
    trainer = started(tiny_dataset(), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == (1,)
    assert "; fewer than two cases have labels that could be compared" in Path(trainer.log_file).read_text()


def test_labels_are_of_cases_that_some_fold_trains_on_and_none_hides(tiny_dataset):
    dataset = tiny_dataset()
    dataset.write_splits(
        [
            {"train": ["labeled0", "labeled1"], "val": ["labeled2"], "unlabeled": ["labeled3", "unlabeled0"]},
            {"train": ["labeled2", "labeled3"], "val": ["labeled1"]},
            {"train": ["labeled1", "deleted"], "val": ["labeled0"]},
        ]
    )
    found = [[*started(dataset, MEAN_TEACHER, fold=fold).labels_of_all_folds()] for fold in (0, 1)]
    for labels in found:
        assert len(labels) == 3
        assert {*np.unique(labels[0])} <= {-1, 0, 1, 2, 3}
        assert all(np.array_equal(one, other) for one, other in zip(labels, found[0], strict=True))


def test_where_folds_hide_each_others_labels_they_are_of_the_fold(tiny_dataset):
    dataset = tiny_dataset()
    dataset.write_splits(HIDING)
    for fold, cases in ((0, ["labeled0", "labeled1"]), (1, ["labeled1", "labeled2"])):
        trainer = started(dataset, MEAN_TEACHER, fold=fold)
        read, check = [], trainer._labeled_files.check
        trainer._labeled_files.check = lambda case: (read.append(case), check(case))  # noqa: B023
        assert len([*trainer.labels_of_all_folds()]) == 2
        assert read == cases


def test_folds_that_hide_each_others_labels_compare_their_own(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    named = {f"scan{i:02d}": np.ascontiguousarray(image) for i, image in enumerate(scans(22))}
    images = SimpleNamespace(identifiers=[*named], load_case=lambda case: (named[case][None],))
    monkeypatch.setattr(MEAN_TEACHER, "images_of_all_cases", lambda self: images)
    dataset.write_splits(HIDING)
    for fold in (0, 1):
        log = Path(started(dataset, MEAN_TEACHER, fold=fold, mirroring="auto").log_file).read_text()
        assert "labels overlap with mirrored ones, by what they do otherwise: " in log


def test_an_image_that_cannot_be_read_is_not_compared(tiny_dataset, monkeypatch):
    lie_as(monkeypatch, scans(23))
    images = MEAN_TEACHER.images_of_all_cases(None)

    def load_case(case: str) -> tuple:
        if case == "scan07":
            raise RuntimeError("blosc2_schunk_open_offset returned NULL")
        return images.load_case(case)

    dataset = SimpleNamespace(identifiers=images.identifiers, load_case=load_case)
    monkeypatch.setattr(MEAN_TEACHER, "images_of_all_cases", lambda self: dataset)
    trainer = started(tiny_dataset(), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == (1,)
    assert "WARNING: scan07 cannot be read, and is not compared: blosc2" in Path(trainer.log_file).read_text()


def test_a_fold_that_mirrors_otherwise_than_another_says_how_to_predict(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    make_trainer(dataset, MEAN_TEACHER, seed=1, num_epochs=1).run_training()
    log = Path(started(dataset, MEAN_TEACHER, fold=1).log_file).read_text()
    assert "the folds mirror" not in log
    lie_as(monkeypatch, scans(22))
    log = Path(started(dataset, MEAN_TEACHER, fold=1, mirroring="auto").log_file).read_text()
    assert (
        "WARNING: the folds mirror along different axes: fold 0 along 0, 1, 2; fold 1 along 1. nnUNetv2_predict takes "
        "for all of them those of the first that -f names: name fold 1 first, which has the fewest" in log
    )


def test_folds_of_which_none_has_the_axes_of_all_are_not_predicted_mirrored():
    assert how_to_predict({"0": (0,), "1": (1,)}).endswith("predict with --disable_tta")
    assert "name fold 2 first" in how_to_predict({"0": (0,), "1": (1,), "2": ()})


@pytest.mark.parametrize("fold", [0, "all"])
def test_where_there_is_no_split_they_are_of_what_is_trained_on(tiny_dataset, monkeypatch, fold):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, fold=fold)
    Path(trainer.preprocessed_dataset_folder_base, "splits_final.json").unlink()
    monkeypatch.setattr(trainer, "do_split", lambda: (["labeled0", "labeled1"], ["labeled2"]))
    assert len([*trainer.labels_of_all_folds()]) == 2


def test_few_scans_say_too_little(tiny_dataset, monkeypatch):
    lie_as(monkeypatch, scans(9))
    trainer = started(tiny_dataset(), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == (0, 1, 2)
    assert "Mirroring along all axes: 9 scans say too little" in Path(trainer.log_file).read_text()


def test_a_run_that_goes_on_mirrors_as_it_began(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    lie_as(monkeypatch, scans(22))
    make_trainer(dataset, MEAN_TEACHER, seed=1, mirroring="auto", num_epochs=1).run_training()
    monkeypatch.setattr(MEAN_TEACHER, "images_of_all_cases", lambda self: pytest.fail("they are compared again"))
    resumed = make_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_final.pth")
    resumed.on_train_start()
    assert resumed.mirror_axes == (1,)


def test_compared_are_all_cases_in_each_fold(tiny_dataset):
    dataset = tiny_dataset()
    images, others = (started(dataset, MEAN_TEACHER, fold=fold).images_of_all_cases() for fold in (0, 1))
    assert images.identifiers == others.identifiers
    assert images.identifiers == [f"labeled{i}" for i in range(4)] + [f"unlabeled{i}" for i in range(3)]
    for case in images.identifiers:
        assert images.load_case(case)[0][0].shape == (20, 20, 20)


@pytest.mark.parametrize(("number", "compared"), [(10, 10), (50, 50), (51, 50), (10_000, 50)])
def test_some_of_many_scans_are_compared_at_equal_distances(number, compared):
    cases = _spread([f"scan{i:05d}" for i in range(number)])
    assert len(set(cases)) == compared
    assert (cases[0], cases[-1]) == ("scan00000", f"scan{number - 1:05d}")


def test_thick_slices_are_turned_to_all_sides_where_only_the_axis_across_them_is_left_out(tiny_dataset, monkeypatch):
    """nnU-Net rotates such patches in the plane of the slices, which axis 0 does not lie in."""
    lie_as(monkeypatch, scans(22))
    monkeypatch.setattr("nnunet_ssl.training.mirroring_trainer.turned_over", lambda images, axes: {0: 0, 1: 9, 2: 9})
    trainer = started(tiny_dataset(anisotropic=True), MEAN_TEACHER, mirroring="auto")
    assert trainer.mirror_axes == (1, 2)
    for transforms in transforms_of(trainer):
        (spatial,) = [one for one in transforms if isinstance(one, SpatialTransform)]
        assert max(np.rad2deg(spatial.rotation)) == pytest.approx(180)


def test_another_word_is_refused(tiny_dataset):
    with pytest.raises(ValueError, match="mirroring is all, auto or none, got 'some'"):
        make_trainer(tiny_dataset(), MEAN_TEACHER, mirroring="some").initialize()
