"""Boxes of SSD's ``AnnotatedDatum``: how they follow the image through crops and resizes, and ``batch_sampler``.

Boxes are ``(xmin, ymin, xmax, ymax)`` float32 in units of the image, 0 to 1, without any +1. From ``bbox_util.cpp``,
``sampler.cpp`` and ``data_transformer.cpp`` of weiliu89/caffe, branch ssd, in single precision and in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import PortError

FLOAT_MAX = np.finfo(np.float32).max


@dataclass
class Annotations:
    """The boxes ``[n, 4]`` of an image, and ``rows`` ``[n, 3]``: label, instance_id, difficult."""

    boxes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, record) -> Annotations:
        """Those of an ``AnnotatedDatum``, group by group."""
        found = [(g.group_label, a) for g in record.annotation_group for a in g.annotation]
        boxes = [(a.bbox.xmin, a.bbox.ymin, a.bbox.xmax, a.bbox.ymax) for _, a in found]
        rows = [(label, a.instance_id, a.bbox.difficult) for label, a in found]
        return cls(np.array(boxes, np.float32).reshape(-1, 4), np.array(rows, np.float32).reshape(-1, 3))

    def seen_through(self, window: np.ndarray, emit=None, resize=None) -> Annotations:
        """In units of ``window`` (a box) and cut to it; those without area in it go (``TransformAnnotation``).

        Args:
            emit: ``EmitConstraint`` that a box must also meet, before it is cut.
            resize: ``(ResizeParameter, height, width)`` when the image of ``height x width`` was resized first.
        """
        boxes = resized(self.boxes, *resize) if resize else self.boxes
        keep = (boxes[:, :2] < window[2:]).all(1) & (boxes[:, 2:] > window[:2]).all(1)
        if emit is not None:
            keep &= _emitted(boxes, window, emit)
        size = np.tile(window[2:] - window[:2], 2)
        cut = ((boxes - np.tile(window[:2], 2)) / size).clip(0, 1)
        keep &= areas(cut) > 0
        return Annotations(cut[keep], self.rows[keep])

    def mirrored(self) -> Annotations:
        """Left and right exchanged."""
        xmin, ymin, xmax, ymax = self.boxes.T
        return replace(self, boxes=np.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1))

    def without_difficult(self) -> Annotations:
        """Only those that are not difficult."""
        easy = self.rows[:, 2] == 0
        return Annotations(self.boxes[easy], self.rows[easy])

    def label_rows(self, item: int) -> np.ndarray:
        """``[n, 8]``: item, label, instance_id, xmin, ymin, xmax, ymax, difficult."""
        items = np.full((len(self.rows), 1), item, np.float32)
        return np.concatenate([items, self.rows[:, :2], self.boxes, self.rows[:, 2:]], axis=1)

    def yolo_rows(self, count: int) -> np.ndarray:
        """``[count, 5]``: class from 0, x and y of the centre, width, height; zeros behind the last box.

        Raises:
            PortError: there are more than ``count``.
        """
        if len(self.rows) > count:
            raise PortError(f"{len(self.rows)} boxes; yolo_data_type 1 has room for {count}")
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        found = np.zeros((count, 5), np.float32)
        found[: len(self.rows)] = np.concatenate([self.rows[:, :1] - 1, (low + high) / 2, high - low], axis=1)
        return found


def areas(boxes: np.ndarray) -> np.ndarray:
    """Width times height; 0 where a box is inverted (``BBoxSize``)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return np.where((width < 0) | (height < 0), np.float32(0), width * height)


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas shared by boxes ``a`` ``[m, 4]`` and ``b`` ``[n, 4]``: ``[m, n]``."""
    a, b = a[:, None], b[None]
    return areas(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1))


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, 0 where ``part`` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def _emitted(boxes: np.ndarray, window: np.ndarray, emit) -> np.ndarray:
    """``MeetEmitConstraint``: the centre lies in the window, or more than ``emit_overlap`` of the box does."""
    if emit.emit_type == emit.MIN_OVERLAP:
        return _divided(intersections(boxes, window[None])[:, 0], areas(boxes)) > np.float32(emit.emit_overlap)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= window[:2]) & (centres <= window[2:])).all(1)


# ---- resize_param


def _resized_sides(param, height: int, width: int) -> tuple[np.float32, np.float32]:
    """The size after the resize as the fork computes it for boxes: a float where FIT_SMALL_SIZE keeps the aspect."""
    new_height, new_width = np.float32(param.height), np.float32(param.width)
    aspect = np.float32(width) / np.float32(height)
    if param.resize_mode == param.FIT_SMALL_SIZE:
        if aspect < new_width / new_height:
            return new_width / aspect, new_width
        return new_height, aspect * new_height
    return new_height, new_width


def resized(boxes: np.ndarray, param, height: int, width: int) -> np.ndarray:
    """Boxes of an image of ``height x width`` in units of the resized one (``UpdateBBoxByResizePolicy``)."""
    new_height, new_width = _resized_sides(param, height, width)
    aspect = np.float32(width) / np.float32(height)
    pad_y = pad_x = np.float32(0)
    if param.resize_mode == param.FIT_LARGE_SIZE_AND_PAD:
        if aspect > new_width / new_height:
            pad_y = (new_height - new_width / aspect) / 2
        else:
            pad_x = (new_width - aspect * new_height) / 2
    pad, new = np.array([pad_x, pad_y], np.float32), np.array([new_width, new_height], np.float32)
    old, inner = np.array([width, height], np.float32), new - 2 * pad
    least = pad + np.maximum(boxes[:, :2] * old * inner / old, np.float32(0))
    most = pad + np.minimum(boxes[:, 2:] * old * inner / old, new)
    return np.concatenate([least, most], axis=1) / np.tile(new, 2)


def extrapolated(boxes: np.ndarray, param, height: int, width: int, window: np.ndarray) -> np.ndarray:
    """``ExtrapolateBBox``: with FIT_SMALL_SIZE and ``height_scale``, ``width_scale``, boxes in units of those sizes.

    Raises:
        PortError: the crop is smaller than they are.
    """
    scale = np.array([param.width_scale, param.height_scale], np.float32)
    if param.resize_mode != param.FIT_SMALL_SIZE or not scale.all():
        return boxes
    crop = np.array(_resized_sides(param, height, width)[::-1], np.float32) * (window[2:] - window[:2])
    if (crop < scale).any():
        raise PortError("is greater than the crop", field="transform_param.resize_param.height_scale")
    return boxes * np.tile(crop, 2) / np.tile(scale, 2)


# ---- batch_sampler


def check_sampler(batch_sampler, field: str) -> None:
    """What the fork checks of a ``BatchSampler``.

    Raises:
        PortError: scales outside (0, 1], ratios that are not positive, or a least value above the greatest.
    """
    s = batch_sampler.sampler
    if not 0 < s.min_scale <= s.max_scale <= 1:
        raise PortError(f"scales {s.min_scale} to {s.max_scale}: 0 < min_scale <= max_scale <= 1", field=field)
    if not 0 < s.min_aspect_ratio <= s.max_aspect_ratio < FLOAT_MAX:
        raise PortError(f"aspect ratios {s.min_aspect_ratio} to {s.max_aspect_ratio} are no range", field=field)


def sampled_windows(batch_samplers, objects: np.ndarray, rng) -> np.ndarray:
    """``GenerateBatchSamples``: windows ``[k, 4]`` of the image, at most ``max_sample`` of each sampler, that satisfy
    its constraint against the boxes ``objects``.

    All ``max_trials`` are drawn at once; the first that satisfy are taken, as when they are drawn one by one.
    """
    found = [np.zeros((0, 4), np.float32)]
    for batch_sampler in batch_samplers:
        if not batch_sampler.use_original_image:
            continue
        windows = _random_windows(batch_sampler.sampler, batch_sampler.max_trials, rng)
        windows = windows[_satisfying(windows, objects, batch_sampler.sample_constraint)]
        found.append(windows[: batch_sampler.max_sample] if batch_sampler.HasField("max_sample") else windows)
    return np.concatenate(found)


def jittered_window(jitter: float, keep_aspect: bool, rng) -> np.ndarray:
    """MobileNet-YOLO's ``GenerateJitterSamples``: a window ``[1, 4]`` whose sides are ``1 - jitter`` to 1, or half as
    far from 1 (one time in five), or all of the image (one in five)."""
    change = (np.float32(0), np.float32(jitter) / 2, np.float32(jitter))[np.searchsorted([0.2, 0.4], rng.uniform())]
    width = np.float32(rng.uniform(1 - change, 1))
    height = width if keep_aspect else np.float32(rng.uniform(1 - change, 1))
    corner = np.array([rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)], np.float32)
    return np.concatenate([corner, corner + np.array([width, height], np.float32)])[None]


def _random_windows(sampler, count: int, rng) -> np.ndarray:
    """``SampleBBox``: a uniform scale and aspect ratio, held so that the window fits, at a uniform place."""
    scale = rng.uniform(sampler.min_scale, sampler.max_scale, count).astype(np.float32)
    aspect = rng.uniform(sampler.min_aspect_ratio, sampler.max_aspect_ratio, count).astype(np.float32)
    square = np.square(scale, dtype=np.float64)
    aspect = np.minimum(np.maximum(aspect, square.astype(np.float32)), (1 / square).astype(np.float32))
    size = np.stack([scale * np.sqrt(aspect), scale / np.sqrt(aspect)], axis=1)
    corner = (rng.uniform(size=(count, 2)) * (1 - size).clip(0)).astype(np.float32)
    return np.concatenate([corner, corner + size], axis=1)


def _satisfying(windows: np.ndarray, objects: np.ndarray, constraint) -> np.ndarray:
    """``SatisfySampleConstraint``: some object overlaps as the constraint says; true without a constraint.

    Of several kinds only the first counts, of ``jaccard_overlap``, ``sample_coverage``, ``object_coverage``: the fork
    forgets the later ones once an object passed the first.
    """
    shared = intersections(windows, objects)
    sizes, object_sizes = areas(windows)[:, None], areas(objects)[None]
    measures = {
        "jaccard_overlap": (shared, sizes + object_sizes - shared),
        "sample_coverage": (shared, np.broadcast_to(sizes, shared.shape)),
        "object_coverage": (shared, np.broadcast_to(object_sizes, shared.shape)),
    }
    for kind, fraction in measures.items():
        least, most = f"min_{kind}", f"max_{kind}"
        if constraint.HasField(least) or constraint.HasField(most):
            value, passed = _divided(*fraction), np.ones(shared.shape, bool)
            if constraint.HasField(least):
                passed &= value >= np.float32(getattr(constraint, least))
            if constraint.HasField(most):
                passed &= value <= np.float32(getattr(constraint, most))
            return passed.any(1)
    return np.ones(len(windows), bool)
