import collections
import io
import os
import pickle
import random
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssl.training.checkpoints import load_intact, previous_checkpoint, save_atomically
from nnunet_ssl.training.safe_loading import (
    CodeInFileError,
    DamagedFileError,
    load_without_code,
    nnunet_loads_without_code,
    refuse_altered,
)
from tests.conftest import tensors_of

CPU = torch.device("cpu")
CONTENT = {
    "network_weights": {"a": torch.arange(30.0), "b": torch.ones(3, dtype=torch.int64)},
    "logging": {"dice": [0.25, 0.5]},
    "init_args": {"configuration": "2d", "device": CPU},
}


class Payload:
    """What makes a folder as soon as it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "checkpoint.pth"


def is_content(found: dict) -> bool:
    """Return whether it is CONTENT, voxel for voxel."""
    tensors, expected = tensors_of(found), tensors_of(CONTENT)
    rest = {key: value for key, value in found.items() if key != "network_weights"}
    same = tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    return same and rest == {key: value for key, value in CONTENT.items() if key != "network_weights"}


def bits_of(file: Path, count: int) -> list[tuple[int, int]]:
    """Return where bits are flipped: byte and bit, all over a file, and all that mark a part of the zip as a folder."""
    with zipfile.ZipFile(file) as opened:
        names = [one.filename.encode() for one in opened.infolist()]
    content, drawn = file.read_bytes(), random.Random(0)
    entries = [content.rindex(name) - 8 for name in names]  # the attributes stand before the name's last occurrence
    return [(drawn.randrange(len(content)), drawn.randrange(8)) for _ in range(count)] + [(one, 4) for one in entries]


def outcomes_of(file: Path, bits: list[tuple[int, int]]) -> collections.Counter:
    """Flip bits of a checkpoint of CONTENT, one at a time; return how often it loaded as it was, or was refused."""
    save_atomically(CONTENT, file)
    assert is_content(load_without_code(file, CPU))
    whole, outcomes = file.read_bytes(), collections.Counter()
    for byte, bit in bits:
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            assert is_content(load_without_code(file, CPU)), (byte, bit)
            outcomes["loaded"] += 1
        except (DamagedFileError, CodeInFileError):
            outcomes["refused"] += 1
    return outcomes


def test_a_flipped_bit_leaves_the_content_as_it_was_or_is_refused(file):
    save_atomically(CONTENT, file)
    outcomes = outcomes_of(file, bits_of(file, count=300))
    assert outcomes["refused"] > 150  # the others are in what fills the gaps between the parts of the zip


@pytest.mark.slow
def test_any_flipped_bit_leaves_the_content_as_it_was_or_is_refused(file):
    save_atomically(CONTENT, file)
    bits = [(byte, bit) for byte in range(file.stat().st_size) for bit in range(8)]
    outcomes = outcomes_of(file, bits)
    print(f"checkpoint: {len(bits)} bits, {dict(outcomes)}")
    assert sum(outcomes.values()) == len(bits)


def test_a_part_marked_as_a_folder_is_refused(file):
    save_atomically(CONTENT, file)
    whole = file.read_bytes()
    for place, bit in bits_of(file, count=0):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        with zipfile.ZipFile(file) as opened:  # it is the bit that is meant
            assert [one.external_attr for one in opened.infolist()].count(16) == 1
        with pytest.raises(DamagedFileError, match="in it is not what was written"):
            load_without_code(file, CPU)


def test_a_damaged_weight_leads_to_the_previous_checkpoint(file):
    save_atomically({"weights": torch.ones(999)}, file)
    save_atomically({"weights": torch.zeros(999)}, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    messages = []
    assert torch.equal(load_intact(file, CPU, messages.append)["weights"], torch.ones(999))
    assert len(messages) == 1
    assert messages[0].endswith("is damaged, or no checkpoint, going on from checkpoint.previous.pth")


@pytest.mark.parametrize("error", [TypeError("x"), AttributeError("x"), IndexError("x"), OSError(22, "Invalid")])
def test_whatever_torch_raises_leads_to_the_previous_checkpoint(file, monkeypatch, error):
    save_atomically({"epoch": 0}, file)
    save_atomically({"epoch": 1}, file)
    load, messages = torch.load, []

    def fail(name, **options):
        if name == file:
            raise error
        return load(name, **options)

    monkeypatch.setattr(torch, "load", fail)
    assert load_intact(file, CPU, messages.append) == {"epoch": 0}
    assert len(messages) == 1


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "denied", "checkpoint.pth"), OSError(5, "I/O")])
def test_a_fault_of_the_machine_is_none_of_the_file(file, monkeypatch, error):
    save_atomically({"epoch": 0}, file)

    def fail(*_):
        raise error

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(type(error)):
        load_without_code(file, CPU)


def test_a_pipe_is_no_file_and_nobody_waits_for_it(file):
    os.mkfifo(file)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_without_code(file, CPU)


# ---- code ----


def with_protocol_4(content: object, file: Path) -> None:
    torch.save(content, file, pickle_protocol=4)


def in_the_older_format(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def as_a_bare_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


WRITERS = [torch.save, with_protocol_4, in_the_older_format, as_a_bare_pickle]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_code_is_never_run(file, tmp_path, write):
    write({**CONTENT, "logging": Payload(tmp_path / "ran")}, file)
    with pytest.raises((CodeInFileError, DamagedFileError)):
        load_without_code(file, CPU)
    assert not (tmp_path / "ran").exists()
    with suppress(RuntimeError):  # after a bare pickle
        torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()  # so that the test could fail


def test_the_refusal_says_what_there_is_and_how_the_weights_get_out(file, tmp_path, capfd):
    torch.save({**CONTENT, "logging": Payload(tmp_path / "ran")}, file)
    with pytest.raises(CodeInFileError) as refused:
        load_without_code(file, CPU)
    said = str(refused.value)
    assert f"{file} holds more than weights and plain values (posix.mkdir)" in said
    assert "\n" not in said
    words = said.partition("only if you trust this one, its weights alone are taken out with ")[2]
    assert os.system(words) == 0
    assert (tmp_path / "ran").exists()  # as it says: they trust it
    weights = load_without_code(tmp_path / "checkpoint_weights.pth", CPU)
    assert weights.keys() == {"network_weights"}
    assert torch.equal(weights["network_weights"]["a"], CONTENT["network_weights"]["a"])


def test_code_in_the_latest_or_the_previous_checkpoint_ends_the_search(file, tmp_path):
    torch.save(Payload(tmp_path / "ran"), file)
    save_atomically({"epoch": 1}, file)  # the payload is the previous one
    damaged = file.read_bytes()[:-9]
    file.write_bytes(damaged)
    with pytest.raises(CodeInFileError, match="previous.pth holds more than weights"):
        load_intact(file, CPU, lambda _: None)
    torch.save(Payload(tmp_path / "ran"), file)
    save_atomically({"epoch": 0}, previous_checkpoint(file))
    with pytest.raises(CodeInFileError, match="checkpoint.pth holds more than weights"):
        load_intact(file, CPU, lambda _: None)
    assert not (tmp_path / "ran").exists()


def test_numpys_numbers_are_no_code(file):
    """Such as nnU-Net's logs hold, and those of this package's earlier checkpoints."""
    before = set(torch.serialization.get_safe_globals())
    numbers = [np.dtype(kind).type(1) for kind in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]]
    torch.save({"numbers": numbers}, file)
    found = load_without_code(file, CPU)["numbers"]
    assert found == numbers
    assert [one.dtype for one in found] == [one.dtype for one in numbers]
    assert set(torch.serialization.get_safe_globals()) == before  # for others nothing has changed


def test_numbers_that_numpy_1_wrote(file):
    buffer = io.BytesIO()
    torch.save({"dice": np.float32(0.25)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, "w") as target:
        for one in source.infolist():
            content = source.read(one).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(one.filename, content)
    assert load_without_code(file, CPU) == {"dice": np.float32(0.25)}


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD", None])
def test_nnunets_own_functions_run_no_code_where_they_are_told_so(file, tmp_path, monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    before = dict(os.environ)
    torch.save(np.float64(1), file)
    with nnunet_loads_without_code():
        assert torch.load(file, weights_only=False) == 1
        torch.save(Payload(tmp_path / "ran"), file)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


def test_variables_of_torch_do_not_let_code_in(file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Payload(tmp_path / "ran"), file)
    with pytest.raises(CodeInFileError):
        load_without_code(file, CPU)
    assert not (tmp_path / "ran").exists()


def test_checksums_of_a_file_that_is_whole(file):
    torch.save(CONTENT, file)
    refuse_altered(file)
