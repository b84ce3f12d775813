r"""How long a training with many unlabeled cases takes to start, how many of their files it opens, and its memory.

    python benchmarks/pool_scale.py 100 1000 10000

The cases are symbolic: raw images of 4 x 4 x 4 voxels that all differ, and one preprocessed case under many names.
Their stamps are as the preprocessing makes them, for files of other names. Each measurement is taken in a process of
its own:

* `first look`, `later look`: whether any case is outdated; the first is of a pool whose stamps nobody has read yet;
* `first start`, `later start`: from the start of Python to the first batch of a tiny Mean Teacher; the first compares
  raw images with those of `imagesTs`; in brackets the time of the processor, which other work does not disturb;
* `opened`: files of unlabeled cases (raw, preprocessed, stamps) that a later start opens, those of the batch included;
  `asked`: how often it asks for the size and time of a file by its name, but for what Python imports;
* `memory`: the most that a later start holds in its main process.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("nnUNet_n_proc_DA", "0")

TRAINER = "nnUNetTrainerMeanTeacher"
LABELED, TEST = ("labeled0", "labeled1", "labeled2", "labeled3"), ("test0", "test1", "test2")
SIDE, HEADER_BYTES = 4, 352  # of a raw image: voxels along each axis, and what stands before them in a .nii
NAMES_OF_A_FILE = 10_000  # hard links, of which file systems have a most
COLUMNS = ("cases", "first look", "later look", "first start", "later start", "opened", "asked", "memory (MiB)")


def main() -> int:
    """Measure each number of cases and print a table, or take one measurement in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=int, default=[100, 1_000, 10_000], help="default: to 10 000")
    parser.add_argument("--folder", type=Path, help="for the data sets, which are removed (default: a temporary one)")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        point_nnunet_at(options.folder)
        with contextlib.redirect_stdout(sys.stderr):
            found = MEASUREMENTS[options.measure](options.folder, options.since)
        print(json.dumps(found))
        return 0
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for number in options.cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print("| " + " | ".join(row_of(number, Path(folder))) + " |", flush=True)
    return 0


def row_of(number: int, root: Path) -> list[str]:
    """Return a line of the table."""
    point_nnunet_at(root)
    lay_out(root, number)
    looks = [measured("look", root)["seconds"] for _ in range(2)]
    starts = [measured("start", root) for _ in range(2)]
    times = [f"{seconds:.2f} s" for seconds in (*looks, *(start["seconds"] for start in starts))]
    times[-1] += f" ({starts[-1]['processor_seconds']:.1f} s)"
    later = starts[1]
    return [f"{number}", *times, f"{later['opened']}", f"{later['asked']}", f"{later['memory']:.0f}"]


def measured(what: str, root: Path) -> dict[str, float]:
    """Return what a process of its own measures."""
    command = [sys.executable, __file__, "--folder", str(root), "--measure", what, "--since", str(time.time())]
    with (root / f"{what}.log").open("a") as log:
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=True).stdout)


