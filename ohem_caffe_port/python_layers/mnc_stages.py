"""MNC's later stages: modules ``pylayer.mask_layer`` and ``pylayer.stage_bridge_layer``; see :mod:`.mnc`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from ..layers import PythonLayer, register_python
from ..ops import bbox_transform_inv, clip_boxes
from ..ops.masks import mask_overlap, resize_mask
from .mnc import ClippingLayer, MaskTargetLayer, is_inside, limited
from .rpn import as_rows


@register_python("pylayer.mask_layer", "MaskLayer")
class MaskLayer(PythonLayer):
    """MNC's ``MaskLayer``: predicted masks as ``[N, 1, S, S]``, and in training the class that each of them earns.

    Bottoms: the masks' sigmoid ``[N, S * S]`` and in training gt_masks ``[G, H, W]``, gt_masks_info ``[N, 12]``. Tops:
    the masks and in training labels ``[N, 1]``: the object's class where the predicted mask, binarised, overlaps its
    mask by ``TRAIN.FG_SEG_THRESH`` or more, else 0. Only masks that earn a class hand their gradient back.
    """

    num_bottoms, num_tops = (1, 3), (1, 2)

    def setup(self, bottoms):
        self.size = self.context.cfg.MASK_SIZE
        if bottoms[0].shape[1:].numel() != self.size**2:
            raise self.error(f"'{self.param.bottom[0]}' must be rows of {self.size}^2 (MASK_SIZE) values, "
                             f"not {tuple(bottoms[0].shape)}")  # fmt: skip
        wanted = (3, 2) if self.context.train else (1, 1)
        if (len(self.param.bottom), len(self.param.top)) != wanted:
            raise self.error(f"takes {wanted[0]} bottoms and gives {wanted[1]} tops in this phase")

    def infer(self, bottoms):
        rows = len(bottoms[0])
        shapes = ((rows, 1, self.size, self.size), (rows, 1))
        return [bottoms[0].new_empty(shape) for shape in shapes[: len(self.param.top)]]

    def forward(self, bottoms):
        masks = bottoms[0].view(-1, 1, self.size, self.size)
        if not self.context.train:
            return [masks]
        labels = self.labels(*(b.detach().cpu().numpy() for b in (masks[:, 0], *bottoms[1:])))
        labels = torch.from_numpy(labels).to(masks.device)
        return [torch.where(labels.view(-1, 1, 1, 1) > 0, masks, masks.detach()), labels]

    def labels(self, masks, gt_masks, info) -> np.ndarray:
        cfg = self.context.cfg
        labels = np.zeros((len(info), 1), np.float32)
        for i in np.where(info[:, 0] != -1)[0]:
            index, height, width = info[i, :3].astype(int)
            box, gt_box = np.round(info[i, 4:8]).astype(int), np.round(info[i, 8:12]).astype(int)
            mask = resize_mask(masks[i], box[2] - box[0] + 1, box[3] - box[1] + 1) >= cfg.BINARIZE_THRESH
            overlap = mask_overlap(box, gt_box, mask, gt_masks[index, :height, :width])
            labels[i] = info[i, 3] if overlap >= cfg.TRAIN.FG_SEG_THRESH else 0
        return labels


class _BridgeGradient(torch.autograd.Function):
    """Hands ``boxes`` ``[R, 4]`` through; rois ``[R, 5]`` and deltas ``[R, 4]``, where they come from, get MNC's
    gradient."""

    @staticmethod
    def forward(ctx, rois, deltas, boxes, passes, layer):
        ctx.save_for_backward(rois, deltas, passes)
        ctx.layer = layer
        return boxes.clone()

    @staticmethod
    def backward(ctx, grad):
        rois, deltas, passes = ctx.saved_tensors
        # the original's columns 2 - 0 and 3 - 1, although column 0 is the image: y1 and x2 - x1, not width and height
        sizes = torch.stack((rois[:, 2] - rois[:, 0], rois[:, 3] - rois[:, 1]), 1)
        scale = deltas[:, 2:].exp()
        of_rois = torch.cat((torch.zeros_like(grad[:, :1]), grad[:, :2], grad[:, 2:] * (deltas[:, :2] + scale)), 1)
        of_deltas = torch.cat((grad[:, :2] * sizes, grad[:, 2:] * scale * sizes), 1) * passes[:, None]
        return of_rois, limited(of_deltas, ctx.layer), None, None, None


@register_python("pylayer.stage_bridge_layer", "StageBridgeLayer")
class StageBridgeLayer(ClippingLayer, MaskTargetLayer):
    """MNC's ``StageBridgeLayer``: RoIs moved by the box regression of their best class, for the next stage.

    Bottoms in training: rois ``[R, 5]``, bbox_pred ``[R, 4C]``, class probabilities ``[R, C]``, gt_boxes, gt_masks,
    im_info, mask_info; the best class is not background. Tops: rois and ground truth ``[R + G, 5]``, those with an IoU
    of ``TRAIN.BBOX_THRESH`` first, labels, mask_targets, mask_weight, gt_mask_info, bbox_targets, bbox_inside_weights,
    bbox_outside_weights, as of :class:`~.mnc.ProposalTargetLayer`. When testing: rois, bbox_pred, class probabilities,
    im_info, and the moved rois; the best class may be background.

    ``param_str``: num_classes, use_clip, clip_base (64). The gradient of boxes is taken as one of centre and size, and
    reaches rois and deltas as the original's ``backward`` writes it.
    """

    num_bottoms, num_tops = (4, 7), (1, 8)

    def setup(self, bottoms):
        wanted = (7, 8) if self.context.train else (4, 1)
        if (len(self.param.bottom), len(self.param.top)) != wanted:
            raise self.error(f"takes {wanted[0]} bottoms and gives {wanted[1]} tops in this phase")
        self.num_classes = bottoms[2].shape[1]
        if bottoms[1].shape[1:].numel() != 4 * self.num_classes:
            raise self.error(f"{self.num_classes} classes need {4 * self.num_classes} box outputs; "
                             f"'{self.param.bottom[1]}' has {bottoms[1].shape[1:].numel()}")  # fmt: skip
        if self.context.train:
            self.read_clipping(64)
            if self.setting("num_classes", int) != self.num_classes:
                raise self.error(f"'{self.param.bottom[2]}' has {self.num_classes} classes, num_classes differs")

    def infer(self, bottoms):
        rows = len(bottoms[0]) + (len(bottoms[3]) if self.context.train else 0)
        size, wide = self.context.cfg.MASK_SIZE, (rows, 4 * self.num_classes)
        mask = (rows, 1, size, size)
        shapes = [(rows, 5), (rows,), mask, mask, (rows, 12), wide, wide, wide]
        return [bottoms[0].new_empty(shape) for shape in shapes[: len(self.param.top)]]

    def forward(self, bottoms):
        rois, all_deltas, scores = (b.flatten(1) for b in bottoms[:3])
        best = scores[:, 1:].argmax(1) + 1 if self.context.train else scores.argmax(1)
        columns = 4 * best[:, None] + torch.arange(4, device=best.device)
        deltas = all_deltas.gather(1, columns)
        im_info = as_rows(bottoms[5 if self.context.train else 3], 3)[0]
        limits = im_info[:2].tolist()
        with torch.no_grad():  # in training the original's array of chosen deltas is float64
            moved = bbox_transform_inv(rois[:, 1:5], deltas.double() if self.context.train else deltas)
            boxes = clip_boxes(moved, limits)
        if not self.context.train:
            return [pad(boxes, (1, 0))]
        gt_boxes = self.ground_truth(bottoms[3], self.param.bottom[3])
        everything = np.vstack((boxes.cpu().numpy(), clip_boxes(gt_boxes[:, :4], limits)))
        overlaps, assigned = self.matched(everything, gt_boxes)
        is_object = overlaps >= self.context.cfg.TRAIN.BBOX_THRESH
        keep = np.append(np.where(is_object)[0], np.where(~is_object)[0])
        num_fg, matched, sample = int(is_object.sum()), assigned[keep], everything[keep]
        labels = gt_boxes[matched, 4].copy()
        labels[num_fg:] = 0
        masks = [bottoms[i].detach().cpu().numpy() for i in (4, 6)]
        of_masks = self.mask_targets(sample, gt_boxes, matched, labels, num_fg, im_info[2], *masks)
        targets = self.box_targets(sample, gt_boxes[matched, :4], labels)
        blobs = [torch.from_numpy(np.float32(blob)).to(rois.device) for blob in (labels, *of_masks, *targets)]
        boxes = _BridgeGradient.apply(rois[:, :5], deltas, boxes.to(rois.dtype), is_inside(moved, limits), self)
        boxes = torch.cat((boxes, boxes.new_tensor(everything[len(boxes) :])))
        return [pad(boxes[torch.from_numpy(keep).to(boxes.device)], (1, 0)), *blobs]
