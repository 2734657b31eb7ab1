"""PriorBox: SSD's default boxes, and how the layers above read them."""

from __future__ import annotations

import math

import numpy as np
import torch

from .base import Layer, cheap_to_read, register


@register("PriorBox")
class PriorBox(Layer):
    """SSD's default boxes of one feature map: bottoms the map and the image (for their sizes), top ``[1, 2, 4P]``.

    Channel 0 holds ``x1 y1 x2 y2`` of the P = H W n boxes in units of the image, channel 1 their variances. A cell has,
    for each ``min_size``, a square of that size, one of ``sqrt(min_size max_size)``, and for each ``aspect_ratio`` (and
    its inverse with ``flip``; repetitions and 1 are left out) a box of ``min_size sqrt(ratio)`` by ``min_size /
    sqrt(ratio)``; the centre is ``(cell + offset) step``. (SSD, Liu et al., ECCV 2016, section 2.2; ``PriorBoxLayer``
    of weiliu89/caffe, branch ssd.) Sizes are cut to whole pixels as there: 35.84 is 35.
    """

    fields = {
        "prior_box_param": {
            "min_size", "max_size", "aspect_ratio", "flip", "clip", "variance", "img_size", "img_h", "img_w", "step",
            "step_h", "step_w", "offset",
        }
    }  # fmt: skip
    num_bottoms = (1, 2)
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p = self.param.prior_box_param
        self.image = self._pair("img", "img_size")
        self.step = self._pair("step", "step")
        if self.image is None and len(bottoms) < 2:
            raise self.error(
                "the image's size is unknown", field="bottom", hint="give the data as second bottom, or img_size"
            )
        self.variance = list(p.variance) or [0.1]
        if len(self.variance) not in (1, 4) or min(self.variance) <= 0:
            raise self.error(f"{self.variance} is not 1 or 4 positive numbers", field="prior_box_param.variance")
        self.sizes = self._sizes()

    def _pair(self, name, both):
        """(height, width) from ``<name>_h`` and ``<name>_w`` or one field for both; None when not given."""
        p, names = self.param.prior_box_param, (f"{name}_h", f"{name}_w")
        apart, one = [p.HasField(n) for n in names], p.HasField(both)
        if any(apart) and one:
            raise self.error(f"give either {both} or {names[0]} and {names[1]}", field=f"prior_box_param.{both}")
        if not any(apart) and not one:
            return None
        pair = tuple(getattr(p, n) for n in (names if any(apart) else (both, both)))
        if min(pair) <= 0:
            field = both if one else names[pair[0] > 0]
            raise self.error("must be positive", field=f"prior_box_param.{field}")
        return pair

    def _sizes(self) -> torch.Tensor:
        """(width, height) of a cell's boxes in pixels, ``[n, 2]`` float32."""
        p = self.param.prior_box_param
        least, most = list(p.min_size), list(p.max_size)
        if not least or min(least) < 1:
            raise self.error("needs at least one size of 1 pixel or more", field="prior_box_param.min_size")
        if most and len(most) != len(least):
            raise self.error(f"{len(most)} for {len(least)} of min_size", field="prior_box_param.max_size")
        if any(b <= a for a, b in zip(least, most, strict=False)):
            raise self.error(f"{most} must be greater than min_size {least}", field="prior_box_param.max_size")
        if any(ratio <= 0 for ratio in p.aspect_ratio):
            raise self.error("must be positive", field="prior_box_param.aspect_ratio")
        ratios = [np.float32(1)]
        for ratio in map(np.float32, p.aspect_ratio):
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, np.float32(1 / float(ratio))] if p.flip else [ratio]
        sizes = []
        for i, size in enumerate(map(int, least)):
            sizes.append((size, size))
            if most:
                sizes.append((math.sqrt(size * int(most[i])),) * 2)
            roots = [np.sqrt(ratio) for ratio in ratios[1:]]
            sizes += [(np.float32(size) * root, np.float32(size) / root) for root in roots]
        return torch.tensor(np.array(sizes, np.float32))

    def forward(self, bottoms):
        if any(b.dim() != 4 for b in bottoms):
            raise self.error(f"takes [N, C, H, W] blobs, not {[tuple(b.shape) for b in bottoms]}")
        cells = bottoms[0].shape[2:]
        image = self.image or tuple(bottoms[1].shape[2:])
        # as C does: the centre in float32, the corners in float64, rounded once
        device, p = bottoms[0].device, self.param.prior_box_param
        corners = [None] * 4
        for axis, size in ((0, self.sizes[:, 1]), (1, self.sizes[:, 0])):
            step = self.step[axis] if self.step else np.float32(image[axis]) / np.float32(cells[axis])
            centre = (torch.arange(cells[axis], device=device, dtype=torch.float32) + p.offset) * float(step)
            centre, half = centre.double().view(-1, *[1] * (2 - axis)), size.to(device).double() / 2
            corners[1 - axis], corners[3 - axis] = (centre - half) / image[axis], (centre + half) / image[axis]
        boxes = torch.stack(torch.broadcast_tensors(*corners), -1).float()
        if p.clip:
            boxes = boxes.clamp(0, 1)
        variance = torch.tensor(self.variance, device=device).expand_as(boxes)
        return [torch.stack((boxes.flatten(), variance.flatten())).unsqueeze(0)]


def count_priors(layer: Layer, blob: torch.Tensor) -> int:
    """P of the blob ``[1, 2, 4P]`` of one PriorBox or several concatenated."""
    if blob.dim() < 3 or blob.shape[:2] != (1, 2) or blob.numel() % 8:
        raise layer.error(f"priors must be of shape [1, 2, 4P], not {tuple(blob.shape)}", field="bottom[2]")
    return blob.numel() // 8


def check_predictions(layer: Layer, bottoms, widths) -> tuple[int, int]:
    """Batch size B and number of priors P of SSD's bottoms, the third of which holds the priors.

    Args:
        widths: how many numbers each bottom ``[B, width * P]`` holds for a prior; None: it is another kind of blob.

    Raises:
        PortError: a bottom of another size.
    """
    batch, count = len(bottoms[0]), count_priors(layer, bottoms[2])
    for i, (bottom, wanted) in enumerate(zip(bottoms, widths, strict=False)):
        if wanted and (len(bottom) != batch or bottom.numel() != batch * count * wanted):
            shape = tuple(bottom.shape)
            raise layer.error(f"must be [{batch}, {wanted} * {count} priors], not {shape}", field=f"bottom[{i}]")
    return batch, count


def read_priors(layer: Layer, blob: torch.Tensor, code_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and variances, ``[P, 4]`` each, of a blob ``[1, 2, 4P]``.

    Raises:
        PortError: boxes without an extent, which no code but CORNER can use (where :func:`cheap_to_read`).
    """
    boxes, variances = blob.detach().reshape(2, -1, 4)
    if code_type != "CORNER" and cheap_to_read(boxes) and not (boxes[:, 2:] > boxes[:, :2]).all():
        wrong = int((boxes[:, 2:] <= boxes[:, :2]).any(1).nonzero()[0])
        raise layer.error(f"prior {wrong} has no extent: {boxes[wrong].tolist()}", field="bottom[2]")
    return boxes, variances
