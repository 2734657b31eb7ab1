"""Between the stages of a cascade: boxes refined, measured, routed by their size, and the hard ones chosen."""

from __future__ import annotations

import math

import torch

from ..ops import bbox_transform_inv
from ..ops.mscnn import descending, overlap
from .base import MANY, register
from .box_base import BBOX_REG, BoxLayer, bbox_norm


def check_rows(layer, bottoms, columns=()) -> None:
    """Raises PortError unless the bottoms agree in rows and have the stated numbers of columns (None: any)."""
    shapes = [tuple(b.shape) for b in bottoms]
    if len({shape[0] for shape in shapes}) > 1:
        raise layer.error(f"bottoms {shapes} differ in the number of rows")
    for bottom, wanted in zip(bottoms, columns, strict=False):
        if wanted is not None and bottom[0:1].numel() != wanted * min(1, len(bottom)):
            raise layer.error(f"bottoms {shapes}: rows of {columns} values are needed")


@register("DecodeBBox")
class DecodeBBox(BoxLayer):
    """cascade-rcnn's next proposals: RoIs moved by the class-agnostic regression outputs of this stage.

    Bottoms: outputs ``[R, 8]`` (background's four unused), normalised as ``bbox_reg_param`` says; RoIs ``[R, 5]``; in
    training optionally the matched ground truth ``[R, 6]``, whose last column is the overlap. Top: ``[K, 5, 1, 1]``
    RoIs with inclusive corners. In training rows that come out malformed go, and so do those that overlapped their
    ground truth by ``gt_iou_thr`` or more: they were ground-truth boxes.

    Raises:
        PortError: no row is left.
    """

    fields = {"bbox_reg_param": BBOX_REG, "decode_bbox_param": {"gt_iou_thr"}}
    num_bottoms = (2, 3)

    def setup(self, bottoms):
        self.norm = bbox_norm(self)
        if len(bottoms) == 3 and not self.context.train:
            raise self.error("takes its third bottom, the matched ground truth, in phase TRAIN only", field="bottom")
        check_rows(self, bottoms, (8, 5))

    def infer(self, bottoms):
        check_rows(self, bottoms, (8, 5))
        return [torch.empty((len(bottoms[1]), 5, 1, 1), device="meta")]

    @torch.no_grad()
    def forward(self, bottoms):
        check_rows(self, bottoms, (8, 5))
        deltas, rois = bottoms[0].flatten(1)[:, 4:], bottoms[1].flatten(1)
        means, stds = (deltas.new_tensor(values) for values in self.norm)
        boxes = bbox_transform_inv(rois[:, 1:], deltas * stds + means)
        boxes[:, 2:] -= 1  # corners are inclusive in cascade-rcnn
        decoded = torch.cat((rois[:, :1], boxes), 1)
        if self.context.train:
            keep = ~(boxes[:, :2] > boxes[:, 2:]).any(1)
            if len(bottoms) == 3:
                keep &= bottoms[2].flatten(1)[:, -1] < self.param.decode_bbox_param.gt_iou_thr
            decoded = decoded[keep]
        if not len(decoded):
            raise self.error(
                f"none of {len(rois)} boxes is left: all are malformed or overlap ground truth too well",
                hint="the regression may have diverged; lower base_lr, or look at decode_bbox_param.gt_iou_thr",
            )
        return [decoded[:, :, None, None]]


@register("BboxAccuracy")
class BboxAccuracy(BoxLayer):
    """cascade-rcnn's mean IoU of foreground boxes with ground truth, after regression and (second top) before it.

    Bottoms: regression outputs ``[R, 4C]`` (8 columns and one foreground class with ``cls_aware: false``), normalised
    as ``bbox_reg_param`` says; RoIs ``[R, 5]``; matched ground truth ``[R, 6]`` (label, box, overlap). Rows with label
    0 do not count, nor those with an overlap over 0.975: they are ground-truth boxes. Tops ``[1, 1, 1, 1]``; -1 when
    nothing counts. Boxes less than a pixel apart count as touching, as in MS-CNN.
    """

    fields = {"bbox_reg_param": {*BBOX_REG, "cls_aware"}}
    num_bottoms, num_tops = (3, 3), (1, 2)

    def setup(self, bottoms):
        self.norm = bbox_norm(self)
        self.cls_aware = self.param.bbox_reg_param.cls_aware

    def infer(self, bottoms):
        check_rows(self, bottoms, (None if self.cls_aware else 8, 5, 6))
        return [torch.empty((1, 1, 1, 1), device="meta") for _ in self.param.top]

    @torch.no_grad()
    def forward(self, bottoms):
        check_rows(self, bottoms, (None if self.cls_aware else 8, 5, 6))
        deltas, rois, truth = (b.flatten(1) for b in bottoms)
        rows = ((truth[:, 0].long() > 0) & ~(truth[:, 5] > 0.975)).nonzero()[:, 0]
        deltas, rois, truth = deltas[rows], rois[rows, 1:5], truth[rows]
        label = truth[:, 0].long() if self.cls_aware else torch.ones_like(rows)
        if len(rows) and 4 * int(label.max()) + 4 > deltas.shape[1]:
            raise self.error(f"label {int(label.max())} with {deltas.shape[1]} regression outputs, four for each class")
        means, stds = (deltas.new_tensor(values) for values in self.norm)
        deltas = deltas.gather(1, 4 * label[:, None] + torch.arange(4, device=rows.device)) * stds + means
        pixel = deltas.new_tensor([0, 0, 1, 1])
        truth = truth[:, 1:5] + pixel  # open ends, which bbox_transform_inv gives too
        tops = []
        for boxes in (bbox_transform_inv(rois, deltas), rois + pixel)[: len(self.param.top)]:
            tops.append(overlap(boxes, truth, edges="open").mean() if len(rows) else truth.new_tensor(-1.0))
        return [top.view(1, 1, 1, 1) for top in tops]


