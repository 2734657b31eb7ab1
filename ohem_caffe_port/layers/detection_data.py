"""Data of cascade-rcnn: for training, with ground truth for proposal heads, and for testing."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..data import augment
from ..data.field_labels import field_labels, map_shape
from ..data.gt_windows import View
from ..data.windows import round_half_away
from ..errors import PortError
from .base import register
from .image_gt_data import GroundTruthData

_F = np.float32


def _whole_32(side) -> int:
    """The nearest multiple of 32."""
    return round_half_away(side / 32) * 32


def _rows(item, view, picture, ignored) -> np.ndarray:
    """``[n, 8]``: item, x1, y1, x2, y2, label, ignored, difficult."""
    index = np.full(len(ignored), item)
    return np.column_stack((index, view.boxes, picture.labels, ignored, picture.difficult)).astype(_F)


def _boxes_top(rows) -> torch.Tensor:
    boxes = np.concatenate(rows)
    return torch.from_numpy(boxes if len(boxes) else np.full((1, 8), -1, _F))[:, :, None, None]


@register("DetectionData")
class DetectionData(GroundTruthData):
    """cascade-rcnn's training data: images in their aspect, ground truth for each field of the heads, and boxes.

    Tops: data ``[N, 3, H, W]``; for each ``stride``, with its ``field_w`` and ``field_h``, a map ``[N, 6, h, w]``
    (:func:`ohem_caffe_port.data.field_labels.field_labels`); with ``output_gt_boxes`` the boxes ``[G, 8, 1, 1]``: item
    of the batch, x1, y1, x2, y2, label, ignored, difficult (without any one row of -1).

    Each image goes through ``distort_param``; mirror (``transform_param``, one in two); a resize to ``resize_width x
    resize_height``, by ``resize_ratio``, or to a shorter side of ``short_size``; with ``multiscale_prob`` a scale
    between ``low_scale_ratio`` and ``high_scale_ratio``, or such that a random object gets a size between ``min_scale``
    and ``max_scale``, and an aspect between ``min_whaspect`` and ``max_whaspect``. Then it is cut around that object,
    give or take 10 pixels, or padded with zeros, to ``crop_width x crop_height``, ``crop_short_size`` by
    ``crop_long_size``, ``short_size`` by ``long_size``, the size that it was resized to, or that of the batch's first
    image; where that leaves open which side is long, the batch's first image decides. ``short_size`` and ``long_size``
    go to multiples of 32, and with ``template_ratio`` first by one of these factors, drawn for each batch.

    ``shuffle`` is "random"; "random_aspect", all tall or all wide images first; or "random_mix_aspect", tall and wide
    ones taking turns in groups of ``mix_group_size``; absent: the file's order. Without objects ``min_scale`` and
    ``max_scale`` double the image, as in the fork. Pixels: ``(pixel - mean_value) * scale`` with
    ``transform_param.scale``.
    """

    fields = {
        "detection_data_param": {
            "source", "batch_size", "coord_num", "stride", "field_h", "field_w", "fg_threshold", "ignore_fg_threshold",
            "resize_width", "resize_height", "resize_ratio", "crop_width", "crop_height", "min_scale", "max_scale",
            "low_scale_ratio", "high_scale_ratio", "multiscale_prob", "min_whaspect", "max_whaspect", "short_size",
            "long_size", "crop_short_size", "crop_long_size", "template_ratio", "min_gt_width", "min_gt_height",
            "anchor_ignore_margin_ratio", "anchor_ignore_iou_thr", "pickup_iou_thr", "shuffle", "mix_group_size",
            "output_gt_boxes", "cache_images", "root_folder", "distort_param",
        },
        "transform_param": {"mirror", "mean_value", "scale"},
    }  # fmt: skip
    own_fields = "detection_data_param"

    def has(self, *names: str) -> bool:
        return all(self.settings.HasField(name) for name in names)

    def open(self):
        p = self.settings
        self.rules = self.field_rules(
            "stride",
            p.stride,
            pixels=True,
            region_threshold=p.ignore_fg_threshold,
            pickup_threshold=p.pickup_iou_thr,
            margin_ratio=p.anchor_ignore_margin_ratio if self.has("anchor_ignore_margin_ratio") else None,
            least_inside=p.anchor_ignore_iou_thr if self.has("anchor_ignore_iou_thr") else None,
        )
        self._check()
        self.check_tops(1 + len(self.rules.strides) + p.output_gt_boxes, "data, maps and, if asked for, boxes")
        self.pictures = self.read_pictures(difficult=True)
        self.tall = [q for q in self.pictures if q.height >= q.width]
        self.wide = [q for q in self.pictures if q.height < q.width]
        last = self.pictures[-1]
        self.shuffle()
        shape = self._template((last.height, last.width), 1.0)
        maps = [(self.batch_size, 6, *map_shape(*shape, stride)) for stride in self.rules.strides]
        return [(self.batch_size, 3, *shape), *maps, *[(1, 8, 1, 1)] * p.output_gt_boxes]

    def _check(self):
        p, name = self.settings, "detection_data_param."
        ways = [("resize_width", "resize_height"), ("resize_ratio",), ("short_size", "long_size")]
        if sum(self.has(*way) for way in ways) > 1:
            raise self.error("resize_width, resize_ratio and short_size exclude each other", field=name + "short_size")
        if self.has("crop_width", "crop_height") and self.has("crop_short_size", "crop_long_size"):
            raise self.error("excludes crop_short_size", field=name + "crop_width")
        for short, long in (("short_size", "long_size"), ("crop_short_size", "crop_long_size")):
            if self.has(short, long) and not 0 < getattr(p, short) < getattr(p, long):
                raise self.error(f"must be above 0 and below {long}", field=name + short)
        if self.has("crop_width", "crop_height") and not (p.crop_width and p.crop_height):
            raise self.error("must be positive", field=name + "crop_width")
        if p.fg_threshold <= 0:
            raise self.error("must be positive", field=name + "fg_threshold")
        sized, rated = self.has("min_scale", "max_scale"), self.has("low_scale_ratio", "high_scale_ratio")
        if sized and rated:
            raise self.error("excludes low_scale_ratio", field=name + "min_scale")
        self.scales = (
            ("min_scale", "max_scale") if sized else ("low_scale_ratio", "high_scale_ratio") if rated else None
        )
        for low, high in filter(None, (self.scales, ("min_whaspect", "max_whaspect"))):
            if self.has(low, high) and not 0 < getattr(p, low) <= getattr(p, high):
                raise self.error(f"{getattr(p, low)} to {getattr(p, high)} is no range", field=name + low)
        if p.shuffle not in ("random", "random_aspect", "random_mix_aspect"):
            raise self.error(f"'{p.shuffle}' is no way of shuffling", field=name + "shuffle")
        if p.shuffle == "random_mix_aspect" and not p.mix_group_size:
            raise self.error("must be positive", field=name + "mix_group_size")
        if self.has("distort_param"):
            augment.check_distortion(p.distort_param)

    def shuffle(self):
        p, rng = self.settings, self.rng
        if not self.has("shuffle"):
            return
        if p.shuffle == "random":
            self.pictures = [self.pictures[i] for i in rng.permutation(len(self.pictures))]
            return
        kinds = [[kind[i] for i in rng.permutation(len(kind))] for kind in (self.tall, self.wide)]
        if not rng.randint(2):
            kinds.reverse()
        if p.shuffle == "random_aspect":
            self.pictures = kinds[0] + kinds[1]
            return
        self.pictures, turn = [], 0
        while all(kinds):
            # a group may end early: with one kind used up, the rest of the other follows
            take, kinds[turn] = kinds[turn][: p.mix_group_size], kinds[turn][p.mix_group_size :]
            self.pictures, turn = self.pictures + take, 1 - turn
        self.pictures += kinds[0] + kinds[1]

    def _template(self, image, ratio: float) -> tuple[int, int]:
        """Height and width of the blob, for an image of (height, width)."""
        p, tall = self.settings, image[0] >= image[1]
        if self.has("crop_width", "crop_height"):
            return p.crop_height, p.crop_width
        if self.has("crop_short_size", "crop_long_size"):
            # with a fixed resize the fork does not look which side is long
            tall = tall or self.has("resize_width", "resize_height")
            short, long = p.crop_short_size, p.crop_long_size
        elif self.has("resize_width", "resize_height"):
            return p.resize_height, p.resize_width
        elif self.has("short_size", "long_size"):
            short, long = (_whole_32(_F(side) * _F(ratio)) for side in (p.short_size, p.long_size))
        else:
            return image
        return (long, short) if tall else (short, long)

    def _resized(self, width: int, height: int, ratio: float) -> tuple[int, int]:
        p = self.settings
        if self.has("resize_width", "resize_height"):
            return p.resize_width, p.resize_height
        scale = _F(1)
        if self.has("resize_ratio"):
            scale = _F(p.resize_ratio)
        elif self.has("short_size", "long_size"):
            scale = _F(_whole_32(_F(p.short_size) * _F(ratio))) / _F(min(width, height))
        return round_half_away(width * scale), round_half_away(height * scale)

    def load_batch(self):
        p, transform = self.settings, self.param.transform_param
        ratio = p.template_ratio[self.rng.randint(len(p.template_ratio))] if p.template_ratio else 1.0
        data, maps, rows = None, [], [np.empty((0, 8), _F)]
        for item in range(self.batch_size):
            picture = self.next_picture()
            with self.blaming(f"image '{p.root_folder}{picture.path}'"):
                view = View(self.read(picture), picture.boxes, picture.regions)
                if self.has("distort_param"):
                    view.image = augment.distort(view.image, p.distort_param, self.rng)
                if transform.mirror and self.rng.randint(2):
                    view.mirror()
                view.resize(*self._resized(*view.size, ratio))
                if data is None:
                    shape = self._template(view.size[::-1], ratio)
                    data = np.zeros((self.batch_size, 3, *shape), _F)
                chosen, centre = self.choose_centre(view, shape[1], shape[0])
                centre = view.zoom(self._factors(view, chosen), centre)
                self.place(view, data[item], centre, transform.scale)
            ignored = self.ignored(view, picture, shape)
            maps.append(field_labels(self.rules, shape, view, picture.labels, ignored))
            rows.append(_rows(item, view, picture, ignored))
        tops = [torch.from_numpy(top) for top in (data, *map(np.stack, zip(*maps, strict=True)))]
        return [*tops, _boxes_top(rows)][: len(self.param.top)]

    def _factors(self, view, chosen):
        """By how much to scale the view (x, y), float32."""
        p, rng = self.settings, self.rng
        if rng.random_sample() >= p.multiscale_prob or not self.scales:
            return _F(1), _F(1)
        low, high = (math.log2(getattr(p, name)) for name in self.scales)
        if self.scales[0] == "min_scale":
            if chosen is None:
                low = high = 1.0
            else:
                size = math.log2(math.sqrt(np.prod(view.boxes[chosen, 2:] - view.boxes[chosen, :2] + 1, dtype=float)))
                low, high = low - size, high - size
        factors = [_F(2 ** rng.uniform(low, high))] * 2
        if self.has("min_whaspect", "max_whaspect"):
            stretch = _F(2 ** (rng.uniform(math.log2(p.min_whaspect), math.log2(p.max_whaspect)) / 2))
            factors = [factors[0] * stretch, factors[1] / stretch]
        return factors


@register("EvalData")
class EvalData(GroundTruthData):
    """cascade-rcnn's test data: images one after the other, their boxes, and the size that they were given.

    Tops: data ``[N, 3, H, W]``; boxes ``[G, 8, 1, 1]``: item of the batch, x1, y1, x2, y2, label, ignored, difficult
    (without any one row of -1); optionally height and width ``[N, 2, 1, 1]``. Images are resized to ``resize_width x
    resize_height``; or to a shorter side of ``short_size``, then each side to ``long_size`` at most; and both to
    multiples of 32, one image at a time unless all get one size. Pixels: ``(pixel - mean_value) * scale`` with
    ``transform_param.scale``.
    """

    fields = {
        "eval_data_param": {
            "source", "batch_size", "resize_width", "resize_height", "short_size", "long_size", "root_folder",
        },
        "transform_param": {"mean_value", "scale"},
    }  # fmt: skip
    own_fields = "eval_data_param"
    num_tops = (2, 3)

    def open(self):
        p = self.settings
        self.fixed = p.HasField("resize_width") and p.HasField("resize_height")
        if self.batch_size != 1 and not self.fixed:
            raise self.error(
                "must be 1, for images of different sizes",
                field="eval_data_param.batch_size",
                hint="give resize_width and resize_height for more",
            )
        self.pictures = self.read_pictures(difficult=True)
        width, height = self._resized(self.pictures[-1].width, self.pictures[-1].height)
        return [(self.batch_size, 3, height, width), (1, 8, 1, 1), (self.batch_size, 2, 1, 1)][: len(self.param.top)]

    def _resized(self, width, height):
        p = self.settings
        if self.fixed:
            width, height = p.resize_width, p.resize_height
        elif p.HasField("short_size") and p.HasField("long_size"):
            scale = _F(p.short_size) / _F(min(width, height))
            width, height = (min(round_half_away(side * scale), p.long_size) for side in (width, height))
        size = _whole_32(width), _whole_32(height)
        if not all(size):
            raise PortError(f"{width} x {height} is no multiple of 32 but 0", field="eval_data_param.short_size")
        return size

    def load_batch(self):
        p, transform = self.settings, self.param.transform_param
        blobs, sizes, rows = [], [], [np.empty((0, 8), _F)]
        for item in range(self.batch_size):
            picture = self.next_picture()
            with self.blaming(f"image '{p.root_folder}{picture.path}'"):
                view = View(self.read(picture), picture.boxes, picture.regions)
                view.resize(*self._resized(*view.size))
            width, height = view.size
            blobs.append(np.zeros((3, height, width), _F))
            view.place(blobs[-1], (0, 0), (0, 0), self.transformer.mean_for(view.image), transform.scale)
            sizes.append((height, width))
            rows.append(_rows(item, view, picture, picture.ignored))
        tops = [np.stack(blobs), np.array(sizes, _F)[:, :, None, None]]
        data, size = map(torch.from_numpy, tops)
        return [data, _boxes_top(rows), size][: len(self.param.top)]
