import gzip
import hashlib

import numpy as np
import pytest
import SimpleITK
from skimage import io

from nnunet_ssl.data import hashed_files
from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.image_files import refuse_damaged

ENDINGS = (".nii", ".nii.gz", ".mha", ".nrrd", ".gipl", ".png")


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """How many bytes are read at each time."""
    found, reads = [], hashed_files._Source.readinto
    monkeypatch.setattr(
        hashed_files._Source, "readinto", lambda self, buffer: found.append(reads(self, buffer)) or found[-1]
    )
    return found


def write(file, packed: bool) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (30, 40, 50), np.uint8)
    if file.suffix == ".png":
        io.imsave(file, voxels[0], check_contrast=False)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file), useCompression=packed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_image_is_looked_at_and_hashed_in_one_pass(tmp_path, ending, packed, sizes):
    file = tmp_path / f"image{ending}"
    write(file, packed)
    with HashedFile(file) as content:
        assert refuse_damaged(file, content)
        assert content.digest() == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(sizes) == file.stat().st_size


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_image_is_hashed_to_its_end_all_the_same(tmp_path, ending, sizes):
    file = tmp_path / f"image{ending}"
    write(file, packed=True)
    file.write_bytes(file.read_bytes() + b"more" * 1000)
    with HashedFile(file) as content:
        if ending != ".png":  # after whose end nobody looks
            with pytest.raises(ValueError, match="cut off or damaged"):
                refuse_damaged(file, content)
        assert content.digest() == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(sizes) == file.stat().st_size


def test_what_is_no_file_has_no_digest_and_is_not_opened(tmp_path):
    with HashedFile(tmp_path) as content:
        assert content.digest() == ""
    (tmp_path / "empty").write_bytes(b"")
    with HashedFile(tmp_path / "empty") as content:
        assert content.digest() == hashlib.sha256(b"").hexdigest()


def test_it_is_read_as_any_file(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(range(256)) * 10_000))
    with HashedFile(tmp_path / "a.gz") as content:
        assert gzip.GzipFile(fileobj=content).read() == bytes(range(256)) * 10_000
        assert content.read(1) == b""
