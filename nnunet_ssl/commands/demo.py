"""Show semi-supervised training at work, in minutes: synthetic scans, nnU-Net's own commands, honest numbers.

Writes a small 3-D data set with few labeled, many unlabeled and some held-out scans, trains nnUNetTrainer and a trainer
of this package on it, predicts the held-out scans with both, and prints and draws how they compare. Everything stays in
one folder; your nnUNet_raw, nnUNet_preprocessed and nnUNet_results are not touched.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ssl.commands.trained_models import add_device_argument, device_of
from nnunet_ssl.data.memory import KEPT_BLOCKS

BASELINE, OURS = "nnUNetTrainer", "nnUNetTrainerSSL"
DATASET_ID, DATASET = "900", "Dataset900_SyntheticOrgan"
RAW = Path("nnUNet_raw", DATASET)  # by which an earlier demo's folder is known
LOGS, PICTURE = "logs", "demo.png"
CONFIGURATION = "3d_small"  # nnU-Net's 3d_fullres with a quarter of the features, for CPUs
LABELED, UNLABELED, HELD_OUT = 3, 40, 16  # of fold 0 two train and one validates
FEATURES_DIVIDED_BY = 4
EPOCHS = (5, 10, 20, 50)  # lengths that nnUNetTrainer has as a class
TAIL_LINES = 5  # of a failed command's log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-o", default="nnunet_ssl_demo", metavar="FOLDER", help="default: nnunet_ssl_demo")
    add_device_argument(parser)
    parser.add_argument("--epochs", type=int, choices=EPOCHS, default=5, help="of 250 steps (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic scans (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="delete what an earlier demo left in FOLDER")


def run(options: argparse.Namespace) -> int:
    """Run all stages, print the comparison and where the picture lies."""
    folder = Path(options.o).resolve()
    if options.seed < 0:
        raise ValueError(f"--seed is a number from 0 on, got {options.seed}")
    clear(folder, options.overwrite)

    from nnunet_ssl.demonstration.comparison import Comparison
    from nnunet_ssl.demonstration.picture import draw

    device = device_of(options)
    print(f"{LABELED} labeled, {UNLABELED} unlabeled and {HELD_OUT} held-out synthetic scans; on {device}; in {folder}")
    stages = Stages(folder)
    prepare(stages, options.seed)
    trainers = [f"{name}_{options.epochs}epochs" for name in (BASELINE, OURS)]
    for trainer in trainers:
        stages.run("nnUNetv2_train", DATASET_ID, CONFIGURATION, "0", "-tr", trainer, "-device", device)
    for trainer in trainers:
        predict_and_score(stages, trainer, device)

    comparison = Comparison.read(stages.raw, stages.model_folders(trainers), stages.predictions(trainers))
    print(f"\n{comparison.text()}\n")
    picture = folder / PICTURE
    draw(comparison, picture)
    print(f"all stages: {clock(sum(stages.seconds))}")
    print(f"picture: {picture}")
    print(f"curves of the semi-supervised training: {stages.curves(trainers[1])}")
    return 0


def clear(folder: Path, overwrite: bool) -> None:
    """Make the folder, and delete in it what an earlier demo left; nothing else is ever deleted.

    Raises:
        ValueError: the folder holds something, and `overwrite` is not set or it is no demo's.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / RAW).is_dir():
            raise ValueError(f"{folder} exists and holds no demo: name another folder with -o")
        if not overwrite:
            raise ValueError(f"{folder} holds a demo already: repeat it with --overwrite, or name another with -o")
        for pattern in (f"nnUNet_*/{DATASET}", "predictions_nnUNetTrainer*epochs", LOGS):
            for made in folder.glob(pattern):
                shutil.rmtree(made)
        (folder / PICTURE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


@dataclass
class Stages:
    """The demo's folder, and the commands run in it with the seconds that each took."""

    folder: Path
    seconds: list[float] = field(default_factory=list)

    @property
    def raw(self) -> Path:
        """The data set as nnU-Net reads it."""
        return self.folder / RAW

    def plans(self) -> Path:
        """Return nnU-Net's plans file of the data set."""
        return self.folder / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"

    def model_folders(self, trainers: list[str]) -> dict[str, Path]:
        """Return where nnU-Net puts the model of each trainer."""
        results = self.folder / "nnUNet_results" / DATASET
        return {trainer: results / f"{trainer}__nnUNetPlans__{CONFIGURATION}" for trainer in trainers}

    def curves(self, trainer: str) -> Path:
        """Return the picture of a trainer's curves."""
        return self.model_folders([trainer])[trainer] / "fold_0" / "progress_ssl.png"

    def predictions(self, trainers: list[str]) -> dict[str, Path]:
        """Return where the predictions of each trainer go."""
        return {trainer: self.folder / f"predictions_{trainer}" for trainer in trainers}

    def environment(self) -> dict[str, str]:
        """Return the variables of the commands: nnU-Net's folders inside ours, no more processes than cores."""
        cores = os.cpu_count() or 1
        variables = {name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        variables |= {"nnUNet_n_proc_DA": str(min(cores, 8)), "nnUNet_def_n_proc": str(min(cores, 8))}
        inherited = {k: v for k, v in os.environ.items() if k not in ("nnUNet_ssl_options", "NNUNET_SSL_DISCOVERY")}
        return KEPT_BLOCKS | inherited | variables

    def run(self, command: str, *arguments: str) -> None:
        """Run one of nnU-Net's commands, its output in a log; raise a RuntimeError if it fails."""
        line = " ".join((command, *arguments)).replace(f"{self.folder}{os.sep}", "")
        log = self.folder / LOGS / f"{len(self.seconds)}_{command}.txt"
        log.parent.mkdir(exist_ok=True)
        print(f"$ {line}", flush=True)
        start = time.monotonic()
        with log.open("w") as opened:
            process = subprocess.Popen(
                [find_command(command), *arguments], stdout=opened, stderr=subprocess.STDOUT, env=self.environment()
            )
            try:
                wait(process, log, start)
            finally:
                process.kill()
        if process.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise RuntimeError(f"{command} failed with exit code {process.returncode}, see {log}\n{tail}")
        self.finished(start)

    def finished(self, start: float) -> None:
        """Note and print the time since the start of a stage."""
        self.seconds.append(time.monotonic() - start)
        print(f"  {clock(self.seconds[-1]):<30}", flush=True)


def clock(seconds: float) -> str:
    """Return minutes and seconds, for example 2:07."""
    return "{}:{:02d}".format(*divmod(round(seconds), 60))


def find_command(name: str) -> str:
    """Return the path of a command installed with this Python, or on the PATH."""
    path = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if path is None:
        raise RuntimeError(f"there is no command {name} beside {sys.executable} or on the PATH: pip install nnunetv2")
    return path


def wait(process: subprocess.Popen, log: Path, start: float) -> None:
    """Wait for a command; on a terminal show the time and, in a training, the epoch."""
    while process.poll() is None:
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                epoch = log.read_text(errors="replace").count("Current learning rate")
                state = f", epoch {epoch}" if epoch else ""
                print(f"  {clock(time.monotonic() - start) + state:<30}", end="\r", flush=True)


def prepare(stages: Stages, seed: int) -> None:
    """Write the scans, let nnU-Net plan and preprocess, add the small configuration, and preprocess for it."""
    from nnunet_ssl.data.preprocessed_images import write_json_atomically
    from nnunet_ssl.data.raw_files import read_json_file
    from nnunet_ssl.demonstration.synthetic_scans import Counts, write_dataset

    start = time.monotonic()
    print(f"writing {stages.raw}")
    write_dataset(stages.raw, Counts(LABELED, UNLABELED, HELD_OUT), seed)
    stages.finished(start)
    stages.run("nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", "3d_fullres")
    plans = read_json_file(stages.plans())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    arch_kwargs = architecture["arch_kwargs"]
    features = [count // FEATURES_DIVIDED_BY for count in arch_kwargs["features_per_stage"]]
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "architecture": architecture | {"arch_kwargs": arch_kwargs | {"features_per_stage": features}},
    }
    write_json_atomically(plans, stages.plans(), indent=4)
    stages.run("nnunet_ssl", "preprocess", "-d", DATASET_ID, "-c", CONFIGURATION)  # and folds, of fewer than 5 cases


def predict_and_score(stages: Stages, trainer: str, device: str) -> None:
    """Predict the held-out scans, and let nnU-Net compare them with their references."""
    from nnunet_ssl.data.disk_faults import blaming_the_disk, naming
    from nnunet_ssl.data.image_files import refuse_damaged

    prediction = str(stages.predictions([trainer])[trainer])
    model = ("-d", DATASET_ID, "-c", CONFIGURATION, "-f", "0", "-tr", trainer)
    stages.run("nnUNetv2_predict", "-i", str(stages.raw / "imagesTs"), "-o", prediction, *model, "-device", device)
    for file in Path(prediction).glob("*.nii.gz"):
        with naming(file), blaming_the_disk(file.parent):
            refuse_damaged(file)  # nnU-Net does not notice on a full disk that it writes half of one
    files = ("-djfile", f"{prediction}/dataset.json", "-pfile", f"{prediction}/plans.json")
    stages.run("nnUNetv2_evaluate_folder", str(stages.raw / "labelsTs"), prediction, *files)
