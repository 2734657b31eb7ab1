"""Layers that slide a kernel with weights over the axes behind the channels."""

from __future__ import annotations

import numpy as np

from .graph import GraphBuilder, Node, Value, exporter


def fused_relu(g: GraphBuilder, x: str, param) -> str:
    """Intel's ``relu`` and ``negative_slope`` inside another layer."""
    if not param.relu:
        return x
    return g.op("LeakyRelu", x, alpha=param.negative_slope) if param.negative_slope else g.op("Relu", x)


def padded(g: GraphBuilder, x: str, axes: int, sides, value: float = 0.0) -> str:
    """``x`` (``axes`` axes) with ``(before, after)`` cells around each of its last axes; negative numbers crop.

    Cropping is a Slice: OpenCV's Pad only adds.
    """
    first = axes - len(sides)
    added = [(max(before, 0), max(after, 0)) for before, after in sides]
    cropped = [axis for axis, side in enumerate(sides, first) if min(side) < 0]
    if cropped:
        starts = [max(-sides[axis - first][0], 0) for axis in cropped]
        ends = [min(sides[axis - first][1], 0) or np.iinfo(np.int64).max for axis in cropped]
        x = g.op("Slice", x, g.ints(*starts), g.ints(*ends), g.ints(*cropped))
    if any(map(any, added)):
        before, after = ([0] * first + [side[i] for side in added] for i in (0, 1))
        x = g.op("Pad", x, g.ints(*before, *after), g.constant(np.float32(value)))
    return x


def flat_pads(sides) -> list[int]:
    """ONNX's order: all pads before, then all after."""
    return [before for before, _ in sides] + [after for _, after in sides]


def _sides(node: Node) -> list[tuple[int, int]]:
    """``(before, after)`` of each spatial axis, however the layer states its padding."""
    layer = node.layer
    left, right, top, bottom = layer.sides
    if any(layer.sides):
        return [(top, bottom), (left, right)]
    return [(pad, pad) for pad in layer.pad]


def _same_sides(node: Node, value: Value) -> list[tuple[int, int]]:
    """TensorFlow's "SAME" padding for this bottom, in numbers: as the layer computes it."""
    layer, sizes = node.layer, value.sample[node.layer.axis + 1 :]
    if any(isinstance(size, str) for size in value.shape[layer.axis + 1 :]):
        raise node.error(f"pad_type 1 on an image whose size is open: {value.shape}")
    return layer.same_sides(sizes)


def _as_images(g: GraphBuilder, node: Node, value: Value) -> str:
    """``[N, C, *size]``, whatever axis the channels are."""
    axis = node.layer.axis
    return value.name if axis == 1 else g.op("Reshape", value.name, g.vector(-1, *_numbers(node, value, axis)))


def _as_blob(g: GraphBuilder, node: Node, x: str, bottom: Value, top: Value) -> str:
    axis = node.layer.axis
    if axis == 1:
        return x
    before = g.sizes(bottom, *range(axis)) if axis else None
    return g.op("Reshape", x, g.vector(*([before] if before else []), *_numbers(node, top, axis)))


def _numbers(node: Node, value: Value, axis: int) -> list[int]:
    """The sizes from ``axis`` on, which must be fixed."""
    sizes = value.shape[axis:]
    if any(isinstance(size, str) for size in sizes):
        raise node.error(f"axis {axis} as the channels of a blob {value.shape}: sizes behind it must be fixed")
    return list(sizes)


