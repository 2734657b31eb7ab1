"""Layers that slide a kernel over the axes behind the channels, and what they share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import MANY, Layer, canonical_axis, register


def spatial(layer: Layer, param, name: str, default: int, axes: int = 2) -> tuple[int, ...]:
    """Caffe's two spellings of a spatial setting: ``<name>`` (once, or for each axis) and ``<name>_h`` / ``<name>_w``.

    ``kernel`` and ``kernel_size`` are the one irregular name. Returns a value for each of ``axes`` axes.

    Raises:
        PortError: both spellings, or another number of values.
    """
    stated = {field.name: value for field, value in param.ListFields()}
    both, h, w = "kernel_size" if name == "kernel" else name, f"{name}_h", f"{name}_w"
    values = stated.get(both, [])
    values = [values] if isinstance(values, int) else list(values)
    if h in stated or w in stated:
        if values:
            raise layer.error(f"give {both} or {h} and {w}, not both", field=both)
        if axes != 2:
            raise layer.error(f"{h} and {w} are for 2 spatial axes, not {axes}", field=h)
        return getattr(param, h), getattr(param, w)
    if len(values) not in (0, 1, axes):
        raise layer.error(f"{len(values)} values for {axes} spatial axes", field=both)
    return tuple(values) if len(values) == axes else tuple(values or [default]) * axes


def pad_axes(x: Tensor, sides, value: float = 0.0) -> Tensor:
    """``x`` with ``(before, after)`` cells more around each axis of ``sides``, the last axes; negative ones crop."""
    return F.pad(x, [cells for side in reversed(sides) for cells in side], value=value)


def same_padding(size: int, kernel: int, stride: int, extent: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding (``pad_type: 1`` of synopsys-caffe): cells before and after one axis.

    ``ceil(size / stride)`` windows; as in that fork the cells before count the kernel without its dilation, which
    ``extent`` includes. Negative: cells that no window reaches.
    """
    before = max(kernel - (size % stride or stride), 0) // 2
    return before, (math.ceil(size / stride) - 1) * stride + extent - size - before


def patches(x: Tensor, kernel, stride, dilation) -> Tensor:
    """The cells of every window: ``[N, C, *size]`` becomes ``[N, C, *kernel, *windows]``."""
    n = len(kernel)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return x.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))


def fused_relu(x: Tensor, param) -> Tensor:
    """Intel's ``relu`` and ``negative_slope`` inside another layer."""
    if not param.relu:
        return x
    return F.leaky_relu(x, param.negative_slope) if param.negative_slope else F.relu(x)


class SlidingLayer(Layer):
    """What ``convolution_param`` says of geometry, in N dimensions: ``self.axis`` is the channels' axis, the axes
    before it are so many images, those behind it spatial.

    ``hole`` (DeepLab) and ``dilation_h`` / ``dilation_w`` (yjxiong) are other spellings of ``dilation``; ``pad_l``,
    ``pad_r``, ``pad_t``, ``pad_b`` pad the sides of an image unevenly (synopsys).
    """

    geometry = {
        "pad", "pad_h", "pad_w", "pad_l", "pad_r", "pad_t", "pad_b", "kernel_size", "kernel_h", "kernel_w", "stride",
        "stride_h", "stride_w", "dilation", "dilation_h", "dilation_w", "hole", "hole_h", "hole_w", "axis",
    }  # fmt: skip
    saves_top = False

    def read_geometry(self, shape) -> None:
        p = self.param.convolution_param
        self.axis = canonical_axis(self, p.axis, len(shape))
        self.channels, self.ndim = shape[self.axis], len(shape)
        axes = self.ndim - 1 - self.axis
        dilation = "hole" if any(p.HasField(f) for f in ("hole", "hole_h", "hole_w")) else "dilation"
        if dilation == "hole" and (p.dilation or p.HasField("dilation_h") or p.HasField("dilation_w")):
            raise self.error("hole is another word for dilation; give one of them", field="hole")
        self.kernel = spatial(self, p, "kernel", 0, axes)
        self.stride = spatial(self, p, "stride", 1, axes)
        self.pad = spatial(self, p, "pad", 0, axes)
        self.dilation = spatial(self, p, dilation, 1, axes)
        if min((*self.kernel, *self.stride, *self.dilation), default=1) < 1:
            raise self.error(
                f"kernel {self.kernel}, stride {self.stride} and dilation {self.dilation} must be positive",
                field="convolution_param",
            )
        self.sides = (p.pad_l, p.pad_r, p.pad_t, p.pad_b)
        if any(self.sides) or p.pad_type:
            if p.pad or any(self.pad) or (any(self.sides) and p.pad_type):
                raise self.error("give one of pad, pad_type and pad_l, pad_r, pad_t, pad_b", field="convolution_param")
            if any(self.sides) and axes != 2:
                raise self.error(f"pads the 2 spatial axes of images, not {axes}", field="pad_l")
            if p.pad_type > 1:
                raise self.error(f"0 or 1, not {p.pad_type}", field="pad_type")

    def padded(self, x: Tensor) -> Tensor:
        """``x`` with the padding that torch's convolution cannot do itself."""
        if any(self.sides):
            return F.pad(x, self.sides)
        if self.param.convolution_param.pad_type:
            return pad_axes(x, self.same_sides(x.shape[2:]))
        return x

    def same_sides(self, sizes) -> list[tuple[int, int]]:
        """The padding that ``pad_type: 1`` means for an image of these sizes."""
        axes = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return [same_padding(size, k, s, d * (k - 1) + 1) for size, k, s, d in axes]

    def as_images(self, x: Tensor) -> Tensor:
        """``[N, C, *size]``, whatever axis the channels are."""
        if x.dim() != self.ndim:
            raise self.error(f"was set up for {self.ndim} axes, not for shape {tuple(x.shape)}")
        return x if self.axis == 1 else x.reshape(-1, *x.shape[self.axis :])


