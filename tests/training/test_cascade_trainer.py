"""Cascades: the first stage segments unlabeled cases, and the second one learns from what it has segmented."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional

from nnunet_ssl.data.pool_predictions import PoolPredictions
from nnunet_ssl.data.preprocessed_images import open_array, open_image
from nnunet_ssl.data.stamps import stamp_file
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.evaluation.pool_prediction import PoolPredictor
from nnunet_ssl.training import distributed
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.whole_pool import WholePool
from tests.conftest import (
    FIRST_STAGE,
    SECOND_STAGE,
    assert_equal_weights,
    make_trainer,
    parameters_of,
    started,
    state_of,
)

MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")
POOL = ["unlabeled0", "unlabeled1", "unlabeled2"]
BOTH_WAYS = [
    {"train": ["labeled0", "labeled1"], "val": ["labeled2", "labeled3"]},
    {"train": ["labeled2", "labeled3"], "val": ["labeled0", "labeled1"]},
]


@pytest.fixture
def dataset(tiny_dataset):
    return tiny_dataset(num_classes=3, cascade=True)


@pytest.fixture
def segmented_cases(monkeypatch) -> list[str]:
    """Return what is segmented from here on, case by case."""
    cases, predict = [], WholePool._predict_case
    monkeypatch.setattr(
        WholePool, "_predict_case", lambda self, case, *more: cases.append(case) or predict(self, case, *more)
    )
    return cases


def resumed(dataset, trainer_class):
    trainer = make_trainer(dataset, trainer_class, resume=True)
    trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    return trainer


def run_of_first_stage(dataset) -> Path:
    return Path(str(dataset.segmented).format(MEAN_TEACHER.__name__)).parents[1] / "fold_0"


@pytest.mark.parametrize("regions", [False, True])
def test_segmentation_is_that_of_nnunet(tiny_dataset, tmp_path, regions):
    """Of the first stage's model, by nnU-Net's sliding window, and resampled by nnU-Net's own function."""
    dataset = tiny_dataset(num_classes=4, regions=regions, cascade=True)
    trainer = started(dataset, MEAN_TEACHER)
    images, plans = trainer.streams[1].images, trainer.plans_manager
    checkpoint = torch.load(run_of_first_stage(dataset) / "checkpoint_final.pth")
    first, heads = plans.get_configuration(FIRST_STAGE), trainer.label_manager.num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(plans, first, 1, heads, False)
    network.load_state_dict(checkpoint["network_weights"])
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, plans, first, None, trainer.dataset_json, "x", None)
    found = set()
    for case in POOL:
        image = open_image(dataset.in_first_stage(dataset.unlabeled_folder), case)[:]
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu()
        spaces = {"spacing": [1.0] * 3, "shape_after_cropping_and_before_resampling": image.shape[1:]}
        file = tmp_path / case
        resample_and_save(logits, (20, 20, 20), str(file), plans, first, spaces, trainer.dataset_json, 1)
        expected = open_array(file.with_suffix(".b2nd"))[:]
        assert np.array_equal(images.previous_stage.labels(case)[:], expected)
        found |= set(np.unique(expected).tolist())
    assert len(found) > 1, "a network that sees one class everywhere would show nothing"


def test_labeled_batches_are_nnunets(dataset):
    """Without augmentation: the channels after the image are the file that nnU-Net's first stage has left."""
    trainer = started(dataset, MEAN_TEACHER)
    loader = trainer.dataloader_val.data_loader
    batch = loader.generate_train_batch()
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    for sample, case in zip(batch["data"], batch["keys"], strict=True):
        beyond = (0, 16) * 3  # nnU-Net centres patches on foreground at the border
        whole = functional.pad(torch.from_numpy(open_array(folder / f"{case}.b2nd")[:]), beyond)
        image = functional.pad(torch.from_numpy(open_image(dataset.labeled_folder, case)[:]), beyond)
        patches = image[0].unfold(0, 16, 1).unfold(1, 16, 1).unfold(2, 16, 1)
        at = [int(i) for i in (patches == sample[0]).flatten(3).all(-1).nonzero()[0]]
        place = tuple(slice(start, start + 16) for start in at)
        assert torch.equal(sample[1:], torch.stack([whole[place] == label for label in (1, 2)]).float())


