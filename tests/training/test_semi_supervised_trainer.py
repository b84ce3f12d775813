"""The base, with small methods made for the test."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.building_blocks.ramps import gaussian_rampup
from nnunet_ssl.data.loaders import UnlabeledLoader
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer
from tests.conftest import assert_equal_weights, make_trainer, parameters_of, started

MEAN_TEACHER, FIXMATCH = find_trainer("nnUNetTrainerMeanTeacher"), find_trainer("nnUNetTrainerFixMatch")


class TwoTerms(SemiSupervisedTrainer):
    """Two terms, yielded one after the other."""

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"entropy": self.label_space.entropy(self.probabilities(self.forward_pass(unlabeled.weak).logits)).mean()}


class OneGraph(SemiSupervisedTrainer):
    """The same two terms of one concatenated batch."""

    def training_losses(self, labeled, unlabeled):
        size = labeled.image.shape[0]
        outputs = self.forward_pass(torch.cat([labeled.image, unlabeled.weak])).outputs
        supervised = self.loss([head[:size] for head in outputs], labeled.target)
        entropy = self.label_space.entropy(self.probabilities(outputs[0][size:])).mean()
        yield {"supervised": supervised, "entropy": entropy}


class Silent(SemiSupervisedTrainer):
    """Has not said what its losses are."""


class Repeating(TwoTerms):
    """Calls two terms by one name."""

    def training_losses(self, labeled, unlabeled):
        yield from super().training_losses(labeled, unlabeled)
        yield {"entropy": self.supervised_loss(labeled)}


class Losing(SemiSupervisedTrainer):
    """Yields nothing."""

    def training_losses(self, labeled, unlabeled):
        yield from ()


def step_of(dataset, trainer_class):
    trainer = make_trainer(dataset, trainer_class, seed=1)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    losses = {name for name in trainer.observer.epoch_records if name.startswith("loss/")}
    return loss, parameters_of(trainer.network), losses


@pytest.mark.parametrize("dim", [2, 3])
def test_yielded_one_by_one_equals_one_concatenated_batch(tiny_dataset, dim):
    dataset = tiny_dataset(dim=dim)
    loss, weights, terms = step_of(dataset, TwoTerms)
    expected_loss, expected_weights, expected_terms = step_of(dataset, OneGraph)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert terms == expected_terms == {"loss/supervised", "loss/entropy"}
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], atol=1e-6, rtol=1e-5)


def test_one_graph_is_alive_at_a_time(tiny_dataset):
    """What was yielded has been back-propagated, and its graph freed, when the next line runs."""
    seen = []

    class Watching(TwoTerms):
        def training_losses(self, labeled, unlabeled):
            loss = self.supervised_loss(labeled)
            yield {"supervised": loss}
            seen.append(next(self.network.parameters()).grad is not None)
            with pytest.raises(RuntimeError, match="second time"):
                loss.backward()
            seen.append(True)

    step_of(tiny_dataset(), Watching)
    assert seen == [True, True]


def test_method_without_losses_is_told_so(tiny_dataset):
    with pytest.raises(NotImplementedError, match="Silent does not say what its losses are: write training_losses"):
        step_of(tiny_dataset(), Silent)


def test_each_term_has_a_name_of_its_own(tiny_dataset):
    with pytest.raises(ValueError, match="the losses yield entropy twice"):
        step_of(tiny_dataset(), Repeating)
    with pytest.raises(ValueError, match="training_losses yields none"):
        step_of(tiny_dataset(), Losing)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_term_without_gradient_is_logged_and_moves_nothing(tiny_dataset, value):
    """An empty mask leaves a constant."""

    class Constant(TwoTerms):
        def training_losses(self, labeled, unlabeled):
            yield from super().training_losses(labeled, unlabeled)
            yield {"empty": torch.tensor(value)}

    dataset = tiny_dataset()
    loss, weights, terms = step_of(dataset, Constant)
    expected_loss, expected_weights, _ = step_of(dataset, TwoTerms)
    assert terms == {"loss/supervised", "loss/entropy", "loss/empty"}
    assert loss == pytest.approx(expected_loss + value)
    assert_equal_weights(weights, expected_weights)


def test_progress_runs_from_zero_to_one_over_the_whole_run(tiny_dataset):
    seen = []

    class Watching(TwoTerms):
        def training_losses(self, labeled, unlabeled):
            seen.append(self.progress)
            self.record({"progress": self.progress})
            yield from super().training_losses(labeled, unlabeled)

    trainer = make_trainer(tiny_dataset(), Watching, seed=1, num_epochs=3, num_iterations_per_epoch=2)
    trainer.run_training()
    np.testing.assert_allclose(seen, np.arange(6) / 6)
    np.testing.assert_allclose(
        trainer.observer.curves.values["progress"], [1 / 12, 5 / 12, 9 / 12]
    )  # means over an epoch


def test_loss_of_an_epoch_is_that_of_the_steps_that_were_not_skipped(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), TwoTerms, seed=1)
    trainer.on_train_start()
    for trainer.current_epoch, (losses, expected) in enumerate([((3.0, np.nan, 1.0), 2.0), ((np.nan,), np.nan)]):
        trainer.on_train_epoch_end([{"loss": np.array(loss)} for loss in losses])
        assert trainer.logger.get_value("train_losses", step=-1) == pytest.approx(expected, nan_ok=True)


# ---- settings, in their order ----


def test_attributes_then_variant_then_options(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()

    class Short(MEAN_TEACHER):
        num_epochs = 7
        initial_lr = 0.5

    monkeypatch.setenv("nnUNet_ssl_options", "initial_lr=0.25 consistency_weight=3")
    trainer = plain_trainer(dataset, Short)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.initial_lr, trainer.consistency_weight) == (7, 0.25, 3.0)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25
    assert trainer.lr_scheduler.max_steps == 7

    variant = plain_trainer(dataset, find_trainer("nnUNetTrainerMeanTeacher_250epochs"))
    variant.initialize()
    assert variant.num_epochs == 250
    monkeypatch.setenv("nnUNet_ssl_options", "num_epochs=3")
    variant = plain_trainer(dataset, find_trainer("nnUNetTrainerMeanTeacher_250epochs"))
    variant.initialize()
    assert variant.num_epochs == 3


def plain_trainer(dataset, trainer_class, resume=False, configuration=None, plans=None, fold=0):
    plans = (plans or dataset.case.plans()) | {"continue_training": resume}
    configuration = configuration or dataset.case.configuration
    return trainer_class(plans, configuration, fold, dataset.case.dataset_json(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("predict_with=both", "predict_with is teacher or student, got 'both'"),
        ("ema_decay=1.5", r"ema_decay is a fraction in \[0, 1\], got 1.5"),
        ("rampup_duration=40", r"rampup_duration is a fraction in \[0, 1\], got 40"),
    ],
)
def test_bad_value_is_refused_before_anything_is_done(tiny_dataset, monkeypatch, option, message):
    dataset = tiny_dataset()
    monkeypatch.setenv("nnUNet_ssl_options", option)
    with pytest.raises(ValueError, match=message):
        plain_trainer(dataset, MEAN_TEACHER).initialize()


def test_fold_beyond_the_splits_is_refused(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, fold=2)
    with pytest.raises(ValueError, match=r"there is no fold 2: .*splits_final.json has the folds 0 to 1"):
        trainer.run_training()
    trainer.fold = -1
    with pytest.raises(ValueError, match="there is no fold -1"):
        trainer.do_split()


def raw_labels(dataset, *cases: str) -> None:
    raw = dataset.images_un.parent
    (raw / "labelsTr").mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    for case in cases:
        (raw / "labelsTr" / f"{case}.nii.gz").touch()


@pytest.mark.parametrize("change", ["val", "train", "unlabeled"])
def test_a_run_goes_on_with_the_split_it_began_with(tiny_dataset, change):
    """Other training or validation cases are refused; other unlabeled ones are said."""
    dataset = tiny_dataset()
    fold = {"train": ["labeled0", "labeled1"], "val": ["labeled2"], "unlabeled": ["unlabeled0", "unlabeled1"]}
    dataset.write_splits([fold])
    make_trainer(dataset, TwoTerms, num_epochs=2, save_every=1).run_training()
    others = {"val": ["labeled3"], "train": ["labeled0", "labeled3"], "unlabeled": ["unlabeled0", "unlabeled2"]}
    dataset.write_splits([fold | {change: others[change]}])
    resumed = make_trainer(dataset, TwoTerms, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_final.pth")
    resumed.num_epochs = 3
    if change == "unlabeled":
        resumed.run_training()
        assert (
            "the unlabeled cases are others than those that this run began with" in Path(resumed.log_file).read_text()
        )
    else:
        with pytest.raises(ValueError, match="this run began with other training or validation cases"):
            resumed.run_training()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_few_labeled_cases_have_folds_that_fit_and_nnunet_runs_on_them(tiny_dataset, number):
    """Without a split nnU-Net's five folds end in a traceback of scikit-learn."""
    dataset = tiny_dataset()
    (dataset.folder / "splits_final.json").unlink()
    for i in range(number, 4):
        for file in dataset.labeled_folder.glob(f"labeled{i}*"):
            file.unlink()
    trainer = make_trainer(dataset, TwoTerms, fold=number - 1)
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert ("no estimate" in log) == (number == 1)
    assert f"splits_final.json: {'one fold' if number == 1 else f'{number} folds'}" in log
    train, validation = make_trainer(dataset, nnUNetTrainer, fold=number - 1).do_split()
    assert (train, validation) == trainer.do_split()
    assert len(validation) == 1
    with pytest.raises(ValueError, match=f"there is no fold {number}"):
        make_trainer(dataset, TwoTerms, fold=number).do_split()


