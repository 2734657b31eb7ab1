"""An image at several scales, and a RoI net's scores of boxes in it.

A test net has two parts: what runs once for an image, and what runs for each RoI. The first runs once for each scale,
one scale after the other, and only the blobs that the second reads are kept. So several scales need hardly more memory
than the largest of them, and boxes can be scored again at the price of their RoIs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .config import Config
from .data.minibatch import image_info, image_scale, images_to_blob, prep_image
from .errors import PortError
from .net import Net

_AREA = 224 * 224  # the level of a box is the one where its area comes closest to this
_ROIS_AT_A_TIME = 2048


def scale_groups(shape, cfg: Config) -> list[tuple[float, ...]]:
    """``TEST.SCALES`` as the pyramids that ``TEST.SCALE_USE`` makes of them: "nearest" is one of all scales, "all" as
    many as there are scales, without those that ``TEST.MAX_SIZE`` makes equal to another.

    Args:
        shape: ``(height, width, ...)`` of the image.
    """
    if cfg.TEST.SCALE_USE == "nearest":
        return [cfg.TEST.SCALES]
    targets = {image_scale(shape, target, cfg.TEST): target for target in reversed(cfg.TEST.SCALES)}
    return [(target,) for target in sorted(targets.values())]


def project_rois(boxes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Boxes ``[R, 4]`` of the image as rois ``[R, 5]`` float32 ``(level, x1, y1, x2, y2)`` of its pyramid.

    Args:
        scales: ``[S]``, or ``[S, 4]`` for each of x1, y1, x2, y2.
    """
    boxes, scales = boxes.astype(np.float64), scales.reshape(len(scales), -1)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    levels = np.abs(areas[:, None] * (scales[:, 0] * scales[:, -1])[None, :] - _AREA).argmin(1)
    return np.hstack([levels[:, None], boxes * scales[levels]]).astype(np.float32)


def unique_rois(rois: np.ndarray, dedup_boxes: float) -> tuple[np.ndarray, np.ndarray]:
    """Rois ``[R, 5]`` of one level that fall on the same cells need the net only once.

    The original scales the level, too, which makes it 0, so that rois of different levels and places in the image count
    as the same one where their coordinates agree, and get one box. Here they do not.

    Returns:
        ``index`` of the rois to keep and ``inverse``: ``rois[index][inverse]`` stands for ``rois``.
    """
    hashes = np.round(rois[:, 1:] * dedup_boxes).dot(np.array([1e3, 1e6, 1e9, 1e12])) + rois[:, 0]
    _, index, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return index, inverse.reshape(-1)


def rois_split(net: Net) -> tuple[str, str, list[str]]:
    """Where a net turns from the image to its RoIs: the last layer before, the first that reads the blob rois, and the
    other blobs that this one and later ones read from before.

    Raises:
        PortError: no layer reads rois.
    """
    readers = [step for value in net.values if value.name == "rois" for step, _ in value.readers]
    if not readers:
        raise PortError("no layer reads the blob rois", file=net.source)
    head = min(readers)
    read = (net.values[v] for step in net.steps[head:] for v in step.bottoms)
    shared = sorted({value.name for value in read if value.producer < head} - {"rois"})
    return net.layers[head - 1].name, net.layers[head].name, shared


class FeaturePyramid:
    """An image at the scales ``targets`` (lengths of the shorter side), as the RoI layers of ``net`` see it.

    Every level is padded to the size of the largest, as in the original, whose pyramid is one blob: the net's values
    near the lower and the right edge depend on it.

    Args:
        net: a test net with inputs data and rois, or data and im_info and a blob rois.
        image: ``[H, W, 3]`` uint8 BGR.
        blobs: the net's scores and, where wanted, box deltas.

    Attributes:
        scales: ``[S]`` float64, or with ``TEST.SCALE_MULTIPLE_OF`` ``[S, 4]``, one for each of x1, y1, x2, y2.
    """

    def __init__(self, net: Net, image: np.ndarray, cfg: Config, targets: Sequence[float], blobs: Sequence[str]):
        self.net, self.image, self.cfg, self.targets, self.blobs = net, image, cfg, targets, blobs
        self.end, self.start, self.shared = rois_split(net)
        scales = np.array([image_scale(image.shape, target, cfg.TEST) for target in targets])
        self.size = tuple(np.round(image.shape[:2] * scales[:, ::-1]).max(0).astype(int))
        self.scales = scales[:, 0] if cfg.TEST.SCALE_MULTIPLE_OF <= 1 else np.tile(scales, 2)
        self._features: dict[int, dict[str, Tensor]] = {}

    def features(self, level: int) -> dict[str, Tensor]:
        """The blobs that the RoI layers read; computed at the first call. With im_info also the net's own rois."""
        if level not in self._features:
            scaled, scale = prep_image(self.image, self.cfg, self.targets[level], self.cfg.TEST)
            data = images_to_blob([scaled], self.size)
            if "im_info" in self.net.inputs:
                inputs, wanted = {"data": data, "im_info": image_info(data, scale)}, [*self.shared, "rois"]
            else:
                inputs, wanted = {"data": data}, self.shared
            found = self.net(**inputs, blobs=wanted, end=self.end)
            self._features[level] = {name: found[name] for name in wanted}
        return self._features[level]

    def score_rois(self, rois: np.ndarray) -> list[np.ndarray]:
        """The net's ``blobs`` for rois ``[R, 5]`` ``(level, x1, y1, x2, y2)`` in pixels of their level: ``[R, K]``
        each, float32."""
        columns = {
            value.name: math.prod(shape[1:]) for value, shape in zip(self.net.values, self.net.shapes, strict=True)
        }
        results = [np.empty((len(rois), columns[name]), np.float32) for name in self.blobs]
        levels = rois[:, 0].astype(int)
        for level in np.unique(levels):
            features = self.features(int(level))
            rows = np.flatnonzero(levels == level)
            for start in range(0, len(rows), _ROIS_AT_A_TIME):
                part = rows[start : start + _ROIS_AT_A_TIME]
                inputs = {**features, "rois": rois[part] * np.float32([0, 1, 1, 1, 1])}
                found = self.net(**inputs, blobs=self.blobs, start=self.start)
                for result, name in zip(results, self.blobs, strict=True):
                    result[part] = found[name].flatten(1).cpu().numpy()
        return results

    def score_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The net's ``blobs`` for boxes ``[R, 4]`` of the image, each at the level where its area comes closest to
        224 x 224. Boxes that fall on the same cells (``DEDUP_BOXES``) are computed once.

        Returns:
            ``[R]``: for each box the one that was computed in its place; and the blobs, ``[R, K]`` each.
        """
        rois = project_rois(boxes, self.scales)
        if self.cfg.DEDUP_BOXES <= 0:
            return np.arange(len(boxes)), self.score_rois(rois)
        index, inverse = unique_rois(rois, self.cfg.DEDUP_BOXES)
        return index[inverse], [blob[inverse] for blob in self.score_rois(rois[index])]
