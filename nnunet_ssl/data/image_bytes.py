"""The voxels of an image file as bytes: unpacked, and with all checksums compared that the file has.

ITK compares few of them, fills what is missing with zeros, and reads values that are not finite as 0 in NIfTI.
"""

import bz2
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
import SimpleITK
import tifffile

from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.raw_files import TIFF_ENDINGS

BIG_ENDIAN_OF_MHA = ("binarydatabyteordermsb", "elementbyteordermsb")
GIPL_HEADER_BYTES = 256
HEADER_BYTES = 1 << 16  # the most that a header of text has
CHUNK_BYTES = 1 << 24  # that are unpacked at once
PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
ITK_PREFIX = "sitk::ERROR: "  # before it stand ITK's own files and lines
PLAIN_WORDS = {  # for what libraries say
    "orthonormal": "its axes are not at right angles to each other",
    "Unable to determine ImageIO reader": "its content is not of the format that its name says",
    "Refusing to change spacing": "its header gives no voxel size",
    "Cannot work out file type": "it does not begin as a NIfTI file does",
    "CRC check failed": "a checksum is wrong",
    "Incorrect length of data produced": "a checksum is wrong",
    "while decompressing": "it cannot be unpacked",
    "end-of-stream marker": "its end is missing",
    "Not a gzipped file": "it does not begin as a packed file does, or something else follows its end",
}
PACKINGS = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bz2", "bz2": "bz2"}  # of NRRD


@dataclass(frozen=True)
class Stored:
    """How a file holds its voxels.

    Attributes:
        start: the byte of the file with which they, or what they are packed in, begin.
        packing: "gzip", "bz2", "zlib", or empty.
        skipped: bytes before them in what is packed.
        size: bytes that they need, unpacked.
        type: of their values.
    """

    start: int
    packing: str
    skipped: int
    size: int
    type: np.dtype


def voxels_are_finite(content: HashedFile) -> bool:
    """Read an image file to its end, and return whether all its values are finite.

    Of formats that are not known here nothing is read, and TIFF is read by its library.

    Args:
        content: the file, of which nothing is read yet.

    Raises:
        ValueError: it has fewer or more bytes than its header says, or a checksum is wrong.
    """
    file = content.file
    if file.name.endswith(".png"):
        _refuse_damaged_png(content)
    if file.suffix.lower() in TIFF_ENDINGS:
        with tifffile.TiffFile(file) as opened:
            series = opened.series[0]
            return series.dtype.kind != "f" or bool(np.isfinite(series.asarray()).all())
    stored = _stored_in(file)
    return True if stored is None else _read_to_the_end(content, stored)


def in_plain_words(error: Exception) -> str:
    """Return on one line what an error of a library for images says, without its files and lines."""
    message = " ".join(str(error).rpartition(ITK_PREFIX)[2].split())
    return next((words for part, words in PLAIN_WORDS.items() if part in message), message)


def _read_to_the_end(content: HashedFile, stored: Stored) -> bool:
    there, is_finite, rest = 0, True, b""
    for chunk in _unpacked(content, stored):
        there += len(chunk)
        if there > stored.size:
            raise ValueError(f"it has more bytes than the {stored.size} of the image that its header describes")
        if stored.type.kind == "f":
            rest += chunk
            whole = len(rest) - len(rest) % stored.type.itemsize
            is_finite = is_finite and bool(np.isfinite(np.frombuffer(rest[:whole], stored.type)).all())
            rest = rest[whole:]
    if there < stored.size:
        raise ValueError(f"it has {there} of the {stored.size} bytes of the image that its header describes")
    return is_finite


def _unpacked(content: HashedFile, stored: Stored) -> Iterator[bytes]:
    """Yield what a file holds from its first voxel to its end; libraries compare the checksums at the end."""
    _skip(content, stored.start)
    if stored.packing == "zlib":
        yield from _inflated(content)
        return
    opened: HashedFile | BinaryIO = content
    if stored.packing:
        opened = gzip.GzipFile(fileobj=content) if stored.packing == "gzip" else bz2.BZ2File(content)
    _skip(opened, stored.skipped)
    while chunk := opened.read(CHUNK_BYTES):
        yield chunk


