"""Files that are written whole or not at all, and what a full disk has to say."""

import errno
import os
import pickle
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import sentence
from nnunet_ssl.data import disk_faults
from nnunet_ssl.data.disk_faults import blaming_the_disk, naming, refuse_full, words_of
from nnunet_ssl.data.image_writing import whole_image, write_image
from nnunet_ssl.data.whole_files import copy, replacing

ENDINGS = (".nii.gz", ".nii", ".gipl", ".nrrd", ".mha")
IMAGE = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32))


def full(*names: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(file.name for file in folder.iterdir()) == sorted(names)


def test_a_file_is_replaced_when_it_is_whole_with_what_lies_beside_it(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with replacing(file) as unfinished:
        assert unfinished.name == file.name
        unfinished.write_text("whole")
        unfinished.with_name("a.json").write_text("{}")
        assert not file.exists()
    assert file.read_text() == "whole"
    assert nothing_but(file.parent, "a.txt", "a.json")


@pytest.mark.parametrize("error", [full(), KeyboardInterrupt(), ValueError("no")])
def test_on_an_error_the_file_is_as_it_was(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("before")
    (tmp_path / ".a.txt.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".a.txt.tmp" / "b").touch()
    with pytest.raises(type(error)) as raised, replacing(file) as unfinished:
        unfinished.write_text("hal")
        raise error
    assert raised.value is error
    assert file.read_text() == "before"
    assert nothing_but(tmp_path, "a.txt")


def test_devices_are_written_to_and_stay_devices(tmp_path):
    device = tmp_path / "device"
    os.mkfifo(device)
    with replacing(device) as unfinished:
        assert unfinished == device
    assert device.is_fifo()


def test_the_file_is_named_whatever_the_library_names(tmp_path):
    for error in (full(), full(str(tmp_path / "t" / "a")), full("/source", None, str(tmp_path / "t" / "a"))):
        with pytest.raises(OSError, match="No space"), naming(tmp_path / "a", instead_of=tmp_path / "t"):
            raise error
        assert error.filename == str(tmp_path / "a")
        assert error.filename2 is None
        assert pickle.loads(pickle.dumps(error)).filename == str(tmp_path / "a"), "workers send it"
    inner = full("/elsewhere/b")
    with pytest.raises(OSError, match="No space"), naming(tmp_path / "a", instead_of=tmp_path / "t"):
        raise inner
    assert inner.filename == "/elsewhere/b"


def test_words_say_the_file_what_is_free_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_faults.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 3 * 2**19))
    file = tmp_path / "not there" / "case_0000.nii.gz"
    said = f"{file} cannot be written: the disk is full (1.5 MiB free in {tmp_path}); make room, and do it again"
    assert words_of(full(str(file))) == sentence(full(str(file))) == said
    assert "a file cannot be written: the disk is full" in words_of(full())
    for number, expected in ((errno.EROFS, "can only be read"), (errno.EDQUOT, "the disk is full")):
        assert expected in sentence(OSError(number, os.strerror(number), str(file)))


def test_what_a_library_does_not_explain_is_looked_into(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="of its own"), blaming_the_disk(tmp_path):
        raise RuntimeError("of its own")
    refuse_full(tmp_path)
    assert nothing_but(tmp_path)
    monkeypatch.setattr(disk_faults.os, "fsync", lambda _: (_ for _ in ()).throw(full()))
    with pytest.raises(OSError, match="No space") as raised, blaming_the_disk(tmp_path):
        raise RuntimeError("Error while creating the NDArray")
    assert raised.value.filename == str(tmp_path)
    assert nothing_but(tmp_path), "the probe is gone"


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("source")

    def half(source, target):
        Path(target).write_text("sou")
        raise full(str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="No space") as raised:
        copy(tmp_path / "a", tmp_path / "b")
    assert raised.value.filename == str(tmp_path / "b")
    assert nothing_but(tmp_path, "a")


# ---- images ----


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_image_is_written_as_it_is(tmp_path, ending):
    file = tmp_path / "folder" / f"a{ending}"
    write_image(IMAGE, file)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))), SimpleITK.GetArrayFromImage(IMAGE)
    )
    assert nothing_but(file.parent, file.name)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".gipl"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_an_image_that_is_cut_off_is_none(tmp_path, monkeypatch, ending, share):
    """As ITK leaves it on a full disk, without an error."""
    write = SimpleITK.WriteImage

    def cut_off(image, file):
        write(image, file)
        os.truncate(file, int(share * Path(file).stat().st_size))

    monkeypatch.setattr(SimpleITK, "WriteImage", cut_off)
    file = tmp_path / f"case{ending}"
    file.write_text("before")
    with pytest.raises(OSError, match=f"case{ending} cannot be written: "):
        write_image(IMAGE, file)
    assert file.read_text() == "before"
    assert nothing_but(tmp_path, file.name)


def test_an_error_of_a_writer_names_the_file(tmp_path):
    def fail():
        raise RuntimeError("Exception thrown\nITK ERROR: could not write")

    said = "a.mha cannot be written: ITK ERROR: could not write"
    with pytest.raises(OSError, match=said), whole_image(tmp_path / "a.mha"):
        fail()
    assert nothing_but(tmp_path)


def test_a_full_disk_is_behind_an_error_of_a_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_faults.os, "fsync", lambda _: (_ for _ in ()).throw(full()))
    monkeypatch.setattr(SimpleITK, "WriteImage", lambda *_: (_ for _ in ()).throw(RuntimeError("ITK ERROR")))
    with pytest.raises(OSError, match="No space") as raised:
        write_image(IMAGE, tmp_path / "a.mha")
    assert raised.value.filename == str(tmp_path / "a.mha")
    assert nothing_but(tmp_path)


def test_blosc2_says_nothing_of_the_disk(tmp_path):
    """What `blaming_the_disk` is for: if this fails, it may not be needed any more."""
    with pytest.raises(RuntimeError):
        blosc2.asarray(np.zeros((4, 4)), urlpath=str(tmp_path / "no folder" / "a.b2nd"))
