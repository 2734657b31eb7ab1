"""``.caffemodel.h5`` and ``.solverstate.h5``: what Caffe writes with ``snapshot_format: HDF5``.

A model has a group ``data`` with a group for each layer and in it the datasets ``0``, ``1``...; a tensor that layers
share lies only under the first of them; the others link to it in files written here, which Caffe reads as well. A
solver state has ``iter``, ``current_step``, ``learned_net`` and a group ``history`` with one dataset for each blob.
Order, types, bottoms and tops of layers are not in such files.
(``Net::ToHDF5``, ``SGDSolver::SnapshotSolverStateToHDF5``.)
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prototxt.files import replacing

from .dtypes import as_array
from .errors import WeightsError
from .extras import library
from .files import HDF5_MAGIC, open_mapped

_DEFLATE_LIMIT = 1100  # deflate never packs more than 1,032 to one
_MAX_BLOBS = 10_000  # of a layer, or of a solver's history
_MAX_TEXT = 1 << 16  # bytes of a path


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file begins as HDF5 does; False when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:
        return False


def hdf5_kind(path) -> str:
    """``caffemodel.h5`` or ``solverstate.h5``.

    Raises :class:`WeightsError` for a file that is damaged or of another kind, or when h5py is not installed.
    """
    with _open(path) as file:
        if "data" in file:
            return "caffemodel.h5"
        if "iter" in file or "history" in file:
            return "solverstate.h5"
        raise WeightsError(f"is an HDF5 file, but not one of Caffe: it holds {', '.join(file)[:200] or 'nothing'}")


def read_hdf5_model(path) -> list[tuple[str, list[np.ndarray | None]]]:
    """``(layer, blobs)`` for each layer of a ``.caffemodel.h5``, in the order of the file's index (by name).

    The blobs are read-only views on the memory-mapped file, those of other than little-endian single or double
    precision, or in chunks, arrays in memory.

    A blob is None where the layer shares the tensor of another one.

    Raises :class:`WeightsError` for a file that is damaged or of another kind, or when h5py is not installed.
    """
    with _open(path) as file:
        if "data" not in file:
            raise WeightsError("is not a .caffemodel.h5: it has no group 'data'", file=path)
        arrays = _Arrays(path)
        return [(name, arrays.of_group(group, name)) for name, group in _layer_groups(file["data"])]


def write_hdf5_model(path, layers) -> None:
    """Writes ``[(layer, blobs), ...]``; an array that several layers hold is stored once, under the first, with links
    from the others, and one that is None nowhere.

    The file appears whole or not at all.

    Raises :class:`WeightsError` for parameters of a layer whose name HDF5 cannot hold, or of two of one name.
    """
    stored: dict[tuple, object] = {}  # by place in memory
    with _create(path) as file:
        data = file.create_group("data")
        for name, blobs in layers:
            if {"", "."} & set(name.split("/")) or "\0" in name:  # HDF5 would take it for another name
                if blobs:
                    raise WeightsError("HDF5 files cannot hold a layer of this name", layer=name)
                continue
            arrays = [
                np.asarray(blob, np.float64 if getattr(blob, "dtype", None) == np.float64 else np.float32)
                for blob in blobs
            ]
            try:
                group = data.require_group(name)
                for j, (blob, array) in enumerate(zip(blobs, arrays, strict=True)):
                    if blob is None:
                        continue
                    place = (array.__array_interface__["data"][0], array.shape, array.strides)
                    if array is blob and array.size and place in stored:
                        group[str(j)] = stored[place]
                    else:
                        stored[place] = group.create_dataset(str(j), data=array)
            except (TypeError, ValueError):  # h5py's when something of that name is there
                raise WeightsError("HDF5 files hold one layer of a name; here are several", layer=name) from None


def read_hdf5_state(path) -> dict:
    """What a ``.solverstate.h5`` has of :class:`~converters.solverstate.SolverState`'s fields.

    Raises :class:`WeightsError` as :func:`read_hdf5_model` does.
    """
    with _open(path) as file:
        if "iter" not in file or "history" not in file:
            raise WeightsError("is not a .solverstate.h5: it has no 'iter' or no 'history'", file=path)
        name = _value(file, "learned_net", b"")
        loss = _value(file, "minimum_loss", None)
        return {
            "iter": int(_value(file, "iter")),
            "current_step": int(_value(file, "current_step", 0)),
            "learned_net": name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name),
            "history": _Arrays(path).of_group(file["history"], "history"),
            "minimum_loss": None if loss is None else float(loss),
            "iter_last_event": int(_value(file, "iter_last_event", 0)),
        }


def write_hdf5_state(
    path, *, iter: int, current_step: int, learned_net: str, history, minimum_loss=None, iter_last_event: int = 0
) -> None:
    """Writes a ``.solverstate.h5`` that Caffe can restore. The file appears whole or not at all."""
    with _create(path) as file:
        file.create_dataset("iter", data=np.array([iter], dtype=np.int32))
        file.create_dataset("current_step", data=np.array([current_step], dtype=np.int32))
        file.create_dataset("learned_net", data=np.bytes_(learned_net.encode("utf-8", "surrogateescape")))
        if minimum_loss is not None:
            file.create_dataset("minimum_loss", data=np.array([minimum_loss], dtype=np.float32))
            file.create_dataset("iter_last_event", data=np.array([iter_last_event], dtype=np.int32))
        group = file.create_group("history")
        for i, blob in enumerate(history):
            group.create_dataset(str(i), data=blob)


@contextmanager
def _open(path):
    h5py = library("h5py", "hdf5")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except WeightsError as error:
        error.file = error.file or path
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"is damaged, or not an HDF5 file of Caffe: {error}", file=path) from None


@contextmanager
def _create(path):
    h5py = library("h5py", "hdf5")
    with replacing(path, "w+b") as file, h5py.File(file, "w") as hdf5:
        yield hdf5


def _value(file, name: str, default=None):
    """The one value that the dataset ``name`` holds, ``default`` where there is none."""
    if name not in file:
        return default
    if file[name].size != 1 or file[name].nbytes > _MAX_TEXT:
        raise WeightsError(f"dataset '{name}' is not one value")
    return np.ravel(file[name][()])[0]


def _members(group):
    """``(name, object)`` of a group; links that lead out of the file are refused."""
    h5py = library("h5py", "hdf5")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise WeightsError(f"'{group.name}/{name}' is a link to elsewhere", hint="Only arrays are read.")
        yield name, group[name]


def _address(item) -> int:
    """Where an object's header lies in the file."""
    return library("h5py", "hdf5").h5o.get_info(item.id).addr