@pytest.mark.parametrize("name", ["nnUNetTrainerMeanTeacher", "nnUNetTrainerBCP", "nnUNetTrainerSelfTraining"])
def test_resumed_run_equals_undisturbed_run(dataset, name, segmented_cases, monkeypatch):
    """Also where each sample's previous segmentation is changed, by transforms that keep an order between batches."""
    trainer_class = find_trainer(name)

    def surely_changed(trainer):
        on_train_start = trainer.on_train_start

        def start():
            on_train_start()
            for transform in trainer.streams[1].transforms.of_previous_stage.transforms:
                transform.apply_probability = 1.0

        trainer.on_train_start = start
        return trainer

    undisturbed = surely_changed(make_trainer(dataset, trainer_class, seed=1, num_epochs=4))
    undisturbed.run_training()
    stopped = surely_changed(make_trainer(dataset, trainer_class, seed=1, num_epochs=4, save_every=1))
    end = stopped.on_epoch_end

    def stop():
        end()
        if stopped.current_epoch == 3:
            raise KeyboardInterrupt

    stopped.on_epoch_end = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    again = surely_changed(resumed(dataset, trainer_class))
    again.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(again))
    rounds = 4 * trainer_class.prediction_rounds  # more than these are not predicted: the first stage's are kept
    assert segmented_cases[:3] == POOL
    assert len(segmented_cases) <= 3 + 3 * rounds


def test_hidden_labels_never_influence_anything(dataset):
    """Neither those of the second stage nor those of the first, whose properties hold places of labels, are opened."""
    dataset.write_splits([{"train": ["labeled0", "labeled1"], "val": ["labeled2"], "unlabeled": ["labeled3"]}])

    def weights() -> dict[str, torch.Tensor]:
        shutil.rmtree(run_of_first_stage(dataset), ignore_errors=True)
        dataset.write_first_stage(MEAN_TEACHER.__name__)
        trainer = make_trainer(dataset, MEAN_TEACHER, seed=1)
        trainer.run_training()
        assert trainer.streams[1].images.previous_stage.labels("labeled3").shape == (20, 20, 20)
        return parameters_of(bare(trainer.network))

    before = weights()
    for folder in (dataset.labeled_folder, dataset.in_first_stage(dataset.labeled_folder)):
        for ending in ("_seg.b2nd", ".pkl"):
            (folder / f"labeled3{ending}").write_bytes(b"not a label any more")
    (Path(str(dataset.segmented).format(MEAN_TEACHER.__name__)) / "labeled3.b2nd").unlink()
    assert_equal_weights(before, weights())


def test_interruption_costs_one_case_and_another_model_segments_anew(dataset, segmented_cases, monkeypatch):
    write = PoolPredictions.write

    def killed_in_the_second_case(self, case, *given):
        if case == POOL[1]:
            raise KeyboardInterrupt
        write(self, case, *given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PoolPredictions, "write", killed_in_the_second_case)
        started(dataset, MEAN_TEACHER)
    segmented_cases.clear()
    first = started(dataset, MEAN_TEACHER).streams[1].images.previous_stage
    assert segmented_cases == POOL[1:]
    before = [first.labels(case)[:] for case in POOL]
    file = run_of_first_stage(dataset) / "checkpoint_final.pth"
    model = torch.load(file)
    next(iter(model["network_weights"].values())).add_(1.0)
    torch.save(model, file)
    segmented_cases.clear()
    second = started(dataset, MEAN_TEACHER).streams[1].images.previous_stage
    assert segmented_cases == POOL
    assert any(not np.array_equal(second.labels(case)[:], labels) for case, labels in zip(POOL, before, strict=True))
    assert len(list(run_of_first_stage(dataset).glob("unlabeled_for_next_stage/*/*/*.b2nd"))) == 3


def test_segmentation_of_another_shape_is_made_again(dataset, segmented_cases):
    started(dataset, MEAN_TEACHER)
    image = np.ascontiguousarray(open_image(dataset.unlabeled_folder, "unlabeled1")[:, :18])
    (dataset.unlabeled_folder / "unlabeled1.b2nd").unlink()
    (dataset.unlabeled_folder / "unlabeled1_seg.b2nd").unlink()
    target = str(dataset.unlabeled_folder / "unlabeled1")
    nnUNetDatasetBlosc2.save_case(image, image * 0, {}, target, chunks=image.shape, blocks=image.shape)
    segmented_cases.clear()
    images = started(dataset, MEAN_TEACHER).streams[1].images
    assert segmented_cases == ["unlabeled1"]
    assert images.previous_stage.labels("unlabeled1").shape == (18, 20, 20)


