"""DetectionOutput: SSD's predictions as rows of detections."""

from __future__ import annotations

import torch
from torch import Tensor

from prototxt.caffe_pb2 import PriorBoxParameter

from ..evaluate.ssd_files import ResultFiles
from ..ops import decode_boxes, jaccard_overlap, nms_ranked
from ..ops.std_sort import std_sort_descending
from .base import Layer, register
from .prior_box import check_predictions, read_priors


def best_of_classes(
    boxes: Tensor,
    scores: Tensor,
    classes: list[int],
    *,
    score_threshold: float,
    nms_threshold: float,
    eta: float = 1.0,
    top_k: int = -1,
    keep_top_k: int = -1,
) -> Tensor:
    """What survives NMS in each class of each image (``ApplyNMSFast``), as rows ``[N, 7]``.

    A class takes its scores above ``score_threshold``, of these the ``top_k`` greatest, and drops what overlaps a
    better one of its own by more than ``nms_threshold``. Then an image keeps its ``keep_top_k`` best. -1 is no limit.
    Of equal scores the first comes first, and among an image's best those that ``std::sort`` puts first.

    Args:
        boxes: ``[B, P, L, 4]`` in units of the image; L is 1, or the number of classes.
        scores: ``[B, P, C]``.
        classes: those to look at (all but the background).
        eta: as in :func:`~ohem_caffe_port.ops.nms_ranked`.

    Returns:
        rows ``(image, class, score, x1, y1, x2, y2)``, by image, then class, then falling score.
    """
    batch, count, places = boxes.shape[:3]
    chosen = scores[..., classes].transpose(1, 2)  # [B, C, P]
    image, place, prior = (chosen > score_threshold).nonzero().unbind(1)
    score, group = chosen[image, place, prior], image * len(classes) + place
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    size = group.bincount(minlength=batch * len(classes))
    rank = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[group[order]]
    if top_k > -1:
        order, rank = order[rank < top_k], rank[rank < top_k]
    image, place, prior, score, group = (of[order] for of in (image, place, prior, score, group))
    label = torch.tensor(classes, device=order.device)[place]
    box = boxes[image, prior, label if places > 1 else 0]
    # every class of every image is one row of a table as wide as the longest
    table = box.new_zeros(batch * len(classes), int(rank.max()) + 1 if len(rank) else 0, 4)
    valid = torch.zeros(table.shape[:2], dtype=torch.bool, device=box.device)
    table[group, rank], valid[group, rank] = box, True
    kept = nms_ranked(table, valid, nms_threshold, overlap=jaccard_overlap, eta=eta)[group, rank]
    rows = torch.cat((torch.stack((image.to(score), label.to(score), score), 1), box), 1)[kept]
    if keep_top_k < 0:
        return rows
    per_image = [rows[rows[:, 0] == i] for i in range(batch)]
    for i, mine in enumerate(per_image):
        if len(mine) > keep_top_k:
            mine = mine[std_sort_descending(mine[:, 2])[:keep_top_k]]
            per_image[i] = mine[mine[:, 1].argsort(stable=True)]
    return torch.cat(per_image)


def no_detections(images: int, device) -> Tensor:
    """``[images, 7]``: the rows ``(image, -1, ...)`` that stand for a batch without detections."""
    rows = torch.full((images, 7), -1.0, device=device)
    rows[:, 0] = torch.arange(images, device=device)
    return rows


@register("DetectionOutput")
class DetectionOutput(Layer):
    """SSD's detections: decodes box predictions against the priors and does NMS in each class.

    Bottoms: box predictions ``[B, P * 4]`` (times classes unless ``share_location``), class probabilities
    ``[B, P * C]`` and priors ``[1, 2, 4P]``. Top ``[1, 1, N, 7]``: rows ``(image, label, score, x1, y1, x2, y2)`` in
    units of the image, not clipped, by image, class and falling score. Images without detections have no row; where no
    image has any, each has one row ``(image, -1, ...)``. (``DetectionOutputLayer`` of weiliu89/caffe, branch ssd.)

    RefineDet's fork adds two bottoms: the probabilities ``[B, 2P]`` of its first stage, where priors whose second is
    below ``objectness_score`` become background, and its box predictions ``[B, 4P]``, which move the priors first. With
    ``visualize`` the fourth bottom is the image; nothing is drawn.

    With ``save_output_param`` (its folder, label map and list of names and sizes) the detections of every
    ``num_test_image`` images are written as VOC, COCO or ILSVRC files; nothing is read or written before the first
    forward.
    """

    fields = {
        "detection_output_param": {
            "num_classes", "share_location", "background_label_id", "nms_param", "save_output_param", "code_type",
            "variance_encoded_in_target", "keep_top_k", "confidence_threshold", "objectness_score",
        }
    }  # fmt: skip
    num_bottoms = (3, 5)
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p, name = self.param.detection_output_param, "detection_output_param."
        if p.num_classes < 1:
            raise self.error("must be given, and at least 1", field=name + "num_classes")
        if p.background_label_id == -1 and p.share_location:
            raise self.error("-1 is the label of shared locations", field=name + "background_label_id")
        if p.nms_param.nms_threshold < 0:
            raise self.error("must not be negative", field=name + "nms_param.nms_threshold")
        if not 0 < p.nms_param.eta <= 1:
            raise self.error("must be above 0 and at most 1", field=name + "nms_param.eta")
        self.code = PriorBoxParameter.CodeType.Name(p.code_type)
        self.refines = len(bottoms) > 3 and not p.visualize
        self.files = ResultFiles(p.save_output_param, p.background_label_id, p.num_classes)
        self.warnings += [f"layer '{self.name}': {warning}" for warning in self.files.warnings]

    def infer(self, bottoms):
        self._check_shapes(bottoms)
        return [torch.empty(1, 1, 1, 7, device="meta")]

    def _check_shapes(self, bottoms) -> tuple[int, int]:
        p = self.param.detection_output_param
        boxes = 4 if p.share_location else 4 * p.num_classes
        return check_predictions(self, bottoms, [boxes, p.num_classes, None, *([2, 4] if self.refines else ())])

    @torch.no_grad()
    def forward(self, bottoms):
        p = self.param.detection_output_param
        batch, count = self._check_shapes(bottoms)
        priors, variances = read_priors(self, bottoms[2], self.code)
        coding = (self.code, None if p.variance_encoded_in_target else variances[:, None])
        priors, scores = priors[:, None], bottoms[1].reshape(batch, count, -1)
        if self.refines:
            background = torch.arange(p.num_classes, device=scores.device) == 0
            easy = bottoms[3].reshape(batch, count, 2)[..., 1:] < p.objectness_score
            scores = torch.where(easy, background.to(scores), scores)
        if self.refines and len(bottoms) > 4:
            priors = decode_boxes(priors, bottoms[4].reshape(batch, count, 1, 4), *coding)
        boxes = decode_boxes(priors, bottoms[0].reshape(batch, count, -1, 4), *coding)
        rows = best_of_classes(
            boxes,
            scores,
            [c for c in range(p.num_classes) if c != p.background_label_id],
            score_threshold=p.confidence_threshold if p.HasField("confidence_threshold") else -torch.inf,
            nms_threshold=p.nms_param.nms_threshold,
            eta=p.nms_param.eta,
            top_k=p.nms_param.top_k if p.nms_param.HasField("top_k") else -1,
            keep_top_k=p.keep_top_k,
        )
        self.files.add(rows, batch)
        if not len(rows):
            rows = no_detections(batch, rows.device)
        return [rows[None, None]]
