"""What trainers with a stream of unlabeled images say of their cases."""

from pathlib import Path

import pytest

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