def test_without_a_split_it_is_nnunets_written_whole(tiny_dataset, monkeypatch):
    """nnU-Net writes the file in place: of folds that start together one may read half of it."""
    dataset = tiny_dataset()
    file = dataset.folder / "splits_final.json"
    for i in range(4, 7):
        dataset.write_case(dataset.labeled_folder, f"labeled{i}", i, has_label=True)
    splits = []
    for trainer_class in (nnUNetTrainer, TwoTerms):
        file.unlink()
        found = make_trainer(dataset, trainer_class, fold=2).do_split()
        splits.append((found, json.loads(file.read_text())))
        monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.save_json", pytest.fail)
    assert splits[0] == splits[1]


@pytest.mark.parametrize("damage", ["image", "properties", "cut off", "not begun"])
@pytest.mark.parametrize("fold", [0, "all"])
def test_interrupted_preprocessing_of_labeled_cases_is_noticed_first(tiny_dataset, monkeypatch, damage, fold):
    """Before the unlabeled ones are preprocessed, with the command that fixes it."""
    dataset = tiny_dataset()
    raw_labels(dataset, "labeled0", "labeled1", "labeled2", "labeled3")
    file = dataset.labeled_folder / ("labeled1.pkl" if damage == "properties" else "labeled1.b2nd")
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        for one in dataset.labeled_folder.glob("labeled1*") if damage == "not begun" else [file]:
            one.unlink()
    monkeypatch.setattr(UnlabeledPreprocessing, "outdated", lambda *_: pytest.fail("preprocessing had begun"))
    trainer = make_trainer(dataset, TwoTerms, fold=fold)
    command = "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 3d_fullres"
    with pytest.raises(ValueError, match=rf"1 labeled cases are not, or not wholly, .*: labeled1\. {command}"):
        trainer.run_training()


