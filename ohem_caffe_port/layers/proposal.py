"""Proposals of a region proposal network, made by layers in C++."""

from __future__ import annotations

import numpy as np
import torch

from ..ops.anchors import generate_anchors, shifted_anchors
from ..ops.proposals import best_proposals, by_anchor, decode_proposals, large_boxes
from .base import Layer, register

PVANET = {"base_size", "min_size", "ratio", "scale", "post_nms_topn", "nms_thresh"}
SYNOPSYS = {"anchor_base_size", "anchor_scale", "anchor_ratio", "max_rois", "rpn_min_size", "rpn_nms_thresh"}


def half_up(values):
    """Rounds positive numbers as C's casts of ``x + 0.5`` do."""
    return np.floor(values + 0.5)


@register("Proposal")
class Proposal(Layer):
    """The boxes that a region proposal network finds, best first (PVANet's layer, and one of synopsys-caffe).

    Bottoms: scores ``[N, 2A, H, W]`` (background of all anchors, then object), deltas ``[N, 4A, H, W]``, im_info rows
    ``(height, width, scale of y, scale of x, ...)`` or ``(height, width, scale)``. Tops: rois ``[R, 5]`` and optionally
    their scores, ``[R]`` (synopsys: ``[R, 1]``). No gradient.

    The fields say which layer it is. PVANet's knows base_size, ratio, scale, min_size, post_nms_topn, nms_thresh: boxes
    below min_size keep their place with a score of 0. synopsys': anchor_base_size, anchor_scale and anchor_ratio (3 or
    1 of each), max_rois, rpn_min_size, rpn_nms_thresh: such boxes are dropped, but never the last one of all; boxes
    beyond pre_nms_topn still follow when fewer than max_rois survive; one image only. Both round anchors half up. The
    order of equal scores is not defined in PVANet's (an unstable sort). (caffe-windows' copy of PVANet's layer takes
    scales in pixels instead of multiples of base_size; nothing in a file tells the two apart.)
    """

    fields = {"proposal_param": {"feat_stride", "pre_nms_topn", *PVANET, *SYNOPSYS}}
    num_bottoms, num_tops = (3, 3), (1, 2)

    def setup(self, bottoms):
        p = self.param.proposal_param
        given = {field.name for field, _ in p.ListFields()}
        self.pvanet = bool(given & PVANET)
        if self.pvanet and given & SYNOPSYS:
            mixed = sorted(given & (PVANET | SYNOPSYS))
            raise self.error(f"fields of two layers of this name: {', '.join(mixed)}", field="proposal_param")
        if self.pvanet:
            base, ratios, scales = p.base_size, list(p.ratio), list(p.scale)
            self.min_size, self.thresh = p.min_size, p.nms_thresh
            self.top_n = {"pre_nms": p.pre_nms_topn, "post_nms": p.post_nms_topn}
        else:
            base = p.anchor_base_size
            ratios = [0.5, 1, 2] if p.anchor_ratio == 3 else [1]
            scales = [8, 16, 32] if p.anchor_scale == 3 else [32]
            self.min_size, self.thresh = p.rpn_min_size, p.rpn_nms_thresh
            self.top_n = {"pre_nms": 0, "post_nms": p.max_rois}
        if not ratios or not scales or min(base, p.feat_stride, *ratios, *scales) <= 0:
            raise self.error(
                f"feat_stride {p.feat_stride}, the base size {base}, ratios {ratios} and scales {scales} must be "
                "positive, and at least one of each",
                field="proposal_param",
            )
        if not self.pvanet and self.top_n["post_nms"] < 1 or self.pvanet and not all(self.top_n.values()):
            raise self.error("the numbers of proposals must be positive", field="proposal_param")
        self.anchors = generate_anchors(base, np.float32(ratios), np.float32(scales), half_up)
        count = len(self.anchors)
        for name, blob, wanted in zip(self.param.bottom, bottoms, (2 * count, 4 * count), strict=False):
            if blob.dim() != 4 or blob.shape[1] != wanted:
                raise self.error(f"{count} anchors need {wanted} channels; '{name}' has shape {tuple(blob.shape)}")
        if bottoms[2].dim() < 2 or bottoms[2].shape[1:].numel() < 3:
            raise self.error(f"'{self.param.bottom[2]}' must be rows (height, width, scale ...)")

    def infer(self, bottoms):
        rows = len(bottoms[0]) * self.top_n["post_nms"]
        tops = [bottoms[0].new_empty((rows, 5)), bottoms[0].new_empty((rows,) if self.pvanet else (rows, 1))]
        return tops[: len(self.param.top)]

    @torch.no_grad()
    def forward(self, bottoms):
        scores, deltas, im_info = bottoms
        if len(scores) > 1 and not self.pvanet:
            raise self.error(f"takes one image, not {len(scores)}")
        im_info = im_info.detach().flatten(1).cpu().numpy()
        anchors = shifted_anchors(self.anchors, *scores.shape[2:], self.param.proposal_param.feat_stride)
        anchors = torch.from_numpy(anchors).to(deltas.device)
        found = []
        for n in range(len(scores)):
            height, width, *scale = im_info[min(n, len(im_info) - 1)].tolist()
            boxes = decode_proposals(anchors, deltas[n], (height, width))
            each = by_anchor(scores[n, len(self.anchors) :], 1)[:, 0]
            high, wide = (float(np.float32(self.min_size) * np.float32(s)) for s in (scale[0], scale[:2][-1]))
            large = large_boxes(boxes, wide, high)
            if self.pvanet:
                each = each * large
            else:
                large[-1] = True
                rows = torch.arange(len(boxes), device=boxes.device).view(-1, len(self.anchors)).t().flatten()
                rows = rows[large[rows]]  # in the order anchor, y, x, which decides between equal scores
                boxes, each = boxes[rows], each[rows]
            keep = best_proposals(boxes, each, nms_thresh=self.thresh, **self.top_n)
            image = boxes.new_full((len(keep), 1), n)
            found.append((torch.cat((image, boxes[keep]), 1), each[keep] if self.pvanet else each[keep, None]))
        return [torch.cat(parts) for parts in zip(*found, strict=True)][: len(self.param.top)]
