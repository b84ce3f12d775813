"""Checkpoints that survive an interruption at any moment."""

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nnunet_ssl.data.disk_faults import blaming_the_disk, naming
from nnunet_ssl.training.plain_values import plain_values
from nnunet_ssl.training.safe_loading import CodeInFileError, DamagedFileError, load_without_code

KINDS = ("final", "latest", "best")  # of nnU-Net's checkpoints
KEYS_OF_A_MODEL = ("network_weights", "trainer_name", "init_args")  # without which nnU-Net cannot predict


def previous_checkpoint(filename: str | Path) -> Path:
    """Return where the checkpoint that a file replaced is kept: `checkpoint_best.previous.pth`."""
    filename = Path(filename)
    return filename.with_name(f"{filename.stem}.previous{filename.suffix}")


def checkpoints_of(folder: str | Path) -> list[Path]:
    """Return the checkpoints that there are of a run, those that were replaced last too."""
    files = [Path(folder, f"checkpoint_{kind}.pth") for kind in KINDS]
    return [file for file in (*files, *map(previous_checkpoint, files)) if file.is_file()]


def on_host(checkpoint: dict) -> dict:
    """Return a copy of a checkpoint that what it was made of can change without changing it; its tensors on the CPU.

    Tensors that share their memory do so in the copy, too.
    """
    copies: dict[tuple, Tensor] = {}
    memo = {}
    for leaf in tree_leaves(checkpoint):
        if isinstance(leaf, Tensor):
            place = (leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride())
            if place not in copies:
                copies[place] = leaf.detach().to("cpu", copy=True)
            memo[id(leaf)] = copies[place]
    return copy.deepcopy(checkpoint, memo)


def save_atomically(checkpoint: dict, filename: str | Path) -> None:
    """Write a checkpoint so that the file is the old or the new one at any moment, never half of one.

    What stood there stays as the previous one, as a hard link, until the next call.

    Raises:
        TypeError: it holds something that could not be loaded again.
        OSError: it cannot be written.
    """
    filename, checkpoint = Path(filename), plain_values(checkpoint)
    unfinished = filename.with_name(f"{filename.name}.tmp")
    try:
        with naming(filename, instead_of=unfinished), blaming_the_disk(filename.parent):
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if filename.exists():
                _keep_as_previous(filename)
            unfinished.replace(filename)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(filename.parent)


def load_checkpoint_file(filename: str | Path, map_location: torch.device) -> dict:
    """Load a checkpoint that may come from elsewhere; no code in it is run.

    Raises:
        ValueError: there is no such file, it is no checkpoint of nnU-Net, or holds code.
    """
    return _load_from_elsewhere(filename, map_location)


def load_facts(filename: str | Path) -> dict:
    """Load what a checkpoint says of its run: its weights stay in the file, and are neither read nor checked.

    Raises:
        ValueError: as `load_checkpoint_file`.
    """
    return _load_from_elsewhere(filename, torch.device("cpu"), mmap=True, reads_tensors=False)


def _load_from_elsewhere(filename: str | Path, map_location: torch.device, **how: bool) -> dict:
    try:
        checkpoint = _load(filename, map_location, **how)
    except FileNotFoundError:
        raise ValueError(f"{filename} is not a file") from None
    except DamagedFileError as error:
        raise ValueError(f"{filename} cannot be read as a checkpoint: it is damaged, or none") from error
    if not isinstance(checkpoint.get("network_weights"), dict):
        raise ValueError(f"{filename} is no checkpoint of nnU-Net: it has no network_weights")
    ours = checkpoint.get("nnunet_ssl", {})
    if not isinstance(ours, dict) or not isinstance(ours.get("options", {}), dict):
        raise ValueError(f"{filename} is damaged: its options are no names with values")
    return checkpoint


