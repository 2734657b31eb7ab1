"""Which proposals a detection stage of MS-CNN or Cascade R-CNN trains on, and what they should become."""

from __future__ import annotations

import numpy as np
import torch

from ..ops import bbox_transform
from ..ops.mscnn import overlaps
from .base import register
from .box_base import BBOX_REG, BoxLayer, bbox_norm

_LEAST_SIDE = 32  # of the random boxes that stand in for missing proposals


@register("ProposalTarget")
class ProposalTarget(BoxLayer):
    """MS-CNN's and cascade-rcnn's sample of proposals for a detection stage, with labels and box targets.

    Bottoms: proposals ``[R, 5]`` (image, x1, y1, x2, y2) and ground truth, ``[G, 7]`` (image, box, label, ignored) of
    MS-CNN or ``[G, 8]`` (and difficult; image -1: no box) of cascade-rcnn. Ground-truth boxes are proposals too
    (``append_gtbox``). A proposal is foreground when its best IoU with a box of its image is ``fg_thr`` or more (and
    left out when that box is ignored), background from ``bg_thr_lw`` to below ``bg_thr_hg``. Of ``batch_size`` rows at
    most the share ``fg_fraction`` is foreground; too many of either are drawn at random. A lack of background is filled
    from the proposals that are neither (``pickup_discard``), in their order. ``batch_size: -1`` takes all foreground
    and background.

    What is still missing: MS-CNN fills the batch with random boxes of 32 pixels and more within ``img_width`` and
    ``img_height`` that are no foreground; cascade-rcnn makes a smaller batch, of one such box at least.

    Tops, foreground rows first: rois ``[B, 5]``; labels ``[B, 1]``; targets, inside and outside weights ``[B, 4C]``
    (``[B, 8]`` with ``cls_aware: false``), normalised as ``bbox_reg_param`` says, weights 1 for foreground with an
    overlap in ``bbox_thr_lw`` to ``bbox_thr_hg``; matched ground truth ``[B, 6]`` (label, box, overlap), zeros for
    background; optionally sample weights ``[B, 1]``, which share the batch ``fg_fraction`` to ``1 - fg_fraction``
    between foreground (by overlap with ``iou_weighted``) and background. All with two further axes of 1.
    """

    fields = {
        "proposal_target_param": {
            "cls_num", "batch_size", "fg_fraction", "num_img_per_batch", "fg_thr", "bg_thr_hg", "bg_thr_lw",
            "img_width", "img_height", "iou_weighted", "bbox_thr_lw", "bbox_thr_hg", "pickup_discard", "append_gtbox",
        },
        "bbox_reg_param": {*BBOX_REG, "cls_aware"},
    }  # fmt: skip
    num_bottoms, num_tops = (2, 2), (6, 7)

    def setup(self, bottoms):
        self.p = p = self.param.proposal_target_param
        self.norm = bbox_norm(self)
        self.cls_aware = self.param.bbox_reg_param.cls_aware
        if self.cls_aware and p.cls_num < 2:
            raise self.error(f"{p.cls_num} classes, background included", field="proposal_target_param.cls_num")
        if p.batch_size < -1 or not p.batch_size:
            raise self.error("must be positive, or -1 for all", field="proposal_target_param.batch_size")
        if p.fg_thr < p.bg_thr_hg:
            raise self.error(f"is {p.bg_thr_hg}, above fg_thr, {p.fg_thr}", field="proposal_target_param.bg_thr_hg")
        self.width = 4 * p.cls_num if self.cls_aware else 8

    def infer(self, bottoms):
        self._check(bottoms)
        rows = max(bottoms[0].shape[0], 1) if self.p.batch_size == -1 else self.p.batch_size
        return [torch.empty((rows, c, 1, 1), device="meta") for c in self._columns()]

    def _columns(self):
        return (5, 1, self.width, self.width, self.width, 6, 1)[: len(self.param.top)]

    def _check(self, bottoms):
        shapes = [tuple(b.shape) for b in bottoms]
        columns = [int(np.prod(shape[1:])) for shape in shapes]
        if columns[0] != 5 or columns[1] not in (7, 8):
            raise self.error(f"bottoms {shapes}: they must be proposals [R, 5] and ground truth [G, 7] or [G, 8]")
        self.fills_batch = columns[1] == 7  # MS-CNN

    def forward(self, bottoms):
        self._check(bottoms)
        rois, truth = (b.detach().flatten(1).cpu().numpy().astype(np.float32) for b in bottoms)
        if not self.fills_batch:
            truth = truth[truth[:, 0] != -1]
        for image in (rois[:, 0], truth[:, 0]):
            if len(image) and not 0 <= image.min() <= image.max() < self.p.num_img_per_batch:
                raise self.error(
                    f"a box of image {image.max():g}, in a batch of {self.p.num_img_per_batch}",
                    field="proposal_target_param.num_img_per_batch",
                )
        if self.p.append_gtbox:
            rois = np.concatenate((rois, truth[:, :5]))
        match, best = self._matches(rois, truth)
        foreground, background = self._sample(match, best, truth)
        missing = self._missing(len(foreground), len(background))
        parts = [rois[foreground], rois[background]]
        if missing:
            parts.append(self._random_boxes(missing, truth))
        tops = self._targets(np.concatenate(parts), truth[match[foreground]], best[foreground])
        return [torch.from_numpy(top[:, :, None, None]).to(bottoms[0].device) for top in tops]

    def _overlaps(self, boxes, truth):
        """IoU ``[R, G]`` within an image, -1 between images; rows (image, box, ...)."""
        pixel = np.array([0, 0, 1, 1], np.float32) if self.fills_batch else np.float32(0)
        edges = "open" if self.fills_batch else "pixels"
        found = overlaps(boxes[:, 1:5] + pixel, truth[:, 1:5] + pixel, edges=edges)
        return np.where(boxes[:, :1] == truth[None, :, 0], found, np.float32(-1))

    def _matches(self, rois, truth):
        """Of each roi the best box of its image, -1 if there is none, and their IoU, then 0."""
        if not len(truth):
            return np.full(len(rois), -1), np.zeros(len(rois), np.float32)
        found = self._overlaps(rois, truth)
        match, best = found.argmax(1), found.max(1, initial=-1)
        return np.where(best < 0, -1, match), np.maximum(best, 0)

    def _sample(self, match, best, truth):
        """Rows of the foreground and of the background to take."""
        p, rng = self.p, self.context.rng
        is_foreground = (best >= np.float32(p.fg_thr)) & (match >= 0)
        is_background = ~is_foreground & (best >= np.float32(p.bg_thr_lw)) & (best < np.float32(p.bg_thr_hg))
        foreground, background = is_foreground.nonzero()[0], is_background.nonzero()[0]
        if (truth[match[foreground], 5] <= 0).any():
            raise self.error("a ground-truth box with label 0 or less", hint="0 is background")
        foreground = foreground[truth[match[foreground], 6] == 0]
        if p.batch_size == -1:
            return foreground, background
        most = min(int(np.floor(p.fg_fraction * p.batch_size + 0.5)), len(foreground))
        if len(foreground) > most:
            foreground = rng.permutation(foreground)[:most]
        room = p.batch_size - most
        if len(background) > room:
            background = rng.permutation(background)[:room]
        elif p.pickup_discard:
            neither = (~is_foreground & ~is_background).nonzero()[0]
            background = np.concatenate((background, neither[: room - len(background)]))
        return foreground, background

    def _missing(self, foreground, background):
        total = foreground + background
        if self.fills_batch:
            return self.p.batch_size - total if self.p.batch_size > 0 else 0
        return 1 if total == 0 else 0

    def _random_boxes(self, count, truth):
        p, rng = self.p, self.context.rng
        if p.img_width <= _LEAST_SIDE or p.img_height <= _LEAST_SIDE:
            raise self.error(
                f"{count} proposals are missing, and random boxes need an image over {_LEAST_SIDE} pixels, not "
                f"{p.img_width} x {p.img_height}",
                field="proposal_target_param.img_width",
            )
        found = np.empty((0, 5), np.float32)
        for _ in range(100):
            image = rng.randint(p.num_img_per_batch, size=count)
            x, y = (rng.randint(side - _LEAST_SIDE, size=count) for side in (p.img_width, p.img_height))
            w, h = (np.maximum(rng.randint(s - o), _LEAST_SIDE) for s, o in ((p.img_width, x), (p.img_height, y)))
            boxes = np.stack((image, x, y, x + w - 1, y + h - 1), 1).astype(np.float32)
            best = self._overlaps(boxes, truth).max(1, initial=-1)
            found = np.concatenate((found, boxes[best < p.fg_thr]))[:count]
            if len(found) == count:
                return found
        raise self.error("ground truth fills the images: no random box is background")

    def _targets(self, rois, truth, best):
        """The tops; the first rows of ``rois`` belong to the rows of ``truth``, the rest is background."""
        p, count = self.p, len(truth)
        tops = [rois, *(np.zeros((len(rois), c), np.float32) for c in self._columns()[1:])]
        _, labels, targets, inside, outside, matched = tops[:6]
        labels[:count, 0] = truth[:, 5].astype(np.int64)
        means, stds = (np.array(values, np.float32) for values in self.norm)
        classes = labels[:count, 0].astype(np.int64) if self.cls_aware else np.ones(count, np.int64)
        if count and 4 * classes.max() + 4 > self.width:
            raise self.error(f"label {classes.max()} among {p.cls_num} classes", field="proposal_target_param.cls_num")
        place = np.arange(count)[:, None], 4 * classes[:, None] + np.arange(4)
        targets[place] = (bbox_transform(rois[:count, 1:], truth[:, 1:5]) - means) / stds
        counts = (np.float32(p.bbox_thr_lw) <= best) & (best <= np.float32(p.bbox_thr_hg))
        inside[place] = outside[place] = counts[:, None]
        matched[:count] = np.column_stack((labels[:count], truth[:, 1:5], best))
        if len(tops) == 7:
            weights = tops[6][:, 0]
            weights[:] = 1
            if p.iou_weighted:
                weights[:count] = best
            if weights[:count].sum():
                weights[:count] *= p.fg_fraction * len(rois) / weights[:count].sum()
                weights[count:] *= (1 - p.fg_fraction) * len(rois) / max(weights[count:].sum(), 1)
        return tops
