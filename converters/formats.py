"""Which kind of weight file a file is, by what is in it, and reading any of them."""

from __future__ import annotations

import os
from itertools import islice

import numpy as np

from .archive import entry_names
from .binaryproto import read_binaryproto
from .caffemodel import CaffeModel, read_caffemodel
from .errors import WeightsError
from .files import HDF5_MAGIC, ZIP_MAGIC, is_safetensors, open_mapped, refuse_other_formats
from .hdf5 import hdf5_kind
from .named import NamedArrays
from .npz import read_npz
from .safetensors import read_safetensors
from .solverstate import SolverState, read_solverstate
from .torch_state import read_pt
from .wire import I32, I64, LEN, VARINT, fields

_READERS = {
    "caffemodel": read_caffemodel,
    "caffemodel.h5": read_caffemodel,
    "solverstate": read_solverstate,
    "solverstate.h5": read_solverstate,
    "binaryproto": read_binaryproto,
    "safetensors": read_safetensors,
    "pt": read_pt,
    "npz": read_npz,
}
KINDS = tuple(_READERS)
_FIRST_FIELDS = 64  # of a message: enough to tell what it is, however many a hostile file has


def kind_of(path: str | os.PathLike) -> str:
    """One of :data:`KINDS`, told by the file's content; its name does not matter.

    Raises :class:`WeightsError` when the file is missing, empty, or none of them, and says what it looks like.
    """
    view = open_mapped(path, "a weight file")
    if is_safetensors(view):
        return "safetensors"
    if bytes(view[:8]) == HDF5_MAGIC:
        return hdf5_kind(path)
    if bytes(view[:4]) == ZIP_MAGIC:
        names = entry_names(path)
        if any(name.endswith("/data.pkl") for name in names):
            return "pt"
        if any(name.endswith(".npy") for name in names):
            return "npz"
    refuse_other_formats(view, path, "a weight file")
    try:
        return _kind_of_message(view)
    except WeightsError as error:
        error.file = path
        raise


def read(path: str | os.PathLike) -> CaffeModel | SolverState | np.ndarray | NamedArrays:
    """What a weight file of any kind holds; see the reader of its kind.

    Raises :class:`WeightsError` for a file that is missing, damaged or of no known kind.
    """
    return _READERS[kind_of(path)](path)


def _kind_of_message(view: memoryview) -> str:
    """Which of Caffe's three messages has fields of these numbers and wire types.

    | field | NetParameter | SolverState | BlobProto |
    |---|---|---|---|
    | 1 | name, bytes | iter, number | num, number |
    | 2 | layers, bytes | learned_net, bytes | channels, number |
    | 3 | input, bytes | history, bytes | height, number |
    | 5, 8 | numbers; input_shape, bytes | minimum_loss, 4 bytes | data, double_data |
    | 7, 12 | number; none | none | shape, raw_data, bytes |
    | 100 | layer, bytes | none | none |
    """
    found, damage = set(), None
    try:
        for number, wire, _ in islice(fields(view), _FIRST_FIELDS):
            found.add((number, wire))
    except WeightsError as error:
        damage = error
    if found & {(1, LEN), (100, LEN)}:
        return "caffemodel"
    if (1, VARINT) in found and found & {(2, LEN), (3, LEN)}:
        return "solverstate"
    if found & {(2, VARINT), (3, VARINT), (5, LEN), (7, LEN), (8, I64), (12, LEN)}:
        return "binaryproto"
    if (2, LEN) in found:
        return "caffemodel"
    if found & {(5, I32), (8, LEN)}:
        return "solverstate" if (1, VARINT) in found else "binaryproto"
    if (1, VARINT) in found:
        return "solverstate"
    raise damage or WeightsError("is none of the weight files that can be read", hint=f"These are: {', '.join(KINDS)}.")
