"""FrcnnOutput: a detection stage's predictions as rows of detections."""

from __future__ import annotations

import torch

from ..errors import PortError
from ..evaluate.ssd_files import ResultFiles
from ..ops import bbox_transform_inv
from ..ops.mscnn import greedy_nms
from .base import cheap_to_read, register
from .box_base import BBOX_REG, BoxLayer, bbox_norm


@register("FrcnnOutput")
class FrcnnOutput(BoxLayer):
    """cascade-rcnn's detections of one image: moves the RoIs by the regression outputs and does NMS in each class.

    Bottoms: class probabilities ``[R, C]`` (background first); regression outputs ``[R, 4C]`` (``[R, 8]`` with
    ``cls_aware: false``), normalised as ``bbox_reg_param`` says; RoIs ``[R, 5]`` or, with a score, ``[R, 6]``; height
    and width of the net's input ``[1, 2]``. Boxes are cut to the image (x2 may equal its width); those with a
    probability of ``conf_thr`` or more enter NMS at ``iou_thr`` (``nms_type`` IOU, IOMU or IOFU), and the
    ``max_det_num`` best of all classes remain (0: all).

    Top ``[1 + D, 7, 1, 1]``: a first row (0, -1, ...), then (image, x1, y1, x2, y2, class, probability), by class, then
    falling probability.

    With ``save_output_param`` (folder, label map, list of names and sizes) the detections of every ``num_test_image``
    images are written, in pixels of the original images, as DetectionOutput does; the folder is not emptied first, as
    the fork does, and its COCO and ILSVRC formats, which the fork forgets to write, are written too.
    """

    fields = {
        "frcnn_output_param": {"conf_thr", "iou_thr", "nms_type", "max_det_num", "save_output_param"},
        "bbox_reg_param": {*BBOX_REG, "cls_aware"},
    }
    num_bottoms = (4, 4)

    def setup(self, bottoms):
        self.norm = bbox_norm(self)
        self.cls_aware = self.param.bbox_reg_param.cls_aware
        save = self.param.frcnn_output_param.save_output_param
        try:
            self.files = ResultFiles(save, 0, bottoms[0].shape[1])
        except PortError as error:
            raise self.error(error.message, field="frcnn_output_param.save_output_param", hint=error.hint) from None
        self.warnings += [f"layer '{self.name}': {warning}" for warning in self.files.warnings]

    def infer(self, bottoms):
        self._check(bottoms)
        return [torch.empty((1, 7, 1, 1), device="meta")]

    def _check(self, bottoms):
        rows, classes = bottoms[0].shape[:2]
        prob, deltas, rois, size = (tuple(b.flatten(1).shape) for b in bottoms)
        width = 4 * classes if self.cls_aware else 8
        if prob != (rows, classes) or deltas != (rows, width) or rois not in ((rows, 5), (rows, 6)) or size != (1, 2):
            raise self.error(
                f"bottoms {[tuple(b.shape) for b in bottoms]}: they must be [R, C], [R, {width}], [R, 5] or [R, 6], "
                "and [1, 2]: one image at a time"
            )

    @torch.no_grad()
    def forward(self, bottoms):
        self._check(bottoms)
        prob, deltas, rois, size = (b.flatten(1) for b in bottoms)
        self._check_rois(rois)
        boxes = self._boxes(deltas, rois[:, 1:5], *size[0].tolist())
        label, score, boxes = self._survivors(prob[:, 1:].t(), boxes.expand(-1, prob.shape[1] - 1, 4).transpose(0, 1))
        found = torch.cat((torch.zeros_like(label), boxes, label, score), 1)
        scale = size[0, [1, 0, 1, 0]]
        self.files.add(torch.cat((found[:, :1], label, score, boxes / scale), 1), 1)
        top = torch.cat((found.new_tensor([[0, *[-1] * 6]]), found))
        return [top[:, :, None, None]]

    def _check_rois(self, rois):
        if not cheap_to_read(rois):
            return
        if (rois[:, 0] != 0).any():
            raise self.error("takes the RoIs of a single image, image 0", hint="test with batch_size: 1")
        if (rois[:, 3:5] < rois[:, 1:3]).any():
            raise self.error("a RoI whose end lies before its start")

    def _boxes(self, deltas, rois, height, width):
        """``[R, C - 1, 4]``, or ``[R, 1, 4]`` when all classes share them."""
        means, stds = (deltas.new_tensor(values).repeat(deltas.shape[1] // 4) for values in self.norm)
        boxes = bbox_transform_inv(rois, deltas * stds + means).unflatten(1, (-1, 4))[:, 1:]
        top_left, bottom_right = boxes[..., :2].clamp(min=0), boxes[..., 2:] - 1  # corners are inclusive here
        return torch.cat((top_left, torch.minimum(bottom_right, deltas.new_tensor([width, height]))), -1)

    def _survivors(self, scores, boxes):
        """Class, probability ``[D, 1]`` and box ``[D, 4]`` of scores ``[C - 1, R]`` and boxes ``[C - 1, R, 4]``."""
        p = self.param.frcnn_output_param
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        most = int((scores >= p.conf_thr).sum(1).max()) if scores.numel() else 0
        scores, order = scores[:, :most], order[:, :most]
        boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        keep = greedy_nms(boxes, scores >= p.conf_thr, p.iou_thr, p.nms_type, "corners")
        if 0 < p.max_det_num < int(keep.sum()):
            best = scores.masked_fill(~keep, -torch.inf).flatten().argsort(descending=True, stable=True)
            keep = torch.zeros_like(keep).flatten().index_fill_(0, best[: p.max_det_num], True).view_as(keep)
        label = keep.nonzero()[:, :1] + 1
        return label.to(scores.dtype), scores[keep][:, None], boxes[keep]
