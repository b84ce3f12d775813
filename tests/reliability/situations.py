"""A data set with a model, and files of other kinds: all that the verbs that write need, small and in one folder."""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_ssl.building_blocks.ellipses import Ellipse
from nnunet_ssl.commands.cli import main, sentence
from nnunet_ssl.data.unlabeled_preprocessing import state_folder
from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.demonstration.synthetic_scans import Counts, write_dataset
from nnunet_ssl.evaluation import case_pictures
from nnunet_ssl.splits.protocols import load_benchmark
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training.curves import Curves
from tests.commands.test_pseudolabel_dataset import LABELED, SCANS, write_case
from tests.conftest import DATASET, Case, TinyDataset, draw_no_progress
from tests.training.test_model_export import finished_run

MODEL = ("-d", "999", "-c", "3d_fullres", "-tr", "nnUNetTrainerMeanTeacher")
OPTIONS = (
    "num_epochs=2 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1 seed=1 checkpoint_minutes=0 previews=true"
)
# The words of a verb; ROOT is the folder of all.
VERBS: dict[str, list[str]] = {
    "convert": ["convert", "LA", "-i", "ROOT/source", "-np", "1"],
    "split": ["split", "999", "--labeled", "2", "--folds", "1", "--overwrite"],
    "split --hide": ["split", "999", "--labeled", "2", "--folds", "1", "--hide", "--overwrite"],
    "preprocess": ["preprocess", "-d", "999", "-np", "1"],
    "preview": ["preview", *MODEL, "-device", "cpu", "-o", "ROOT/out/preview.png"],
    "pseudolabel": ["pseudolabel", *MODEL, "-device", "cpu", "-o", "ROOT/out/pseudo"],
    "pseudolabel --as-dataset": [
        *("pseudolabel", *MODEL, "-device", "cpu", "-o", "ROOT/out/pseudo", "--as-dataset", "127"),
    ],
    "adopt": ["adopt", "-d", "999", "scan0"],
    "report": [
        *["report", "-d", "999", "-np", "1", "-o", "ROOT/out/report", "-gt", "ROOT/references"],
        *("--predictions", "one=ROOT/predictions", "two=ROOT/references"),
    ],
    "export": ["export", *MODEL, "-o", "ROOT/out/model.zip"],
    "evaluate": [
        "evaluate",
        "-gt",
        "ROOT/references",
        "-pred",
        "ROOT/predictions",
        "-np",
        "1",
        "-o",
        "ROOT/out/scores.csv",
    ],
    "hc": ["hc", "-i", "ROOT/masks", "-o", "ROOT/hc.csv"],
    "audit": ["audit", "-d", "999"],
}
# What verbs import when they run, imported here once: each attempt is a process that is forked.
for module in (
    "nnunetv2.run.run_training",
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunet_ssl.commands.pseudolabel",
    "nnunet_ssl.commands.report",
    "nnunet_ssl.conversion.pseudolabeled_dataset",
    "nnunet_ssl.data.identical_images",
    "nnunet_ssl.dataset_conversion.Dataset128_LA",
    "nnunet_ssl.evaluation.leaving_out",
    "nnunet_ssl.evaluation.pool_prediction",
    "nnunet_ssl.evaluation.report",
    "nnunet_ssl.evaluation.runs",
    "nnunet_ssl.leaks.copies",
    "nnunet_ssl.leaks.of_runs",
    "nnunet_ssl.splits.adopting",
    "nnunet_ssl.splits.make_splits",
    "nnunet_ssl.training.model_export",
):
    importlib.import_module(module)
NOT_TRIED = {
    "benchmark": "trains in processes of their own, which are tried as a training; ending them has tests of its own",
    "trainers": "writes nothing",
    "doctor": "writes nothing",
    "demo": "takes minutes; its own files are tried below as the scans of a demo, its trainings as a training",
}