def load_model(filename: str | Path) -> dict:
    """Load a checkpoint to predict with, onto the CPU.

    Raises:
        ValueError: as `load_checkpoint_file`, or it lacks what nnU-Net's prediction reads.
    """
    checkpoint = load_checkpoint_file(filename, torch.device("cpu"))
    refuse_missing(checkpoint, KEYS_OF_A_MODEL, filename)
    if not isinstance(checkpoint["init_args"], dict) or "configuration" not in checkpoint["init_args"]:
        raise ValueError(f"{filename} does not say of which configuration it is: its init_args are damaged")
    return checkpoint


def networks_in(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of the networks of a training, by name; where it has several teachers, of these."""
    ours = checkpoint.get("nnunet_ssl", {})
    of_earlier_versions = {k: part for k, part in ours.get("parts", {}).items() if k in ("student", "second")}
    teachers = ours.get("teachers", {})
    return teachers if len(teachers) > 1 else ours.get("networks", of_earlier_versions)


def refuse_missing(checkpoint: dict, keys: Iterable[str], filename: str | Path) -> None:
    """Raise a ValueError if a checkpoint lacks one of the keys."""
    for key in keys:
        if key not in checkpoint:
            raise ValueError(f"{filename} has no {key}: it is damaged, or of another program")


def load_intact(filename: str | Path, map_location: torch.device, report: Callable[[str], None]) -> dict:
    """Load a checkpoint; a damaged one is reported and the previous one taken instead.

    Raises:
        FileNotFoundError: there is no such file.
        CodeInFileError: the file that would be taken holds code, which is not run.
        RuntimeError: neither the file nor a previous one can be read.
    """
    filename = Path(filename)
    previous = previous_checkpoint(filename)
    try:
        return _load(filename, map_location)
    except DamagedFileError as error:
        damage = f"{filename} is damaged, or no checkpoint,"
        if not previous.exists():
            raise RuntimeError(
                f"{damage} and there is no previous checkpoint beside it: delete it to go on from another checkpoint "
                "with --c, or train again"
            ) from error
    report(f"WARNING: {damage} going on from {previous.name}")
    try:
        return _load(previous, map_location)
    except DamagedFileError as error:
        raise RuntimeError(f"{damage} and so is {previous.name}: train again without --c") from error


def load_newest(folder: str | Path, map_location: torch.device, report: Callable[[str], None]) -> dict:
    """Load the checkpoint of the latest epoch of a run, of all that can be read; those that cannot be are reported.

    Raises:
        CodeInFileError: one of them holds code, which is not run.
        RuntimeError: none can be read.
    """
    epochs: dict[Path, int] = {}
    for file in checkpoints_of(folder):
        try:
            epochs[file] = int(_load(file, map_location, mmap=True)["current_epoch"])
        except CodeInFileError:
            raise
        except (DamagedFileError, KeyError, TypeError, ValueError):
            report(f"WARNING: {file} is damaged, or no checkpoint")
    if not epochs:
        raise RuntimeError(
            f"no checkpoint in {folder} can be read: train again without --c and with "
            'nnUNet_ssl_options="replace=true", or bring back a copy of one'
        )
    newest = min(epochs, key=lambda file: (-epochs[file], is_previous(file)))
    report(f"Going on from {newest.name}, after epoch {epochs[newest] - 1}")
    return _load(newest, map_location)


def is_previous(file: Path) -> bool:
    """Return whether a checkpoint is one that another replaced."""
    return file.stem.endswith(".previous")


def _load(filename: str | Path, map_location: torch.device, mmap: bool = False, reads_tensors: bool = True) -> dict:
    """Load a file without code; see `load_without_code`."""
    checkpoint = load_without_code(filename, map_location, mmap, reads_tensors)
    if not isinstance(checkpoint, dict):
        raise DamagedFileError(f"{filename} holds no checkpoint")
    return checkpoint


def _keep_as_previous(filename: Path) -> None:
    link = filename.with_name(f"{filename.name}.link")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(filename, link)
        except OSError:  # some network and removable file systems have no hard links
            shutil.copyfile(filename, link)
        link.replace(previous_checkpoint(filename))
    finally:
        link.unlink(missing_ok=True)  # replacing one link to a file by another of the same file leaves both


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    with suppress(OSError):  # some network file systems refuse it; the file itself is safe by now
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