def point_nnunet_at(root: Path) -> None:
    """Set nnU-Net's variables to the folders of a data set that is laid out in `root`."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)


# ---- laying out a data set ----


def dataset_of(root: Path) -> Any:
    """Return the tiny data set of the tests, whose raw images are uncompressed."""
    from tests.conftest import Case, TinyDataset

    class Uncompressed(Case):
        def dataset_json(self) -> dict:
            return super().dataset_json() | {"file_ending": ".nii"}

    return TinyDataset(Uncompressed(), root)


def job_of(dataset: Any) -> Any:
    """Return the preprocessing of its unlabeled images."""
    from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing

    case = dataset.case
    settings = case.plans(), case.configuration, case.dataset_json()
    return UnlabeledPreprocessing(*settings, dataset.images_un, dataset.unlabeled_folder)


def lay_out(root: Path, number: int) -> None:
    """Write a data set of so many unlabeled cases; the first one is preprocessed, and is all others too."""
    from nnunet_ssl.data.stamps import read_stamp

    dataset = dataset_of(root).write()
    for file in dataset.unlabeled_folder.iterdir():
        file.unlink()
    raw, job = dataset.images_un.parent, job_of(dataset)
    for folder, cases in (("imagesTr", LABELED), ("labelsTr", LABELED), ("imagesTs", TEST)):
        for seed, case in enumerate(cases):
            write_image(raw / folder / f"{case}{'_0000' if folder != 'labelsTr' else ''}.nii", f"{folder} {seed}")
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    names = [f"scan{i:06d}" for i in range(number)]
    write_image(dataset.images_un / f"{names[0]}_0000.nii", names[0])
    with contextlib.redirect_stderr(io.StringIO()):  # its bar
        if problems := job.run(1):
            raise RuntimeError(f"the first case cannot be preprocessed: {problems}")
    stamp = read_stamp(job.preprocessed, names[0])
    for i, name in enumerate(names[1:], 1):
        write_image(dataset.images_un / f"{name}_0000.nii", name)
        write_as(job.preprocessed, names[0], name, i)
        write_stamp(job, stamp, name)


def write_image(file: Path, seed: str) -> None:
    """Write a raw image whose voxels no other one has."""
    import hashlib

    import nibabel
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    header = nibabel.Nifti1Header()
    header.set_data_shape((SIDE, SIDE, SIDE))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = HEADER_BYTES, b"n+1"
    header.set_zooms((1.0, 1.0, 1.0))
    header.set_sform(np.eye(4), code=1)
    voxels = hashlib.shake_256(seed.encode()).digest(2 * SIDE**3)
    file.write_bytes(header.binaryblock.ljust(HEADER_BYTES, b"\0") + voxels)


def write_as(folder: Path, first: str, name: str, number: int) -> None:
    """Give the files of the first preprocessed case another name too."""
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        source = folder / f"{first}{ending}"
        if number % NAMES_OF_A_FILE == 0:
            shutil.copy(source, folder.with_name("copy"))
            (folder.with_name("copy")).replace(source)
        os.link(source, folder / f"{name}{ending}")


def write_stamp(job: Any, first: Any, name: str) -> None:
    """Write the stamp of a case that is the first one under another name; its content is one that no other has."""
    from nnunet_ssl.data.stamps import mark_of, stamp_file

    mark = mark_of(job.images / f"{name}_0000.nii")
    of_first = first.files[0][0].removesuffix("_0000.nii")
    named = {
        what: {file.replace(of_first, name): value for file, value in getattr(first, what).items()}
        for what in ("checksums", "sizes")
        if hasattr(first, what)
    }
    contents = {
        what: replace(getattr(first, what), digest=mark[-1]) for what in ("content", "voxels") if hasattr(first, what)
    }
    stamp = replace(first, files=[mark], **contents, **named)
    stamp_file(job.preprocessed, name).write_text(json.dumps(asdict(stamp), indent=1))


# ---- measuring ----


def look(root: Path, _: float) -> dict[str, float]:
    """Return how long it takes to see that nothing is outdated."""
    job = job_of(dataset_of(root))
    started = time.perf_counter()
    outdated = job.outdated()
    seconds = time.perf_counter() - started
    if outdated:
        raise RuntimeError(f"{len(outdated)} cases are outdated")
    return {"seconds": seconds}


def start(root: Path, since: float) -> dict[str, float]:
    """Return how long a training takes to its first batch, and what it asks of the disk meanwhile."""
    opened = count_opened(("_unlabeled", "imagesUn"))
    import torch

    from nnunet_ssl.discovery.variants import find_trainer
    from step_time import kib_of_process

    asked, dataset = count_asked(), dataset_of(root)
    plans = dataset.case.plans() | {"continue_training": False}
    trainer = find_trainer(TRAINER)(
        plans, dataset.case.configuration, 0, dataset.case.dataset_json(), torch.device("cpu")
    )
    trainer.options = {"replace": True, "num_epochs": 2}
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    seconds, processor_seconds = time.time() - since, time.process_time()
    if len(batch["unlabeled"]["keys"]) == 0:
        raise RuntimeError("the first batch has no unlabeled case")
    memory = kib_of_process("VmHWM") / 2**10
    trainer.dataloader_train.close()
    found = {"seconds": seconds, "processor_seconds": processor_seconds, "memory": memory}
    return found | {"opened": len(opened), "asked": len(asked)}


def count_opened(within: tuple[str, ...]) -> list[str]:
    """Return a list of the files that are opened from now on below folders that are called so, or nearly."""
    import blosc2

    opened: list[str] = []

    def note(path: object) -> None:
        if isinstance(path, str | Path) and any(name in str(path) for name in within) and not is_of_pool(str(path)):
            opened.append(str(path))

    def noting(event: str, arguments: tuple) -> None:
        if event == "open":
            note(arguments[0])

    sys.addaudithook(noting)
    by_library = blosc2.open  # which opens in C

    def open_noted(*positional: Any, **named: Any) -> Any:
        note(named.get("urlpath", *positional[:1]))
        return by_library(*positional, **named)

    blosc2.open = open_noted
    return opened


def is_of_pool(path: str) -> bool:
    """Return whether a file is one of the pool, and of no case: an index, a lock."""
    return Path(path).parent.name.endswith("_unlabeled_state")


def count_asked() -> list[None]:
    """Return a list that grows with each question for the state of a file."""
    asked: list[None] = []

    def counting(ask: Callable) -> Callable:
        def asking(*positional: Any, **named: Any) -> Any:
            asked.append(None)
            return ask(*positional, **named)

        return asking

    os.stat, os.lstat = counting(os.stat), counting(os.lstat)
    return asked


MEASUREMENTS = {"look": look, "start": start}

if __name__ == "__main__":
    sys.exit(main())