@exporter("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise")
def convolution(g: GraphBuilder, node: Node) -> list[str]:
    """Conv for each bottom, with the padding inside where ONNX can have it."""
    layer, p = node.layer, node.layer.param.convolution_param
    parameters = [g.weight(node, j) for j in range(len(node.blobs))]
    results = []
    for bottom, top in zip(node.bottoms, node.tops, strict=True):
        x, sides = _as_images(g, node, bottom), _same_sides(node, bottom) if p.pad_type else _sides(node)
        # a 1x1 Conv of OpenCV 5.0 reads beyond its input for its pads
        if min(map(min, sides)) < 0 or (g.for_opencv and set(layer.kernel) == {1}):
            x, sides = padded(g, x, 2 + len(sides), sides), [(0, 0)] * len(sides)
        x = g.op("Conv", x, *parameters, kernel_shape=layer.kernel, strides=layer.stride, dilations=layer.dilation,
                 pads=flat_pads(sides), group=layer.group)  # fmt: skip
        results.append(_as_blob(g, node, fused_relu(g, x, p), bottom, top))
    return results


@exporter("Deconvolution")
def deconvolution(g: GraphBuilder, node: Node) -> list[str]:
    """ConvTranspose for each bottom; its pads crop the result, as Caffe's do, and negative ones are added after it."""
    layer, sides = node.layer, _sides(node)
    extends = min(map(min, sides)) < 0
    parameters = [g.weight(node, j) for j in range(len(node.blobs))]
    results = []
    for bottom, top in zip(node.bottoms, node.tops, strict=True):
        x = g.op("ConvTranspose", _as_images(g, node, bottom), *parameters[: 1 if extends else 2],
                 kernel_shape=layer.kernel, strides=layer.stride, dilations=layer.dilation, group=layer.group,
                 pads=flat_pads([(0, 0)] * len(sides) if extends else sides))  # fmt: skip
        if extends:
            x = padded(g, x, 2 + len(sides), [(-before, -after) for before, after in sides])
            if len(parameters) > 1:
                x = g.op("Add", x, g.weight(node, 1, node.blobs[1].reshape(-1, *[1] * len(sides))))
        results.append(_as_blob(g, node, x, bottom, top))
    return results


def windows(g: GraphBuilder, x: str, channels: int, kernel, stride, dilation, pads) -> str:
    """The cells of every window as channels, ``[N, C * cells, *windows]``: a convolution with ones and zeros."""
    cells = int(np.prod(kernel))
    one_each = np.tile(np.eye(cells).reshape(cells, 1, *kernel), (channels,) + (1,) * (1 + len(kernel)))
    return g.op("Conv", x, g.constant(one_each), kernel_shape=kernel, strides=stride, dilations=dilation, pads=pads,
                group=channels)  # fmt: skip


@exporter("Im2col")
def im2col(g: GraphBuilder, node: Node) -> list[str]:
    """:func:`windows`."""
    layer, bottom = node.layer, node.bottoms[0]
    sides = _same_sides(node, bottom) if layer.param.convolution_param.pad_type else _sides(node)
    x = padded(g, _as_images(g, node, bottom), 2 + len(sides), sides)
    x = windows(g, x, layer.channels, layer.kernel, layer.stride, layer.dilation, [0] * 2 * len(sides))
    return [_as_blob(g, node, x, bottom, node.tops[0])]


@exporter("Local")
def local(g: GraphBuilder, node: Node) -> list[str]:
    """The cells of each window times the weights of its own: a MatMul with the windows in front."""
    p = node.layer.param.local_param
    _, channels, *_ = node.bottoms[0].shape
    kernel, pads = [p.kernel_size] * 2, [p.pad] * 4
    cells = windows(g, node.bottoms[0].name, channels, kernel, [p.stride] * 2, [1, 1], pads)
    cells = g.op("Reshape", cells, g.ints(0, channels * p.kernel_size**2, -1))
    weight = g.weight(node, 0, node.blobs[0][:, 0].transpose(2, 1, 0))  # [windows, cells, num_output]
    x = g.op("MatMul", g.op("Transpose", cells, perm=[2, 0, 1]), weight)
    x = g.op("Transpose", x, perm=[1, 2, 0])
    if p.bias_term:
        x = g.op("Add", x, g.weight(node, 1, node.blobs[1][0]))
    return [g.op("Reshape", x, g.ints(0, *node.tops[0].shape[1:]))]
