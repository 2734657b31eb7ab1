"""Caffe's weights under names that people can use (``conv1_1.weight``), each tensor once, and back without a loss.

The names are those of :mod:`converters.naming.layer_types`; a layer's name goes in front, dots and slashes in it
included. A layer without a name is called ``unnamed``; of several layers of one name the second is called ``name#2``,
and so on. Tensors that layers share by ``param { name }``, or by links in HDF5 files, stand under the first of them.

What Caffe needs besides is noted in the metadata, all of it text:

| key | what |
|---|---|
| ``kind`` | caffemodel, solverstate or binaryproto |
| ``net`` | the net's name |
| ``layers`` | JSON, a list of all layers |
| ``shared_once`` | "true" when the layers come from an HDF5 file, which leaves shared blobs out |
| ``iter``, ``learned_net``, ``current_step``, ``minimum_loss``, ``iter_last_event`` | of a solver state, as JSON |

A layer has ``name``, ``type``, ``bottoms``, ``tops``, ``params`` (names by which blobs are shared), ``transposed`` and
``blobs``, how they are made again (:mod:`converters.naming.recipes`); what is empty is left out.
"""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np

from ..caffemodel import CaffeModel, LayerWeights
from ..errors import WeightsError
from ..named import NamedArrays
from ..solverstate import SolverState
from .net import complete, is_counter, records_of_net, short_list
from .recipes import layer_record, make_blobs, name_blobs, number_blobs

_STATE = [f.name for f in fields(SolverState) if f.name != "history"]
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)


def to_named(content, *, caffe_names: bool = False, net=None) -> NamedArrays:
    """Whatever a Caffe file holds as arrays by name, with all that :func:`from_named` needs as metadata.

    A layer's blobs get PyTorch's names, shapes and order of gates, and BatchNorm's statistics are divided by their
    weight; arrays that need none of that are the same memory. Shared tensors come once, with the value of the last
    copy in the file, as Caffe loads them; where copies differ, ``notes`` say so. A solver state's history is
    ``history.0``, ``history.1``..., a mean image is ``mean``.

    Args:
        content: a :class:`CaffeModel`, a :class:`SolverState` or an array.
        caffe_names: ``conv1_1.0`` and ``conv1_1.1`` instead, and all arrays untouched.
        net: a ``NetParameter``; it tells what is shared, which weights are transposed, and what HDF5 files do not
            know: types, bottoms, tops and the order of the layers.

    Raises:
        WeightsError: a solver state with gaps.
    """
    if isinstance(content, SolverState):
        if any(blob is None for blob in content.history):
            raise WeightsError("the history has gaps", field=f"history[{content.history.index(None)}]")
        arrays = {f"history.{i}": blob for i, blob in enumerate(content.history)}
        state = {name: json.dumps(getattr(content, name)) for name in _STATE}
        return NamedArrays(arrays, {"kind": "solverstate", **state})
    if not isinstance(content, CaffeModel):
        return NamedArrays({"mean": np.asarray(content)}, {"kind": "binaryproto"})
    model = content if net is None else complete(content, net)
    named = NamedArrays(metadata={"kind": "caffemodel", "net": model.name})
    values = [[_as_array(blob) for blob in layer.blobs] for layer in model.layers]
    owners = _share(model, values, named.notes)
    recipes: dict[tuple[int, int], dict] = {}
    records = []
    for i, (layer, base) in enumerate(zip(model.layers, _unique_names(model), strict=True)):
        shared = [owners.get((i, j)) for j in range(len(layer.blobs))]
        # BatchNorm's three make sense together only
        apart = layer.type == "BatchNorm" and len({owner is None for owner in shared[:3]}) > 1
        if caffe_names or apart:
            tensors, made, extra = number_blobs(base, values[i])
        else:
            tensors, made, extra = name_blobs(_type(layer), base, values[i], layer.transposed)
        for j, owner in enumerate(shared):
            if owner is not None:
                for key in ("tensor", "plus"):
                    tensors.pop(made[j].get(key), None)
                made[j] = {"tensor": recipes[owner]["tensor"], "shape": list(values[i][j].shape)}
            recipes[i, j] = made[j]
        named.arrays |= tensors
        records.append(layer_record(layer, made, {} if any(shared[:3]) else extra))
    named.metadata["layers"] = json.dumps(records, separators=(",", ":"))
    if model.shared_once:
        named.metadata["shared_once"] = "true"
    return named


def from_named(named: NamedArrays, *, net=None) -> CaffeModel | SolverState | np.ndarray:
    """What :func:`to_named` was given, to the bit; the tensors may have been changed since.

    Without metadata, as in files that PyTorch wrote, ``net`` (a ``NetParameter``) tells which tensors belong where: see
    :func:`converters.naming.net.records_of_net`. A lone array called ``mean`` is a mean image.

    Raises:
        WeightsError: tensors that are missing or have no place, all of them named; damaged metadata; neither metadata
            nor a net.
    """
    kind = named.metadata.get("kind")
    if kind == "binaryproto" or (kind is None and net is None and list(named.arrays) == ["mean"]):
        _check_names({"mean"}, named.arrays)
        return named.arrays["mean"]
    try:
        if kind == "solverstate":
            return _solver_state(named)
        if kind == "caffemodel":
            records = json.loads(named.metadata["layers"])
            _check_names(_tensors(records), named.arrays, {r["plus"] for r in _recipes(records) if "plus" in r})
            model = _model(named.metadata.get("net", ""), records, named.arrays)
            model.shared_once = "shared_once" in named.metadata
            return model if net is None else complete(model, net)
    except _DAMAGE as error:
        raise WeightsError(f"what its metadata say of Caffe's {kind} is damaged: {error!r}") from None
    if net is None:
        raise WeightsError(
            "holds tensors by name and nothing of Caffe's layers",
            hint="Give the net's prototxt, which says where they belong.",
        )
    records, missing, extra = records_of_net(net, named.arrays)
    if missing or extra:
        raise WeightsError(_misfit(missing, extra))
    return _model(net.name, records, named.arrays)