def test_missing_segmentation_of_a_labeled_case_names_what_makes_it(dataset):
    dataset.write_splits(BOTH_WAYS)
    dataset.write_first_stage(MEAN_TEACHER.__name__)
    folder = Path(str(dataset.segmented).format(MEAN_TEACHER.__name__))
    (folder / "labeled1.b2nd").unlink()
    command = f"nnUNetv2_train Dataset999_Tiny 3d_lowres 1 -tr {MEAN_TEACHER.__name__} -p nnUNetPlans"
    expected = (
        f"1 labeled cases have no segmentation by 3d_lowres, the previous stage, that fits them, in {folder}: "
        f"labeled1. It writes those of the cases that it validates: {command}"
    )
    with pytest.raises(ValueError) as refused:
        started(dataset, MEAN_TEACHER)
    assert str(refused.value) == expected
    nnUNetDatasetBlosc2.save_seg(np.zeros((10, 10, 10), np.uint8), str(folder / "labeled2"))  # of another shape
    shutil.copytree(run_of_first_stage(dataset), folder.parents[1] / "fold_1")
    with pytest.raises(
        ValueError, match=f"2 labeled cases .*: labeled1, labeled2.* 3d_lowres 0 .* --val; {command} --val"
    ):
        started(dataset, MEAN_TEACHER)
    dataset.write_splits(BOTH_WAYS[:1])
    with pytest.raises(ValueError, match=r"no fold of .*splits_final.json validates labeled1: make one whose folds do"):
        started(dataset, MEAN_TEACHER)


def test_first_stage_that_is_not_trained_is_named(dataset):
    shutil.rmtree(dataset.write_first_stage(MEAN_TEACHER.__name__))
    command = f"nnUNetv2_train Dataset999_Tiny 3d_lowres 0 -tr {MEAN_TEACHER.__name__} -p nnUNetPlans"
    with pytest.raises(
        ValueError, match=f"3d_lowres, has to segment the unlabeled cases, .*checkpoint_final.pth: {command}$"
    ):
        started(dataset, MEAN_TEACHER)


def test_model_of_other_plans_is_refused(dataset):
    file = dataset.write_first_stage(MEAN_TEACHER.__name__) / "checkpoint_final.pth"
    model = torch.load(file)
    model["network_weights"].popitem()
    torch.save(model, file)
    with pytest.raises(ValueError, match="has another network than 3d_lowres of nnUNetPlans has now: train it again"):
        started(dataset, MEAN_TEACHER)


def test_unlabeled_case_that_the_first_stage_lacks_is_named(dataset):
    (dataset.in_first_stage(dataset.unlabeled_folder) / "unlabeled2.b2nd").unlink()
    with pytest.raises(
        ValueError, match="not preprocessed for 3d_lowres: unlabeled2. nnunet_ssl preprocess -d .*3d_lowres"
    ):
        started(dataset, MEAN_TEACHER)


def test_what_is_not_preprocessed_for_the_first_stage_is_made_by_one_process(dataset):
    dataset.images_un.mkdir(parents=True)
    noise = np.random.default_rng(3).normal(size=(20, 22, 24)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(dataset.images_un / "scan_0000.nii.gz"))
    trainer = make_trainer(dataset, MEAN_TEACHER)
    trainer.initialize()
    pool = trainer._collect_pool()
    trainer.is_ddp = True
    with pytest.raises(RuntimeError, match="nnunet_ssl preprocess -d Dataset999_Tiny -c 3d_lowres -p nnUNetPlans"):
        trainer._unlabeled_images(pool)
    trainer.is_ddp = False
    images = trainer._unlabeled_images(pool)
    assert images.previous_stage.labels("scan").shape == open_image(images.folders["scan"], "scan").shape[1:]


