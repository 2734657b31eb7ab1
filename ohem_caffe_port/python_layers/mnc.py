"""MNC's proposals and their targets: modules ``pylayer.proposal_layer``, ``anchor_target_layer``,
``proposal_target_layer`` (Dai, He and Sun, "Instance-aware Semantic Segmentation via Multi-task Network Cascades", CVPR
2016). Boxes get gradients here, the original's hand-written ones."""

from __future__ import annotations

import numpy as np
import torch

from ..data.mask_minibatch import draw_groups
from ..data.minibatch import expand_bbox_targets
from ..layers import PythonLayer, register_python
from ..ops import bbox_overlaps, bbox_transform, bbox_transform_inv
from ..ops.masks import mask_target
from ..ops.proposals import by_anchor
from . import rpn
from .rpn import RegionLayer, as_rows


def is_inside(boxes, im_shape):
    """Which boxes ``[N, 4]`` lie in an image of ``im_shape = (height, width)``."""
    height, width = im_shape
    return (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= width - 1) & (boxes[:, 3] <= height - 1)


def limited(grad, layer):
    """A gradient cut to ``1 / clip_base`` where param_str says ``use_clip``."""
    return grad.clip(-1 / layer.clip_base, 1 / layer.clip_base) if layer.use_clip else grad


class ClippingLayer(PythonLayer):
    """``use_clip`` and ``clip_base`` of param_str: gradients of box deltas are cut to ``1 / clip_base``."""

    def read_clipping(self, default: int) -> None:
        self.use_clip = bool(self.setting("use_clip", int, 0))
        self.clip_base = float(self.setting("clip_base", int, default))
        if self.clip_base <= 0:
            raise self.error("'clip_base' must be positive", field="python_param.param_str")


class _ProposalGradient(torch.autograd.Function):
    """Hands ``boxes`` through; ``deltas`` ``[N, 4]`` of their anchors get MNC's gradient."""

    @staticmethod
    def forward(ctx, deltas, boxes, sizes, passes, layer):
        ctx.save_for_backward(deltas, sizes, passes)
        ctx.layer = layer
        return boxes.clone()

    @staticmethod
    def backward(ctx, grad):
        deltas, sizes, passes = ctx.saved_tensors
        centre = grad[:, :2] + grad[:, 2:]
        extent = 0.5 * (grad[:, 2:] - grad[:, :2]) * deltas[:, 2:].exp()
        grad = torch.cat((centre * sizes, extent * sizes), 1) * passes[:, None]
        return limited(grad, ctx.layer), None, None, None, None


@register_python("pylayer.proposal_layer", "ProposalLayer")
class ProposalLayer(ClippingLayer, rpn.ProposalLayer):
    """MNC's ``ProposalLayer``: py-faster-rcnn's, with a gradient, and in training which anchors the boxes come from.

    Bottoms as there. Tops: rois ``[R, 5]`` and, with two, the index of each box's anchor ``[1, R]`` (rows y, x,
    anchor). The 9 anchors of the default scales, whatever param_str says. The deltas of anchors and boxes that lie
    inside the image get a gradient, with the anchor's size counted as ``x2 - x1``; ``use_clip`` and ``clip_base`` (256)
    limit it.
    """

    def setup(self, bottoms):
        self.settings = {k: v for k, v in self.settings.items() if k not in ("scales", "ratios")}
        self.read_clipping(256)
        super().setup(bottoms)

    def infer(self, bottoms):
        return [bottoms[0].new_empty(shape) for shape in ((1, 5), (1, 1))[: len(self.param.top)]]

    def forward(self, bottoms):
        boxes, _, rows = self.propose(bottoms)
        deltas, im_shape = by_anchor(bottoms[1][0], 4), as_rows(bottoms[2], 3)[0, :2].tolist()
        anchors = self.shifted(bottoms[1])[rows]
        chosen = deltas[rows]
        moved = bbox_transform_inv(anchors, chosen.detach())
        passes = is_inside(moved, im_shape) & is_inside(anchors, im_shape)
        sizes = (anchors[:, 2:] - anchors[:, :2]).to(chosen.dtype)
        boxes = _ProposalGradient.apply(chosen, boxes, sizes, passes, self)
        rois = torch.cat((boxes.new_zeros((len(boxes), 1)), boxes), 1)
        return [rois, rows[None].to(rois.dtype)][: len(self.param.top)]