@register("Convolution")
class Convolution(SlidingLayer):
    """``ConvolutionLayer``: convolution over 1, 2 or 3 spatial axes, grouped, dilated. Weight
    ``[num_output, C / group, *kernel]``, bias ``[num_output]``.

    All bottoms have one shape and share the weights. ``pad_type: 1`` is TensorFlow's "SAME" (synopsys); ``relu`` with
    ``negative_slope`` is a ReLU fused into the layer (Intel).
    """

    fields = {
        "convolution_param": SlidingLayer.geometry
        | {"num_output", "bias_term", "group", "weight_filler", "bias_filler", "pad_type", "relu", "negative_slope"}
    }
    num_bottoms = num_tops = (1, MANY)
    operators = (F.conv1d, F.conv2d, F.conv3d)
    transposed = False  # the first axis of the weight is the bottom's channels

    def setup(self, bottoms):
        p = self.param.convolution_param
        if len(self.param.bottom) != len(self.param.top):
            raise self.error(f"{len(self.param.bottom)} bottoms and {len(self.param.top)} tops; they go in pairs")
        self.read_geometry(bottoms[0].shape)
        if len(self.kernel) not in (1, 2, 3):
            raise self.error(
                f"slides over 1 to 3 spatial axes; shape {tuple(bottoms[0].shape)} has {len(self.kernel)} behind "
                f"axis {self.axis}",
                field="axis",
            )
        self.operator = self.operators[len(self.kernel) - 1]
        self.group, channels = self.groups(), self.channels
        if min(p.num_output, self.group) < 1:
            raise self.error(
                f"num_output {p.num_output} and group {self.group} must be positive", field="convolution_param"
            )
        if channels % self.group or p.num_output % self.group:
            raise self.error(
                f"{self.group} groups do not divide {channels} channels in and {p.num_output} out", field="group"
            )
        first, second = (channels, p.num_output) if self.transposed else (p.num_output, channels)
        self.add_blob((first, second // self.group, *self.kernel), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)
        self.saves_top = p.relu

    def groups(self) -> int:
        return self.param.convolution_param.group

    def forward(self, bottoms):
        if len(bottoms) > 1 and len({tuple(b.shape) for b in bottoms}) > 1:
            raise self.error(f"bottoms differ in shape: {[tuple(b.shape) for b in bottoms]}")
        weight, bias = self.blob(0), self.blob(1) if self.param.convolution_param.bias_term else None
        results = [self.slide(self.as_images(x), weight, bias) for x in bottoms]
        return results if self.axis == 1 else [r.reshape(*bottoms[0].shape[: self.axis], *r.shape[1:]) for r in results]

    def multiply_adds(self, bottoms, tops):
        windows = bottoms if self.transposed else tops
        return sum(math.prod(shape) for shape in windows) * math.prod(self.blob_shapes[0][1:])

    def slide(self, x, weight, bias):
        x = self.operator(self.padded(x), weight, bias, self.stride, self.pad, self.dilation, self.group)
        return fused_relu(x, self.param.convolution_param)


@register("Deconvolution")
class Deconvolution(Convolution):
    """``DeconvolutionLayer``: the transpose of a convolution over 1, 2 or 3 spatial axes, grouped, dilated. Weight
    ``[C, num_output / group, *kernel]``, bias ``[num_output]``.

    ``stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 pad`` cells; ``pad_l`` and its sisters crop the sides
    unevenly, and extend them with the bias where negative.
    """

    fields = {
        "convolution_param": SlidingLayer.geometry
        | {"num_output", "bias_term", "group", "weight_filler", "bias_filler"}
    }
    operators = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    transposed = True

    def slide(self, x, weight, bias):
        uneven = any(self.sides)
        x = self.operator(x, weight, None if uneven else bias, self.stride, self.pad, 0, self.group, self.dilation)
        if uneven:
            x = F.pad(x, [-side for side in self.sides])
            x = x if bias is None else x + bias[:, None, None]
        return x


@register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """A convolution with as many groups as channels, unless ``group`` is stated (yonghenglh6, MobileNet-YOLO)."""

    def groups(self):
        return super().groups() if self.param.convolution_param.HasField("group") else self.channels


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    """A convolution with as many groups as channels, whatever ``group`` says (synopsys, ShuffleNet)."""

    def groups(self):
        return self.channels


@register("Im2col")
class Im2col(SlidingLayer):
    """``Im2colLayer``: the windows of a convolution as channels, ``[N, C, H, W]`` to
    ``[N, C * kernel cells, windows down, windows across]``, over any number of spatial axes."""

    fields = {"convolution_param": SlidingLayer.geometry | {"pad_type"}}

    def setup(self, bottoms):
        self.read_geometry(bottoms[0].shape)
        if not self.kernel:
            raise self.error(f"no spatial axes behind axis {self.axis} of {tuple(bottoms[0].shape)}", field="axis")

    def forward(self, bottoms):
        x = pad_axes(self.padded(self.as_images(bottoms[0])), [(pad, pad) for pad in self.pad])
        columns = patches(x, self.kernel, self.stride, self.dilation).flatten(1, 1 + len(self.kernel))
        return [columns.reshape(*bottoms[0].shape[: self.axis], *columns.shape[1:])]


@register("Local")
class Local(Layer):
    """A convolution whose weights differ from window to window (caffe-windows). Weight
    ``[num_output, 1, C * kernel ** 2, windows]``, bias ``[1, 1, num_output, windows]``: the image's size is fixed."""

    fields = {
        "local_param": {"num_output", "bias_term", "pad", "kernel_size", "stride", "weight_filler", "bias_filler"}
    }
    saves_top = False

    def setup(self, bottoms):
        p, shape = self.param.local_param, tuple(bottoms[0].shape)
        if len(shape) != 4:
            raise self.error(f"slides over [N, C, H, W] blobs, not shape {shape}")
        if min(p.num_output, p.kernel_size, p.stride) < 1:
            raise self.error("num_output, kernel_size and stride must be positive", field="local_param")
        if min(shape[2:]) < p.kernel_size:
            raise self.error(f"a kernel of {p.kernel_size} cells on {shape[2:]}", field="local_param.kernel_size")
        self.size = shape[1:]
        windows = math.prod((length + 2 * p.pad - p.kernel_size) // p.stride + 1 for length in shape[2:])
        self.add_blob((p.num_output, 1, shape[1] * p.kernel_size**2, windows), p.weight_filler)
        if p.bias_term:
            self.add_blob((1, 1, p.num_output, windows), p.bias_filler)

    def multiply_adds(self, bottoms, tops):
        return math.prod(tops[0]) * self.blob_shapes[0][2]

    def forward(self, bottoms):
        p, x = self.param.local_param, bottoms[0]
        if x.shape[1:] != self.size:
            raise self.error(f"was set up for images of {tuple(self.size)}, not {tuple(x.shape[1:])}")
        cells = patches(F.pad(x, [p.pad] * 4), [p.kernel_size] * 2, [p.stride] * 2, (1, 1)).flatten(1, 3)
        result = torch.einsum("nkl,mkl->nml", cells.flatten(2), self.blob(0)[:, 0])
        if p.bias_term:
            result = result + self.blob(1)[0]
        return [result.unflatten(2, cells.shape[2:])]