def _skip(opened: HashedFile | BinaryIO, size: int) -> None:
    while size > 0 and (skipped := opened.read(min(size, CHUNK_BYTES))):
        size -= len(skipped)


def _inflated(content: HashedFile) -> Iterator[bytes]:
    unpacking = zlib.decompressobj()
    while not unpacking.eof:
        packed = unpacking.unconsumed_tail or content.read(CHUNK_BYTES)
        if not packed:
            raise EOFError("its end is missing")
        yield unpacking.decompress(packed, CHUNK_BYTES)
    yield unpacking.unused_data + content.read(1)  # which should not be there


def _stored_in(file: Path) -> Stored | None:
    if file.name.endswith((".nii", ".nii.gz")):
        voxels = nibabel.load(file).dataobj
        size = math.prod(voxels.shape) * voxels.dtype.itemsize
        return Stored(0, "gzip" if file.name.endswith(".gz") else "", voxels.offset, size, voxels.dtype)
    if file.name.endswith(".gipl"):
        return Stored(GIPL_HEADER_BYTES, "", 0, *_voxels_by_itk(file, ">"))
    if file.name.endswith((".mha", ".nrrd")):
        header, start = text_header(file)
        is_mha = file.name.endswith(".mha")
        packing = _packing_of_mha(header) if is_mha else _packing_of_nrrd(header)
        is_msb = any(header.get(key, "").lower() == "true" for key in BIG_ENDIAN_OF_MHA)
        is_big = is_msb or header.get("endian") == "big"
        return Stored(start, packing, 0, *_voxels_by_itk(file, ">" if is_big else "<"))
    return None


def text_header(file: Path) -> tuple[dict[str, str], int]:
    """Return the entries of the header of a MHA or NRRD file, keys in lower case, and where its voxels begin."""
    separator, entries = ("=" if file.name.endswith(".mha") else ":"), {}
    with file.open("rb") as opened:
        while opened.tell() < HEADER_BYTES and (line := opened.readline(HEADER_BYTES)):
            key, _, value = line.decode("latin-1").strip().partition(separator)
            key = key.strip().lower()
            if separator == ":" and not key:
                return entries, opened.tell()
            entries[key] = value.strip(" =")
            if key == "elementdatafile":
                return entries, opened.tell()
    raise ValueError("the end of its header is missing")


def _packing_of_mha(header: dict[str, str]) -> str:
    if header["elementdatafile"].lower() != "local":
        raise ValueError("its voxels lie in another file")
    if header.get("binarydata", "true").lower() == "false":
        raise ValueError("its voxels are written as text, of which nothing tells whether it is whole")
    return "zlib" if header.get("compresseddata", "").lower() == "true" else ""


def _packing_of_nrrd(header: dict[str, str]) -> str:
    if "data file" in header or "datafile" in header:
        raise ValueError("its voxels lie in another file")
    if header.get("encoding", "").lower() not in PACKINGS:
        raise ValueError("its voxels are written as text, of which nothing tells whether it is whole")
    return PACKINGS[header["encoding"].lower()]


def _voxels_by_itk(file: Path, byte_order: str) -> tuple[int, np.dtype]:
    """Return how many bytes the voxels of a file that ITK reads need, and the type of their values."""
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(file))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(in_plain_words(error)) from error
    one = SimpleITK.Image([1] * header.GetDimension(), header.GetPixelID(), header.GetNumberOfComponents())
    value = SimpleITK.GetArrayViewFromImage(one)
    return math.prod(header.GetSize()) * value.nbytes, value.dtype.newbyteorder(byte_order)


def _refuse_damaged_png(opened: HashedFile) -> None:
    """Compare the checksum of each part of a PNG file, which not every library does."""
    if opened.read(len(PNG_BEGINS)) != PNG_BEGINS:
        raise ValueError("it does not begin as a PNG file does")
    kind = b""
    while kind != b"IEND":
        size, kind = int.from_bytes(opened.read(4)), opened.read(4)
        content, checksum = opened.read(size), opened.read(4)
        if len(content) < size or len(checksum) < 4:
            raise EOFError("its end is missing")
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum):
            raise ValueError("a checksum is wrong")