@register_python("pylayer.anchor_target_layer", "AnchorTargetLayer")
class AnchorTargetLayer(rpn.AnchorTargetLayer):
    """MNC's ``AnchorTargetLayer``: py-faster-rcnn's, and anchors whose boxes train the next stage train here too.

    With five bottoms the last two are fg_inds and bg_inds of :class:`ProposalTargetLayer` (``MIX_INDEX``): those
    anchors are positive and negative whatever their overlap, beyond ``RPN_BATCHSIZE``. The default scales only.
    """

    num_bottoms = (3, 5)

    def setup(self, bottoms):
        self.settings = {k: v for k, v in self.settings.items() if k not in ("scales", "ratios")}
        super().setup(bottoms)

    def relabel(self, labels, inds, bottoms):
        if len(bottoms) == 5:
            for label, bottom in ((0, bottoms[4]), (1, bottoms[3])):
                labels[np.isin(inds, bottom.detach().flatten().cpu().numpy().astype(np.int64))] = label


class MaskTargetLayer(RegionLayer):
    """Base of the layers that give box and mask targets of RoIs."""

    def box_targets(self, rois, gt_boxes, labels):
        """bbox_targets, inside and outside weights of ``rois`` ``[B, 4]`` matched with ``gt_boxes`` ``[B, 4]``."""
        train = self.context.cfg.TRAIN
        targets = bbox_transform(rois, gt_boxes)
        if train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
            means, stds = train.BBOX_NORMALIZE_MEANS, train.BBOX_NORMALIZE_STDS
            targets = (targets - np.array(means, np.float64)) / np.array(stds, np.float64)
        compact = np.hstack((labels[:, None], targets)).astype(np.float32)
        expanded, inside = expand_bbox_targets(compact, self.num_classes, train)
        return expanded, inside, (inside > 0).astype(np.float32)

    def mask_targets(self, rois, gt_boxes, matched, labels, num_fg, im_scale, gt_masks, mask_info):
        """mask_targets, mask_weight ``[B, 1, S, S]`` and gt_masks_info ``[B, 12]`` of ``rois`` ``[B, 4]``, of which the
        first ``num_fg`` are objects: (object, height and width of its mask, class, RoI, object's box), -1 elsewhere."""
        cfg, count = self.context.cfg, len(rois)
        size = cfg.MASK_SIZE
        targets = np.zeros((count, 1, size, size), np.float32)
        weights = np.zeros_like(targets)
        weights[:num_fg] = 1
        info = np.full((count, 12), -1, np.float32)
        for i in range(num_fg):
            box = np.around(rois[i] / float(im_scale)).astype(int)
            gt_box = np.around(gt_boxes[matched[i], :4] / float(im_scale)).astype(int)
            height, width = mask_info[matched[i], :2].astype(int)
            mask = gt_masks[matched[i], :height, :width]
            if mask.shape != (gt_box[3] - gt_box[1] + 1, gt_box[2] - gt_box[0] + 1):
                raise self.error(f"the mask of object {matched[i]} is {width} x {height}; its box is {gt_box.tolist()}")
            targets[i, 0] = mask_target(box, gt_box, mask, size, cfg.BINARIZE_THRESH)
            info[i] = (matched[i], height, width, labels[i], *box, *gt_box)
        return targets, weights, info

    def matched(self, boxes, gt_boxes):
        """The best IoU of ``boxes`` ``[N, 4]`` with ``gt_boxes`` ``[G, 5]`` and whose it is: ``[N]`` each."""
        if gt_boxes[:, 4].max() >= self.num_classes:
            raise self.error(f"num_classes is {self.num_classes}, an object has class {int(gt_boxes[:, 4].max())}")
        overlaps = bbox_overlaps(boxes.astype(np.float64), gt_boxes[:, :4].astype(np.float64))
        return overlaps.max(1), overlaps.argmax(1)


