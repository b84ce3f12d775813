"""A preprocessed data set of 10 labeled and 3 unlabeled cases, as far as the planning of trainings reads it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ssl.benchmarking.experiment import Experiment
from nnunet_ssl.benchmarking.planning import Comparison, Planned
from nnunet_ssl.benchmarking.running import Places
from tests.conftest import Case


@pytest.fixture
def hippocampus(tmp_path, monkeypatch) -> Path:
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    source = tmp_path / "preprocessed" / "Dataset004_Hippocampus"
    (source / "gt_segmentations").mkdir(parents=True)
    for number in range(10):
        (source / "gt_segmentations" / f"case.{number}.nii.gz").touch()
    images = tmp_path / "raw" / source.name / "imagesUn"
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"un{number}_0000.nii.gz").touch()
    plans = Case(dim=2, stages=4).plans() | {"dataset_name": source.name}
    (source / "nnUNetPlans.json").write_text(json.dumps(plans))
    (source / "dataset.json").write_text(json.dumps(Case().dataset_json()))
    (source / "dataset_fingerprint.json").write_text("{}")
    return source


@pytest.fixture
def experiment(hippocampus) -> Experiment:
    return Experiment(hippocampus, "2d", labeled=2, steps=40)


@pytest.fixture
def comparison(experiment) -> Comparison:
    return Comparison((experiment,), ("nnUNetTrainerBCP",), (1,), "cpu")


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path / "work", tmp_path / "json")


def finish(planned: Planned, places: Places, **changes) -> None:
    file = planned.run.file(places.results)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(planned.facts | changes))


def names(planned: list[Planned]) -> list[str]:
    return [one.run.name for one in planned]


def changed(comparison: Comparison, **changes) -> Comparison:
    """Return a comparison whose only experiment is another one."""
    (experiment,) = comparison.experiments
    return replace(comparison, experiments=(replace(experiment, **changes),))
