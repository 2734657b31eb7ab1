"""How well MS-CNN's and cascade-rcnn's proposal heads do on the labelled cells."""

from __future__ import annotations

import torch

from ..ops.mscnn import decode_fields, overlap
from .base import register
from .box_base import BBOX_REG, BoxLayer
from .field_head import group_maps, one_field_maps, set_up_head


class FieldAccuracy(BoxLayer):
    """What :class:`DetectionAccuracy` and :class:`DetectionGroupAccuracy` share: all but shapes and ties.

    A subclass says ``pixel``, what its IoU adds to x2 - x1, and compares classes in :meth:`hits`.
    """

    num_tops = (1, 2)

    def setup(self, bottoms):
        set_up_head(self)

    def infer(self, bottoms):
        self.maps(bottoms)
        return [torch.empty((1, 1, 1, c), device="meta") for c in (2, 1)[: len(self.param.top)]]

    @torch.no_grad()
    def forward(self, bottoms):
        scores, deltas, truth = self.maps(bottoms)
        raw = truth[:, 0].long()
        labels = raw.clamp(max=1) if self.p.objectness else raw
        counted, labelled = (labels != 0) | (truth[:, 5] < self.p.bg_threshold), raw != 0
        if self.ignore_label is not None:
            counted, labelled = counted & (labels != self.ignore_label), labelled & (raw != self.ignore_label)
        hits = self.hits(scores, labels)
        tops = [torch.stack((_mean(hits, counted), _mean(hits, counted & (labels != 0))))]
        if len(self.param.top) > 1:
            tops.append(_mean(self._iou(deltas, truth), labelled))
        return [top.view(1, 1, 1, -1) for top in tops]

    def _iou(self, deltas, truth):
        bounds = self.p.field_xyr, self.p.field_whr
        x, y, w, h = decode_fields(deltas, self.group, self.stride, *self.norm, *bounds).unbind(1)
        gx, gy, gw, gh = truth[:, 1:5].unbind(1)
        gx, gy = gx - gw / 2, gy - gh / 2
        found = torch.stack((x, y, x + w - self.pixel, y + h - self.pixel), -1)
        wanted = torch.stack((gx, gy, gx + gw - self.pixel, gy + gh - self.pixel), -1)
        return overlap(found, wanted, edges="pixels" if self.pixel else "open")

    def maps(self, bottoms):
        """Scores, regression outputs and ground truth.

        Raises:
            PortError: shapes that do not fit.
        """
        raise NotImplementedError

    def hits(self, scores, labels):
        """Where the scores choose the label: bool, as ``labels``."""
        raise NotImplementedError


def _mean(values, where):
    """-1 where nothing counts."""
    values = values.float()
    return torch.where(where.any(), torch.where(where, values, 0).sum() / where.sum().clamp(min=1), -1)


@register("DetectionAccuracy")
class DetectionAccuracy(FieldAccuracy):
    """MS-CNN's accuracy of a proposal head: share of cells, and of labelled ones, classified well; and mean IoU.

    Bottoms and settings as of DetectionLoss. Cells count unless they have no label and an IoU of ``bg_threshold`` or
    more. A cell is right when its label is among the ``top_k`` highest scores, of equal scores the higher class first.
    Tops: ``[1, 1, 1, 2]`` both shares; optionally ``[1, 1, 1, 1]`` the mean IoU of the labelled cells' boxes. -1 where
    there is nothing to count.
    """

    fields = {
        "detection_accuracy_param": {
            "cls_num", "coord_num", "field_h", "field_w", "downsample_rate", "top_k", "field_whr", "field_xyr",
            "bg_threshold", "objectness",
        },
        "bbox_reg_param": BBOX_REG,
        "loss_param": {"ignore_label"},
    }  # fmt: skip
    num_bottoms = (2, 2)
    pixel = 0

    def setup(self, bottoms):
        super().setup(bottoms)
        p = self.p
        if not 0 < p.top_k <= p.cls_num:
            raise self.error(f"{p.top_k} of {p.cls_num} classes", field="detection_accuracy_param.top_k")

    def maps(self, bottoms):
        return one_field_maps(self, bottoms)

    def hits(self, scores, labels):
        own = scores.gather(1, labels.clamp(0, scores.shape[1] - 1)[:, None])
        higher = torch.arange(scores.shape[1], device=scores.device)[:, None, None] > labels[:, None]
        better = ((scores > own) | ((scores == own) & higher)).sum(1)
        return (better < self.p.top_k) & (labels >= 0) & (labels < scores.shape[1])


@register("DetectionGroupAccuracy")
class DetectionGroupAccuracy(FieldAccuracy):
    """cascade-rcnn's accuracy of a proposal head with several fields: shares of cells classified well, and mean IoU.

    Bottoms and settings as of DetectionGroupLoss, tops and which cells count as of DetectionAccuracy; of equal scores
    the lower class is chosen.
    """

    fields = {
        "detection_group_accuracy_param": {
            "cls_num", "field_h", "field_w", "stride", "field_whr", "field_xyr", "bg_threshold", "objectness",
        },
        "bbox_reg_param": BBOX_REG,
        "loss_param": {"ignore_label"},
    }  # fmt: skip
    num_bottoms = (3, 3)
    pixel = 1

    def maps(self, bottoms):
        return group_maps(self, bottoms)

    def hits(self, scores, labels):
        return scores.argmax(1) == labels