@register_python("pylayer.proposal_target_layer", "ProposalTargetLayer")
class ProposalTargetLayer(MaskTargetLayer):
    """MNC's ``ProposalTargetLayer``: a sample of proposals with labels, box targets and mask targets.

    Bottoms: rois ``[R, 5]``, gt_boxes, im_info; for masks also gt_masks ``[G, H, W]``, mask_info ``[G, 2]`` (height and
    width of each), and with ``MIX_INDEX`` the index ``[1, R]`` of :class:`ProposalLayer`. Tops: rois ``[B, 5]``, labels
    ``[B]``, bbox_targets, bbox_inside_weights, bbox_outside_weights ``[B, 4 * num_classes]``; mask_targets and
    mask_weight ``[B, 1, S, S]``, gt_masks_info ``[B, 12]``; fg_inds, bg_inds, the anchors of the sample.

    ``FG_FRACTION`` of ``TRAIN.BATCH_SIZE`` are drawn among RoIs with an IoU in ``[FG_THRESH_LO, FG_THRESH_HI]``, the
    rest, divided by ``BG_FRACTION``, from the ranges ``[BG_THRESH_LO, BG_THRESH_HI]``, one element of these lists
    after the other. The rois hand their gradient back, unless ``'bp_all': 0``, which spares those of background.
    """

    num_bottoms, num_tops = (3, 6), (5, 10)

    def setup(self, bottoms):
        self.num_classes = self.setting("num_classes", int)
        self.bp_all = bool(self.settings.get("bp_all", True))
        if self.context.cfg.TRAIN.BATCH_SIZE < 1:
            raise self.error("TRAIN.BATCH_SIZE must say how many RoIs are drawn")
        wanted = {5: 3, 8: 5, 10: 6}.get(len(self.param.top))
        if wanted is None or len(self.param.bottom) < wanted:
            raise self.error("has 5 tops of 3 bottoms; with masks 8 of 5, and with the proposals' index 10 of 6")

    def infer(self, bottoms):
        size, wide = self.context.cfg.MASK_SIZE, (1, 4 * self.num_classes)
        shapes = [(1, 5), (1,), wide, wide, wide, (1, 1, size, size), (1, 1, size, size), (1, 12), (1,), (1,)]
        return [bottoms[0].new_empty(shape) for shape in shapes[: len(self.param.top)]]

    def sample(self, overlaps):
        """Indices of objects and of background, each in ascending order."""
        t, rng = self.context.cfg.TRAIN, self.context.rng
        fg = draw_groups(overlaps, t.BATCH_SIZE, t.FG_FRACTION_LIST, t.FG_THRESH_LO, t.FG_THRESH_HI, rng)
        left = t.BATCH_SIZE - len(fg)
        return fg, draw_groups(overlaps, left, t.BG_FRACTION, t.BG_THRESH_LO_LIST, t.BG_THRESH_HI_LIST, rng)

    def forward(self, bottoms):
        proposals = bottoms[0]
        gt_boxes, im_info = self.ground_truth(bottoms[1], self.param.bottom[1]), as_rows(bottoms[2], 3)[0]
        boxes = np.vstack((as_rows(proposals, 5)[:, 1:], gt_boxes[:, :4]))
        overlaps, assigned = self.matched(boxes, gt_boxes)
        fg, bg = self.sample(overlaps)
        keep = np.append(fg, bg)
        matched, sample = assigned[keep], boxes[keep]
        labels = gt_boxes[matched, 4].copy()
        labels[len(fg) :] = 0
        blobs = [labels, *self.box_targets(sample, gt_boxes[matched, :4], labels)]
        if len(self.param.top) > 5:
            masks = [b.detach().cpu().numpy() for b in bottoms[3:5]]
            blobs += self.mask_targets(sample, gt_boxes, matched, labels, len(fg), im_info[2], *masks)
        if len(self.param.top) > 8:
            index = bottoms[5].detach().flatten().cpu().numpy()
            blobs += [index[inds[inds < len(index)]] for inds in (fg, bg)]
        added = torch.nn.functional.pad(proposals.new_tensor(gt_boxes[:, :4]), (1, 0))
        rois = torch.cat((proposals.flatten(1)[:, :5], added))[torch.from_numpy(keep).to(proposals.device)]
        if not self.bp_all:
            rois = torch.cat((rois[: len(fg)], rois[len(fg) :].detach()))
        return [rois, *(torch.from_numpy(np.float32(blob)).to(proposals.device) for blob in blobs)]
