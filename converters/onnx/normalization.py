"""Layers that divide by a spread or a norm: BatchNorm, BN, LRN, MVN, Normalize."""

from __future__ import annotations

import numpy as np

from .activations import linear, refuse_training
from .elementwise import sizes_from, with_axes
from .graph import GraphBuilder, Node, exporter


def by_statistics(g: GraphBuilder, node: Node, mean, variance, eps, weight=None, bias=None) -> str:
    """BatchNormalization with the mean ``(index of the parameter, values)``, and so on; all ``[C]``."""
    channels = len(mean[1])
    factor = g.constant(np.ones(channels)) if weight is None else g.weight(node, *weight)
    shift = g.constant(np.zeros(channels)) if bias is None else g.weight(node, *bias)
    return g.op(
        "BatchNormalization", node.bottoms[0].name, factor, shift, g.weight(node, *mean), g.weight(node, *variance),
        epsilon=eps,
    )  # fmt: skip


def mean_over(g: GraphBuilder, x: str, axes) -> str:
    """The name of the mean of ``x`` over ``axes``, which remain with length 1."""
    first = [axes[0]] if g.for_opencv and axes[-1] - axes[0] >= len(axes) else []
    if first:  # OpenCV 5 gives wrong means over axes that do not lie side by side, of blobs with five and more
        x = g.op("ReduceMean", x, axes=list(axes[1:]), keepdims=1)
    return g.op("ReduceMean", x, axes=first or list(axes), keepdims=1)


def standardize(g: GraphBuilder, x: str, axes, eps: float | None, eps_inside: bool = True) -> tuple[str, str, str]:
    """``(x - mean) / sqrt(variance + eps)`` over ``axes``, or with ``sqrt(variance) + eps``; without a division when
    ``eps`` is None.

    Returns:
        the names of the result, the mean and the (biased) variance.
    """
    mean = mean_over(g, x, axes)
    y = g.op("Sub", x, mean)
    if eps is None:
        return y, mean, ""
    variance = mean_over(g, g.op("Mul", y, y), axes)
    spread = linear(g, variance, shift=eps) if eps_inside else variance
    spread = g.op("Sqrt", spread)
    return g.op("Div", y, spread if eps_inside else linear(g, spread, shift=eps)), mean, variance


def channel_affine(g: GraphBuilder, node: Node, y: str, indices: range) -> str:
    """The name of ``y`` times the first parameter of ``indices`` plus the second, if there are such."""
    ndim = len(node.bottoms[0].shape)
    for op_type, i in zip(("Mul", "Add"), indices, strict=False):
        y = g.op(op_type, y, g.weight(node, i, node.blobs[i].reshape(-1, *[1] * (ndim - 2))))
    return y


@exporter("BatchNorm")
def batch_norm(g: GraphBuilder, node: Node) -> list[str]:
    """BatchNormalization with the accumulated statistics; by the batch's own, means and differences of them."""
    layer, p, blobs = node.layer, node.layer.param.batch_norm_param, node.blobs
    if layer.use_global_stats:
        mean, variance, eps = blobs[0], blobs[1], layer.eps
        if not layer.nvidia:
            with np.errstate(divide="ignore"):
                weight = np.float32(1) / blobs[2].reshape(())
            weight = weight if np.isfinite(weight) else np.float32(0)  # nothing accumulated
            mean, variance = mean * weight, variance * weight
        if not p.add_eps_before_sqrt:
            variance, eps = np.square(np.sqrt(variance) + np.float32(eps)), 0.0
        affine = [(i, blobs[i]) for i in range(3, len(blobs))]
        y = by_statistics(g, node, (0, mean), (1, variance), eps, *affine)
    else:
        y = channel_affine(g, node, _by_batch(g, node), range(3, len(blobs)))
    return [g.op("Relu", y) if p.relu else y]