def is_caffes(named: NamedArrays) -> bool:
    """Whether arrays come from a file of Caffe, so that :func:`from_named` needs no net."""
    return named.metadata.get("kind") in ("caffemodel", "solverstate", "binaryproto")


def model_of_net(named: NamedArrays, net) -> tuple[CaffeModel, list[str], list[str]]:
    """:func:`from_named` for tensors without metadata that need not fit: ``(model, missing names, names of no use)``.
    A layer with a missing tensor has the blobs before it only."""
    records, missing, extra = records_of_net(net, named.arrays)
    return _model(net.name, records, named.arrays), missing, extra


def _share(model: CaffeModel, values: list[list], notes: list[str]) -> dict[tuple[int, int], tuple[int, int]]:
    """``{(layer, blob): the first one of its name}``; that one gets the value of the last copy in ``values``."""
    owners, first = {}, {}
    for i, layer in enumerate(model.layers):
        for j, blob in enumerate(values[i]):
            name = layer.params[j] if j < len(layer.params) else ""
            if blob is None or not (name or model.shared_once):
                continue
            k, m = first.setdefault(name or id(blob), (i, j))  # HDF5 files have links instead of names
            if (k, m) == (i, j):
                continue
            kept, owner = values[k][m], model.layers[k].name
            if blob.size != kept.size:
                notes.append(f"layer '{layer.name}': '{name}' is {blob.shape}, in {owner} {kept.shape}: not shared")
                continue
            if not _same(kept, blob):
                values[k][m] = blob.reshape(kept.shape)
                notes.append(f"layer '{layer.name}': its copy of '{name}' differs from {owner}'s; the last one counts")
            owners[i, j] = k, m
    return owners


def _same(a: np.ndarray, b: np.ndarray, chunk: int = 1 << 20) -> bool:
    """Whether both have the same bytes; compared in pieces, for the comparison makes an array, too."""
    if a.dtype != b.dtype:
        return False
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return all(np.array_equal(a[i : i + chunk], b[i : i + chunk]) for i in range(0, len(a), chunk))


def _unique_names(model: CaffeModel) -> list[str]:
    """A name for each layer with blobs that no other has, in text that any file can hold."""
    names, taken, counts = [], set(), {}
    for layer in model.layers:
        plain = layer.name.encode("utf-8", "backslashreplace").decode() or "unnamed"
        name, count = plain, counts.get(plain, 1)
        while layer.blobs and name in taken:
            count += 1
            name = f"{plain}#{count}"
        if layer.blobs:
            taken.add(name)
            counts[plain] = count
        names.append(name)
    return names


def _type(layer: LayerWeights) -> str:
    """The type, except of a Scale layer that has a bias only."""
    return "Bias" if layer.type == "Scale" and len(layer.bottoms) == 2 else layer.type


def _recipes(records: list[dict]) -> list[dict]:
    return [recipe for record in records for recipe in record.get("blobs", []) if recipe is not None]


def _tensors(records: list[dict]) -> set[str]:
    """The tensors that records need: all that recipes name, but for the weights of BatchNorm's sums."""
    return {r["tensor"] for r in _recipes(records) if not r["tensor"].endswith(".scale_factor")}


def _check_names(wanted: set[str], given, optional=frozenset()) -> None:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted and name not in optional and not is_counter(name)]
    if missing or extra:
        raise WeightsError(_misfit(sorted(missing), extra))


def _misfit(missing: list[str], extra: list[str]) -> str:
    parts = [f"{what}: {short_list(names)}" for what, names in (("missing", missing), ("of no use", extra)) if names]
    return "the tensors do not fit the net's layers; " + "; ".join(parts)


def _model(name: str, records: list[dict], arrays: dict) -> CaffeModel:
    arrays = {key: _as_array(array) for key, array in arrays.items()}
    made: dict[str, np.ndarray] = {}
    model = CaffeModel(name)
    for record in records:
        layer = LayerWeights(record.get("name", ""), record.get("type", ""), transposed=bool(record.get("transposed")))
        for key in ("bottoms", "tops", "params"):
            setattr(layer, key, list(record.get(key, [])))
        if not all(isinstance(t, str) for t in (layer.name, layer.type, *layer.bottoms, *layer.tops, *layer.params)):
            raise TypeError("a name that is no text")
        layer.blobs = make_blobs(record, arrays, made)
        model.layers.append(layer)
    return model


def _as_array(blob) -> np.ndarray | None:
    """As blobs can hold it: float32, or float64 if it is."""
    if blob is None:
        return None
    array = np.asarray(blob)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _solver_state(named: NamedArrays) -> SolverState:
    wanted = [f"history.{i}" for i in range(len(named.arrays))]
    _check_names(set(wanted), named.arrays)
    state = {name: json.loads(named.metadata[name]) for name in _STATE if name in named.metadata}
    kinds = {"iter": int, "current_step": int, "iter_last_event": int, "learned_net": str, "minimum_loss": float | None}
    for name, value in state.items():
        if not isinstance(value, kinds[name]):
            raise TypeError(f"{name} is {value!r}")
    return SolverState(**state, history=[_as_array(named.arrays[name]) for name in wanted])
