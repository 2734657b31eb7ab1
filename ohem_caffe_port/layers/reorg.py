"""Layers that move cells between channels and space, or put a border around them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import Layer, register
from .convolution import pad_axes
from .resize import check_image, layout


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """``[N, block^2 C, H, W]`` to ``[N, C, block H, block W]``: channel ``(row * block + column) * C + c`` holds cell
    (row, column) of channel ``c``'s blocks."""
    n, _, height, width = x.shape
    x = x.reshape(n, block, block, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, -1, height * block, width * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """The inverse of :func:`depth_to_space`."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, -1, height // block, width // block)


@register("SpaceToDepth")
class SpaceToDepth(Layer):
    """Blocks of ``block_size x block_size`` cells become channels: channel ``(row * block_size + column) * C + c``
    (synopsys). Blobs are NHWC unless ``data_format`` says NCHW."""

    fields = {"space_to_depth_param": {"block_size", "data_format"}}
    formats = ("NHWC", "NCHW")
    saves_top = False

    def setup(self, bottoms):
        message = getattr(self.param, next(iter(self.fields)))
        self.block, self.format = message.block_size, layout(self, message, self.formats)
        if self.block < 1:
            raise self.error(f"must be positive, not {self.block}", field="block_size")

    def forward(self, bottoms):
        check_image(self, bottoms[0])
        last = self.format == "NHWC"
        x = self.move(bottoms[0].permute(0, 3, 1, 2) if last else bottoms[0])
        return [x.permute(0, 2, 3, 1).contiguous() if last else x]

    def move(self, x: Tensor) -> Tensor:
        if any(cells % self.block for cells in x.shape[2:]):
            raise self.error(f"blocks of {self.block} do not fill {tuple(x.shape[2:])} cells", field="block_size")
        return space_to_depth(x, self.block)


@register("DepthToSpace")
class DepthToSpace(SpaceToDepth):
    """Channels become blocks of ``block_size x block_size`` cells, the inverse of SpaceToDepth (synopsys).

    ``data_format`` NHWC (the default), NCHW or its other name DCR, or CRD: NCHW with a block's cells innermost, channel
    ``(c * block_size + row) * block_size + column``.
    """

    fields = {"depth_to_space_param": {"block_size", "data_format"}}
    formats = ("NHWC", "NCHW", "DCR", "CRD")

    def move(self, x):
        if x.shape[1] % self.block**2:
            raise self.error(f"{x.shape[1]} channels do not fill blocks of {self.block}", field="block_size")
        return F.pixel_shuffle(x, self.block) if self.format == "CRD" else depth_to_space(x, self.block)


@register("Reorg")
class Reorg(Layer):
    """YOLO v2's reorganisation of ``[N, C, H, W]`` into ``[N, C s^2, H / s, W / s]``, ``s`` the ``stride`` (Intel,
    MobileNet-YOLO).

    As in darknet the cells are those of SpaceToDepth on the same memory read as ``[N, C / s^2, s H, s W]``, which is
    no plain SpaceToDepth. ``reverse`` is DepthToSpace. (The forks' backward rearranges a buffer that nothing fills, so
    no gradient passes; here the true one does.)
    """

    fields = {"reorg_param": {"stride", "reverse"}}
    saves_top = False

    def setup(self, bottoms):
        if self.param.reorg_param.stride < 1:
            raise self.error("must be stated and positive", field="reorg_param.stride")

    def forward(self, bottoms):
        p, x = self.param.reorg_param, bottoms[0]
        check_image(self, x)
        n, channels, height, width = x.shape
        if channels % p.stride**2 or (not p.reverse and (height % p.stride or width % p.stride)):
            raise self.error(f"does not divide a bottom of {tuple(x.shape)}", field="reorg_param.stride")
        if p.reverse:
            return [depth_to_space(x, p.stride)]
        x = space_to_depth(x.reshape(n, -1, height * p.stride, width * p.stride), p.stride)
        return [x.reshape(n, -1, height // p.stride, width // p.stride)]


@register("Pad")
class Pad(Layer):
    """A border of ``constant_values``: ``paddings`` are the cells before and after each axis (synopsys)."""

    fields = {"pad_param": {"paddings", "constant_values"}}
    saves_top = False

    def forward(self, bottoms):
        p, x = self.param.pad_param, bottoms[0]
        if len(p.paddings) != 2 * x.dim():
            raise self.error(f"{len(p.paddings)} values for {x.dim()} axes, two for each", field="pad_param.paddings")
        return [pad_axes(x, list(zip(p.paddings[::2], p.paddings[1::2], strict=True)), p.constant_values)]
