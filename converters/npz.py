"""``.npz``: numpy's own archive, one ``.npy`` for each array. ``numpy.load(path)`` opens what is written here.

The metadata lie in it as JSON, in a text of no axes called ``__metadata__``:
``json.loads(numpy.load(path)["__metadata__"].item())``.
"""

from __future__ import annotations

import io
import json
import os

import numpy as np

from .archive import read_entries, writing
from .dtypes import DTYPES, Pieces, as_array, dtype_of
from .errors import WeightsError
from .named import NamedArrays

_METADATA = "__metadata__"
_NUMPY = {row.numpy for row in DTYPES}
_MAX_HEADER = 4096  # characters; numpy's own are below 200


def read_npz(path: str | os.PathLike) -> NamedArrays:
    """The arrays of a ``.npz``, read-only: views on the memory-mapped file, except of packed ones
    (``numpy.savez_compressed``) and of big-endian ones.

    Every checksum is verified, so all values are read once.

    Raises :class:`WeightsError` for a file that is missing, damaged, of another format, or has arrays of objects (they
    are pickles, which are never opened), of text or of complex numbers.
    """
    named = NamedArrays()
    entries = read_entries(path, "a .npz")
    try:
        for entry, data in entries.items():
            name = entry.removesuffix(".npy")
            if name == entry:
                raise WeightsError(f"'{entry}' is not a .npy: this zip archive is no .npz")
            if name == _METADATA:
                named.metadata = _read_metadata(data)
            else:
                named.arrays[name] = _read_npy(data, name)
    except WeightsError as error:
        error.file = path
        raise
    return named


def write_npz(path: str | os.PathLike, named: NamedArrays) -> None:
    """Write a ``.npz``; the file appears whole or not at all, and no array is copied on the way.

    Raises :class:`WeightsError` for an array or a name that the format cannot hold, :class:`CaffePortError` when the
    file cannot be written.
    """
    if _METADATA in named.arrays:
        raise WeightsError(f"an array is called {_METADATA}, the name of the metadata's entry", file=path)
    dtypes = {name: dtype_of(array, name).numpy for name, array in named.arrays.items()}
    with writing(path) as add:
        for name, array in named.arrays.items():
            add(f"{name}.npy", _header(dtypes[name], array.shape), Pieces(array, dtypes[name]))
        if named.metadata:
            text = np.array(json.dumps(named.metadata))
            text = text.astype(text.dtype.newbyteorder("<"))
            add(f"{_METADATA}.npy", _header(text.dtype, ()), text.tobytes())


def _header(dtype: np.dtype, shape: tuple) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _read_header(data: memoryview, name: str) -> tuple[np.dtype, tuple, str, memoryview]:
    """Type, shape, order and values of a ``.npy``."""
    file = io.BytesIO(data[: _MAX_HEADER + 16])
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy and Python's parser raise many kinds
        raise WeightsError(f"'{name}' has no valid header of numpy: {str(error)[:200]}") from None
    if dtype.hasobject:
        raise WeightsError(
            f"array '{name}' holds Python objects", hint="They are pickles, which are never opened: they can run code."
        )
    return dtype, shape, "F" if fortran else "C", data[file.tell() :]


def _read_npy(data: memoryview, name: str) -> np.ndarray:
    dtype, shape, order, values = _read_header(data, name)
    little = dtype.newbyteorder("<")
    if little not in _NUMPY:
        raise WeightsError(f"array '{name}' is of type {dtype}, which is not one of weights")
    return as_array(values, dtype, shape, name, order).astype(little, copy=False)


def _read_metadata(data: memoryview) -> dict[str, str]:
    dtype, shape, _, values = _read_header(data, _METADATA)
    try:
        if dtype.kind != "U" or shape:
            raise ValueError("it is no text")
        metadata = json.loads(str(as_array(values, dtype, (), _METADATA)))
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("it is not a table of texts")
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{_METADATA} cannot be read: {str(error)[:200]}") from None
    return metadata
