"""What lies in a folder: is each file whole, is something temporary left, is it the same as in another one."""

import csv
import hashlib
import json
import re
import zipfile
from pathlib import Path

import torch
from PIL import Image

from nnunet_ssl.data.image_files import refuse_damaged
from nnunet_ssl.data.preprocessed_images import open_array

TEMPORARY = re.compile(r"\.tmp$|\.tmp/|unfinished|\.link$|\.old$|\.probe")
# What is only remembered, or tells how a training came to its end.
LEFT_OUT = re.compile(
    r"_contents\.json$|pool_index|audit_|lock$|training_log|debug\.json$|progress|previews/|\.previous\."
)
DIFFERENT = re.compile(r"\.png$|report\.html$")  # each time, with the same words
DATED = re.compile(r"_until_[\d_-]+")


def problems_in(root: Path) -> list[str]:
    """Return the files that are not whole, and those that should not be there."""
    found = [name for name in names_in(root) if TEMPORARY.search(name)]
    for file in (file for file in sorted(root.rglob("*")) if file.is_file()):
        try:
            look_into(file)
        except Exception as error:  # noqa: BLE001 - readers raise anything
            found.append(f"{file.relative_to(root)}: {type(error).__name__} {error}")
    return found


def names_in(root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in sorted(root.rglob("*"))]


def look_into(file: Path) -> None:
    """Read a file to its end."""
    name = file.name
    if name.endswith(".json"):
        json.loads(file.read_text())
    elif name.endswith(".jsonl"):
        assert file.read_text().endswith("\n")
        [json.loads(line) for line in file.read_text().splitlines()]
    elif name.endswith((".nii.gz", ".nii")):
        refuse_damaged(file)
    elif name.endswith(".csv"):
        with file.open(newline="") as opened:
            lengths = {len(row) for row in csv.reader(opened)}
        assert len(lengths) == 1
        assert file.read_bytes().endswith(b"\r\n")
    elif name.endswith(".b2nd"):
        open_array(file)[:]
    elif name.endswith((".zip", ".npz")):
        with zipfile.ZipFile(file) as opened:
            assert opened.testzip() is None
    elif name.endswith(".pth"):
        torch.load(file, weights_only=True)
    elif name.endswith(".png"):
        Image.open(file).load()
    elif name.endswith(".html"):
        assert file.read_text().rstrip().endswith("</html>")
    elif name.endswith(".tex"):
        assert r"\end{tabular}" in file.read_text()
    elif name.endswith(".pkl"):
        assert file.read_bytes().endswith(b".")


def content_of(root: Path) -> dict[str, str]:
    """Return a digest of each file by its name, temporary ones left out."""
    found = {}
    for file in (file for file in sorted(root.rglob("*")) if file.is_file()):
        name = DATED.sub("_until", str(file.relative_to(root)))
        if not LEFT_OUT.search(name) and not TEMPORARY.search(name):
            found[name] = "" if DIFFERENT.search(name) else hashlib.sha256(_bytes_of(file)).hexdigest()
    return found


def _bytes_of(file: Path) -> bytes:
    if file.suffix == ".zip":  # which holds the time of its making
        with zipfile.ZipFile(file) as opened:
            return b"".join(name.encode() + opened.read(name) for name in opened.namelist())
    if file.parent.name == "stamps":  # with checksums and sizes of files that hold the same in other bytes
        content = json.loads(file.read_text())
        return json.dumps(content | {name: sorted(content[name]) for name in ("checksums", "sizes")}).encode()
    if file.suffix == ".b2nd":
        return open_array(file)[:].tobytes()
    if file.suffix == ".pth":
        weights = torch.load(file, weights_only=True)
        tensors = weights["network_weights"].values()
        return b"".join(one.numpy().tobytes() for one in tensors) + str(weights["current_epoch"]).encode()
    return file.read_bytes()
