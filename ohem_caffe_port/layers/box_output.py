"""Proposals of MS-CNN and Cascade R-CNN: from the heads' maps to a list of boxes."""

from __future__ import annotations

import torch

from ..ops.mscnn import decode_fields, descending, greedy_nms
from .base import MANY, register
from .box_base import BBOX_REG, BoxLayer, bbox_norm, check_bounds, field_sizes


class Proposals(BoxLayer):
    """What :class:`BoxOutput` and :class:`BoxGroupOutput` share: thresholds, NMS image by image, the tops."""

    num_bottoms, num_tops = (1, MANY), (1, 2)
    edges: str  # of ops.mscnn.overlap

    def infer(self, bottoms):
        self.check(bottoms)
        return [torch.empty((1, c, 1, 1), device="meta") for c in (5, 6)][: len(self.param.top)]

    @torch.no_grad()
    def forward(self, bottoms):
        self.check(bottoms)
        heads, rows = list(self.heads(bottoms)), []
        for image in range(len(heads[0][0])):
            boxes, scores = zip(*(self._candidates(*(maps[image] for maps in head)) for head in heads), strict=True)
            boxes, scores = torch.cat(boxes), torch.cat(scores)
            keep = self._survivors(boxes, scores)
            rows.append(torch.cat((boxes.new_full((len(keep), 1), image), boxes[keep], scores[keep, None]), 1))
        found = torch.cat(rows)
        tops = [found[:, :5], found]
        if not len(found):  # Caffe's stand-in, so that the layers above have something to work on
            tops = [found.new_tensor([[0, 1, 1, 10, 10]]), found.new_zeros((1, 6))]
        return [top[:, :, None, None] for top in tops[: len(self.param.top)]]

    def heads(self, bottoms):
        """Of each head the maps of scores ``[N, ...]``, boxes ``[N, ..., 4]``, widths and heights ``[N, ...]``."""
        raise NotImplementedError

    def _candidates(self, score, boxes, width, height):
        keep = (score >= self.p.fg_thr) & (width >= self.p.min_size) & (height >= self.p.min_size)
        return boxes[keep], score[keep]

    def _survivors(self, boxes, scores):
        order = descending(scores)[: self.p.max_nms_num or None]
        most, valid = self.p.max_post_nms_num or None, torch.ones_like(order, dtype=torch.bool)
        keep = greedy_nms(boxes[order][None], valid[None], self.p.iou_thr, self.p.nms_type, self.edges, most)[0]
        return order[keep][:most]


@register("BoxOutput")
class BoxOutput(Proposals):
    """MS-CNN's proposals: boxes of several one-field maps whose best class beats background by ``fg_thr``, after NMS.

    Each bottom ``[N, C + 4, H, W]`` holds C class scores (background first) and the four regression outputs of one
    field (``field_w``, ``field_h``, ``downsample_rate``). The score is the largest foreground score less that of
    background. Boxes are cut at the image's left and top edges (which moves them) and then at the others; those with a
    side under ``min_size`` go; the ``max_nms_num`` best enter NMS at ``iou_thr`` (``nms_type`` IOU, IOMU or IOFU) and
    the ``max_post_nms_num`` best of the rest remain (0: all).

    Tops: rois ``[R, 5, 1, 1]`` (image, x1, y1, x2, y2) with x2 = x1 + width, and optionally the same with the score.
    Without any box: one roi (0, 1, 1, 10, 10), score row zeros.
    """

    fields = {
        "box_output_param": {
            "fg_thr", "iou_thr", "nms_type", "field_h", "field_w", "downsample_rate", "field_whr", "field_xyr",
            "max_nms_num", "max_post_nms_num", "min_size",
        },
        "bbox_reg_param": BBOX_REG,
    }  # fmt: skip
    edges = "open"

    def setup(self, bottoms):
        self.p = self.param.box_output_param
        self.norm = bbox_norm(self)
        check_bounds(self, "box_output_param")
        for name in ("field_h", "field_w", "downsample_rate"):
            count = len(getattr(self.p, name))
            if count != len(bottoms):
                raise self.error(f"{count} values for {len(bottoms)} bottoms", field=f"box_output_param.{name}")

    def check(self, bottoms):
        first = bottoms[0].shape
        for bottom in bottoms:
            if bottom.dim() != 4 or bottom.shape[:2] != first[:2] or first[1] < 6:
                raise self.error(
                    f"bottoms {[tuple(b.shape) for b in bottoms]}: each must be [N, classes + 4, H, W], with two "
                    "classes at least"
                )

    def heads(self, bottoms):
        p = self.p
        for bottom, width, height, stride in zip(bottoms, p.field_w, p.field_h, p.downsample_rate, strict=True):
            scores, deltas = bottom[:, :-4], bottom[:, -4:]
            boxes = decode_fields(deltas, [(width, height)], stride, *self.norm, p.field_xyr, p.field_whr)
            x, y, w, h = boxes.unbind(1)
            x, y = x.clamp(min=0), y.clamp(min=0)
            w, h = torch.minimum(w, bottom.shape[3] * stride - x), torch.minimum(h, bottom.shape[2] * stride - y)
            yield scores[:, 1:].amax(1) - scores[:, 0], torch.stack((x, y, x + w, y + h), -1), w, h


