"""What NVIDIA's DetectNet does to an image and its boxes before it trains on them.

From ``detectnet_transform_layer.cpp`` and ``detectnet_coverage_rectangular.cpp`` of NVIDIA/caffe, in single precision
and as they compute on the CPU (their GPU interpolates with another kernel). Images are ``[H, W, 3]`` float32 BGR, 0 to
255; boxes ``[B, 4]`` float32 rows ``(x, y, width, height)`` in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .windows import round_half_away

_F = np.float32
_EPSILON = np.finfo(_F).eps  # C's FLT_EPSILON


@dataclass(frozen=True)
class Augmentation:
    """What happens to one image: hue (degrees) and saturation change, then flip, scale to ``(width, height)``, rotation
    (degrees), and a cut of the layer's size at ``offset`` ``(x, y)``, which may lie outside."""

    scale: tuple[int, int]
    hue: float = 0.0
    saturation: float = 1.0
    flip: bool = False
    rotation: float = 0.0
    offset: tuple[int, int] = (0, 0)

    @classmethod
    def draw(cls, param, size: tuple[int, int], out: tuple[int, int], rng) -> Augmentation:
        """A random one, as a ``DetectNetAugmentationParameter`` says, for an image of ``size`` that is cut to ``out``
        (both width, height). Numbers are drawn in Caffe's order."""
        hue, saturation, rotation, scale = 0.0, 1.0, 0.0, size
        if rng.random_sample() <= param.hue_rotation_prob:
            hue = float(np.clip((rng.random_sample() - 0.5) * 2 * param.hue_rotation, -180, 180))
        if rng.random_sample() <= param.desaturation_prob:
            saturation = 1 - rng.random_sample() * param.desaturation_max
        flip = rng.random_sample() <= param.flip_prob
        if rng.random_sample() <= param.scale_prob:
            factor = _F(param.scale_min + (param.scale_max - param.scale_min) * rng.random_sample())
            scale = round_half_away(size[0] * factor), round_half_away(size[1] * factor)
        if rng.random_sample() <= param.rotation_prob:
            rotation = (rng.random_sample() - 0.5) * 2 * param.max_rotate_degree
        place, shift = (0.5, 0.5), (0, 0)
        random_crop = rng.random_sample() <= param.crop_prob
        if random_crop:
            place, shift = (rng.random_sample(), rng.random_sample()), (param.shift_x, param.shift_y)
        turned = _turned_size(scale, rotation) if abs(rotation) > _EPSILON else scale
        offset = tuple(
            round_half_away(p * (have - want + s) - s // 2)
            for p, have, want, s in zip(place, turned, out, shift, strict=True)
        )
        return cls(scale, hue, saturation, flip, rotation, offset)

    def of_image(self, image: np.ndarray, mean: np.ndarray | None, out: tuple[int, int]) -> np.ndarray:
        """The image without its mean (anything that broadcasts with it), changed, and cut to ``out``; 0 outside."""
        if abs(self.hue) > _EPSILON or self.saturation < 1 - 1 / 255:
            image = self._recoloured(image)
        if mean is not None:
            image = image - mean
        if self.flip:
            image = cv2.flip(image, 1)
        if image.shape[1::-1] != self.scale:
            image = cv2.resize(image, self.scale, interpolation=cv2.INTER_CUBIC)
        if abs(self.rotation) > _EPSILON:
            size = _turned_size(self.scale, self.rotation)
            canvas = np.zeros((size[1], size[0], 3), _F)
            matrix = _turning(self.scale, self.rotation).astype(np.float64)
            image = cv2.warpAffine(image, matrix, size, canvas, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
        return _cut(image, self.offset, out)

    def of_boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Where the boxes of an image of ``size`` (width, height) go. A turned box keeps its size: only its centre
        turns."""
        corner, sides = boxes[:, :2], boxes[:, 2:]
        if self.flip:
            corner = np.stack([size[0] - corner[:, 0] - sides[:, 0] - 1, corner[:, 1]], 1)
        if self.scale != size:
            factor = np.array(self.scale, _F) / np.array(size, _F)
            corner, sides = corner * factor, sides * factor
        if abs(self.rotation) > _EPSILON:
            matrix = _turning(self.scale, self.rotation)
            centre = corner + sides * _F(0.5)
            corner = centre @ matrix[:, :2].T + matrix[:, 2] - sides * _F(0.5)
        return np.concatenate([corner - np.array(self.offset, _F), sides], 1).astype(_F)

    def _recoloured(self, image):
        hsv = cv2.cvtColor(image / _F(255), cv2.COLOR_BGR2HSV)
        if abs(self.hue) > _EPSILON:
            hsv[:, :, 0] += _F(self.hue)
        if self.saturation < 1 - 1 / 255:
            hsv[:, :, 1] *= _F(self.saturation)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * _F(255)


def _bounds(centre, size, angle) -> tuple[np.ndarray, np.ndarray]:
    """Top left corner and size of the whole pixels that a turned rectangle touches (``RotatedRect::boundingRect``)."""
    points = cv2.boxPoints((centre, size, angle))
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
    return low, high - low + 1


def _turned_size(size, angle) -> tuple[int, int]:
    width, height = _bounds((size[0] // 2, size[1] // 2), size, angle)[1]
    return int(width), int(height)


def _turning(size, angle) -> np.ndarray:
    """The affine map ``[2, 3]`` that turns an image of ``size`` and moves it back to where all of it can be seen."""
    centre = np.array(size, _F) * _F(0.5)
    moved = centre - _bounds(centre.tolist(), size, angle)[0].astype(_F)
    before, after = (cv2.boxPoints((c.tolist(), size, a))[:3] for c, a in ((centre, 0), (moved, angle)))
    return cv2.getAffineTransform(before, after).astype(_F)


def _cut(image, offset, size) -> np.ndarray:
    out = np.zeros((size[1], size[0], image.shape[2]), _F)
    x, y = offset
    part = image[max(y, 0) : max(y + size[1], 0), max(x, 0) : max(x + size[0], 0)]
    out[max(-y, 0) : max(-y, 0) + part.shape[0], max(-x, 0) : max(-x, 0) + part.shape[1]] = part
    return out


class LabelGrid:
    """Boxes as DetectNet learns them: a label ``[8 + classes, rows, columns]`` with a cell for every ``stride`` pixels.

    A cell that the middle of a box covers says, from the first channel on: 1; the box's corners x1, y1, x2, y2, seen
    from the cell's; 1 / width, 1 / height; the weight of the object; and 1 for its class. Of boxes that cover one cell
    the last counts. All other cells are 0.

    The middle of a box is ``scale_cvg`` of its sides; GRIDBOX_MIN makes them at least ``min_cvg_len`` pixels (but no
    longer than the box), GRIDBOX_MAX at most ``max_cvg_len``. The weight is the area of a cell over that of the middle
    with ``obj_norm``, and at least 1 without. ``crop_bboxes`` cuts boxes to the image; what has no area is left out.

    Args:
        param: a ``DetectNetGroundTruthParameter``.
    """

    def __init__(self, param):
        self.param = param
        self.classes = {mapping.src: mapping.dst for mapping in param.object_class} or {1: 0}
        size = np.array([param.image_size_x, param.image_size_y], _F)
        columns, rows = np.rint(size * _F(1 / param.stride)).astype(int)
        self.shape = (8 + max(self.classes.values()) + 1, int(rows), int(columns))

    def label(self, boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The label of boxes ``[B, 4]`` of the image as it is cut, and their class numbers ``[B]``."""
        label = np.zeros(self.shape, _F)
        for box, number in zip(boxes, classes.astype(int), strict=True):
            low, high = box[:2], box[:2] + box[2:]
            if self.param.crop_bboxes:
                low = np.maximum(low, 0)
                high = np.minimum(high, np.array([self.param.image_size_x, self.param.image_size_y], _F))
                if (high <= low).any():
                    continue
            if number in self.classes and (high - low).prod() >= _EPSILON:
                self._mark(label, low, high, 8 + self.classes[number])
        return label

    def _mark(self, label, low, high, channel) -> None:
        p, stride = self.param, _F(self.param.stride)
        first_corner, last_corner = self._middle(low, high)
        cells = np.array(self.shape[:0:-1])  # columns, rows
        first = np.floor(first_corner / stride).astype(int).clip(0, cells)
        last = np.ceil(last_corner / stride).astype(int).clip(first, cells)
        corners = [np.arange(a, b).astype(_F) * stride for a, b in zip(first, last, strict=True)]
        covered_x, covered_y = (
            (np.minimum(b, c + stride) - np.maximum(a, c)).clip(0)
            for a, b, c in zip(first_corner, last_corner, corners, strict=True)
        )
        covered = np.outer(covered_y, covered_x) / stride**2 > _EPSILON
        x, y = np.meshgrid(*corners)
        size = high - low
        with np.errstate(divide="ignore"):
            weight = stride**2 / (last_corner - first_corner).prod()
        values = [1, low[0] - x, low[1] - y, high[0] - x, high[1] - y, *(1 / size), weight if p.obj_norm else
                  max(weight, 1)]  # fmt: skip
        block = label[:, first[1] : last[1], first[0] : last[0]]
        for plane, value in zip(block[:8], values, strict=True):
            plane[covered] = np.broadcast_to(value, covered.shape)[covered]
        block[8:, covered] = 0
        block[channel, covered] = 1

    def _middle(self, low, high):
        """Opposite corners of the part of a box that is marked."""
        p, size = self.param, high - low
        part = size * _F(p.scale_cvg)
        if p.gridbox_type == p.GRIDBOX_MIN:
            part = np.minimum(size, np.maximum(_F(p.min_cvg_len), part))
        else:
            part = np.minimum(_F(p.max_cvg_len), part)
        centre = (low + high) * _F(0.5)
        return centre - part * _F(0.5), centre + part * _F(0.5)