@register("ScaleRoute")
class ScaleRoute(BoxLayer):
    """cascade-rcnn's choice of rows: RoIs with a scale (root of the area) from ``low_scale`` to below ``high_scale``.

    Bottoms: RoIs ``[R, 5]``, then anything with R rows; the tops are the same rows of each. An absent limit does not
    limit. When no RoI fits, the one whose scale is nearest (in octaves) to the middle of the range goes: the geometric
    mean of both limits, the only limit, or 256.

    Raises:
        PortError: limits the wrong way round; no RoI with an area when none fits.
    """

    fields = {"scale_route_param": {"low_scale", "high_scale"}}
    num_bottoms, num_tops = (1, MANY), (1, MANY)

    def setup(self, bottoms):
        if len(self.param.top) != len(bottoms):
            raise self.error(f"{len(bottoms)} bottoms and {len(self.param.top)} tops: as many are needed", field="top")
        p = self.param.scale_route_param
        given = [getattr(p, name) for name in ("low_scale", "high_scale") if p.HasField(name)]
        self.low, self.high = p.low_scale, p.high_scale if p.HasField("high_scale") else math.inf
        self.middle = {0: 256.0, 1: sum(given), 2: math.sqrt(abs(p.low_scale * p.high_scale))}[len(given)]
        if min(given, default=1) <= 0 or self.low > self.high:
            raise self.error(f"from {self.low} to {self.high}", field="scale_route_param")

    def infer(self, bottoms):
        check_rows(self, bottoms, (5,))
        return [bottom[:1] for bottom in bottoms]

    @torch.no_grad()
    def forward(self, bottoms):
        check_rows(self, bottoms, (5,))
        extent = bottoms[0].flatten(1)[:, 3:5] - bottoms[0].flatten(1)[:, 1:3]
        scale = ((extent + 1).prod(1) * (extent >= 0).all(1)).sqrt()
        rows = ((scale >= self.low) & (scale < self.high)).nonzero()[:, 0]
        if not len(rows):
            distance = (scale / self.middle).log2().abs()
            if not bool(torch.isfinite(distance).any()):
                raise self.error(f"none of {len(scale)} RoIs has an area")
            rows = distance.nan_to_num(math.inf).argmin()[None]
        return [bottom.detach()[rows] for bottom in bottoms]


@register("HardMining")
class HardMining(BoxLayer):
    """The rows of the highest ranking score, ``num_roi_per_image`` of each of ``num_image`` images (OHEM of R-FCN).

    Bottoms: scores, one a row; RoIs ``[R, 5]``; anything else with R rows. Tops: the same rows of every bottom but the
    first, in their order. When an image has fewer, the best of what the others leave fill up; of equal scores the later
    row goes first.

    Raises:
        PortError: a RoI of an image outside the batch.
    """

    fields = {"hard_mining_param": {"num_roi_per_image", "num_image"}}
    num_bottoms, num_tops = (2, MANY), (1, MANY)

    def setup(self, bottoms):
        p = self.param.hard_mining_param
        if len(self.param.top) != len(bottoms) - 1:
            raise self.error(f"{len(self.param.top)} tops, one for each bottom but the first is needed", field="top")
        if not (p.num_roi_per_image and p.num_image):
            raise self.error("the numbers of RoIs and images must be positive", field="hard_mining_param")

    def infer(self, bottoms):
        return [bottom[: self._batch(bottoms)] for bottom in bottoms[1:]]

    def _batch(self, bottoms):
        check_rows(self, bottoms, (1, 5))
        p = self.param.hard_mining_param
        return min(len(bottoms[0]), p.num_image * p.num_roi_per_image)

    @torch.no_grad()
    def forward(self, bottoms):
        batch, p = self._batch(bottoms), self.param.hard_mining_param
        image = bottoms[1].flatten(1)[:, 0].long()
        if len(image) and not 0 <= int(image.min()) <= int(image.max()) < p.num_image:
            raise self.error(
                f"a RoI of image {int(image.max())}, in a batch of {p.num_image}", field="hard_mining_param.num_image"
            )
        order = descending(bottoms[0].flatten())
        taken = torch.zeros_like(image, dtype=torch.bool)
        for i in range(p.num_image):
            taken[order[image[order] == i][: p.num_roi_per_image]] = True
        left = order[~taken[order]]
        taken[left[: batch - int(taken.sum())]] = True
        return [bottom.detach()[taken] for bottom in bottoms[1:]]
