"""What trainers with a stream of unlabeled images say of their cases."""

from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.loaders import close_loader
from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import make_trainer


@pytest.mark.parametrize("is_twin", [True, False])
def test_log_names_training_cases_that_are_validated_on(tiny_dataset, is_twin):
    dataset = tiny_dataset()
    dataset.write_case(dataset.labeled_folder, "other", seed=0 if is_twin else 7)  # labeled0 has 0
    dataset.write_splits([{"train": ["labeled0", "labeled1"], "val": ["other", "labeled3"]}])
    trainer = make_trainer(dataset, find_trainer("nnUNetTrainerMeanTeacher"))
    trainer.on_train_start()
    warning = "WARNING: training cases are the same image as a validation case, whose score is too good then: "
    assert (f"{warning}labeled0 = other." in Path(trainer.log_file).read_text()) == is_twin


def test_no_more_batches_wait_for_validation_than_in_nnunet(tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    dataset, waiting = tiny_dataset(dim=2), []
    for trainer_class in (find_trainer("nnUNetTrainerMeanTeacher"), nnUNetTrainer):
        trainer = make_trainer(dataset, trainer_class)
        trainer.initialize()
        training, validation = trainer.get_dataloaders()
        streams = (getattr(training, "labeled", training), validation)
        waiting.append([(len(one._processes), one.num_cached) for one in streams])
        for one in (training, validation):
            close_loader(one) if trainer_class is not nnUNetTrainer else one._finish()
    ours, theirs = waiting
    assert ours[1] == theirs[1] == (1, 3)
    assert ours[0][1] == theirs[0][1] == 6
