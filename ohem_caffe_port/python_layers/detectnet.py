"""The Python layers of NVIDIA's DetectNet: boxes from its grid, and how many of them are right.

``caffe.layers.detectnet.clustering`` and ``caffe.layers.detectnet.mean_ap`` of NVIDIA/caffe. Boxes are
``(x1, y1, x2, y2)`` pixels whose width is ``x2 - x1``. Lists of boxes are blobs ``[N, 50, 5]`` filled up with 0.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

from ..layers import PythonLayer, register_python

MAX_BOXES = 50
OVERLAP = 0.7  # of a detection that is right


class _GridBoxes(PythonLayer):
    """Base of the two that read a grid: bottoms coverage ``[N, classes, h, w]`` and corners ``[N, 4, h, w]``, seen from
    each cell's own; one top ``[N, 50, 5]`` for each class. ``param_str`` is a list of numbers, :attr:`names`."""

    num_bottoms, num_tops = (2, 2), (1, 1 << 30)
    saves_top = False
    names: dict[str, type]

    def read_settings(self, text):
        words = [word.strip() for word in text.split(",")]
        try:
            settings = {name: kind(word) for (name, kind), word in zip(self.names.items(), words, strict=False)}
        except ValueError:
            settings = {}
        if len(settings) < len(self.names) - 1:  # the last, num_classes, came later
            raise self.error(f"{text!r} should be '{','.join(self.names)}'", field="python_param.param_str")
        settings.setdefault("num_classes", 1)
        if min(settings[name] for name in ("image_size_x", "image_size_y", "stride", "num_classes")) < 1:
            raise self.error(f"sizes must be positive: {text!r}", field="python_param.param_str")
        if len(self.param.top) != settings["num_classes"]:
            raise self.error(f"{len(self.param.top)} tops for {settings['num_classes']} classes", field="top")
        return settings

    def infer(self, bottoms):
        coverage, corners = bottoms
        if coverage.dim() != 4 or coverage.shape[1] != len(self.param.top):
            raise self.error(
                f"needs a coverage [N, {len(self.param.top)}, h, w], not {tuple(coverage.shape)}", field="bottom[0]"
            )
        if corners.shape != (len(coverage), 4, *coverage.shape[2:]):
            raise self.error(f"needs corners [N, 4, h, w], not {tuple(corners.shape)}", field="bottom[1]")
        return [coverage.new_empty((len(coverage), MAX_BOXES, 5)) for _ in self.param.top]

    @torch.no_grad()
    def forward(self, bottoms):
        tops = [np.zeros(top.shape, np.float32) for top in self.infer(bottoms)]
        coverage, corners = (bottom.cpu().numpy() for bottom in bottoms)
        for c, top in enumerate(tops):
            for n, blob in enumerate(top):
                found = self.boxes(self._proposals(coverage[n, c], corners[n]))
                if len(found) > MAX_BOXES:
                    raise self.error(f"{len(found)} boxes of class {c} in image {n}; a list holds {MAX_BOXES}")
                blob[: len(found), : found.shape[1]] = found.astype(np.float16)  # as the original keeps them
        return [torch.from_numpy(top).to(bottoms[0].device) for top in tops]

    def _proposals(self, coverage, corners):
        """The corners ``[K, 4]`` of the cells that are covered, in pixels of the image."""
        s = self.settings
        columns, rows = s["image_size_x"] // s["stride"], s["image_size_y"] // s["stride"]
        if not columns or not rows:
            raise self.error("the image is smaller than the stride", field="python_param.param_str")
        y, x = np.nonzero(self.covered(coverage[:rows, :columns]))
        cell = np.stack([x * (s["image_size_x"] / columns), y * (s["image_size_y"] / rows)] * 2, 1)
        return corners[:, y, x].T + cell

    def covered(self, coverage):
        """Which cells are."""
        raise NotImplementedError

    def boxes(self, proposals):
        """The list ``[K, 4 or 5]`` that these proposals become."""
        raise NotImplementedError


@register_python("caffe.layers.detectnet.clustering", "ClusterGroundtruth")
class ClusterGroundtruth(_GridBoxes):
    """DetectNet's ground truth as lists of boxes, from its labels: the corners of all covered cells, each box once.

    Sorted, where the original leaves the order to Python's sets; in half precision, as there. More than 50 in an image
    are an error. ``param_str``: ``image_size_x,image_size_y,stride,num_classes``.
    """

    names = {"image_size_x": int, "image_size_y": int, "stride": int, "num_classes": int}

    def covered(self, coverage):
        return coverage > 0

    def boxes(self, proposals):
        return np.unique(proposals, axis=0)


@register_python("caffe.layers.detectnet.clustering", "ClusterDetections")
class ClusterDetections(_GridBoxes):
    """DetectNet's detections as lists of boxes and scores: clusters of what its covered cells say.

    A cell counts from a coverage of ``gridbox_cvg_threshold``; :func:`group_rectangles` makes one box of each cluster
    of more than ``gridbox_rect_thresh`` cells, and boxes lower than ``min_height`` are left out. The score is the
    logarithm of the number of cells. In half precision, as in the original; more than 50 in an image are an error.
    ``param_str``: ``image_size_x,image_size_y,stride,gridbox_cvg_threshold,gridbox_rect_thresh,gridbox_rect_eps,
    min_height,num_classes``.
    """

    names = {
        "image_size_x": int, "image_size_y": int, "stride": int, "gridbox_cvg_threshold": float,
        "gridbox_rect_thresh": int, "gridbox_rect_eps": float, "min_height": int, "num_classes": int,
    }  # fmt: skip

    def covered(self, coverage):
        return coverage >= self.settings["gridbox_cvg_threshold"]

    def boxes(self, proposals):
        s = self.settings
        if not proposals.any():
            return np.empty((0, 5))
        rects = np.rint(np.concatenate([proposals[:, :2], proposals[:, 2:] - proposals[:, :2]], 1)).astype(int)
        rects, counts = group_rectangles(rects, s["gridbox_rect_thresh"], s["gridbox_rect_eps"])
        high = rects[:, 3] >= s["min_height"]
        rects, counts = rects[high], counts[high]
        return np.column_stack([rects[:, :2], rects[:, :2] + rects[:, 2:], np.log(counts)])


