"""What lies in a folder: is each file whole, is something temporary left, is it the same as in another one."""

import csv
import hashlib
import json
import re
import zipfile
from pathlib import Path

import blosc2
import torch
from PIL import Image

from nnunet_ssl.data.image_files import refuse_damaged

TEMPORARY = re.compile(r"\.tmp$|\.tmp/|unfinished|\.link$|\.old$|\.probe")
# What a picture shows, when it was, and what is only remembered may differ.
NOT_COMPARED = re.compile(r"\.png$|\.log$|training_log|_contents\.json$|audit_|/lock$|debug\.json$|report\.html$")
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
        blosc2.open(str(file), mode="r")[:]
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
    """Return a digest of each file by its name, and "folder" for folders that hold none of what is compared."""
    found = {}
    for file in sorted(root.rglob("*")):
        name = DATED.sub("_until", str(file.relative_to(root)))
        if file.is_file() and not NOT_COMPARED.search(name):
            found[name] = hashlib.sha256(_bytes_of(file)).hexdigest()
        elif file.is_file() and not name.endswith(("lock", "_contents.json")):
            found[name] = "there"
    return {name: digest for name, digest in found.items() if "audit_" not in name}


def _bytes_of(file: Path) -> bytes:
    if file.suffix == ".zip":  # which holds the time of its making
        with zipfile.ZipFile(file) as opened:
            return b"".join(name.encode() + opened.read(name) for name in opened.namelist())
    if file.suffix == ".b2nd":
        return blosc2.open(str(file), mode="r")[:].tobytes()
    if file.suffix == ".pth":
        weights = torch.load(file, weights_only=True)
        tensors = weights["network_weights"].values()
        return b"".join(one.numpy().tobytes() for one in tensors) + str(weights["current_epoch"]).encode()
    return file.read_bytes()
