"""Fewer multiplications in fully connected layers by truncated SVD (Girshick, Fast R-CNN, ICCV 2015, section 3.1), as
the original's ``tools/compress_net.py`` does.

A layer ``fc6`` with weight ``W ~ U diag(s) V^T`` becomes two: ``fc6_L`` with weight ``diag(s) V^T`` and no bias, and
``fc6_U`` with weight ``U`` and the bias. For ``[N, K]`` and rank ``r`` that is ``r (N + K)`` multiplications
in place of ``N K``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from prototxt import caffe_pb2
from prototxt.errors import nearest

from .errors import PortError
from .layers import Layer
from .net import Net

LOWER, UPPER = "_L", "_U"
_COLUMNS_AT_A_TIME = 4096  # that are float64 while a Gram matrix is summed up


@dataclass(frozen=True)
class Compressed:
    """One layer: ``outputs`` x ``inputs`` numbers before, ``rank (outputs + inputs)`` after. ``error``: the Frobenius
    norm of what the truncation changes in the weight, relative to the weight's."""

    layer: str
    outputs: int
    inputs: int
    rank: int
    error: float

    @property
    def ratio(self) -> float:
        """Weights after, divided by weights before."""
        return self.rank * (self.outputs + self.inputs) / (self.outputs * self.inputs)


