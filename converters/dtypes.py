"""The element types of weight files, and arrays as bytes: taken from a mapped file and written out without a copy."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from .errors import WeightsError

_PIECE = 1 << 20  # bytes: larger writes from a mapped file take twice as long on ext4, smaller ones gain nothing
_MAX_AXES = 32
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14 and later


class Dtype(NamedTuple):
    """One element type: numpy's, and the names that safetensors and PyTorch have for it."""

    numpy: np.dtype
    safetensors: str
    storage: str


DTYPES = tuple(
    Dtype(np.dtype(numpy), safetensors, storage)
    for numpy, safetensors, storage in (
        ("<f4", "F32", "FloatStorage"),
        ("<f8", "F64", "DoubleStorage"),
        ("<f2", "F16", "HalfStorage"),
        ("<i8", "I64", "LongStorage"),
        ("<i4", "I32", "IntStorage"),
        ("<i2", "I16", "ShortStorage"),
        ("i1", "I8", "CharStorage"),
        ("u1", "U8", "ByteStorage"),
        ("?", "BOOL", "BoolStorage"),
    )
)


def dtype_of(array: np.ndarray, name: str) -> Dtype:
    """The row of :data:`DTYPES` that ``array``, called ``name``, is stored as.

    Raises :class:`WeightsError` for complex numbers, text, objects and the like.
    """
    for row in DTYPES:
        if array.dtype.newbyteorder("<") == row.numpy:
            return row
    raise WeightsError(f"array '{name}' is of type {array.dtype}, which is not one of weights")


def as_array(data: memoryview, dtype: np.dtype, shape, name: str, order: str = "C") -> np.ndarray:
    """A view of all of ``data`` as an array called ``name``.

    Raises :class:`WeightsError` when ``shape`` is none or does not fit the number of bytes.
    """
    if len(shape) > _MAX_AXES:
        raise WeightsError(f"array '{name}' has {len(shape)} axes, more than {_MAX_AXES}: the file is damaged")
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise WeightsError(f"array '{name}' has the impossible shape {tuple(shape)}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WeightsError(
            f"array '{name}' of type {dtype.name} and shape {tuple(shape)} needs {math.prod(shape) * dtype.itemsize} "
            f"bytes but has {len(data)}"
        )
    try:
        return np.ndarray(tuple(shape), dtype, data, order=order)
    except (ValueError, OverflowError):  # no values, and sizes that make more than 2**63 of them
        raise WeightsError(f"array '{name}' has the impossible shape {tuple(shape)}") from None


class Pieces:
    """The values of ``array`` in C order as ``dtype``, to be written one uint8 array of at most a mebibyte after the
    other: views of ``array`` where it lies in memory like that, and where not, copies that last until the next one.

    ``len`` is the number of bytes.
    """

    def __init__(self, array: np.ndarray, dtype: np.dtype):
        self.array, self.dtype = array, dtype

    def __len__(self) -> int:
        return self.array.size * self.dtype.itemsize

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.array.dtype == self.dtype and self.array.flags.c_contiguous:
            data = self.array.reshape(-1).view(np.uint8)
            fetch = _fetcher(data)
            for start in range(0, len(data), _PIECE):
                fetch(start)
                yield data[start : start + _PIECE]
        elif self.array.size:
            flags = ["external_loop", "buffered"]
            options = {"order": "C", "casting": "unsafe", "buffersize": _PIECE // 8}
            with np.nditer(self.array, flags, [["readonly", "contig"]], [self.dtype], **options) as runs:
                for values in runs:
                    yield values.view(np.uint8)


def _fetcher(data: np.ndarray) -> Callable[[int], None]:
    """A function that maps the pages of the piece at ``start`` at once, where ``data`` is a view of a mapped file: to
    write them is then a third faster than with a page fault for each few."""
    base = data
    while isinstance(base, np.ndarray):
        base = base.base
    file = base.obj if isinstance(base, memoryview) else base
    if not isinstance(file, mmap.mmap) or sys.platform != "linux":
        return lambda start: None
    places = [array.__array_interface__["data"][0] for array in (data, np.frombuffer(file, np.uint8))]
    offset, end = places[0] - places[1], places[0] - places[1] + len(data)

    def fetch(start: int) -> None:
        first = (offset + start) // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(OSError, ValueError):  # an older kernel: the pages come when they are used
            file.madvise(_POPULATE_READ, first, min(offset + start + _PIECE, end) - first)

    return fetch


def flat(parts: Iterable) -> Iterator:
    """The bytes-likes among ``parts`` and in the :class:`Pieces` among them: what ``writelines`` takes."""
    for part in parts:
        yield from part if isinstance(part, Pieces) else (part,)
