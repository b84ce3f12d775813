"""`nnunet_ssl split --hide`, killed before each single operation on a file: the same words finish it."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import main
from nnunet_ssl.splits.protocols import load_benchmark

PATIENTS = [*load_benchmark("acdc").train[:6], *load_benchmark("acdc").validation[:2]]
KILLED = 9
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.copyfile")
SPLIT = ["split", "27", "--folds", "1"]
WORDS = {
    "first": ([], [*SPLIT, "--labeled", "3", "--hide"]),
    "published": ([], ["split", "27", "--protocol", "acdc-3", "--allow-missing", "--add-imagesUn", "--hide"]),
    "another": ([*SPLIT, "--labeled", "2"], [*SPLIT, "--labeled", "3", "--hide", "--overwrite"]),
    "some come back": ([*SPLIT, "--labeled", "2", "--hide"], [*SPLIT, "--labeled", "4", "--hide", "--overwrite"]),
    "all come back": ([*SPLIT, "--labeled", "2", "--hide"], ["split", "27", "--unhide"]),
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Return the data: two images of two channels of each patient; one has an unlabeled twin, one a third image."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    raw = root / "raw" / "Dataset027_Heart"
    for folder in ("raw/Dataset027_Heart/imagesTr", "raw/Dataset027_Heart/labelsTr", "preprocessed", "results"):
        (root / folder).mkdir(parents=True)
    for number, patient in enumerate(PATIENTS):
        for case in (f"{patient}_frame01", f"{patient}_frame02"):
            labels = np.array([[0, 1], [2, 3 if number % 3 == 0 else 0]], np.uint8)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(raw / "labelsTr" / f"{case}.nii.gz"))
            for channel in (0, 1):
                image = SimpleITK.GetImageFromArray(rng.normal(size=(2, 3, 4)).astype(np.float32))
                SimpleITK.WriteImage(image, str(raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"))
    (raw / "imagesUn").mkdir()
    for name, source in (("twin", f"{PATIENTS[3]}_frame01"), (f"{PATIENTS[4]}_frame09", f"{PATIENTS[4]}_frame02")):
        for channel in (0, 1):
            shutil.copy(raw / f"imagesTr/{source}_{channel:04d}.nii.gz", raw / f"imagesUn/{name}_{channel:04d}.nii.gz")
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "file_ending": ".nii.gz",
        "numTraining": 2 * len(PATIENTS),
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
        "patient_pattern": r"^(patient\d+)",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    return root


def killed_before(words: list[str], root: Path, operation: int) -> bool:
    """Run words in a process that is gone before an operation that changes a file; return whether it came to it."""
    child = os.fork()
    if child == 0:
        done = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal done
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (event in CHANGES or is_write) and str(arguments[0]).startswith(str(root)):
                if done == operation:
                    os._exit(KILLED)
                done += 1

        sys.addaudithook(count)
        code = 1
        try:
            code = main(words)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def content_of(root: Path) -> dict[str, bytes | None]:
    """Return all files and folders but copies of earlier splits, what is only remembered, and unfinished files."""
    found = {str(path.relative_to(root)): path for path in root.rglob("*")}
    left_out = ("_until_", "raw_image_contents", ".tmp")
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in found.items()
        if not any(part in name for part in left_out)
    }


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_the_same_words_lead_to_the_same(written, tmp_path, monkeypatch, name, step):
    before, words = WORDS[name]

    def fresh() -> Path:
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(written, root)
        for folder in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{folder}", str(root / folder))
        assert not before or main(before) == 0
        return root

    root = fresh()
    assert main(words) == 0
    expected = content_of(root)
    operation = 0
    while killed_before(words, fresh(), operation):
        assert main(words) == 0, operation
        assert content_of(root) == expected, operation
        operation += step
    assert operation > 10
    assert content_of(root) == expected
