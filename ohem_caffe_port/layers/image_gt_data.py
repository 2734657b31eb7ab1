"""Training data of MS-CNN: images, ground-truth maps for its proposal heads, and ground-truth boxes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ..data.field_labels import FieldRules, field_labels, map_shape
from ..data.gt_windows import Picture, View, read_gt_windows
from ..data.images import decode_image, read_image
from ..data.windows import round_half_away
from .base import MANY, register
from .batches import BatchLayer

_F = np.float32


class GroundTruthData(BatchLayer):
    """Base of the layers that read window files with ground truth (:mod:`ohem_caffe_port.data.gt_windows`).

    A subclass sets ``pictures`` in :meth:`open`.
    """

    num_tops = (2, MANY)
    ahead = 3

    def read_pictures(self, difficult: bool) -> list[Picture]:
        self._next, self._files = 0, {}
        return read_gt_windows(self.settings.source, difficult)

    def next_picture(self) -> Picture:
        picture = self.pictures[self._next]
        self._next += 1
        if self._next == len(self.pictures):
            self._next = 0
            self.shuffle()
        return picture

    def shuffle(self) -> None:
        """Puts the pictures in the order of the next pass."""

    def read(self, picture: Picture) -> np.ndarray:
        """The image ``[H, W, 3]``; with ``cache_images`` its file is read once."""
        path = self.settings.root_folder + picture.path
        if not getattr(self.settings, "cache_images", False):
            return read_image(path)
        if path not in self._files:
            read_image(path)  # says what is wrong with it
            self._files[path] = Path(path).read_bytes()
        return decode_image(self._files[path])

    def check_tops(self, wanted: int, what: str) -> None:
        if len(self.param.top) != wanted:
            raise self.error(f"{len(self.param.top)} tops; it makes {wanted}: {what}", field="top")

    def field_rules(self, name: str, strides, **rules) -> FieldRules:
        """The rules for the maps that the settings ask for.

        Raises:
            PortError: not as many strides as fields.
        """
        p = self.settings
        if (
            not len(strides) == len(p.field_w) == len(p.field_h)
            or min((*strides, *p.field_w, *p.field_h), default=1) < 1
        ):
            raise self.error(
                f"{len(strides)} strides, {len(p.field_w)} widths and {len(p.field_h)} heights of fields: as many "
                "positive ones of each are needed",
                field=f"{self.own_fields}.{name}",
            )
        if p.coord_num != 4:
            raise self.error("a box has 4 coordinates", field=f"{self.own_fields}.coord_num")
        fields = list(zip(p.field_w, p.field_h, strict=True))
        return FieldRules(list(strides), fields, fg_threshold=p.fg_threshold, **rules)

    def choose_centre(self, view: View, width: int, height: int):
        """Which object the view is centred on (None without objects: a random place), and its centre (x, y)."""
        if len(view.boxes):
            chosen = self.rng.randint(len(view.boxes))
            return chosen, (view.boxes[chosen, :2] + view.boxes[chosen, 2:]) / 2
        free = (side - full for side, full in zip(view.size, (width, height), strict=True))
        centre = [
            self.rng.randint(f + 1) + full / 2 if f >= 0 else side / 2
            for f, full, side in zip(free, (width, height), view.size, strict=True)
        ]
        return None, np.array(centre, _F)

    def place(self, view: View, blob: np.ndarray, centre, scale: float) -> None:
        noise = self.rng.randint(20, size=2) - 10
        view.place(blob, centre, noise, self.transformer.mean_for(view.image), scale)

    def ignored(self, view: View, picture: Picture, shape) -> np.ndarray:
        """Which objects to leave out: those of the file, those centred outside the blob, the small ones."""
        centres = (view.boxes[:, :2] + view.boxes[:, 2:]) / 2
        outside = (centres < 0) | (centres >= np.array([shape[1], shape[0]]))
        least = np.array([self.settings.min_gt_width, self.settings.min_gt_height], _F)
        small = view.boxes[:, 2:] - view.boxes[:, :2] + 1 < least
        return picture.ignored | (outside | small).any(1)


@register("ImageGtData")
class ImageGtData(GroundTruthData):
    """MS-CNN's training data: crops of images around an object, ground truth for each proposal head, and boxes.

    Tops: data ``[N, 3, H, W]``; for each ``downsample_rate``, with its ``field_w`` and ``field_h``, a map
    ``[N, 6, h, w]`` (:func:`ohem_caffe_port.data.field_labels.field_labels`); with ``output_gt_boxes`` the boxes
    ``[G, 7, 1, 1]``: item of the batch, x1, y1, x2, y2, label, ignored (without any: one to ignore).

    Each image is mirrored (``transform_param.mirror``, one in two), resized to ``resize_width x resize_height`` and cut
    to ``crop_width x crop_height`` around a random object, give or take 10 pixels, or padded with zeros. With
    ``do_multiple_scale`` one in two is scaled such that the object has a size between ``min_scale`` and ``max_scale``,
    in half octaves, and of these one in two to an aspect between ``min_whaspect`` and ``max_whaspect``. Objects smaller
    than ``min_gt_width`` or ``min_gt_height``, or with their centre outside, are ignored. Images with objects to learn
    stand ``fg_img_multiple`` times in the list. Pixels: ``(pixel - mean_value) * scale``, with
    ``image_gt_data_param.scale``.
    """

    fields = {
        "image_gt_data_param": {
            "source", "scale", "batch_size", "downsample_rate", "coord_num", "field_h", "field_w", "fg_threshold",
            "resize_width", "resize_height", "crop_width", "crop_height", "do_multiple_scale", "min_scale",
            "max_scale", "min_whaspect", "max_whaspect", "min_gt_width", "min_gt_height", "shuffle",
            "output_gt_boxes", "fg_img_multiple", "cache_images", "root_folder",
        },
        "transform_param": {"mirror", "mean_value"},
    }  # fmt: skip
    own_fields = "image_gt_data_param"

    def open(self):
        p = self.settings
        self.rules = self.field_rules("downsample_rate", p.downsample_rate, pixels=False)
        if not self.rules.strides:
            raise self.error("at least one is needed", field="image_gt_data_param.downsample_rate")
        self.check_tops(1 + len(self.rules.strides) + p.output_gt_boxes, "data, maps and, if asked for, boxes")
        self.scales = p.do_multiple_scale and p.HasField("min_scale") and p.HasField("max_scale")
        if self.scales and not 0 < p.min_scale <= p.max_scale:
            raise self.error(f"{p.min_scale} to {p.max_scale} is no range", field="image_gt_data_param.min_scale")
        self.aspects = 0
        if self.scales and p.HasField("min_whaspect") and p.HasField("max_whaspect"):
            self.aspects = round_half_away((_F(p.max_whaspect) - _F(p.min_whaspect)) / _F(0.05))
            if self.aspects < 1 or p.min_whaspect <= 0:
                raise self.error("less than a step of 0.05 to the largest", field="image_gt_data_param.min_whaspect")
        pictures = self.read_pictures(difficult=False)
        self.pictures = [q for q in pictures for _ in range(1 if q.ignored.all() else p.fg_img_multiple)]
        if not self.pictures:
            raise self.error("leaves no image", field="image_gt_data_param.fg_img_multiple")
        self.shuffle()
        self.shape = self._shape(pictures[-1])
        maps = [(self.batch_size, 6, *map_shape(*self.shape, stride)) for stride in self.rules.strides]
        return [(self.batch_size, 3, *self.shape), *maps, *[(1, 7, 1, 1)] * p.output_gt_boxes]

    def _shape(self, picture):
        """Height and width of the blob."""
        p = self.settings
        height, width = picture.height, picture.width
        if p.HasField("resize_width") and p.HasField("resize_height"):
            height, width = p.resize_height, p.resize_width
        if p.HasField("crop_width") and p.HasField("crop_height"):
            if p.crop_width > width or p.crop_height > height:
                raise self.error(
                    f"{p.crop_width} x {p.crop_height} from {width} x {height}", field="image_gt_data_param.crop_width"
                )
            height, width = p.crop_height or height, p.crop_width or width
        return height, width

    def shuffle(self):
        if self.settings.shuffle:
            self.pictures = [self.pictures[i] for i in self.rng.permutation(len(self.pictures))]

    def load_batch(self):
        p = self.settings
        data = np.zeros((self.batch_size, 3, *self.shape), _F)
        maps, rows = [], [np.empty((0, 7), _F)]
        for item in range(self.batch_size):
            picture = self.next_picture()
            with self.blaming(f"image '{p.root_folder}{picture.path}'"):
                mirrored = self.param.transform_param.mirror and self.rng.randint(2)
                view = View(self.read(picture), picture.boxes, picture.regions)
                if mirrored:
                    view.mirror()
                if p.HasField("resize_width") and p.HasField("resize_height"):
                    view.resize(p.resize_width, p.resize_height)
                chosen, centre = self.choose_centre(view, self.shape[1], self.shape[0])
                centre = view.zoom(self._factors(view, chosen), centre)
                self.place(view, data[item], centre, p.scale)
            ignored = self.ignored(view, picture, self.shape)
            maps.append(field_labels(self.rules, self.shape, view, picture.labels, ignored))
            index = np.full(len(ignored), item)
            rows.append(np.column_stack((index, view.boxes, picture.labels, ignored)).astype(_F))
        tops = [torch.from_numpy(top) for top in (data, *map(np.stack, zip(*maps, strict=True)))]
        boxes = np.concatenate(rows)
        if not len(boxes):
            boxes = np.array([[0, 1, 1, 2, 2, 1, 1]], _F)
        return [*tops, torch.from_numpy(boxes)[:, :, None, None]][: len(self.param.top)]

    def _factors(self, view, chosen):
        """By how much to scale the view (x, y), float32."""
        p, rng = self.settings, self.rng
        if not self.scales or chosen is None or not rng.randint(2):
            return _F(1), _F(1)
        width, height = view.boxes[chosen, 2:] - view.boxes[chosen, :2]
        octaves = np.arange(round_half_away(2 * math.log2(p.max_scale / p.min_scale) + 1)) / _F(2)
        areas, area = p.min_scale**2 * 4.0**octaves, float(width) * float(height)
        match = (np.minimum(areas, area) / np.maximum(areas, area)).argmax()
        factors = [_F(2.0 ** (octaves[rng.randint(len(octaves))] - octaves[match]))] * 2
        if self.aspects and rng.randint(2):
            aspect = rng.randint(self.aspects) * _F(0.05) + _F(p.min_whaspect)
            stretch, axis = aspect / (width / height), 1 - rng.randint(2)  # 0: the width, 1: the height
            wanted = (width * factors[0] * stretch, height * factors[1] / stretch)[axis]
            if p.min_scale * 0.8 <= wanted <= p.max_scale * 1.2:
                factors[axis] = factors[axis] * stretch if axis == 0 else factors[axis] / stretch
        return factors
