"""Zip archives of stored, aligned entries: what ``.npz`` and PyTorch's ``.pt`` are made of."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prototxt.files import replacing

from .dtypes import flat
from .errors import WeightsError
from .files import ZIP_MAGIC, open_mapped, refuse_other_formats

_ALIGNMENT = 64  # bytes, as torch.save has it
_ZIP64 = 1 << 30  # entries larger than this get 64-bit sizes; the format needs them from 4 GiB on
_STEP = 1 << 12  # bytes of packed data: at most 4 MB unpacked
_DEFLATE_LIMIT = 1100  # deflate never packs more than 1,032 to one
_LOCAL = struct.Struct("<4s22xHH")  # of an entry's own header: magic, lengths of its name and of its extra field
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, OverflowError)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[Callable]:
    """Yields ``add(name, *parts)``, which stores bytes-likes and :class:`~converters.dtypes.Pieces` as one entry. The
    archive appears whole or not at all, and is the same for the same content.

    Raises :class:`prototxt.errors.CaffePortError` when the file cannot be written.
    """
    with replacing(path) as file:
        archive = zipfile.ZipFile(file, "w")

        def add(name: str, *parts) -> None:
            size = sum(map(len, parts))
            if "\0" in name or len(name.encode()) > 0xFFFF:
                raise WeightsError(f"{name[:80]!r} cannot be a name in a zip archive", file=path)
            entry = zipfile.ZipInfo(name)
            entry.file_size = size
            header = 30 + len(name.encode()) + 4 + (20 if size > _ZIP64 else 0)
            padding = -(file.tell() + header) % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # as PyTorch pads
            with archive.open(entry, "w", force_zip64=size > _ZIP64) as target:
                for part in flat(parts):
                    target.write(part)

        try:
            yield add
            archive.close()
        finally:
            archive.fp = None  # an archive that is broken off stays unfinished: close() would complain of open entries


def read_entries(path: str | os.PathLike, kind: str, *, packed: bool = True) -> dict[str, memoryview]:
    """The entries of an archive by name; stored ones as views on the memory-mapped file, packed ones in memory.

    All checksums are verified, so every value is read once. ``kind`` names what is expected ("a .npz") in the
    messages; with ``packed`` False, its entries must be stored.

    Raises :class:`WeightsError` for a file that is missing, damaged, of another format, encrypted, or that claims more
    than it can hold.
    """
    view = open_mapped(path, kind)
    if bytes(view[:4]) != ZIP_MAGIC:
        refuse_other_formats(view, path, kind)
        raise WeightsError(f"is not {kind}", file=path)
    entries: dict[str, memoryview] = {}
    room = len(view)
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                room -= entry.compress_size
                if entry.filename in entries:
                    raise WeightsError(f"has two entries named '{entry.filename}'")
                if room < 0 or entry.file_size > entry.compress_size * _DEFLATE_LIMIT:
                    raise WeightsError(f"'{entry.filename}' claims {entry.file_size} bytes, more than the file has")
                if entry.compress_type != zipfile.ZIP_STORED and not packed:
                    raise WeightsError(f"'{entry.filename}' is packed, which is never so in {kind}")
                entries[entry.filename] = _read(entry, view)
    except WeightsError as error:
        error.file = path
        raise
    except _BROKEN as error:
        raise WeightsError(f"is a damaged zip archive: {error}", file=path, hint="Fetch or write it again.") from None
    return entries


def entry_names(path: str | os.PathLike) -> list[str]:
    """The names of an archive's entries.

    Raises :class:`WeightsError` when it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _BROKEN as error:
        raise WeightsError(f"is a damaged zip archive: {error}", file=path, hint="Fetch or write it again.") from None


def _read(entry: zipfile.ZipInfo, view: memoryview) -> memoryview:
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError(f"'{entry.filename}' is encrypted or packed in a way that is not read")
    magic, name, extra = _LOCAL.unpack_from(view, entry.header_offset)
    start = entry.header_offset + _LOCAL.size + name + extra
    data = view[start : start + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        data = _inflate(data, entry.file_size)
    whole = magic == ZIP_MAGIC and len(data) == entry.file_size
    if whole and (entry.CRC == 0 or zlib.crc32(data) == entry.CRC):  # PyTorch can be told to leave the sums out
        return data
    raise WeightsError(f"'{entry.filename}' is cut off or damaged", hint="Fetch or write it again.")


def _inflate(packed: memoryview, size: int) -> memoryview:
    """``packed`` unpacked in small steps, which need no second copy, and not far beyond ``size`` bytes."""
    inflater, data = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    for start in range(0, len(packed), _STEP):
        data += inflater.decompress(packed[start : start + _STEP])
        if len(data) > size:
            break
    return memoryview(data).toreadonly()