@pytest.mark.parametrize("trainer", [TwoTerms, find_trainer("nnUNetTrainerSSL")])
def test_a_configuration_that_is_not_preprocessed(tiny_dataset, trainer):
    dataset = tiny_dataset()
    shutil.rmtree(dataset.labeled_folder)
    command = "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 3d_fullres"
    with pytest.raises(ValueError, match=rf"not preprocessed for 3d_fullres: there is no .*\. {command}"):
        make_trainer(dataset, trainer).initialize()


def test_nnunet_makes_no_split_of_half_the_cases(tiny_dataset):
    dataset = tiny_dataset()
    (dataset.folder / "splits_final.json").unlink()
    raw_labels(dataset, *(f"labeled{i}" for i in range(9)))
    with pytest.raises(ValueError, match="5 labeled cases are not, or not wholly, preprocessed"):
        make_trainer(dataset, TwoTerms).do_split()
    assert not (dataset.folder / "splits_final.json").exists()


def test_fold_all_uses_images_un(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, fold="all", seed=1)
    trainer.on_train_start()
    assert sorted(trainer.dataloader_train.labeled.data_loader.indices) == [f"labeled{i}" for i in range(4)]
    assert sorted(trainer.dataloader_train.unlabeled.data_loader.indices) == [f"unlabeled{i}" for i in range(3)]


# ---- the network that counts ----


def test_inference_network_is_swapped_back_even_on_an_error(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1)
    trainer.initialize()
    student = trainer.network
    with pytest.raises(KeyError), trainer.networks.in_place(trainer, "teacher"):
        assert trainer.network is trainer.networks["teacher"]
        trainer.set_deep_supervision_enabled(True)
        raise KeyError
    assert trainer.network is student
    assert student.decoder.deep_supervision is True
    assert trainer.networks["teacher"].decoder.deep_supervision is False
    assert not trainer.networks["teacher"].training


def test_student_can_be_the_one_that_predicts(tiny_dataset):
    dataset = tiny_dataset()
    for name in ("teacher", "student"):
        trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, predict_with=name)
        trainer.run_training()
        saved = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)["network_weights"]
        assert_equal_weights(dict(saved), dict(trainer.networks[name].state_dict()))
        assert trainer.observer.curves.values.keys() >= {"dice/teacher", "dice/student"}
    assert any(not torch.equal(saved[key], value) for key, value in trainer.networks["teacher"].state_dict().items())


def test_teacher_starts_as_the_student_whatever_was_loaded(tiny_dataset):
    """`-pretrained_weights` loads after `initialize()`."""
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1)
    trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.data.fill_(0.5)
    trainer.on_train_start()
    assert_equal_weights(parameters_of(trainer.network), parameters_of(trainer.networks["teacher"]))


