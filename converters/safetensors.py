"""``.safetensors``: a JSON header with each array's type, shape and place, then the values.

https://huggingface.co/docs/safetensors describes the format: 8 bytes little-endian with the header's length, the
header, the data. The library of that name wants all values in memory to write them; here they go from the mapped
source to the file a piece at a time, and reading maps the file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import accumulate

import numpy as np

from prototxt.files import replacing

from .dtypes import DTYPES, Pieces, as_array, dtype_of, flat
from .errors import WeightsError
from .files import is_safetensors, open_mapped, refuse_other_formats
from .named import NamedArrays

_BY_NAME = {row.safetensors: row.numpy for row in DTYPES}
_MAX_HEADER = 100_000_000  # bytes: the library's limit
_METADATA = "__metadata__"


def read_safetensors(path: str | os.PathLike) -> NamedArrays:
    """The arrays of a ``.safetensors``, in the header's order, as read-only views on the memory-mapped file.

    BF16 is widened to float32, in memory. The metadata's "format" is left out: it is about the file.

    Raises :class:`WeightsError` for a file that is missing, damaged, of another format, or has other element types.
    """
    view = open_mapped(path, "a .safetensors")
    if not is_safetensors(view):
        refuse_other_formats(view, path, "a .safetensors")
    try:
        start, header = _read_header(view)
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise WeightsError(f"{_METADATA} is not a table of texts")
        metadata.pop("format", None)
        return NamedArrays(_arrays(view[start:], header), metadata)
    except WeightsError as error:
        error.file = path
        raise


def write_safetensors(path: str | os.PathLike, named: NamedArrays) -> None:
    """Write a ``.safetensors``; the file appears whole or not at all, and no array is copied on the way.

    The header lists the arrays in the order of ``named``; their values lie in it too, wide types first, so that all
    are aligned.

    Raises :class:`WeightsError` for an array or a name that the format cannot hold, :class:`CaffePortError` when the
    file cannot be written.
    """
    metadata = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in named.metadata.items()}
    header: dict[str, dict] = {_METADATA: {**metadata, "format": "pt"}}
    if _METADATA in named.arrays:
        raise WeightsError(f"an array is called {_METADATA}, a name that the format keeps for itself", file=path)
    dtypes = {name: dtype_of(array, name) for name, array in named.arrays.items()}
    order = sorted(dtypes, key=lambda name: -dtypes[name].numpy.itemsize)
    values = {name: Pieces(named.arrays[name], dtypes[name].numpy) for name in order}
    ends = dict(zip(order, accumulate(map(len, values.values())), strict=True))
    for name, array in named.arrays.items():
        place = [ends[name] - len(values[name]), ends[name]]
        header[name] = {"dtype": dtypes[name].safetensors, "shape": list(array.shape), "data_offsets": place}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise WeightsError(f"names, shapes and metadata take {len(text)} bytes; at most {_MAX_HEADER} are allowed")
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(flat(values.values()))


def _read_header(view: memoryview) -> tuple[int, dict]:
    """Where the data begin, and the header."""
    if len(view) < 8:
        raise WeightsError(f"has {len(view)} bytes, fewer than a header's length takes")
    length = int.from_bytes(view[:8], "little")
    if length > _MAX_HEADER:
        raise WeightsError(f"is not a .safetensors, or damaged: its header would have {length} bytes")
    if length > len(view) - 8:
        raise WeightsError(f"is cut off: the header has {length} bytes and {len(view) - 8} are left")
    try:
        text = str(view[8 : 8 + length], "utf-8")
        if not text.startswith("{"):
            raise ValueError("it does not begin with '{'")
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its header is not valid JSON: {str(error)[:200]}") from None
    return 8 + length, header


def _arrays(data: memoryview, header: dict) -> dict[str, np.ndarray]:
    arrays, places = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise WeightsError(f"array '{name}' lacks a proper dtype, shape or data_offsets") from None
        if not (type(start) is type(end) is int and 0 <= start <= end <= len(data)):
            raise WeightsError(f"array '{name}' lies at bytes {start} to {end}, but there are {len(data)}")
        places.append((start, end, name))
        arrays[name] = _array(data[start:end], str(dtype), shape, name)
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise WeightsError(f"array '{name}' begins at byte {start} of the data, where byte {reached} is next")
        reached = end
    if reached != len(data):
        raise WeightsError(f"the arrays take {reached} bytes, but there are {len(data)}")
    return arrays


def _array(data: memoryview, dtype: str, shape: tuple, name: str) -> np.ndarray:
    if dtype == "BF16":
        half = as_array(data, np.dtype("<u2"), shape, name)
        return np.left_shift(half, 16, dtype=np.uint32).view(np.float32)
    if dtype not in _BY_NAME:
        raise WeightsError(
            f"array '{name}' is of type {dtype[:20]}; {', '.join([*_BY_NAME, 'BF16'])} can be read",
            hint="Save it in one of these.",
        )
    return as_array(data, _BY_NAME[dtype], shape, name)


def _unique(pairs: list[tuple]) -> dict:
    table = dict(pairs)
    if len(table) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name '{name}' stands there twice")
    "".join(table).encode()  # half a surrogate pair is no name
    return table


def _no_constant(text: str):
    raise ValueError(f"{text} is no JSON")
