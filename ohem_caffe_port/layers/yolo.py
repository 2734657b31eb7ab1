"""What YOLO heads detect: the layers of MobileNet-YOLO, and Intel's judge of detections.

A head is a map ``[B, n * (5 + C), H, W]``: for each of n anchors x, y, w, h, objectness and C class scores.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops import nms_ranked
from ..ops.std_sort import std_sort_descending
from ..ops.yolo import cell_boxes, centre_overlap
from .base import MANY, Layer, register
from .detection_output import no_detections


def head_of(layer: Layer, blob: Tensor, anchors: int, values: int) -> Tensor:
    """A head as ``[B, n, values, H, W]``.

    Raises:
        PortError: its channels are not ``anchors * values``.
    """
    if blob.dim() != 4 or blob.shape[1] != anchors * values:
        raise layer.error(
            f"a head of {anchors} anchors with {values} values each has {anchors * values} channels, "
            f"not shape {tuple(blob.shape)}",
            field="bottom",
        )
    return blob.reshape(len(blob), anchors, values, *blob.shape[2:])


def anchors_of(layer: Layer, param, indices, field: str) -> np.ndarray:
    """The widths and heights ``[n, 2]`` that ``biases`` gives to the anchors ``indices``."""
    pairs, indices = np.array(param.biases, np.float32), list(indices)
    if len(pairs) % 2 or (indices and max(indices) >= len(pairs) // 2):
        raise layer.error(f"{len(pairs)} numbers for anchors {indices}", field=f"{field}.biases")
    return pairs.reshape(-1, 2)[indices]


def suppressed_at(threshold: float) -> float:
    """The threshold for boxes that go when they overlap by ``threshold`` or more, where others need more than it."""
    return float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))


class _YoloOutput(Layer):
    """Rows of MobileNet-YOLO: NMS over everything, whatever its class and image."""

    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def infer(self, bottoms):
        for i, bottom in enumerate(bottoms):
            self.head(i, bottom)
        return [torch.empty(1, 1, 1, 7, device="meta")]

    def head(self, index: int, bottom: Tensor) -> Tensor:
        """Bottom ``index`` as ``[B, n, values, H, W]``."""
        raise NotImplementedError

    def rows(self, images: int, found: list[tuple[Tensor, Tensor, Tensor]], threshold: float) -> list[Tensor]:
        """The top, of boxes ``[N, 4]``, classes ``[N]`` and scores ``[N]`` of each head."""
        boxes, labels, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = std_sort_descending(scores)
        boxes, labels, scores = boxes[order], labels[order], scores[order]
        valid = torch.ones(1, len(boxes), dtype=torch.bool, device=boxes.device)
        keep = nms_ranked(boxes[None], valid, suppressed_at(threshold), overlap=centre_overlap)[0]
        boxes, labels, scores = boxes[keep], labels[keep], scores[keep]
        if not len(boxes):
            return [no_detections(images, boxes.device)[None, None]]
        half = boxes[:, 2:] / 2
        head = torch.stack((torch.zeros_like(scores), labels.to(scores) + 1, scores), 1)
        return [torch.cat((head, boxes[:, :2] - half, boxes[:, :2] + half), 1)[None, None]]


@register("YoloDetectionOutput")
class YoloDetectionOutput(_YoloOutput):
    """MobileNet-YOLO's detections of one or two YOLO v2 heads, each anchor with its best class.

    The score is ``sigmoid(objectness) * max(softmax(classes))``, at least ``confidence_threshold``; anchors
    (``biases``) are in cells. Top ``[1, 1, N, 7]``: rows ``(0, class + 1, score, x1, y1, x2, y2)`` in units of the
    image, not clipped, by falling score; NMS drops what overlaps a better one by ``nms_threshold`` or more, whatever
    its class. Without any, one row ``(image, -1, ...)`` for each image. (YOLO9000, Redmon and Farhadi, CVPR 2017.)

    As in the fork, images of one batch are not told apart: give one at a time. ``side`` is the map's own, and the label
    map has no effect on the top.
    """

    fields = {
        "yolo_detection_output_param": {
            "side", "num_classes", "num_box", "coords", "confidence_threshold", "nms_threshold", "biases",
            "label_map_file",
        }
    }  # fmt: skip
    num_bottoms = (1, 2)

    def setup(self, bottoms):
        p, name = self.param.yolo_detection_output_param, "yolo_detection_output_param"
        if not p.HasField("num_classes") or p.num_classes < 1:
            raise self.error("must be given, and at least 1", field=f"{name}.num_classes")
        if p.coords != 4:
            raise self.error("a box has 4", field=f"{name}.coords")
        self.anchors = anchors_of(self, p, range(p.num_box), name)

    def head(self, index, bottom):
        p = self.param.yolo_detection_output_param
        if bottom.dim() == 4 and bottom.shape[2] != bottom.shape[3]:
            raise self.error(f"takes square maps, not {tuple(bottom.shape)}", field=f"bottom[{index}]")
        return head_of(self, bottom, p.num_box, 5 + p.num_classes)

    @torch.no_grad()
    def forward(self, bottoms):
        p, found = self.param.yolo_detection_output_param, []
        for i, bottom in enumerate(bottoms):
            head, anchors = self.head(i, bottom), torch.as_tensor(self.anchors, device=bottom.device)
            boxes = cell_boxes(torch.sigmoid(head[:, :, :2]), head[:, :, 2:4], anchors, (bottom.shape[3],) * 2)
            score, label = torch.softmax(head[:, :, 5:], 2).max(2)
            score = torch.sigmoid(head[:, :, 4]) * score
            score, label = score.permute(0, 2, 3, 1), label.permute(0, 2, 3, 1)  # the fork's order: cells, then anchors
            kept = score >= p.confidence_threshold
            found.append((boxes.permute(0, 3, 4, 1, 2)[kept], label[kept], score[kept]))
        return self.rows(len(bottoms[0]), found, p.nms_threshold)


@register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_YoloOutput):
    """MobileNet-YOLO's detections of several YOLO v3 heads, each anchor once for each class.

    The score of a class is ``sigmoid(objectness) * sigmoid(class)``, above ``confidence_threshold``. Head i has the
    anchors that the i-th part of ``mask`` names (``biases``, in pixels) and cells of ``anchors_scale[i]`` pixels. Top,
    NMS and batches as in YoloDetectionOutput. (YOLOv3, Redmon and Farhadi, 2018.)

    ``gaussian_box``: a box has 8 values, each coordinate followed by its uncertainty s, and the score is multiplied by
    ``(4 - 2 s_x - s_y - s_w - s_h) / 4``, as on the fork's GPU; its CPU code reads what it never wrote.
    """

    fields = {
        "yolov3_detection_output_param": {
            "num_classes", "num_box", "confidence_threshold", "nms_threshold", "biases", "anchors_scale",
            "mask_group_num", "mask", "gaussian_box",
        }
    }  # fmt: skip
    num_bottoms = (1, MANY)

    def setup(self, bottoms):
        p, name = self.param.yolov3_detection_output_param, "yolov3_detection_output_param"
        if not p.HasField("num_classes") or p.num_classes < 1:
            raise self.error("must be given, and at least 1", field=f"{name}.num_classes")
        if p.mask_group_num != len(bottoms):
            raise self.error(f"{p.mask_group_num} for {len(bottoms)} bottoms", field=f"{name}.mask_group_num")
        if len(p.anchors_scale) < len(bottoms):
            raise self.error(f"{len(p.anchors_scale)} for {len(bottoms)} bottoms", field=f"{name}.anchors_scale")
        part = len(p.mask) // len(bottoms)
        parts = [p.mask[i * part :][: p.num_box] for i in range(len(bottoms))]
        if any(len(indices) < p.num_box for indices in parts):
            raise self.error(f"{len(p.mask)} for {len(bottoms)} times {p.num_box} boxes", field=f"{name}.mask")
        self.anchors = [anchors_of(self, p, indices, name) for indices in parts]

    def head(self, index, bottom):
        p = self.param.yolov3_detection_output_param
        return head_of(self, bottom, p.num_box, (9 if p.gaussian_box else 5) + p.num_classes)

    @torch.no_grad()
    def forward(self, bottoms):
        p, found = self.param.yolov3_detection_output_param, []
        for i, (bottom, scale) in enumerate(zip(bottoms, p.anchors_scale, strict=False)):
            head, anchors = self.head(i, bottom), torch.as_tensor(self.anchors[i], device=bottom.device)
            step = 2 if p.gaussian_box else 1
            coords, rest = head[:, :, : 4 * step : step], torch.sigmoid(head[:, :, 4 * step :])
            size = bottom.shape[3] * scale, bottom.shape[2] * scale
            boxes = cell_boxes(torch.sigmoid(coords[:, :, :2]), coords[:, :, 2:], anchors, size)
            objectness = rest[:, :, :1]
            if p.gaussian_box:
                doubt = torch.sigmoid(head[:, :, 1:8:2])
                doubt = doubt[:, :, 0] + doubt.sum(2)
                objectness = objectness * (4 - doubt.unsqueeze(2)) / 4
            score = (rest[:, :, 1:] * objectness).permute(0, 3, 4, 1, 2)  # the fork's order: cells, anchors, classes
            image, row, column, anchor, label = (score > p.confidence_threshold).nonzero().unbind(1)
            boxes = boxes[image, anchor, :, row, column]
            found.append((boxes, label, score[image, row, column, anchor, label]))
        return self.rows(len(bottoms[0]), found, p.nms_threshold)


@register("EvalDetection")
class EvalDetection(Layer):
    """Intel's judge of a YOLO v2 head: the true and false positives of every image, for its solver's mAP.

    Bottoms: a head of 5 anchors ``[B, 5 (5 + C), side, side]``, ground truth ``[1, 1, G, 8]`` (``image label _ x1 y1
    x2 y2 difficult``, labels from 1, units of the image) and anything else. Top ``[B, C + side^2 * 5 * 4]``: of each
    image the number of ground truths of each class, then rows ``(class, score, true, false)`` by class and falling
    score, filled up with zeros.

    A box has its best class, by softmax, and a score that ``score_type`` names: OBJ, PROB or their product. NMS drops
    what overlaps a better one by ``nms`` or more, whatever its class, and scores below 0.005 go. As in the fork, a
    detection that overlaps ground truth of its class by less than ``threshold`` is neither true nor false, without
    ``nms`` there are no detections, and ``sqrt`` and ``constriant`` are not read.
    """

    fields = {
        "eval_detection_param": {
            "side", "num_class", "num_object", "threshold", "sqrt", "constriant", "score_type", "nms", "biases",
        }
    }  # fmt: skip
    num_bottoms = (2, 3)
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p = self.param.eval_detection_param
        if p.num_object != 5:
            raise self.error("the layer looks at 5 boxes of a cell", field="eval_detection_param.num_object")
        self.anchors = anchors_of(self, p, range(5), "eval_detection_param")

    def infer(self, bottoms):
        p = self.param.eval_detection_param
        if bottoms[0].shape[2:] != (p.side, p.side):
            raise self.error(f"the map {tuple(bottoms[0].shape)} is not {p.side} x {p.side}", field="bottom[0]")
        if bottoms[1].shape[-1:] != (8,):
            raise self.error(f"ground truth has rows of 8, not {tuple(bottoms[1].shape)}", field="bottom[1]")
        head_of(self, bottoms[0], 5, 5 + p.num_class)
        return [torch.empty(len(bottoms[0]), p.num_class + p.side**2 * 20, device="meta")]

    @torch.no_grad()
    def forward(self, bottoms):
        p = self.param.eval_detection_param
        (meta,) = self.infer(bottoms)
        top = torch.zeros(meta.shape, device=bottoms[0].device)
        truth = bottoms[1].reshape(-1, 8)
        truth = truth[(truth[:, 0].trunc() != -1) & (truth[:, 0] < len(top))]
        image, label = truth[:, 0].long(), truth[:, 1].long() - 1
        if ((label < 0) | (label >= p.num_class)).any():
            raise self.error(f"ground truth with a label outside 1 to {p.num_class}", field="bottom[1]")
        top.index_put_((image, label), torch.ones_like(truth[:, 0]), accumulate=True)
        if p.nms < 0:
            return [top]
        boxes, labels, scores = self._detections(bottoms[0])
        valid = torch.ones_like(scores, dtype=torch.bool)
        keep = nms_ranked(boxes, valid, suppressed_at(p.nms), overlap=centre_overlap) & (scores >= 0.005)
        size = truth[:, 5:7] - truth[:, 3:5]
        targets = torch.cat(((truth[:, 3:5] + truth[:, 5:7]) / 2, size), 1)
        for i in range(len(top)):
            order = keep[i].nonzero()[:, 0]
            order = order[labels[i, order].argsort(stable=True)]
            mine = image == i
            rows = self._judged(boxes[i, order], labels[i, order], scores[i, order], targets[mine], label[mine])
            top[i, p.num_class : p.num_class + rows.numel()] = rows.flatten()
        return [top]

    def _detections(self, blob):
        """Boxes ``[B, K, 4]``, classes and scores ``[B, K]``, by falling score."""
        p = self.param.eval_detection_param
        head, anchors = head_of(self, blob, 5, 5 + p.num_class), torch.as_tensor(self.anchors, device=blob.device)
        boxes = cell_boxes(torch.sigmoid(head[:, :, :2]), head[:, :, 2:4], anchors, (p.side, p.side))
        best, labels = torch.softmax(head[:, :, 5:], 2).max(2)
        objectness = torch.sigmoid(head[:, :, 4])
        scores = objectness if p.score_type == p.OBJ else best if p.score_type == p.PROB else objectness * best
        scores, labels = (of.permute(0, 2, 3, 1).flatten(1) for of in (scores, labels))
        boxes = boxes.permute(0, 3, 4, 1, 2).reshape(len(head), -1, 4)
        order = torch.stack([std_sort_descending(row) for row in scores])
        return boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)), labels.gather(1, order), scores.gather(1, order)

    def _judged(self, boxes, labels, scores, targets, target_labels):
        """Rows ``(class, score, true, false)`` of one image's detections."""
        same = labels[:, None] == target_labels
        overlaps = torch.where(same, centre_overlap(boxes, targets), -1)
        most, target = torch.cat((overlaps, overlaps.new_full((len(boxes), 1), -1.0)), 1).max(1)
        hit = most >= self.param.eval_detection_param.threshold
        place = torch.arange(len(boxes), device=boxes.device)
        first = torch.full((len(targets) + 1,), len(boxes), device=boxes.device)
        first.scatter_reduce_(0, target[hit], place[hit], "amin")
        true = hit & (first[target] == place)
        false = (hit & ~true) | ~same.any(1)
        return torch.stack((labels.to(scores), scores, true.to(scores), false.to(scores)), 1)
