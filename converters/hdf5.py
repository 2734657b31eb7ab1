"""``.caffemodel.h5`` and ``.solverstate.h5``: what Caffe writes with ``snapshot_format: HDF5``.

A model has a group ``data`` with a group for each layer and in it the datasets ``0``, ``1``...; a tensor that layers
share lies only under the first of them. A solver state has ``iter``, ``current_step``, ``learned_net`` and a group
``history`` with one dataset for each blob. Order, types, bottoms and tops of layers are not in such files.
(``Net::ToHDF5``, ``SGDSolver::SnapshotSolverStateToHDF5``.)
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prototxt.files import replacing

from .errors import WeightsError
from .extras import library
from .files import HDF5_MAGIC

_DEFLATE_LIMIT = 1100  # deflate never packs more than 1,032 to one


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file begins as HDF5 does; False when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:
        return False


def read_hdf5_model(path) -> list[tuple[str, list[np.ndarray | None]]]:
    """``(layer, blobs)`` for each layer of a ``.caffemodel.h5``, in the order of the file's index (by name).

    A blob is None where the layer shares the tensor of another one.

    Raises :class:`WeightsError` for a file that is damaged or of another kind, or when h5py is not installed.
    """
    with _open(path) as file:
        if "data" not in file:
            raise WeightsError("is not a .caffemodel.h5: it has no group 'data'", file=path)
        return [(name, _blobs(group, path, name)) for name, group in _layer_groups(file["data"])]


def write_hdf5_model(path, layers) -> None:
    """Writes ``[(layer, blobs), ...]``; an array that several layers hold is stored under the first only.

    The file appears whole or not at all.
    """
    stored: set[int] = set()
    with _create(path) as file:
        data = file.create_group("data")
        for name, blobs in layers:
            group = data.require_group(name)
            for j, blob in enumerate(blobs):
                address = np.asarray(blob).__array_interface__["data"][0]
                if address not in stored:
                    stored.add(address)
                    group.create_dataset(str(j), data=blob)


def read_hdf5_state(path) -> dict:
    """What a ``.solverstate.h5`` has of :class:`~converters.solverstate.SolverState`'s fields.

    Raises :class:`WeightsError` as :func:`read_hdf5_model` does.
    """
    with _open(path) as file:
        if "iter" not in file or "history" not in file:
            raise WeightsError("is not a .solverstate.h5: it has no 'iter' or no 'history'", file=path)
        name = file["learned_net"][()] if "learned_net" in file else b""
        return {
            "iter": int(np.ravel(file["iter"][()])[0]),
            "current_step": int(np.ravel(file["current_step"][()])[0]) if "current_step" in file else 0,
            "learned_net": name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name),
            "history": _blobs(file["history"], path, "history"),
            "minimum_loss": float(np.ravel(file["minimum_loss"][()])[0]) if "minimum_loss" in file else None,
            "iter_last_event": int(np.ravel(file["iter_last_event"][()])[0]) if "iter_last_event" in file else 0,
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


def _members(group):
    """``(name, object)`` of a group; links that lead out of the file are refused."""
    h5py = library("h5py", "hdf5")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise WeightsError(f"'{group.name}/{name}' is a link to elsewhere", hint="Only arrays are read.")
        yield name, group[name]


def _layer_groups(group, prefix=""):
    """Each group with its path below ``data``: a layer's name may hold slashes, which HDF5 takes for folders."""
    h5py = library("h5py", "hdf5")
    for name, member in _members(group):
        if not isinstance(member, h5py.Group):
            continue
        inner = [m for _, m in _members(member) if isinstance(m, h5py.Group)]
        if len(inner) < len(member) or not inner:
            yield prefix + name, member
        if inner:
            yield from _layer_groups(member, f"{prefix}{name}/")


def _blobs(group, path, layer) -> list[np.ndarray | None]:
    h5py = library("h5py", "hdf5")
    limit = Path(path).stat().st_size * _DEFLATE_LIMIT
    blobs: dict[int, np.ndarray] = {}
    for name, member in _members(group):
        if not isinstance(member, h5py.Dataset):
            continue
        if not name.isdigit() or int(name) > 1_000_000:
            raise WeightsError(f"dataset '{name}' is not a parameter's number", file=path, layer=layer)
        if member.dtype.kind != "f" or member.external or member.is_virtual:
            raise WeightsError(f"dataset '{name}' holds no numbers of its own", file=path, layer=layer)
        if member.nbytes > (limit if member.compression else member.id.get_storage_size()):
            raise WeightsError(
                f"dataset '{name}' claims {member.shape}, more than the file has", file=path, layer=layer
            )
        values = member[()]
        blobs[int(name)] = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
    return [blobs.get(j) for j in range(max(blobs, default=-1) + 1)]