def truncated_svd(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The best approximation of ``weight`` ``[N, K]`` of rank ``rank``, as factors.

    The singular vectors of the shorter side are eigenvectors of its Gram matrix, which is summed up and decomposed in
    float64, LAPACK's ``syevr`` for no more of them than are wanted: a fraction of the work of a whole SVD. Singular
    values under 1e-8 of the largest, a tenth of float32's precision, are not resolved.

    Args:
        rank: 1 to ``min(N, K)``.

    Returns:
        ``U`` ``[N, rank]`` with orthonormal columns (zero where the singular value is) and ``L = diag(s) V^T``
        ``[rank, K]``, both float32, largest singular value first; the relative error ``|W - U L| / |W|`` (Frobenius).
    """
    outputs, inputs = weight.shape
    wide = weight if outputs <= inputs else weight.T
    gram = np.zeros((len(wide), len(wide)))
    for start in range(0, wide.shape[1], _COLUMNS_AT_A_TIME):
        part = wide[:, start : start + _COLUMNS_AT_A_TIME].astype(np.float64)
        gram += part @ part.T
    total = np.trace(gram)
    last = len(gram) - 1
    squares, vectors = scipy.linalg.eigh(
        gram, subset_by_index=[last - rank + 1, last], driver="evr", overwrite_a=True, check_finite=False
    )
    vectors = np.ascontiguousarray(vectors[:, ::-1].astype(np.float32))
    if outputs <= inputs:
        upper, lower = vectors, vectors.T @ weight
    else:
        upper = weight @ vectors
        sizes = np.linalg.norm(upper, axis=0)
        upper /= np.where(sizes > 0, sizes, 1)
        lower = sizes[:, None] * vectors.T
    error = np.sqrt(max(0.0, 1 - squares.sum() / total)) if total else 0.0
    return upper, lower, float(error)


def low_rank_net(param: caffe_pb2.NetParameter, ranks: dict[str, int]) -> caffe_pb2.NetParameter:
    """The net with each InnerProduct layer in ``ranks`` as two, named and wired as Fast R-CNN's
    ``models/*/compressed/test.prototxt``, except that the blobs keep their names: ``fc6`` is the top of ``fc6_U``.

    Args:
        param: a net in the current form. All layers of a name, of whatever phase, are replaced.

    Raises:
        PortError: a layer of the new name is already there.
    """
    new = caffe_pb2.NetParameter()
    new.CopyFrom(param)
    del new.layer[:]
    taken = {layer.name for layer in param.layer} | {top for layer in param.layer for top in layer.top}
    for layer in param.layer:
        if layer.name not in ranks:
            new.layer.add().CopyFrom(layer)
            continue
        for suffix in (LOWER, UPPER):
            if layer.name + suffix in taken:
                raise PortError("a layer or blob has this name already", layer=layer.name + suffix)
        lower, upper = new.layer.add(), new.layer.add()
        for half, suffix in ((lower, LOWER), (upper, UPPER)):
            half.CopyFrom(layer)
            half.name += suffix
        lower.top[:] = [lower.name]
        upper.bottom[:] = [lower.name]
        del lower.param[1:], lower.loss_weight[:], upper.propagate_down[:]
        settings = lower.inner_product_param
        settings.num_output, settings.bias_term = ranks[layer.name], False
        for name in ("bias_filler", "relu", "negative_slope"):
            settings.ClearField(name)
        if settings.axis < 0:  # counted from the end, where the blob in between has one axis at most
            upper.inner_product_param.axis = -1
        for spec in (*lower.param, *upper.param):
            spec.ClearField("name")  # that nobody shares
    return new


def check_ranks(net: Net, ranks: dict[str, int]) -> None:
    """That ``net`` has these layers, and that they can be compressed to these ranks.

    Raises:
        PortError: no such layer, or not an InnerProduct layer; a rank above the sides of its weight, or below 1; a
            weight that another layer shares.
    """
    for name, rank in ranks.items():
        layer = _inner_product(net, name)
        sides = _weight_shape(layer)
        if not 1 <= rank <= min(sides):
            raise net.located(
                layer.error(f"rank {rank} of a weight of {sides[0]} x {sides[1]}", hint=f"1 to {min(sides)}")
            )


def _inner_product(net: Net, name: str) -> Layer:
    layer = net.layer_by_name.get(name)
    if layer is None:
        known = [layer.name for layer in net.layers if layer.type == "InnerProduct"]
        near = nearest(name, known)
        hint = (f"did you mean '{near}'? " if near else "") + f"its InnerProduct layers: {', '.join(known) or 'none'}"
        raise PortError(f"the net has no layer '{name}'", file=net.source, hint=hint)
    if layer.type != "InnerProduct":
        raise net.located(layer.error(f"is a {layer.type} layer; InnerProduct layers can be compressed"))
    shared = [p for p in net.learnable_params if len(p.users) > 1 and name in dict(p.users)]
    if shared:
        others = ", ".join(sorted({user for p in shared for user, _ in p.users} - {name}))
        raise net.located(layer.error(f"shares its parameters with {others}", hint="compress the test net"))
    return layer


def _weight_shape(layer: Layer) -> tuple[int, int]:
    """``(outputs, inputs)``, however the weight lies."""
    shape = layer.blob_shapes[0]
    return tuple(shape[::-1]) if layer.param.inner_product_param.transpose else tuple(shape)


def ranks_of(net: Net, low: Net) -> dict[str, int]:
    """The layers of ``net`` that ``low`` has in two, and the ranks that it gives them.

    Raises:
        PortError: there is none; only one of the two is there; they do not fit the layer, or ``low`` has it, too.
    """
    ranks = {}
    for name in [layer.name for layer in net.layers]:
        halves = [low.layer_by_name.get(name + suffix) for suffix in (LOWER, UPPER)]
        if not any(halves):
            continue
        layer = _inner_product(net, name)
        for suffix in (LOWER, UPPER):
            if name + suffix not in low.layer_by_name:
                raise PortError(f"the compressed net has no layer '{name}{suffix}'", file=low.source)
            _inner_product(low, name + suffix)
        if name in low.layer_by_name:
            raise PortError("the compressed net has this layer whole, too", file=low.source, layer=name)
        lower, upper = halves
        outputs, inputs = _weight_shape(layer)
        rank = lower.param.inner_product_param.num_output
        for half, wanted, bias in ((lower, (rank, inputs), False), (upper, (outputs, rank), len(layer.blobs) > 1)):
            if _weight_shape(half) != wanted:
                found = " x ".join(map(str, _weight_shape(half)))
                raise low.located(half.error(f"its weight is {found}; layer '{name}' needs {wanted[0]} x {wanted[1]}"))
            if (len(half.blobs) > 1) != bias:
                hint = None if bias else "write bias_term: false"
                raise low.located(half.error(f"must have {'a' if bias else 'no'} bias", hint=hint))
        ranks[name] = rank
    if not ranks:
        known = [layer.name for layer in net.layers if layer.type == "InnerProduct"]
        raise PortError(
            f"no layer of {net.source} is in two there",
            file=low.source,
            hint=f"names are LAYER{LOWER} and LAYER{UPPER}; InnerProduct layers: {', '.join(known) or 'none'}",
        )
    check_ranks(net, ranks)
    return ranks


@torch.no_grad()
def compress(net: Net, low: Net, name: str) -> Compressed:
    """Fills ``name_L`` and ``name_U`` of ``low`` from layer ``name`` of ``net``, whose weights are loaded.

    Raises:
        PortError: the weight is not finite.
    """
    layer, lower, upper = net.layer_by_name[name], *(low.layer_by_name[name + suffix] for suffix in (LOWER, UPPER))
    weight = _as_rows(layer).cpu().numpy()
    if not np.isfinite(weight).all():
        raise PortError("the weight has values that are not finite", layer=name)
    rank = lower.param.inner_product_param.num_output
    left, right, error = truncated_svd(weight, rank)
    _as_rows(lower).copy_(torch.from_numpy(right))
    _as_rows(upper).copy_(torch.from_numpy(left))
    for target, bias in zip(upper.blobs[1:], layer.blobs[1:], strict=True):
        target.copy_(bias)
    return Compressed(name, *weight.shape, rank, error)


def _as_rows(layer: Layer) -> torch.Tensor:
    """The weight as ``[outputs, inputs]``, a view."""
    weight = layer.blobs[0]
    return weight.t() if layer.param.inner_product_param.transpose else weight
