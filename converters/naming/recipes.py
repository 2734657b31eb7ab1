"""One layer's parameter blobs as PyTorch's tensors, and back: each blob gets a recipe by which it is made again.

A recipe is a dictionary for JSON: ``tensor``, the name of the tensor the blob comes from; ``shape``, the blob's where
it is not the tensor's; ``form``, how the blob lies otherwise than the tensor:

- ``transposed``: a matrix with its axes swapped (``inner_product_param { transpose: true }``).
- ``gates``: LSTM's, whose gates Caffe has in the order i, f, o, g and PyTorch in the order i, f, g, o.

``plus`` names a tensor to add, when it is there: PyTorch has two biases where Caffe has one.

BatchNorm's first three blobs, sums and their weight, become ``running_mean`` and ``running_var``; the third recipe has
a name that no tensor has. Where that weight is not exactly 1, the blobs themselves are kept, in base64, as
``batch_norm`` of the layer's record: they count as long as nobody has changed the tensors. (NVIDIA's layer never
divides by it; its files always have 1 there.)
"""

from __future__ import annotations

import base64

import numpy as np

from ..caffemodel import LayerWeights
from .layer_types import pytorch_shapes, suffixes

_ONE = np.ones(1, np.float32)
_BIAS_PAIRS = {"bias_ih_l0": "bias_hh_l0"}


def name_blobs(type_: str, base: str, blobs: list, transposed=False) -> tuple[dict, list[dict | None], dict]:
    """``(tensors, recipes, extra)`` of a layer: its tensors by name, a recipe for each blob (None for one that is
    None), and what else its record needs."""
    shapes = [() if blob is None else blob.shape for blob in blobs]
    names = suffixes(type_, len(blobs), shapes)
    wanted = pytorch_shapes(type_, shapes)
    tensors, recipes, extra = {}, [], {}
    if names[:3] == ["running_mean", "running_var", "scale_factor"]:
        if any(blob is None for blob in blobs[:3]) or blobs[2].size != 1:
            return number_blobs(base, blobs)
        statistics = mean_and_variance(*blobs[:3])
        if blobs[2].tobytes() != _ONE.tobytes():
            extra["batch_norm"] = [_pack(blob) for blob in blobs[:3]]
        blobs = [*statistics, *blobs[2:]]
    for name, blob, shape, want in zip(names, blobs, shapes, wanted, strict=True):
        if blob is None:
            recipes.append(None)
            continue
        recipe: dict = {"tensor": f"{base}.{name}"}
        tensor = blob.reshape(want)
        if transposed and type_ == "InnerProduct" and name == "weight" and len(want) == 2:
            recipe["form"], tensor = "transposed", np.ascontiguousarray(tensor.T)
        elif type_ == "LSTM" and names[0] == "weight_ih_l0" and tensor.ndim and len(tensor) % 4 == 0:
            recipe["form"], tensor = "gates", swap_gates(tensor)
        if name in _BIAS_PAIRS:
            recipe["plus"] = f"{base}.{_BIAS_PAIRS[name]}"
        if shape != tensor.shape and (recipe.get("form") != "transposed" or len(shape) != 2):
            recipe["shape"] = list(shape)
        recipes.append(recipe)
        if name != "scale_factor":
            tensors[recipe["tensor"]] = tensor
    for recipe in filter(None, recipes):
        if "plus" in recipe:
            tensors[recipe["plus"]] = np.zeros_like(tensors[recipe["tensor"]])
    return tensors, recipes, extra


def number_blobs(base: str, blobs: list) -> tuple[dict, list[dict | None], dict]:
    """:func:`name_blobs` with Caffe's own names, numbers, and the blobs as they are."""
    tensors = {f"{base}.{j}": blob for j, blob in enumerate(blobs) if blob is not None}
    return tensors, [None if blob is None else {"tensor": f"{base}.{j}"} for j, blob in enumerate(blobs)], {}


def layer_record(layer: LayerWeights, recipes: list, extra: dict | None = None) -> dict:
    """What the metadata say of a layer; what is empty is left out."""
    record = {"name": layer.name, "type": layer.type, "bottoms": layer.bottoms, "tops": layer.tops}
    record |= {"params": layer.params, "transposed": layer.transposed, "blobs": recipes} | (extra or {})
    return {key: value for key, value in record.items() if value}


def mean_and_variance(mean, variance, weight) -> list[np.ndarray]:
    """BatchNorm's statistics as ``BatchNormLayer`` uses them: divided by their weight, 0 where nothing was summed."""
    weight = weight.reshape(-1)[0]
    if weight == 1:
        return [mean, variance]
    with np.errstate(all="ignore"):
        factor = weight * 0 if weight == 0 else np.ones_like(weight) / weight
        return [mean * factor, variance * factor]


def swap_gates(array: np.ndarray) -> np.ndarray:
    """The first axis in four parts, the last two of them exchanged."""
    first, second, third, fourth = np.split(array, 4)
    return np.concatenate([first, second, fourth, third])


def make_blobs(record: dict, arrays: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> list[np.ndarray | None]:
    """The blobs of a layer's ``record`` (``blobs``: recipes, and ``batch_norm``).

    ``made`` has the blobs made so far by tensor: a recipe whose tensor is among them is for a blob that is shared, and
    gives the same array (in the shape it tells). It is added to.

    Raises KeyError for a tensor that is missing; KeyError, TypeError, ValueError and the like for a damaged record.
    """
    recipes = record.get("blobs", [])
    _make_statistics(record, arrays, made)
    return [None if recipe is None else _make(recipe, arrays, made) for recipe in recipes]


def _make(recipe: dict, arrays, made) -> np.ndarray:
    name = recipe["tensor"]
    if name not in made:
        blob = arrays[name]
        if recipe.get("form") == "gates":
            blob = swap_gates(blob)
        if recipe.get("form") == "transposed":
            blob = np.ascontiguousarray(blob.T)
        if "plus" in recipe and np.any(arrays.get(recipe["plus"], 0)):
            other = arrays[recipe["plus"]]
            blob = blob + (swap_gates(other) if recipe.get("form") == "gates" else other)
        made[name] = blob
    return _shaped(made[name], recipe.get("shape"))


def _make_statistics(record: dict, arrays, made) -> None:
    recipes = record.get("blobs", [])
    names = [recipe["tensor"] if recipe else "" for recipe in recipes[:3]]
    if len(names) < 3 or not names[2].endswith(".scale_factor") or names[2] in made or names[2] in arrays:
        return
    blobs = [arrays[names[0]], arrays[names[1]], _ONE.copy()]  # each its own: HDF5 files leave out what is shared
    if "batch_norm" in record:
        kept = [_unpack(text) for text in record["batch_norm"]]
        given = mean_and_variance(*kept)
        if all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(given, blobs, strict=False)):
            blobs = kept
    made.update(zip(names, blobs, strict=True))


def _shaped(blob: np.ndarray, shape) -> np.ndarray:
    """``blob`` in ``shape``; in its own one where somebody has given it another number of values."""
    if shape is None or np.prod(shape, dtype=object) != blob.size:
        return blob
    return blob.reshape([int(size) for size in shape])


def _pack(blob: np.ndarray) -> str:
    return f"{blob.dtype.str} {base64.b64encode(blob.tobytes()).decode()}"


def _unpack(text: str) -> np.ndarray:
    dtype, data = text.split(" ")
    return np.frombuffer(base64.b64decode(data), {"<f4": "<f4", "<f8": "<f8"}[dtype])
