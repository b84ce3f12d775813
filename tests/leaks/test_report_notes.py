"""What a report says of leaks: of the cases that its trainings had, not of those of the split today."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation.leak_notes import audit_of, leaks_in_runs
from nnunet_ssl.evaluation.runs import Run
from nnunet_ssl.leaks.copies import compare_all
from tests.leaks.conftest import LABELED, UNLABELED
from tests.leaks.scans import NAME
from tests.leaks.test_audit import changed

RUN = Run(
    trainer="nnUNetTrainerSome",
    configuration="3d_fullres",
    fold="0",
    folder=Path(),
    cases=tuple(LABELED[3:]),
    train=tuple(LABELED[:3]),
    unlabeled=tuple(UNLABELED),
    train_and_val="",
    split=None,
    pseudo_dice=(),
    minutes=0,
    options={},
    is_semi_supervised=True,
    validates_itself=False,
)


@pytest.fixture
def copied(dataset):
    """Return a data set with a copy of a validation case in imagesUn, audited."""
    dataset.add("imagesUn", "p13_a", changed(3))
    compare_all(RawDataset.open(dataset.raw), dataset.preprocessed)
    return dataset


def say(dataset, *runs: Run) -> list[str]:
    return leaks_in_runs(dataset.raw, dataset.preprocessed, runs)


def test_clean_data(dataset):
    assert say(dataset, RUN) == say(dataset) == []
    expected = "An audit has compared all 11 scans; what it has found stands among the warnings."
    assert audit_of(dataset.raw, dataset.preprocessed) == expected


def test_leaks_are_of_the_cases_that_a_run_had(copied):
    others = {"p13_a"}
    with_copy = replace(RUN, unlabeled=(*UNLABELED, *others))
    assert say(copied, RUN) == []
    (sentence,) = say(copied, RUN, with_copy, replace(with_copy, fold="1"))
    assert sentence.startswith(
        "nnUNetTrainerSome, fold 0; nnUNetTrainerSome, fold 1: one image in unlabeled and in validation: p3_a ~ p13_a"
    )


def test_a_run_whose_unlabeled_cases_nobody_knows_had_those_of_imagesun(copied):
    assert len(say(copied, replace(RUN, unlabeled=()))) == len(say(copied, replace(RUN, unlabeled=None))) == 1
    assert say(copied, replace(RUN, unlabeled=(), is_semi_supervised=False)) == []


def test_without_an_audit_or_raw_data(dataset):
    dataset.add("imagesTs", "p20_a", changed(3))
    line = f"changed copies under other names were not looked for in 1 of 11 scans: nnunet_ssl audit -d {NAME}"
    assert audit_of(dataset.raw, dataset.preprocessed) == f"Of the audit: {line}."
    (dataset.raw / "dataset.json").write_text("{")
    assert say(dataset, RUN)[0].startswith("leaks could not be looked for: ")
    shutil.rmtree(dataset.raw)
    assert (say(dataset, RUN), audit_of(dataset.raw, dataset.preprocessed)) == ([], "")
