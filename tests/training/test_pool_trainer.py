"""Predictions of all unlabeled cases in a run, with a trainer that only sets attributes for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ssl.data.loaders import close_loader
from nnunet_ssl.data.pool_predictions import PoolPredictions, open_round
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset, open_image
from nnunet_ssl.training import whole_pool
from nnunet_ssl.training.options import parse_options
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer
from nnunet_ssl.training.whole_pool import WholePool
from tests.conftest import assert_equal_weights, make_trainer, started, state_of

POOL = ["unlabeled0", "unlabeled1", "unlabeled2"]


class Plain(TeacherStudentTrainer):
    """Learns from what its teacher predicted of whole cases."""

    VIEWS = ("strong", "pseudo_label")

    warmup_fraction = 0.25
    prediction_rounds = 3
    pseudo_foreground_probability = 0.5
    unstable_fraction = 0.34

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
        everywhere = torch.ones_like(unlabeled.strong[:, :1])
        outputs = self.forward_pass(unlabeled.strong).outputs
        yield {"pseudo_label": self.masked_loss(outputs, unlabeled.pseudo_label, everywhere)}


class Undemanding(TeacherStudentTrainer):
    """Predicts no cases unless it is told to."""

    VIEWS = ("weak",)

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}


LENGTH = {"num_epochs": 4, "seed": 1}  # rounds begin with epochs 1, 2 and 3


def resumed(dataset, trainer_class=Plain):
    trainer = make_trainer(dataset, trainer_class, resume=True)
    trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    return trainer


def rounds_of(trainer) -> Path:
    return Path(trainer.output_folder, "pool_predictions")


@pytest.fixture
def predicted_cases(monkeypatch) -> list[str]:
    """Return what is predicted from here on, case by case."""
    cases, predict = [], WholePool._predict_case
    monkeypatch.setattr(
        WholePool, "_predict_case", lambda self, case, *more: cases.append(case) or predict(self, case, *more)
    )
    return cases


@pytest.mark.parametrize(
    "cell",
    [
        {"dim": 2, "num_classes": 4},
        {"dim": 3, "num_classes": 4, "regions": True, "ignore": True},
        {"dim": 3, "anisotropic": True, "masked": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_case_is_predicted_as_nnunet_predicts_it_with_the_inference_network(tiny_dataset, cell, mirrored):
    predicts = "student" if mirrored else "teacher"
    options = {"warmup_fraction": 0.5, "prediction_rounds": 1, "predicts_mirrored": mirrored, "predict_with": predicts}
    trainer = started(tiny_dataset(**cell), Plain, **options)
    with torch.no_grad():
        for parameter in trainer.networks["student"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # another network than the teacher
    trainer.current_epoch = 1
    trainer.on_epoch_start()
    axes = trainer.inference_allowed_mirroring_axes if mirrored else None
    assert not mirrored or axes
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    plans = trainer.plans_manager, trainer.configuration_manager
    network = trainer.networks[predicts]
    network.decoder.deep_supervision = False
    predictor.manual_initialization(network, *plans, None, trainer.dataset_json, "x", axes)
    images = trainer.streams[1].images
    for case in POOL:
        image = torch.from_numpy(open_image(images.folders[case], case)[:])
        logits = predictor.predict_sliding_window_return_logits(image)
        expected = trainer.label_manager.convert_logits_to_segmentation(logits).numpy()
        assert np.array_equal(images.predictions.labels(case)[:], expected)
        assert images.predictions.labels(case).dtype == np.uint8


def test_networks_are_as_they_were_after_a_round(tiny_dataset):
    trainer = started(tiny_dataset(num_classes=4), Plain, warmup_fraction=0.0)
    assert trainer.network is trainer.networks["student"]
    assert trainer.network.training
    assert trainer.network.decoder.deep_supervision
    assert not trainer.networks["teacher"].training
    trainer.train_step(next(trainer.dataloader_train))


def test_rounds_begin_with_their_epochs_and_two_are_kept(tiny_dataset, predicted_cases):
    trainer = make_trainer(tiny_dataset(dim=2), Plain, **LENGTH)
    begun, train_epoch = [], trainer.on_train_epoch_start
    trainer.on_train_epoch_start = lambda: begun.append(len(predicted_cases)) or train_epoch()
    trainer.run_training()
    assert begun == [0, 3, 6, 9]
    assert sorted(folder.name for folder in rounds_of(trainer).iterdir()) == ["epoch_0002", "epoch_0003"]
    changes = [len(trainer._predictions.changes(case)) for case in POOL]
    assert changes == [2, 2, 2], "from the first to the second round, and to the third"


def test_kill_in_the_middle_of_a_round_costs_one_case(tiny_dataset, predicted_cases, monkeypatch):
    """It goes on with the case that was begun, and ends as the undisturbed run bit for bit."""
    dataset = tiny_dataset(dim=2, num_classes=4)
    undisturbed = make_trainer(dataset, Plain, **LENGTH)
    undisturbed.run_training()
    write, written = PoolPredictions.write, []

    def killed_in_the_second_case_of_round_two(self, case, *given):
        written.append(case)
        if len(written) == 5:
            raise KeyboardInterrupt
        write(self, case, *given)

    stopped = make_trainer(dataset, Plain, **LENGTH)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PoolPredictions, "write", killed_in_the_second_case_of_round_two)
        stopped.run_training()
    predicted_cases.clear()
    again = resumed(dataset)
    assert again.current_epoch == 2
    again.run_training()
    assert predicted_cases == [*POOL[1:], *POOL]
    assert_equal_weights(state_of(undisturbed), state_of(again))


def test_resumed_within_a_round_takes_what_it_has_predicted(tiny_dataset, predicted_cases):
    dataset = tiny_dataset(dim=2, num_classes=4)
    settings = LENGTH | {"prediction_rounds": 1}
    undisturbed = make_trainer(dataset, Plain, **settings)
    undisturbed.run_training()
    stop_after_epochs(dataset, 3, **settings)
    predicted_cases.clear()
    again = resumed(dataset)
    again.run_training()
    assert not predicted_cases
    assert_equal_weights(state_of(undisturbed), state_of(again))


def stop_after_epochs(dataset, epochs: int, trainer_class=Plain, **settings):
    trainer = make_trainer(dataset, trainer_class, save_every=1, **settings)

    def on_epoch_end() -> None:
        trainer_class.on_epoch_end(trainer)
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    trainer.on_epoch_end = on_epoch_end
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    return trainer


def test_predictions_that_are_gone_are_made_again_by_the_network_as_it_is(tiny_dataset, predicted_cases):
    dataset = tiny_dataset(dim=2)
    stopped = stop_after_epochs(dataset, 3, **LENGTH | {"prediction_rounds": 1})
    for file in (rounds_of(stopped) / "epoch_0001").iterdir():
        file.unlink()
    predicted_cases.clear()
    again = resumed(dataset)
    again.run_training()
    assert predicted_cases == POOL
    assert [folder.name for folder in rounds_of(again).iterdir()] == ["epoch_0003"]


def test_case_that_joined_the_pool_since_is_predicted_alone(tiny_dataset, predicted_cases):
    dataset = tiny_dataset(dim=2)
    stop_after_epochs(dataset, 3, **LENGTH | {"prediction_rounds": 1})
    dataset.write_case(dataset.unlabeled_folder, "new", seed=5, has_label=False)
    predicted_cases.clear()
    resumed(dataset).run_training()
    assert predicted_cases == ["new"]


def test_run_that_starts_again_takes_nothing_of_the_one_before(tiny_dataset, predicted_cases):
    dataset = tiny_dataset(dim=2)
    once = LENGTH | {"prediction_rounds": 1}
    make_trainer(dataset, Plain, **once).run_training()
    predicted_cases.clear()
    make_trainer(dataset, Plain, **once | {"seed": 2}).run_training()
    assert predicted_cases == POOL


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_after_a_round_are_of_its_predictions(tiny_dataset, monkeypatch, workers):
    """Also those of worker processes, which began with copies of the loader as it was."""
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    manager = "nnunetv2.utilities.label_handling.label_handling.LabelManager.convert_logits_to_segmentation"
    value = {"now": 1}
    monkeypatch.setattr(manager, lambda self, logits: torch.full(logits.shape[1:], value["now"]))
    trainer = started(tiny_dataset(dim=2, num_classes=4), Plain, warmup_fraction=0.0, prediction_rounds=2)
    try:
        for epoch in (0, 1):
            batches = [next(trainer.dataloader_train) for _ in range(3)]
            assert {int(one["unlabeled"]["pseudo_label"].max()) for one in batches} == {value["now"]}, epoch
            trainer.current_epoch, value["now"] = 1, 2
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
    finally:
        close_loader(trainer.dataloader_train)
        close_loader(trainer.dataloader_val)


def test_cases_that_change_most_are_left_out_from_the_second_round_on(tiny_dataset, monkeypatch):
    found = iter([0.1, 0.9, 0.2])
    monkeypatch.setattr(whole_pool, "change", lambda *_: next(found))
    trainer = started(tiny_dataset(dim=2), Plain, warmup_fraction=0.0, prediction_rounds=2)
    assert trainer.streams[1].indices == POOL
    trainer.current_epoch = 1
    trainer.on_epoch_start()
    assert trainer.streams[1].indices == ["unlabeled0", "unlabeled2"]
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "Left out because their predictions change most: unlabeled1" in log


def test_any_trainer_predicts_when_it_is_told_to(tiny_dataset):
    options = {"prediction_rounds": 2, "pseudo_foreground_probability": 1.0, "unstable_fraction": 0.34}
    options |= {"predicts_mirrored": False}
    trainer = make_trainer(tiny_dataset(dim=2), Undemanding, **LENGTH | options)
    trainer.run_training()
    assert open_round(rounds_of(trainer), trainer._round) is not None
    assert trainer.streams[1].oversample_foreground_percent == 1.0
    assert trainer.streams[1].get_do_oversample(0)


def test_a_trainer_that_is_not_told_to_predicts_nothing(tiny_dataset, predicted_cases):
    trainer = make_trainer(tiny_dataset(dim=2), Undemanding, **LENGTH)
    trainer.run_training()
    assert not predicted_cases
    assert not rounds_of(trainer).exists()


def test_uses_without_predictions_are_refused(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    for name in ("pseudo_foreground_probability", "unstable_fraction"):
        with pytest.raises(ValueError, match=f"^{name} uses predictions .*: set prediction_rounds too, to 3"):
            make_trainer(dataset, Undemanding, **{name: 0.5}).initialize()
    with pytest.raises(ValueError, match=r"^Plain learns from predictions .*: prediction_rounds is at least 1$"):
        make_trainer(dataset, Plain, prediction_rounds=0).initialize()


def test_use_without_predictions_is_refused_of_a_class_too(tiny_dataset):
    class Asking(Undemanding):
        unstable_fraction = 0.04

    with pytest.raises(ValueError, match=r"^unstable_fraction uses predictions"):
        make_trainer(tiny_dataset(dim=2), Asking).initialize()


def test_predictions_that_nothing_uses_are_refused(tiny_dataset):
    with pytest.raises(ValueError, match="for nothing: set pseudo_foreground_probability or unstable_fraction too$"):
        make_trainer(tiny_dataset(dim=2), Undemanding, prediction_rounds=3).initialize()


def test_no_rounds_is_an_option():
    assert parse_options("prediction_rounds=0", {"prediction_rounds": int}) == {"prediction_rounds": 0}


def test_labels_beyond_a_byte_have_two(tiny_dataset):
    predictor = whole_pool.predictor_for(started(tiny_dataset(dim=2), Undemanding), ())
    for labels, expected in (([0, 255], np.uint8), ([0, 256], np.uint16)):
        predictor.label_manager._all_labels = labels
        assert WholePool(UnlabeledDataset({}, Path()), predictor, print).type == expected


@pytest.mark.parametrize(("cases", "processes"), [(130, 3), (121, 2), (2, 3), (7, 1)])
def test_each_process_predicts_its_share_and_all_meet_equally_often(monkeypatch, tmp_path, cases, processes):
    monkeypatch.setattr(whole_pool, "image_file", lambda folder, case: folder)
    monkeypatch.setattr(PoolPredictions, "has", lambda self, case, file: case.endswith("7"))
    predicted, meetings = [], []
    monkeypatch.setattr(WholePool, "_predict_case", lambda self, case, *_: predicted.append(case))
    names = [f"case{i:03d}" for i in range(cases)]
    pool = WholePool.__new__(WholePool)
    pool.folders = dict.fromkeys(names, tmp_path)
    for rank in range(processes):
        met = []
        monkeypatch.setattr(whole_pool.distributed, "place_among_processes", lambda: (rank, processes))  # noqa: B023
        monkeypatch.setattr(whole_pool.distributed, "wait_for_all", lambda: met.append(rank))  # noqa: B023
        pool.predict(PoolPredictions(tmp_path), None)
        meetings.append(len(met))
    assert sorted(predicted) == [name for name in names if not name.endswith("7")]
    assert len(set(meetings)) == 1
    assert meetings[0] == 1 + cases // processes // whole_pool.MEET_EVERY