def _by_batch(g: GraphBuilder, node: Node) -> str:
    p, x = node.layer.param.batch_norm_param, node.bottoms[0]
    axes, images = [0, *range(2, len(x.shape))], p.stats_batch_size
    if not images:
        return standardize(g, x.name, axes, node.layer.eps, p.add_eps_before_sqrt)[0]
    one = sizes_from(g, x, 1)
    groups = g.op("Reshape", x.name, g.vector(-1, images, *one))  # each of them by itself
    y = standardize(g, groups, [1, *range(3, len(x.shape) + 1)], node.layer.eps, p.add_eps_before_sqrt)[0]
    return g.op("Reshape", y, g.vector(-1, *one))


@exporter("BN")
def bn(g: GraphBuilder, node: Node) -> list[str]:
    """BatchNormalization with PSPNet's statistics; SegNet's layer scales and shifts, after the batch's statistics with
    ``LEARN``."""
    layer, p = node.layer, node.layer.param.bn_param
    if not layer.segnet:
        if not p.frozen:
            refuse_training(node)
        flat = [(i, blob.reshape(-1)) for i, blob in enumerate(node.blobs)]
        return [by_statistics(g, node, flat[2], flat[3], p.eps, flat[0], flat[1])]
    x = node.bottoms[0]
    if p.bn_mode == p.INFERENCE:
        return [channel_affine(g, node, x.name, range(2))]
    y, *statistics = standardize(g, x.name, (0, *range(2, len(x.shape))), 1e-9)
    y = channel_affine(g, node, y, range(2))
    four = [g.op("Reshape", s, g.ints(1, -1, 1, 1)) for s in statistics[: len(node.tops) - 1]]
    return [y, *four]


@exporter("LRN")
def lrn(g: GraphBuilder, node: Node) -> list[str]:
    """LRN; ``WITHIN_CHANNEL``, an average of squares."""
    p, x = node.layer.param.lrn_param, node.bottoms[0].name
    if p.norm_region == p.ACROSS_CHANNELS:
        return [g.op("LRN", x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)]
    pad = (p.local_size - 1) // 2
    mean = g.op("AveragePool", g.op("Mul", x, x), kernel_shape=[p.local_size] * 2, pads=[pad] * 4, count_include_pad=1)
    return [g.op("Mul", x, g.op("Pow", linear(g, mean, p.alpha, 1.0), g.constant(-p.beta)))]


@exporter("MVN")
def mvn(g: GraphBuilder, node: Node) -> list[str]:
    """Means, and differences of them; the top has four axes."""
    p, bottom = node.layer.param.mvn_param, node.bottoms[0]
    x = with_axes(g, bottom.name, len(bottom.shape), 4)
    axes = (1, 2, 3) if p.across_channels else (2, 3)
    return [standardize(g, x, axes, p.eps if p.normalize_variance else None, p.add_eps_before_sqrt)[0]]


@exporter("Normalize")
def normalize(g: GraphBuilder, node: Node) -> list[str]:
    """A sum of squares (or of magnitudes), its root, and Div; SSD's scale is a factor."""
    x, layer = node.bottoms[0], node.layer
    if layer.windows:
        name = with_axes(g, x.name, len(x.shape), 4)
        if layer.param.normalize_param.normalize_type == "L1":
            norm = linear(g, g.op("ReduceL1", name, axes=[1], keepdims=1), shift=1e-6)
        else:
            norm = _root_of_squares(g, name, [1], 1e-6, True)
        return [g.op("Div", name, norm), norm][: len(node.tops)]
    p = layer.param.norm_param
    axes = list(range(1, len(x.shape))) if p.across_spatial else [1]
    norm = _root_of_squares(g, x.name, axes, p.eps, p.add_eps_before_sqrt or not p.across_spatial)
    factor = node.blobs[0] if p.channel_shared else node.blobs[0].reshape(-1, *[1] * (len(x.shape) - 2))
    return [g.op("Mul", g.op("Div", x.name, norm), g.weight(node, 0, factor))]


def _root_of_squares(g: GraphBuilder, x: str, axes: list[int], eps: float, eps_inside: bool) -> str:
    squares = g.op("ReduceSumSquare", x, axes=axes, keepdims=1)
    if eps_inside:
        return g.op("Sqrt", linear(g, squares, shift=eps))
    return linear(g, g.op("Sqrt", squares), shift=eps)