def test_validation_scores_the_cases_with_the_teacher(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1)
    trainer.run_training()
    student = trainer.network
    trainer.perform_actual_validation(save_probabilities=True)
    assert trainer.network is student
    assert (Path(trainer.output_folder) / "validation" / "summary.json").exists()
    assert (Path(trainer.output_folder) / "validation" / "labeled2.npz").exists()


def test_student_validates_beside_the_teacher_when_asked(tiny_dataset):
    """Its predictions lie in a folder of its own, are its own, and those of the teacher stay where nnU-Net has them."""
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1, validate_all_networks=True)
    trainer.run_training()
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.zero_()
    folder = trainer.output_folder
    trainer.perform_actual_validation(save_probabilities=True)
    assert trainer.output_folder == folder
    with np.load(Path(folder, "student", "validation", "labeled2.npz")) as student:
        assert np.ptp(student["probabilities"]) == 0.0
    with np.load(Path(folder, "validation", "labeled2.npz")) as teacher:
        assert np.ptp(teacher["probabilities"]) > 0.0
    assert Path(folder, "student", "validation", "summary.json").exists()


def test_pseudo_dice_of_the_networks_that_do_not_predict_can_be_left_out(tiny_dataset):
    """It takes their validation passes, and nothing of the training depends on it."""
    dataset, weights = tiny_dataset(dim=2), []
    for switched_on in (True, False):
        trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, pseudo_dice_of_all_networks=switched_on)
        trainer.run_training()
        curves = {name for name in trainer.observer.curves.values if name.startswith("dice/")}
        assert curves == ({"dice/teacher", "dice/student"} if switched_on else {"dice/teacher"})
        weights.append(parameters_of(trainer.network))
    assert_equal_weights(*weights)


def test_pseudo_dice_of_one_epoch_without_foreground_does_not_poison_the_average(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1)
    trainer.on_train_start()
    hits = {"loss": np.array(0.0), "tp_hard": np.array([3.0]), "fp_hard": np.array([1.0]), "fn_hard": np.array([1.0])}
    nothing = {key: value * 0 for key, value in hits.items()}
    for epoch, (output, expected) in enumerate([(nothing, 0.0), (hits, 0.75), (nothing, 0.75), (hits, 0.75)]):
        trainer.current_epoch = epoch
        trainer.on_validation_epoch_end([output])
        assert trainer.logger.get_value("ema_fg_dice", step=-1) == pytest.approx(expected)


class Collapsing(TwoTerms):
    """Learns from pseudo-labels that are all of the first foreground channel; a second network from none of it."""

    def training_losses(self, labeled, unlabeled):
        target = torch.zeros_like(self.network_probabilities(unlabeled.weak))
        target[:, self.label_space.foreground.start or 0] = 1.0
        self.observe_pseudo_labels(target)
        self.observe_pseudo_labels(1.0 - target, network="second")
        yield {"supervised": self.supervised_loss(labeled)}


@pytest.mark.parametrize("cell", [{"num_classes": 3}, {"num_classes": 3, "regions": True}], ids=str)
def test_collapsed_classes_are_named_once(tiny_dataset, cell):
    trainer = make_trainer(tiny_dataset(**cell), Collapsing, seed=1, num_epochs=6, num_iterations_per_epoch=2)
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    first, gone = ("whole", "core") if trainer.label_manager.has_regions else ("class1", "class2")
    for warning in (
        f"{gone} has vanished in the pseudo-labels: it is 0.000% of their voxels",
        f"{first} has flooded in the pseudo-labels: it is 100.000% of their voxels",
        f"{first} has vanished in the pseudo-labels that the second network learns from: it is 0.000% of their voxels",
    ):
        assert log.count(f"WARNING: class {warning}") == 1


def test_sound_pseudo_labels_are_no_collapse(tiny_dataset):
    trainer = make_trainer(tiny_dataset(num_classes=3), MEAN_TEACHER, seed=1, num_epochs=6)
    share = {"pseudo_label/1": 0.1, "pseudo_label/2": 0.04, "labeled/1": 0.05, "labeled/2": 0.05}
    trainer.on_train_start()
    for epoch in range(5):
        trainer.observer.curves.log(epoch, share)
    trainer.current_epoch = 5
    trainer.observer._warn_of_collapse(labels_are_complete=True)
    assert set(trainer.observer._collapse_states.values()) == {None}


def test_class_that_is_not_learned_yet_is_no_collapse(tiny_dataset):
    """In the first tenth of the run."""
    trainer = make_trainer(tiny_dataset(dim=2), MEAN_TEACHER, seed=1, num_epochs=50)
    trainer.on_train_start()
    for epoch in range(6):
        trainer.observer.end_epoch(epoch, 50, {"pseudo_label/1": 0.0, "labeled/1": 0.05}, True)
        assert trainer.observer._collapse_states == ({} if epoch < 4 else {"pseudo_label/1": "vanished"})