def _layer_groups(group, prefix="", seen=None):
    """Each group with its path below ``data``: a layer's name may hold slashes, which HDF5 takes for folders."""
    h5py = library("h5py", "hdf5")
    seen = {_address(group)} if seen is None else seen
    for name, member in _members(group):
        if not isinstance(member, h5py.Group):
            continue
        if _address(member) in seen:
            raise WeightsError(f"the group '{prefix}{name}' stands there twice", hint="Only arrays are read.")
        seen.add(_address(member))
        inner = [m for _, m in _members(member) if isinstance(m, h5py.Group)]
        if len(inner) < len(member) or not inner:
            yield prefix + name, member
        if inner:
            yield from _layer_groups(member, f"{prefix}{name}/", seen)


class _Arrays:
    """The arrays of one file: each is read once, and all together are no more than the file can hold."""

    def __init__(self, path):
        self.view = open_mapped(path, "an HDF5 file")
        self.room = len(self.view) * _DEFLATE_LIMIT
        self.known: dict[int, np.ndarray] = {}

    def of_group(self, group, layer: str) -> list[np.ndarray | None]:
        h5py = library("h5py", "hdf5")
        blobs: dict[int, np.ndarray] = {}
        for name, member in _members(group):
            if not isinstance(member, h5py.Dataset):
                continue
            if not name.isdigit() or int(name) > _MAX_BLOBS:
                raise WeightsError(f"dataset '{name}' is not a parameter's number", layer=layer)
            address = _address(member)
            if address not in self.known:
                self.known[address] = self._read(member, name, layer)
            blobs[int(name)] = self.known[address]
        return [blobs.get(j) for j in range(max(blobs, default=-1) + 1)]

    def _read(self, member, name: str, layer: str) -> np.ndarray:
        if member.dtype.kind != "f" or member.external or member.is_virtual:
            raise WeightsError(f"dataset '{name}' holds no numbers of its own", layer=layer)
        start = member.id.get_offset()  # None unless the values lie in one piece
        if start is not None and member.dtype in ("<f4", "<f8"):
            return as_array(self.view[start : start + member.nbytes], member.dtype, member.shape, name)
        if member.nbytes > (self.room if member.compression else member.id.get_storage_size()):
            raise WeightsError(f"dataset '{name}' claims {member.shape}, more than the file has", layer=layer)
        self.room -= member.nbytes
        values = member[()]
        return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
