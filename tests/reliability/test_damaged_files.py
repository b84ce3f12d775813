"""Files that are damaged at random: each is refused, or gives the voxels that it gave before.

Of an uncompressed image nobody can know without a checksum that a value was another one; such a file is counted apart,
and has to be read as it stands. `pytest -m slow -n 0 -s` shows the counts.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssl.data.checksums import CheckedDataset, DamagedCaseError
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.labeled_cases import labeled_files
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset, open_image
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from tests.data.test_unlabeled_preprocessing import write_image

CASES = ("a", "b", "c")
FILES = ("{}.b2nd", "{}_seg.b2nd", "{}.pkl")
MUTATIONS = {  # of the content of a file; `at` and `size` are random
    "bit": lambda content, at, size: content[:at] + bytes([content[at] ^ 1 << size % 8]) + content[at + 1 :],
    "bit of the header": lambda content, at, size: MUTATIONS["bit"](content, at % min(352, len(content)), size),
    "bit of the end": lambda content, at, size: MUTATIONS["bit"](content, len(content) - 1 - at % 8, size),
    "cut off": lambda content, at, _: content[:at],
    "appended": lambda content, _, size: content + b"\x5a" * size,
    "zeros": lambda content, at, size: content[:at] + bytes(len(content[at : at + size])) + content[at + size :],
}
FAST, SLOW = 15, 75  # mutations of each kind of files; four kinds
NUMBERS = [FAST, pytest.param(SLOW, marks=pytest.mark.slow)]


def mutated(draws: random.Random, content: bytes) -> bytes:
    """Return a content that is another one."""
    while True:
        changed = MUTATIONS[draws.choice(list(MUTATIONS))](
            content, draws.randrange(len(content)), draws.choice([1, 3, 64, 1000])
        )
        if changed != content:
            return changed


def count(kind: str, number: int, outcomes: Counter) -> None:
    """Print the outcomes, which have to be all, and none of them wrong."""
    print(f"\n{kind}: " + ", ".join(f"{many} {name}" for name, many in sorted(outcomes.items())), end="")
    assert sum(outcomes.values()) == number
    assert outcomes["wrong"] == 0


@pytest.fixture
def job(tiny_dataset) -> UnlabeledPreprocessing:
    dataset = tiny_dataset()
    dataset.images_un.mkdir(parents=True)
    plans, dataset_json = dataset.case.plans(), dataset.case.dataset_json()
    return UnlabeledPreprocessing(plans, "3d_fullres", dataset_json, dataset.images_un, dataset.unlabeled_folder)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("ending", "reader"), [(".nii.gz", "SimpleITKIO"), (".nii", "SimpleITKIO"), (".nii", "NibabelIO")]
)
def test_raw_images(job, ending, reader, number):
    job.dataset_json["file_ending"], job.plans["image_reader_writer"] = ending, reader
    number = number if ending == ".nii.gz" else number // 2 + (reader == "NibabelIO")  # both are odd
    file = job.images / f"a_0000{ending}"
    write_image(file)
    assert job.run(1) == {}
    before, whole = open_image(job.preprocessed, "a")[:], file.read_bytes()
    draws, outcomes = random.Random(f"{ending}{reader}"), Counter()
    for _ in range(number):
        file.write_bytes(mutated(draws, whole))
        if problems := job.run(1, retry_problems=True):
            assert "\n" not in problems["a"]
            outcomes["refused"] += 1
        elif np.array_equal(open_image(job.preprocessed, "a")[:], before):
            outcomes["equal"] += 1
        elif ending == ".nii" and is_read_as_it_stands(job, file):
            outcomes["not to be known"] += 1
        else:
            outcomes["wrong"] += 1
    count(f"raw {ending} by {reader}", number, outcomes)


def is_read_as_it_stands(job: UnlabeledPreprocessing, file: Path) -> bool:
    """Compare with another library: nothing is filled in, left out or taken for another type."""
    read, _ = DatasetReader.of_plans(job.plans).read_channels([file])
    return np.allclose(read[0].T, nibabel.load(file).get_fdata(), rtol=1e-5, atol=1e-30)


def preprocessed_unlabeled(job: UnlabeledPreprocessing) -> tuple[Path, Callable]:
    """Return the folder of preprocessed cases, and what loads one as a process does that has just begun."""
    for seed, case in enumerate(CASES):
        write_image(job.images / f"{case}_0000.nii.gz", seed)
    assert job.run(1) == {}
    folder = job.preprocessed
    return folder, lambda: UnlabeledDataset(dict.fromkeys(CASES, folder), folder, {folder: job.files})


def preprocessed_labeled(job: UnlabeledPreprocessing) -> tuple[Path, Callable]:
    """Do the same with cases that nnU-Net has preprocessed."""
    unlabeled, _ = preprocessed_unlabeled(job)
    folder = job.preprocessed.parent / "nnUNetPlans_3d_fullres"
    for case in CASES:
        for name in FILES:
            shutil.copy2(unlabeled / name.format(case), folder / name.format(case))
    names = "Dataset999_Tiny", "nnUNetPlans", "3d_fullres"
    return folder, lambda: CheckedDataset(nnUNetDatasetBlosc2(str(folder), [*CASES]), labeled_files(folder, *names))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("prepare", [preprocessed_unlabeled, preprocessed_labeled])
def test_preprocessed_files(job, prepare, number):
    folder, dataset = prepare(job)
    before = {case: loaded(dataset(), case) for case in CASES}
    draws, outcomes = random.Random(prepare.__name__), Counter()
    for _ in range(number):
        case = draws.choice(CASES)
        file = folder / draws.choice(FILES).format(case)
        whole, there = file.read_bytes(), file.stat()
        other = draws.choice([one for one in CASES if one != case])
        copied = (folder / file.name.replace(case, other, 1)).read_bytes()
        file.write_bytes(copied if draws.random() < 0.15 and copied != whole else mutated(draws, whole))
        if draws.random() < 0.5:
            os.utime(file, ns=(there.st_atime_ns, there.st_mtime_ns))
        try:
            outcomes["equal" if is_equal(loaded(dataset(), case), before[case]) else "wrong"] += 1
        except DamagedCaseError as error:
            named = f"case {case} is damaged: {file.name} is not what it was" in str(error)
            outcomes["refused" if named else "wrong"] += 1
        file.write_bytes(whole)
        os.utime(file, ns=(there.st_atime_ns, there.st_mtime_ns))
        assert is_equal(loaded(dataset(), case), before[case])
    count(prepare.__name__, number, outcomes)


def loaded(dataset, case: str) -> list:
    image, outside, _, properties = dataset.load_case(case)
    return [image[:], outside[:], str(properties)]


def is_equal(first: list, second: list) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