def write_all(root: Path) -> None:
    """Write everything, with nnU-Net's variables set to it."""
    dataset = TinyDataset(Case(), root).write()
    for file in dataset.unlabeled_folder.iterdir():
        file.unlink()
    for number, case in enumerate(LABELED):
        write_case(dataset, "imagesTr", case, seed=number, label="labelsTr")
    for number, case in enumerate(SCANS):
        write_case(dataset, "imagesUn", case, seed=20 + number, label="labelsUn" if number == 0 else None)
    raw = dataset.images_un.parent
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    dataset.write_splits([{"train": LABELED[:2], "val": LABELED[2:], "unlabeled": SCANS}])
    with variables(root), pytest.MonkeyPatch.context() as patched:
        draw_no_progress(patched.setattr)
        final = finished_run(dataset, nnUNetTrainerMeanTeacher) / "fold_0" / "checkpoint_final.pth"
    final.with_name("checkpoint_final.previous.pth").unlink(missing_ok=True)
    for folder in (dataset.unlabeled_folder, state_folder(dataset.unlabeled_folder)):  # which a training has made
        shutil.rmtree(folder)
    for name in ("references", "predictions"):
        shutil.copytree(raw / "labelsTr", root / name)
    (root / "masks").mkdir()
    mask = SimpleITK.GetImageFromArray(Ellipse(70.0, 60.0, 50.0, 35.0, 0.5).filled((120, 140)).astype(np.uint8))
    mask.SetSpacing((0.2, 0.2))
    SimpleITK.WriteImage(mask, str(root / "masks" / "011_HC.nii.gz"))
    benchmark = load_benchmark("la")
    for case in (benchmark.train[0], benchmark.test[0]):
        (root / "source" / case).mkdir(parents=True)
        voxels = np.random.default_rng(len(case)).integers(0, 255, (8, 16, 16)).astype(np.uint8)
        for name, array in (("lgemri", voxels), ("laendo", (voxels > 127).astype(np.uint8) * 255)):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(root / "source" / case / f"{name}.nrrd"))


@contextlib.contextmanager
def variables(root: Path):
    """Let nnU-Net's variables name the folders in `root`."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("raw", "preprocessed", "results"):
            patched.setenv(f"nnUNet_{name}", str(root / name))
        patched.delenv("nnUNet_ssl_options", raising=False)
        yield


def verb(name: str, root: Path) -> Callable[[], int]:
    """Return a verb with its words."""
    words = [word.replace("ROOT", str(root)) for word in VERBS[name]]

    def run() -> int:
        case_pictures.previews = lambda *_: {}  # which take most of a report's time, and are in its page
        return main(words)

    return run


def fold_of(name: str) -> Path:
    """Return the folder of a training, which is called "training", or so with the name of a trainer behind it."""
    trainer = name.partition(" ")[2] or "nnUNetTrainerMeanTeacher"
    return Path("results", DATASET, f"{trainer}__nnUNetPlans__3d_fullres", "fold_0")


def work_of(name: str, root: Path) -> Callable[[], int]:
    """Return what is tried by its name, in a folder; "write" writes everything into it."""
    if name.startswith("training"):
        return lambda: training(root, fold_of(name))
    others = {"scans of a demo": scans_of_a_demo, "write": write_all}
    return verb(name, root) if name in VERBS else lambda: others[name](root) or 0


def training(root: Path, fold: Path) -> int:
    """Train as nnUNetv2_train does, or go on where there is something to go on with, and validate."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    nnUNetTrainer.sleep = lambda _seconds: None  # before it tries again to write into a log
    multiprocessing.get_context = lambda _: SimpleNamespace(Pool=ThreadPool)  # for nnU-Net's validation
    MetaLogger.plot_progress_png = lambda _, folder: Figure().savefig(Path(folder, "progress.png"), dpi=20)
    Curves._plot = lambda _, file, title: draw_small(file)
    os.environ["nnUNet_ssl_options"] = OPTIONS
    goes_on = (root / fold / "run_ssl.json").is_file()
    device = torch.device("cpu")
    name = fold.parent.name.partition("__")[0]
    trainer = get_trainer_from_args("999", "3d_fullres", 0, name, continue_training=goes_on, device=device)
    maybe_load_checkpoint(trainer, goes_on, False)
    trainer.run_training()
    trainer.perform_actual_validation()
    return 0


def draw_small(file: Path) -> None:
    """Draw something in the place of what takes seconds."""
    with replacing(file) as unfinished:
        Figure().savefig(unfinished, dpi=20)


def scans_of_a_demo(root: Path) -> int:
    """Write the scans of a demo."""
    try:
        write_dataset(root / "out" / "demo", Counts(1, 1, 1), seed=0)
    except OSError as error:
        print(sentence(error))
        return 2
    return 0