@register("BoxGroupOutput")
class BoxGroupOutput(Proposals):
    """cascade-rcnn's proposals: boxes of maps with several fields each, of a probability ``fg_thr`` or more, after NMS.

    Bottoms come in pairs, one ``box_group_param`` (``field_w``, ``field_h``, ``stride``) for each: probabilities
    ``[N * G, C, H, W]`` (background first) and regression outputs ``[N * G, 4, H, W]``, the G fields of an image next
    to each other. The score is 1 minus the probability of background. Boxes are cut to the image (x2 may equal its
    width); the other settings and the tops are those of BoxOutput, here with inclusive corners.
    """

    fields = {
        "box_group_output_param": {
            "fg_thr", "iou_thr", "nms_type", "box_group_param", "field_whr", "field_xyr", "max_nms_num",
            "max_post_nms_num", "min_size",
        },
        "bbox_reg_param": BBOX_REG,
    }  # fmt: skip
    edges = "corners"

    def setup(self, bottoms):
        self.p = self.param.box_group_output_param
        self.norm = bbox_norm(self)
        check_bounds(self, "box_group_output_param")
        if len(bottoms) != 2 * len(self.p.box_group_param):
            raise self.error(
                f"{len(self.p.box_group_param)} groups for {len(bottoms)} bottoms: give one for each pair of "
                "probabilities and boxes",
                field="box_group_output_param.box_group_param",
            )
        self.groups = [field_sizes(self, group, "box_group_output_param") for group in self.p.box_group_param]

    def check(self, bottoms):
        images, classes = bottoms[0].shape[0] // len(self.groups[0]), bottoms[0].shape[1]
        for prob, deltas, group in zip(bottoms[::2], bottoms[1::2], self.groups, strict=True):
            maps = images * len(group), prob.shape[2:]
            if (prob.shape, deltas.shape) != ((maps[0], classes, *maps[1]), (maps[0], 4, *maps[1])):
                raise self.error(
                    f"probabilities {tuple(prob.shape)} and boxes {tuple(deltas.shape)} for {len(group)} fields in "
                    f"{images} images: they must be [{maps[0]}, {classes}, H, W] and [{maps[0]}, 4, H, W]"
                )

    def heads(self, bottoms):
        p = self.p
        for prob, deltas, group, of in zip(bottoms[::2], bottoms[1::2], self.groups, p.box_group_param, strict=True):
            boxes = decode_fields(deltas, group, of.stride, *self.norm, p.field_xyr, p.field_whr)
            x, y, w, h = boxes.unbind(1)
            x1, x2 = x.clamp(min=0), (x + w - 1).clamp(max=prob.shape[3] * of.stride)
            y1, y2 = y.clamp(min=0), (y + h - 1).clamp(max=prob.shape[2] * of.stride)
            maps = 1 - prob[:, 0], torch.stack((x1, y1, x2, y2), -1), x2 - x1 + 1, y2 - y1 + 1
            yield [m.unflatten(0, (-1, len(group))) for m in maps]
