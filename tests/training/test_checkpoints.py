import os
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_ssl.training.checkpoints import (
    load_checkpoint_file,
    load_facts,
    load_intact,
    load_model,
    previous_checkpoint,
    save_atomically,
)

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "checkpoint_latest.pth"


def load(file, report=print):
    return load_intact(file, CPU, report)


def test_new_one_replaces_old_one_which_stays_as_previous(file):
    for epoch in range(3):
        save_atomically({"epoch": epoch}, file)
    assert load(file) == {"epoch": 2}
    assert load(previous_checkpoint(file)) == {"epoch": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "checkpoint_latest.previous.pth",
        "checkpoint_latest.pth",
    ]


def test_previous_takes_no_space_until_the_next(file, monkeypatch):
    save_atomically({"epoch": 0}, file)
    inode = file.stat().st_ino
    save_atomically({"epoch": 1}, file)
    assert previous_checkpoint(file).stat().st_ino == inode


def test_kill_during_writing_leaves_the_old_one(file, monkeypatch):
    save_atomically({"epoch": 0}, file)

    def killed(checkpoint, opened):
        opened.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"epoch": 1}, file)
    assert load(file) == {"epoch": 0}


def test_file_system_without_hard_links(file, monkeypatch):
    def refuse(source, target):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    save_atomically({"epoch": 0}, file)
    save_atomically({"epoch": 1}, file)
    assert load(previous_checkpoint(file)) == {"epoch": 0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:300],  # torch seeks to before its beginning
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: b"noise" * 99,
    ],
)
def test_damaged_one_falls_back_with_a_message(file, damage):
    save_atomically({"weights": torch.ones(999)}, file)
    save_atomically({"weights": torch.zeros(999)}, file)
    file.write_bytes(damage(file.read_bytes()))
    messages = []
    assert torch.equal(load(file, messages.append)["weights"], torch.ones(999))
    assert len(messages) == 1
    assert "checkpoint_latest.pth is damaged" in messages[0]
    assert messages[0].endswith("going on from checkpoint_latest.previous.pth")


def test_damaged_one_without_previous_says_what_to_do(file):
    file.write_bytes(b"noise")
    with pytest.raises(RuntimeError, match=r"is damaged, .* no previous checkpoint beside it: delete it"):
        load(file)
    previous_checkpoint(file).write_bytes(b"noise")
    with pytest.raises(RuntimeError, match=r"is damaged, .* and so is checkpoint_latest.previous.pth"):
        load(file)


def test_permissions_follow_the_umask(file):
    before = os.umask(0o022)
    try:
        save_atomically({}, file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644


WHOLE = {"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}


def test_a_whole_model_is_loaded(file):
    torch.save(WHOLE, file)
    assert load_model(file) == WHOLE


@pytest.mark.parametrize("content", [b"", b"noise" * 99, b"PK\x03\x04", 3, [WHOLE], "text"])
def test_what_is_no_checkpoint_is_told_so(file, content):
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    for load_it in (load_model, lambda file: load_checkpoint_file(file, CPU)):
        with pytest.raises(ValueError, match="checkpoint_latest.pth cannot be read as a checkpoint: it is damaged"):
            load_it(file)


@pytest.mark.parametrize("length", [1, 100, 300, 600, -1])
def test_a_model_that_is_cut_off_is_told_so(file, length):
    torch.save(WHOLE | {"network_weights": {"a": torch.ones(99)}}, file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match="checkpoint_latest.pth cannot be read as a checkpoint: it is damaged"):
        load_model(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_weights": None}, "it has no network_weights"),
        ({"trainer_name": "gone"}, "checkpoint_latest.pth has no trainer_name"),
        ({"init_args": "gone"}, "checkpoint_latest.pth has no init_args"),
        ({"init_args": {}}, "does not say of which configuration it is"),
        ({"init_args": 3}, "does not say of which configuration it is"),
        ({"nnunet_ssl": 3}, "its options are no names with values"),
        ({"nnunet_ssl": {"options": None}}, "its options are no names with values"),
    ],
)
def test_what_a_model_lacks_is_named(file, changes, message):
    content = WHOLE | changes
    torch.save({key: value for key, value in content.items() if value != "gone"}, file)
    with pytest.raises(ValueError, match=f"checkpoint_latest.pth .*{message}|{message}"):
        load_model(file)


# ---- what a checkpoint says of its run ----


def large_checkpoint(folder: Path) -> Path:
    file = folder / "checkpoint_final.pth"
    save_atomically({"network_weights": {"a": torch.arange(10.0**6)}, "logging": {"dice": [0.5]}}, file)
    return file


def place_of(part: str, file: Path) -> int:
    """Return a byte in the middle of a part of torch's zip."""
    with zipfile.ZipFile(file) as opened:
        (found,) = [one for one in opened.infolist() if one.filename.endswith(part)]
        content = opened.read(found)
    return file.read_bytes().index(content) + len(content) // 2


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_facts_are_read_without_the_weights(tmp_path, monkeypatch):
    """4 MB of weights: what is read of the zip is the rest of it."""
    file, read, taken = large_checkpoint(tmp_path), zipfile.ZipExtFile.read, []

    def counting(part, *arguments):
        taken.append(len(content := read(part, *arguments)))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    facts = load_facts(file)
    assert facts["logging"] == {"dice": [0.5]}
    assert 0 < sum(taken) < 10_000
    assert facts["network_weights"]["a"][-1] == 10**6 - 1  # they are there for who asks
    taken.clear()
    load_checkpoint_file(file, CPU)
    assert sum(taken) > 4 * 10**6


def test_facts_are_checked_and_weights_are_checked_where_they_are_used(tmp_path):
    file = large_checkpoint(tmp_path)
    flip(file, place_of("/data/0", file))
    assert load_facts(file)["logging"] == {"dice": [0.5]}
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint_file(file, CPU)
    file = large_checkpoint(tmp_path)
    flip(file, place_of("/data.pkl", file))
    with pytest.raises(ValueError, match="is damaged"):
        load_facts(file)