@pytest.mark.parametrize(("batch_size", "oversampling"), [(4, 0.33), (4, 0.5), (5, 0.33), (2, 0.0), (1, 0.33)])
def test_labeled_prior_is_that_of_the_samples_drawn_at_random(tiny_dataset, batch_size, oversampling):
    """The i-th sample has i + 1 of 16 rows of the class, and one that nnU-Net centred on foreground nothing else."""
    dataset = tiny_dataset(dim=2, batch_size=batch_size)
    trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, oversample_foreground_percent=oversampling)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    loader = trainer.dataloader_train.labeled.data_loader
    is_centred = [loader.get_do_oversample(i) for i in range(batch_size)]
    for i, target in enumerate(batch["target"][0]):
        target[:] = float(is_centred[i])
        target[:, : i + 1] = 1.0
    trainer.train_step(batch)
    at_random = [(i + 1) / 16 for i in range(batch_size) if not is_centred[i]]
    assert trainer.observer.epoch_records["labeled/1"] == [pytest.approx(np.mean(at_random))]


def test_there_is_no_labeled_prior_where_all_samples_are_centred_on_foreground(tiny_dataset):
    """As in the second of two processes with a sample each."""
    trainer = make_trainer(tiny_dataset(dim=2), MEAN_TEACHER, seed=1, oversample_foreground_percent=1.0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert "pseudo_label/1" in trainer.observer.epoch_records
    assert "labeled/1" not in trainer.observer.epoch_records


# ---- going on ----


def test_options_are_the_checkpoints(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, consistency_weight=3.0, save_every=1)
    trainer.run_training()
    final = f"{trainer.output_folder}/checkpoint_final.pth"

    resumed = plain_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(final)
    assert (resumed.consistency_weight, resumed.num_epochs, resumed.seed) == (3.0, 2, 1)

    stored = " ".join(f"{name}={value}" for name, value in trainer.options.items())
    monkeypatch.setenv("nnUNet_ssl_options", "num_epochs=5")  # the others need not be said again
    longer = plain_trainer(dataset, MEAN_TEACHER, resume=True)
    longer.load_checkpoint(final)
    assert longer.options == trainer.options | {"num_epochs": 5}
    longer.run_training()
    assert longer.current_epoch == 5
    ramp = longer.observer.curves.values["ramp/consistency"]
    assert ramp[2] == pytest.approx(np.mean([gaussian_rampup(step / 10, 1.0) for step in (4, 5)]))  # of the whole run

    monkeypatch.setenv("nnUNet_ssl_options", stored.replace("consistency_weight=3.0", "consistency_weight=4.0"))
    with pytest.raises(ValueError, match=r"started with consistency_weight=3.0, now .* consistency_weight=4.0"):
        plain_trainer(dataset, MEAN_TEACHER, resume=True).load_checkpoint(final)
    validating = plain_trainer(dataset, MEAN_TEACHER, resume=False)  # --val never compares
    validating.load_checkpoint(final)
    assert validating.consistency_weight == 3.0
    assert validating.mirror_axes == (0, 1, 2)  # known to a training from its augmentation, which --val does not set up


class Interrupted(SemiSupervisedTrainer):
    """Stops in its fourth epoch."""

    def training_losses(self, labeled, unlabeled):
        if self.current_epoch == 3:
            raise KeyboardInterrupt
        yield {"supervised": self.supervised_loss(labeled)}


def test_finished_run_that_goes_on_and_is_interrupted_loses_nothing(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    finished = make_trainer(dataset, Interrupted, seed=1, save_every=1)
    finished.run_training()
    stored = " ".join(f"{name}={value}" for name, value in finished.options.items())
    monkeypatch.setenv("nnUNet_ssl_options", stored.replace("num_epochs=2", "num_epochs=5"))
    longer, again = (plain_trainer(dataset, Interrupted, resume=True) for _ in range(2))
    maybe_load_checkpoint(longer, continue_training=True, validation_only=False)
    with pytest.raises(KeyboardInterrupt):
        longer.run_training()
    assert "goes on to epoch 5: checkpoint_final.pth is checkpoint_latest.pth now" in Path(longer.log_file).read_text()
    maybe_load_checkpoint(again, continue_training=True, validation_only=False)
    assert again.current_epoch == 3
    assert len(again.observer.curves.values["loss/supervised"]) == 3


@pytest.mark.parametrize(("rank", "is_disabled"), [(0, False), (1, False), (0, True)])
def test_only_the_first_process_saves_and_only_if_it_may(tiny_dataset, rank, is_disabled):
    trainer = make_trainer(tiny_dataset(dim=2), MEAN_TEACHER)
    trainer.initialize()
    trainer.local_rank, trainer.disable_checkpointing = rank, is_disabled
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    saved = list(Path(trainer.output_folder).glob("*.pth*"))
    assert len(saved) == (rank == 0 and not is_disabled)


def test_damaged_checkpoint_falls_back_to_the_previous_one(tiny_dataset):
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, MEAN_TEACHER, seed=1)
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    trainer.current_epoch = 1
    trainer.save_checkpoint(str(file))
    file.write_bytes(file.read_bytes()[:1000])
    resumed = make_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(str(file))
    assert resumed.current_epoch == 1  # of the first one: written after epoch 0
    assert "is damaged" in Path(resumed.log_file).read_text()


def test_checkpoint_of_nnunet_is_not_resumed(tiny_dataset):
    dataset = tiny_dataset()
    plain = make_trainer(dataset, nnUNetTrainer)
    plain.run_training()
    with pytest.raises(ValueError, match=r"checkpoint of nnUNetTrainer, not of .*init_checkpoint=PATH"):
        make_trainer(dataset, MEAN_TEACHER, resume=True).load_checkpoint(f"{plain.output_folder}/checkpoint_final.pth")


def test_init_checkpoint_starts_from_all_weights_and_once(tiny_dataset):
    dataset = tiny_dataset()
    plain = make_trainer(dataset, nnUNetTrainer)
    plain.run_training()
    checkpoint = f"{plain.output_folder}/checkpoint_final.pth"
    trainer = make_trainer(dataset, MEAN_TEACHER, init_checkpoint=checkpoint)
    trainer.on_train_start()
    assert_equal_weights(parameters_of(plain.network), parameters_of(trainer.network))
    assert_equal_weights(parameters_of(plain.network), parameters_of(trainer.networks["teacher"]))
    for parameter in trainer.network.parameters():
        parameter.data.fill_(0.5)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed.on_train_start()
    assert_equal_weights(parameters_of(trainer.network), parameters_of(resumed.network))
    with pytest.raises(ValueError, match="nowhere.pth is not a file"):
        make_trainer(dataset, MEAN_TEACHER, init_checkpoint="nowhere.pth").on_train_start()
    other = tiny_dataset(num_classes=4)
    with pytest.raises(ValueError, match=r"checkpoint_final.pth is not that of .* 3d_fullres .* 4 output channels"):
        make_trainer(other, MEAN_TEACHER, init_checkpoint=checkpoint).on_train_start()


def test_init_checkpoint_that_is_none_is_told_so(tiny_dataset, tmp_path):
    """And not: delete it, as for a damaged checkpoint of the run itself."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"noise")
    dataset = tiny_dataset()
    with pytest.raises(ValueError, match="weights.pth cannot be read as a checkpoint"):
        make_trainer(dataset, MEAN_TEACHER, init_checkpoint=str(file)).on_train_start()
    torch.save({"weights": 1}, file)
    with pytest.raises(ValueError, match="weights.pth is no checkpoint of nnU-Net"):
        make_trainer(dataset, MEAN_TEACHER, init_checkpoint=str(file)).on_train_start()


def test_best_so_far_survives_a_checkpoint_written_before_it_was_noted(tiny_dataset):
    """nnU-Net writes checkpoint_latest first and notes the best Dice afterwards."""
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, MEAN_TEACHER, seed=1, save_every=1, num_epochs=3)
    trainer.on_train_start()
    trainer.logger.local_logger.my_fantastic_logging["ema_fg_dice"] = [0.5, 0.8, 0.7]
    trainer._best_ema = 0.5
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(dataset, MEAN_TEACHER, resume=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert resumed._best_ema == 0.8


# ---- mixed precision, with a scaler on the CPU ----


class Exploding(TwoTerms):
    """A finite loss, whose gradient is not, from the second step on."""

    def training_losses(self, labeled, unlabeled):
        factor = self.probabilities(self.forward_pass(labeled.image).logits).mean() * 0.0
        explosion = torch.sqrt(factor) if self.step_of_epoch else factor  # the slope of a root at 0 is infinite
        yield {"supervised": self.supervised_loss(labeled) + explosion}


def with_scaler(dataset, trainer_class, **settings):
    trainer = make_trainer(dataset, trainer_class, seed=1, num_iterations_per_epoch=50, **settings)
    trainer.on_train_start()
    trainer.grad_scaler = trainer.step.grad_scaler = torch.GradScaler("cpu", init_scale=2.0**4)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def test_scaler_changes_nothing_of_a_step(tiny_dataset):
    dataset = tiny_dataset()
    loss, weights, _ = step_of(dataset, TwoTerms)
    trainer = with_scaler(dataset, TwoTerms)
    assert trainer.train_step(next(trainer.dataloader_train))["loss"] == pytest.approx(loss, abs=1e-6)
    for name, value in parameters_of(trainer.network).items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=1e-5)


def test_overflow_of_the_scaler_is_no_failure_until_its_scale_is_down(tiny_dataset):
    """The scale falls from 16 to 1 in four steps, which mixed precision explains; the next three do not."""
    trainer = with_scaler(tiny_dataset(), Exploding, max_nonfinite_steps=3)
    trainer.train_step(next(trainer.dataloader_train))
    weights = parameters_of(trainer.network)
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))
        assert trainer.skipped_steps.in_a_row == 0
    trainer.train_step(next(trainer.dataloader_train))
    trainer.train_step(next(trainer.dataloader_train))
    with pytest.raises(RuntimeError, match="not finite in 3 steps in a row"):
        trainer.train_step(next(trainer.dataloader_train))
    assert trainer.optimizer_steps == 1
    assert_equal_weights(weights, parameters_of(trainer.network))


def test_loss_that_is_not_finite_leaves_the_scaler_usable(tiny_dataset):
    trainer = with_scaler(tiny_dataset(), TwoTerms)
    bad = next(trainer.dataloader_train)
    bad["data"] = bad["data"] * torch.nan
    trainer.train_step(bad)
    assert trainer.skipped_steps.in_a_row == 1
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert trainer.optimizer_steps == 1


def test_a_good_step_ends_a_row_of_bad_ones_under_mixed_precision_too(tiny_dataset):
    trainer = with_scaler(tiny_dataset(dim=2), TwoTerms, max_nonfinite_steps=2)
    for value in (torch.nan, 1.0, torch.nan, 1.0):
        batch = next(trainer.dataloader_train)
        batch["data"] = batch["data"] * value
        trainer.train_step(batch)
    assert (trainer.skipped_steps.of_epoch, trainer.skipped_steps.in_a_row) == (2, 0)


def test_resumed_scaler_goes_on_with_its_scale(tiny_dataset):
    """It is that of the checkpoint; where only one of both runs has a scaler, a run goes on with what it has."""
    dataset = tiny_dataset()
    trainer = with_scaler(dataset, TwoTerms)
    bad = next(trainer.dataloader_train)
    bad["data"] = bad["data"] * torch.nan
    trainer.train_step(bad)  # halves the scale
    trainer.train_step(next(trainer.dataloader_train))  # one step towards doubling it again
    stored, fresh = (torch.GradScaler("cpu", init_scale=scale) for scale in (2.0**3, 2.0**5))
    expected = {"scaled": stored.state_dict() | {"_growth_tracker": 1}, "unscaled": fresh.state_dict()}
    scalers = {"scaled": trainer.grad_scaler, "unscaled": None}
    for name, scaler in scalers.items():
        trainer.grad_scaler = scaler
        trainer.save_checkpoint(f"{trainer.output_folder}/{name}.pth")
    for name in scalers:
        resumed, without = (make_trainer(dataset, TwoTerms, resume=True) for _ in range(2))
        resumed.initialize()
        resumed.grad_scaler = torch.GradScaler("cpu", init_scale=2.0**5)
        resumed.load_checkpoint(f"{trainer.output_folder}/{name}.pth")
        without.load_checkpoint(f"{trainer.output_folder}/{name}.pth")
        assert resumed.grad_scaler.state_dict() == expected[name]
        assert without.grad_scaler is None


def test_previous_checkpoints_of_a_finished_run_are_tidied(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER, seed=1, num_epochs=4, save_every=1)
    trainer.run_training()
    names = {file.name for file in Path(trainer.output_folder).glob("*.pth")}
    assert not {name for name in names if "latest" in name}
    assert {"checkpoint_final.pth", "checkpoint_best.pth"} <= names


# ---- data ----


def test_workers_of_both_streams_end_with_the_run_and_with_an_error(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    before = set(multiprocessing.active_children())
    make_trainer(dataset, MEAN_TEACHER, seed=1).run_training()
    assert set(multiprocessing.active_children()) <= before

    class Breaking(MEAN_TEACHER):
        def training_losses(self, labeled, unlabeled):
            raise ZeroDivisionError
            yield

    with pytest.raises(ZeroDivisionError):
        make_trainer(dataset, Breaking, seed=1).run_training()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [None, "0", "3"])
def test_number_of_workers_in_the_environment_stays_what_it_is(tiny_dataset, monkeypatch, workers):
    monkeypatch.delenv("nnUNet_n_proc_DA")
    if workers is not None:
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    trainer = make_trainer(tiny_dataset(dim=2), MEAN_TEACHER)
    trainer.initialize()
    trainer._loaders_of_nnunet()
    assert os.environ.get("nnUNet_n_proc_DA") == workers


def test_warmup_loads_no_unlabeled_images(tiny_dataset, monkeypatch):
    """Of 5 epochs 0.4 are labeled-only; of a 0.5 of them the third one is so in half of its steps, and loads them."""
    make_batch, epochs = UnlabeledLoader.generate_train_batch, []
    for fraction in (0.4, 0.5):
        trainer = make_trainer(tiny_dataset(), FIXMATCH, num_epochs=5, warmup_fraction=fraction)
        monkeypatch.setattr(
            UnlabeledLoader,
            "generate_train_batch",
            lambda loader, trainer=trainer: epochs.append(trainer.current_epoch) or make_batch(loader),
        )
        trainer.run_training()
        assert epochs == [2, 2, 3, 3, 4, 4]
        epochs.clear()
        log = Path(trainer.log_file).read_text()
        assert log.count("warm-up ends") == 1
        assert log.index("Epoch 2") < log.index("warm-up ends") < log.index("Epoch 3")


def test_warmup_gives_all_workers_to_the_labeled_stream(tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    before = set(multiprocessing.active_children())
    trainer = make_trainer(tiny_dataset(), FIXMATCH, num_epochs=3, seed=1)
    start_loader, started = trainer._start_loader, []

    def note(loader, stream, num_workers):
        started.append((trainer.current_epoch, stream, num_workers))
        return start_loader(loader, stream, num_workers)

    monkeypatch.setattr(trainer, "_start_loader", note)
    trainer.run_training()
    assert started == [(0, "labeled", 2), (0, "validation", 1), (1, "labeled", 1), (1, "unlabeled", 1)]
    assert set(multiprocessing.active_children()) <= before


def test_several_ranks_name_the_command_instead_of_preprocessing(tiny_dataset):
    dataset = tiny_dataset()
    dataset.images_un.mkdir(parents=True)
    shutil.copy(next(dataset.folder.glob("gt_segmentations/*.nii.gz")), dataset.images_un / "scan_0000.nii.gz")
    trainer = make_trainer(dataset, MEAN_TEACHER)
    trainer.initialize()
    trainer.is_ddp = True
    command = "nnunet_ssl preprocess -d Dataset999_Tiny -c 3d_fullres -p nnUNetPlans"
    with pytest.raises(RuntimeError, match=f"1 unlabeled cases are not preprocessed.*{command}"):
        trainer._collect_pool()


def test_trainer_is_not_constructed_with_more_than_nnunet_gives():
    for base in (SemiSupervisedTrainer, TeacherStudentTrainer, MEAN_TEACHER):
        assert "__init__" not in vars(base)


# ---- the border of the pre-training ----


def lengthened(network: torch.nn.Module) -> list[torch.Tensor]:
    """Make the weights before each normalisation three times as long, and return them."""
    weights = [block.conv.weight.data for block in network.modules() if hasattr(block, "norm")]
    for weight in weights:
        weight.mul_(3.0)
    return weights


def test_run_begins_anew_after_the_pretraining(tiny_dataset):
    """Learning rate and lengths of weights are a fresh run's, of the teacher too; what the networks say stays."""
    trainer = started(tiny_dataset(dim=2), find_trainer("nnUNetTrainerSPCL"), num_epochs=4, pretrain_fraction=0.5)
    weights = [lengthened(trainer.networks[name]) for name in ("student", "teacher")]
    image = torch.randn(2, 1, 16, 16)
    before = [trainer.networks.forward_pass(image, name).logits for name in ("student", "teacher")]
    sum(parameter.sum() for parameter in trainer.network.parameters()).mul(0.0).backward()
    trainer.optimizer.step()
    assert trainer.optimizer.state
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    for name, of_network, logits in zip(("student", "teacher"), weights, before, strict=True):
        assert all(float(one.norm()) == pytest.approx((2 * len(one)) ** 0.5) for one in of_network)
        assert torch.allclose(trainer.networks.forward_pass(image, name).logits, logits, atol=1e-3)
    assert not trainer.optimizer.state
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.logger.get_value("lrs", step=-1) == 0.01
    found = [float(weight.norm()) for weight in lengthened(trainer.networks["student"])]
    trainer.current_epoch = 3
    trainer.on_train_epoch_start()
    assert [float(weight.norm()) for weight in weights[0]] == found


def test_run_without_a_pretraining_keeps_its_weights(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), find_trainer("nnUNetTrainerSPCL"), num_epochs=4, pretrain_fraction=0.0)
    weights = lengthened(trainer.network)
    before = [float(weight.norm()) for weight in weights]
    trainer.on_train_epoch_start()
    assert [float(weight.norm()) for weight in weights] == before


def test_a_missing_gpu_is_named_with_the_remedy(tiny_dataset, monkeypatch):
    """nnU-Net asks for a GPU where nothing else is said."""
    trainer = make_trainer(tiny_dataset(), MEAN_TEACHER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer.my_init_kwargs["device"] = torch.device("cuda")
    with pytest.raises(RuntimeError, match="no GPU that torch can use: -device cpu"):
        trainer.run_training()
