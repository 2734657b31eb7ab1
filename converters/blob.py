"""BlobProto: one array in Caffe's files.

Field numbers: legacy shape num=1 channels=2 height=3 width=4; data=5 (float); shape=7 (BlobShape, dim=1);
double_data=8; NVIDIA's fork adds raw_data_type=10 and raw_data=12. diff=6, double_diff=9 and raw_diff=13 are skipped.
"""

from __future__ import annotations

import math

import numpy as np

from .dtypes import Pieces
from .errors import WeightsError
from .wire import I32, I64, LEN, VARINT, expect, fields, len_field, read_varint, signed, varint

_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # enum Type of NVIDIA's caffe.proto: DOUBLE, FLOAT, FLOAT16
_MAX_AXES, _MAX_COUNT = 32, 2**31 - 1  # Caffe's kMaxBlobAxes and INT_MAX


def decode_blob(message: memoryview) -> np.ndarray:
    """The array of a BlobProto, C order, read-only; a view on ``message`` wherever the values lie there in one piece.

    float32, or float64 where the file has ``double_data`` (which wins over ``data``, as in Caffe). Half-precision
    ``raw_data`` is widened to float32. A legacy shape stays the four numbers it is. A view may be unaligned: copy
    before handing it to code that needs aligned memory.

    Raises :class:`WeightsError` when the shape does not fit the number of values, or the bytes make no BlobProto.
    """
    legacy: dict[int, int] = {}
    dims: list[int] = []
    floats, doubles = _Values("<f4", len(message)), _Values("<f8", len(message))
    raw = raw_type = None
    for number, wire, value in fields(message):
        if number in (1, 2, 3, 4):
            expect(number, wire, VARINT)
            legacy[number] = signed(value)
        elif number == 5:
            floats.add(value if wire == I32 else _packed(number, wire, value, "<f4"))
        elif number == 7:
            expect(number, wire, LEN)
            dims += _decode_shape(value)
        elif number == 8:
            doubles.add(value if wire == I64 else _packed(number, wire, value, "<f8"))
        elif number == 10:
            expect(number, wire, VARINT)
            raw_type = value
        elif number == 12:
            expect(number, wire, LEN)
            raw = value
    shape = tuple(legacy.get(axis, 0) for axis in (1, 2, 3, 4)) if legacy else tuple(dims)
    if raw is not None and not floats.count and not doubles.count:
        values = _decode_raw(raw, raw_type)
    else:
        values = (doubles if doubles.count else floats).joined()
    array = values.reshape(_checked(shape, len(values)))
    array.flags.writeable = False
    return array


def encode_blob(blob) -> list:
    """The pieces of a BlobProto with ``data`` and BlobShape; a float64 array is written as ``double_data``, exactly.

    ``blob`` is any array-like. The values are not copied when they are C-contiguous float32 already.
    """
    number, dtype = (8, np.dtype("<f8")) if getattr(blob, "dtype", None) == np.float64 else (5, np.dtype("<f4"))
    array = np.asarray(blob, None if hasattr(blob, "dtype") else dtype)
    data = len_field(number, Pieces(array, dtype))
    # as Caffe, no shape of no axes: OpenCV 4 fails on an empty one
    shape = len_field(7, *len_field(1, b"".join(map(varint, array.shape)))) if array.ndim else []
    return data + shape if number == 5 else shape + data


class _Values:
    """The values of one field: a single piece stays the view that it is, more are gathered in one array, which is as
    large as the message at most however many pieces there are."""

    def __init__(self, dtype: str, room: int):
        self.count, self._array, self._room = 0, np.empty(0, dtype), room

    def add(self, piece: np.ndarray) -> None:
        total = self.count + len(piece)
        if not self.count:
            self._array = piece
        elif len(piece):
            if len(self._array) == self.count:
                gathered = np.empty(self._room // piece.itemsize, piece.dtype)
                gathered[: self.count], self._array = self._array, gathered
            self._array[self.count : total] = piece
        self.count = total

    def joined(self) -> np.ndarray:
        return np.ascontiguousarray(self._array[: self.count])


def _packed(number: int, wire: int, value, dtype: str) -> np.ndarray:
    expect(number, wire, LEN)
    return _from_bytes(value, dtype)


def _from_bytes(value: memoryview, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    if len(value) % size:
        raise WeightsError(f"{len(value)} bytes of blob data are not a whole number of {size}-byte values")
    return np.frombuffer(value, dtype)


def _decode_raw(value: memoryview, raw_type: int | None) -> np.ndarray:
    if raw_type not in _RAW_TYPES:
        raise WeightsError(
            f"raw_data_type {raw_type} is not supported; DOUBLE (0), FLOAT (1) and FLOAT16 (2) are",
            hint="Save the model in single precision with the Caffe it comes from.",
        )
    array = _from_bytes(value, _RAW_TYPES[raw_type])
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _decode_shape(message: memoryview) -> list[int]:
    dims: list[int] = []
    for number, wire, value in fields(message):
        if number != 1:
            continue
        if wire == VARINT:
            dims.append(signed(value))
            continue
        expect(number, wire, LEN)
        pos = 0
        while pos < len(value) and len(dims) <= _MAX_AXES:
            dim, pos = read_varint(value, pos)
            dims.append(signed(dim))
    return dims


def _checked(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """``shape``, if Caffe would accept it for ``count`` values (an absent shape is that of one scalar)."""
    if len(shape) > _MAX_AXES:
        raise WeightsError(f"a blob has more than {_MAX_AXES} axes: this is not a Caffe file, or it is damaged")
    if min(shape, default=0) < 0 or math.prod(dim for dim in shape if dim) > _MAX_COUNT:
        raise WeightsError(f"a blob has the impossible shape {shape}: this is not a Caffe file, or it is damaged")
    if math.prod(shape) != count:
        raise WeightsError(
            f"a blob of shape {shape} needs {math.prod(shape)} values but {count} are stored",
            hint="The file is damaged, or its writer stored no shape.",
        )
    return shape