def group_rectangles(rects: np.ndarray, threshold: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's ``groupRectangles``, which its version 5 no longer has: rows ``(x, y, width, height)``, whole numbers,
    as clusters of similar ones.

    Two are similar when no side is further apart than ``eps / 2`` of the sum of the smaller width and height; what is
    similar to a member is a member. A cluster's rectangle is the mean of its members. Clusters of at most ``threshold``
    members are left out, and those inside another one that has more than 3 and more than their members (or any number,
    where they have less than 3). With a ``threshold`` of 0 or less nothing is grouped.

    Returns:
        the rectangles ``[K, 4]`` and the numbers of their members ``[K]``, in the order of the first members.
    """
    if threshold <= 0 or not len(rects):
        return rects, np.ones(len(rects), int)
    sides = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], 1)
    smaller = np.minimum(rects[:, None, 2:], rects[None, :, 2:]).sum(2)
    similar = (np.abs(sides[:, None] - sides[None]) <= (smaller * (eps * 0.5))[..., None]).all(2)
    cluster = connected_components(similar, directed=False)[1]
    _, first, cluster, counts = np.unique(cluster, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), 4), int)
    np.add.at(sums, cluster, rects)
    order = first.argsort()
    order = order[counts[order] > threshold]
    counts = counts[order]
    means = np.rint(sums[order].astype(np.float32) * (np.float32(1) / counts.astype(np.float32))[:, None]).astype(int)
    low, high = means[:, :2], means[:, :2] + means[:, 2:]
    slack = np.rint(means[:, 2:] * eps).astype(int)
    inside = ((low[:, None] >= low - slack) & (high[:, None] <= high + slack)).all(2)
    inside &= (counts > np.maximum(3, counts[:, None])) | (counts[:, None] < 3)
    np.fill_diagonal(inside, False)
    kept = ~inside.any(1)
    return means[kept], counts[kept]


@register_python("caffe.layers.detectnet.mean_ap", "ScoreDetections")
class ScoreDetections(PythonLayer):
    """DetectNet's detections, marked as right or wrong: rows ``(x1, y1, x2, y2, mark)``, top ``[N, 50, 5]``.

    Bottoms: ground truth and detections ``[N, 50, 5]``. Each ground truth takes the first detection that is still free
    and overlaps it by 0.7. First come the detections taken (mark 1), then the others (2), then the ground truth that
    found none (3). More than 50 rows for an image are an error.
    """

    num_bottoms, num_tops = (2, 2), (1, 1)
    saves_top = False

    def read_settings(self, text):
        return {}  # not read

    def infer(self, bottoms):
        if any(b.dim() != 3 or b.shape[2] < 4 for b in bottoms) or len(bottoms[0]) != len(bottoms[1]):
            raise self.error(f"needs lists [N, {MAX_BOXES}, 5], not {[tuple(b.shape) for b in bottoms]}")
        return [bottoms[0].new_empty((len(bottoms[0]), MAX_BOXES, 5))]

    @torch.no_grad()
    def forward(self, bottoms):
        top = torch.zeros(self.infer(bottoms)[0].shape)
        for n, (truth, found) in enumerate(zip(*(b.cpu()[..., :4] for b in bottoms), strict=True)):
            truth, found = (boxes[boxes.any(1)] for boxes in (truth, found))
            fits = _overlaps(truth, found) >= OVERLAP
            right, missed = torch.zeros(len(found), dtype=torch.bool), torch.ones(len(truth), dtype=torch.bool)
            for i, row in enumerate(fits):
                free = (row & ~right).nonzero()
                if len(free):
                    right[free[0]], missed[i] = True, False
            parts = found[right], found[~right], truth[missed]
            rows = torch.cat([torch.nn.functional.pad(p, (0, 1), value=mark) for mark, p in enumerate(parts, 1)])
            if len(rows) > MAX_BOXES:
                raise self.error(f"{len(rows)} rows for image {n}; a list holds {MAX_BOXES}")
            top[n, : len(rows)] = rows
        return [top.to(bottoms[0].device)]


def _overlaps(a, b):
    """Intersection over union ``[A, B]``; 0 where they do not meet."""
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clamp(min=0).prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    return torch.where(shared > 0, shared / (area_a[:, None] + area_b - shared), 0.0)


@register_python("caffe.layers.detectnet.mean_ap", "mAP")
class MeanAP(PythonLayer):
    """Precision, recall and their product ("mAP") of a batch that :class:`ScoreDetections` marked, in percent.

    Tops ``[1]``: the product, precision, recall; each 0 where there is nothing to divide by.
    """

    num_bottoms, num_tops = (1, 1), (3, 3)
    saves_top = False

    def read_settings(self, text):
        return {}  # not read

    def forward(self, bottoms):
        if bottoms[0].dim() != 3 or bottoms[0].shape[2] != 5:
            raise self.error(f"needs rows with marks [N, {MAX_BOXES}, 5], not {tuple(bottoms[0].shape)}")
        right, wrong, missed = ((bottoms[0][:, :, 4] == mark).sum() for mark in (1, 2, 3))
        precision, recall = (100 * right / (right + n).clamp(min=1) for n in (wrong, missed))
        return [value.reshape(1) for value in (precision * recall / 100, precision, recall)]
