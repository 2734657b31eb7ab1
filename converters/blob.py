"""BlobProto: one array in Caffe's files.

Field numbers: legacy shape num=1 channels=2 height=3 width=4; data=5 (float); shape=7 (BlobShape, dim=1);
double_data=8; NVIDIA's fork adds raw_data_type=10 and raw_data=12. diff=6, double_diff=9 and raw_diff=13 are skipped.
"""

from __future__ import annotations

import math

import numpy as np

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
    floats: list[np.ndarray] = []
    doubles: list[np.ndarray] = []
    raw, raw_type = None, 0
    for number, wire, value in fields(message):
        if number in (1, 2, 3, 4):
            expect(number, wire, VARINT)
            legacy[number] = signed(value)
        elif number == 5:
            floats.append(_values(number, wire, value, I32, "<f4"))
        elif number == 7:
            expect(number, wire, LEN)
            dims += _decode_shape(value)
        elif number == 8:
            doubles.append(_values(number, wire, value, I64, "<f8"))
        elif number == 10:
            expect(number, wire, VARINT)
            raw_type = value
        elif number == 12:
            expect(number, wire, LEN)
            raw = value
    if raw is not None and not floats and not doubles:
        floats = [_decode_raw(raw, raw_type)]
    shape = tuple(legacy.get(axis, 0) for axis in (1, 2, 3, 4)) if legacy else tuple(dims)
    return _join(doubles or floats).reshape(_checked(shape, sum(map(len, doubles or floats))))


def encode_blob(blob) -> list:
    """The pieces of a BlobProto with ``data`` and BlobShape; a float64 array is written as ``double_data``, exactly.

    ``blob`` is any array-like. The values are not copied when they are C-contiguous float32 already.
    """
    number, dtype = (8, "<f8") if getattr(blob, "dtype", None) == np.float64 else (5, "<f4")
    array = np.asarray(blob, dtype, order="C")
    data = len_field(number, array.reshape(-1).view(np.uint8))
    shape = len_field(7, *len_field(1, b"".join(map(varint, array.shape))))
    return data + shape if number == 5 else shape + data


def _values(number: int, wire: int, value, unpacked: int, dtype: str) -> np.ndarray:
    if wire == unpacked:
        return value
    expect(number, wire, LEN)
    return _from_bytes(value, dtype)


def _from_bytes(value: memoryview, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    if len(value) % size:
        raise WeightsError(f"{len(value)} bytes of blob data are not a whole number of {size}-byte values")
    return np.frombuffer(value, dtype)


def _decode_raw(value: memoryview, raw_type: int) -> np.ndarray:
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


def _join(chunks: list[np.ndarray]) -> np.ndarray:
    array = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.float32), *chunks])
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array