@pytest.mark.parametrize("is_second", [True, False])
def test_a_scan_that_the_other_stage_cannot_take_is_left_out_with_a_reason(dataset, is_second):
    """Of the second stage's pool, and of what the first one segments for it."""
    configuration, other = (SECOND_STAGE, FIRST_STAGE) if is_second else (FIRST_STAGE, SECOND_STAGE)
    dataset.images_un.mkdir(parents=True)
    noise = np.random.default_rng(3).normal(size=(2, 20, 22, 24)).astype(np.float32)
    for name, image in zip(("scan", "thin"), noise, strict=True):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(dataset.images_un / f"{name}_0000.nii.gz"))
    trainer = make_trainer(dataset, MEAN_TEACHER, configuration=configuration)
    trainer.initialize()
    pool = trainer._collect_pool()
    assert pool.folders.keys() == {"scan", "thin"}
    preprocessing = trainer._preprocessing_for(other)
    preprocessing.run(1)
    file = stamp_file(preprocessing.preprocessed, "thin")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem": "it is too thin", "content": None}))
    usable = trainer._usable_for(other, pool)
    assert usable.folders.keys() == {"scan"}
    assert usable.left_out == {"thin": "it is too thin"}
    said = Path(trainer.log_file).read_text()
    assert f"unlabeled case thin is left out of the cascade: {other}: it is too thin. After fixing it: " in said
    if is_second:
        assert trainer._unlabeled_images(pool).folders.keys() == {"scan"}
    else:
        trainer.run_training()
        trainer.perform_actual_validation()
        assert f"segmented by {FIRST_STAGE} for {SECOND_STAGE}: 1 of 1" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_segments_its_share(dataset, segmented_cases, monkeypatch, rank):
    monkeypatch.setattr(distributed, "place_among_processes", lambda: (rank, 2))
    started(dataset, MEAN_TEACHER)
    assert segmented_cases == POOL[rank::2]


def test_both_stages_one_after_the_other(dataset, segmented_cases, tmp_path):
    """Each fold of the first stage, its validation, the second stage and its validation; nothing is segmented twice."""
    dataset.write_splits(BOTH_WAYS)
    for fold in (0, 1):
        first = make_trainer(dataset, MEAN_TEACHER, fold, configuration=FIRST_STAGE)
        first.run_training()
        assert not segmented_cases
        first.perform_actual_validation()
        assert segmented_cases == POOL
        segmented_cases.clear()
    assert sorted(file.name for file in Path(str(dataset.segmented).format(MEAN_TEACHER.__name__)).iterdir()) == [
        f"labeled{i}.b2nd" for i in range(4)
    ]
    second = make_trainer(dataset, MEAN_TEACHER)
    second.run_training()
    second.perform_actual_validation()
    assert not segmented_cases
    scores = json.loads(Path(second.output_folder, "validation", "summary.json").read_text())
    assert len(scores["metric_per_case"]) == 2
    assert_predicts_as_nnunet(Path(second.output_folder).parent, tmp_path / "scan_0000.nii.gz")


def assert_predicts_as_nnunet(model: Path, image: Path) -> None:
    """What `pseudolabel` predicts of a scan is what nnUNetv2_predict does, stage after stage."""
    noise = np.random.default_rng(5).normal(size=(24, 20, 22)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(image))
    scan = image.with_name("scan")
    for stage, before in ((FIRST_STAGE, None), (SECOND_STAGE, scan / FIRST_STAGE)):
        predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
        folder = model.with_name(f"{model.name.rpartition('__')[0]}__{stage}")
        predictor.initialize_from_trained_model_folder(str(folder), [0], "checkpoint_final.pth")
        (scan / stage).mkdir(parents=True)
        files = [[str(image)]], str(scan / stage), False, True, before and str(before)
        predictor.predict_from_files_sequential(*files)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(scan / SECOND_STAGE / "scan.nii.gz")))
    found = PoolPredictor(model, "0", "checkpoint_final.pth", torch.device("cpu")).predict([image])
    assert np.array_equal(found.labels, expected)
    assert expected.any()


def test_validation_alone_leaves_the_unlabeled_cases_to_the_second_stage(dataset, segmented_cases, capsys):
    first = make_trainer(dataset, MEAN_TEACHER, configuration=FIRST_STAGE)
    first.run_training()
    again = make_trainer(dataset, MEAN_TEACHER, configuration=FIRST_STAGE, resume=True)
    again.load_checkpoint(f"{first.output_folder}/checkpoint_final.pth")
    again.perform_actual_validation()
    assert f"A training of {SECOND_STAGE} will segment the unlabeled cases, at its beginning" in capsys.readouterr().out
    assert not segmented_cases
