"""The layers of region proposal networks: py-faster-rcnn's modules ``rpn.*`` and what py-R-FCN and PVANet added.

Ren et al., "Faster R-CNN" (2015), section 3. A minibatch is one image. Sampling is done in numpy, with the draws of the
original; boxes are float32 as there.
"""

from __future__ import annotations

import numpy as np
import torch

from ..data.minibatch import expand_bbox_targets, sample_rois
from ..layers import PythonLayer, register_python
from ..ops import bbox_overlaps, bbox_transform
from ..ops.anchors import generate_anchors, shifted_anchors
from ..ops.proposals import best_proposals, by_anchor, decode_proposals, large_boxes


def as_rows(blob, width: int) -> np.ndarray:
    """The first ``width`` columns of a blob ``[N, C, 1, ...]`` as a numpy array ``[N, width]``."""
    return blob.detach().flatten(1).cpu().numpy()[:, :width]


class RegionLayer(PythonLayer):
    """Base of the layers of this family: a minibatch is one image with objects."""

    def one_image(self, bottom):
        if len(bottom) != 1:
            raise self.error(f"only minibatches of one image are supported; '{self.param.bottom[0]}' has {len(bottom)}")

    def ground_truth(self, bottom, name) -> np.ndarray:
        """gt_boxes ``[G, 5]`` ``(x1, y1, x2, y2, class)``."""
        gt_boxes = as_rows(bottom, 5)
        if not len(gt_boxes):
            raise self.error(f"'{name}' is empty: an image without objects cannot train a region proposal network")
        return gt_boxes


class AnchorLayer(RegionLayer):
    """Base of the layers that know anchors. ``param_str``: ``feat_stride`` (pixels of a cell of the feature map),
    ``scales`` [8, 16, 32] and, of PVANet, ``ratios`` [0.5, 1, 2]."""

    def setup(self, bottoms):
        self.stride = self.setting("feat_stride", int)
        lists = {}
        for name, default in (("ratios", (0.5, 1, 2)), ("scales", (8, 16, 32))):
            values = self.settings.get(name, default)
            values = values if isinstance(values, (list, tuple)) else [values]
            if not values or not all(isinstance(v, (int, float)) and v > 0 for v in values):
                raise self.error(f"'{name}' must be positive numbers, not {values!r}", field="python_param.param_str")
            lists[name] = values
        if self.stride < 1:
            raise self.error(f"'feat_stride' must be positive, not {self.stride}", field="python_param.param_str")
        self.anchors = generate_anchors(**lists)
        if bottoms[0].dim() != 4:
            raise self.error(f"'{self.param.bottom[0]}' must be a map [1, C, H, W], not {tuple(bottoms[0].shape)}")


@register_python("rpn.anchor_target_layer", "AnchorTargetLayer")
class AnchorTargetLayer(AnchorLayer):
    """py-faster-rcnn's ``AnchorTargetLayer``: which anchors train a region proposal network, and to what.

    Bottoms: any map ``[1, C, H, W]`` of the network, gt_boxes ``[G, 5]``, im_info ``[1, >= 2]``, and the data, which is
    not read. Tops: rpn_labels ``[1, 1, A * H, W]`` (1 object, 0 background, -1 ignored), rpn_bbox_targets,
    rpn_bbox_inside_weights, rpn_bbox_outside_weights ``[1, 4A, H, W]``.

    Anchors that reach more than ``allowed_border`` pixels (of param_str, 0) over the image's edge are ignored. Positive
    are those with an IoU of ``TRAIN.RPN_POSITIVE_OVERLAP`` or more and the best of each object, all of them where they
    are equally good; negative those below ``RPN_NEGATIVE_OVERLAP``. So many of both are drawn at random that
    ``RPN_BATCHSIZE`` remain, at most a fraction ``RPN_FG_FRACTION`` of them positive. With ``RPN_NORMALIZE_TARGETS``
    (py-R-FCN) targets are ``(target - RPN_NORMALIZE_MEANS) / RPN_NORMALIZE_STDS``. No gradient.
    """

    num_bottoms, num_tops = (3, 4), (4, 4)

    def setup(self, bottoms):
        super().setup(bottoms)
        self.border = self.setting("allowed_border", int, 0)
        weight = self.context.cfg.TRAIN.RPN_POSITIVE_WEIGHT
        if weight >= 0 and not 0 < weight < 1:
            raise self.error(f"TRAIN.RPN_POSITIVE_WEIGHT must be negative, or between 0 and 1, not {weight}")

    def infer(self, bottoms):
        height, width = bottoms[0].shape[2:]
        count = len(self.anchors)
        return [
            bottoms[0].new_empty((1, 1, count * height, width)),
            *(bottoms[0].new_empty((1, 4 * count, height, width)) for _ in range(3)),
        ]

    def forward(self, bottoms):
        self.one_image(bottoms[0])
        height, width = bottoms[0].shape[2:]
        gt_boxes, im_info = self.ground_truth(bottoms[1], self.param.bottom[1]), as_rows(bottoms[2], 3)[0]
        anchors = shifted_anchors(self.anchors, height, width, self.stride)
        inside = (anchors[:, :2] >= -self.border).all(1) & (anchors[:, 2:] < im_info[1::-1] + self.border).all(1)
        inds = np.where(inside)[0]
        if not len(inds):
            raise self.error(
                f"no anchor lies inside the image of {im_info[1]:g} x {im_info[0]:g} pixels",
                hint="larger images (TRAIN.SCALES), smaller 'scales', or an 'allowed_border' in param_str",
            )
        anchors = anchors[inds]
        overlaps = bbox_overlaps(anchors, gt_boxes.astype(np.float64))
        labels = self.label(overlaps)
        self.relabel(labels, inds, bottoms)
        targets = bbox_transform(anchors, gt_boxes[overlaps.argmax(1), :4]).astype(np.float32)
        train = self.context.cfg.TRAIN
        if train.RPN_NORMALIZE_TARGETS:
            targets -= np.array(train.RPN_NORMALIZE_MEANS, np.float64)
            targets /= np.array(train.RPN_NORMALIZE_STDS, np.float64)
        positive, negative = (labels == 1)[:, None], (labels == 0)[:, None]
        if train.RPN_POSITIVE_WEIGHT < 0:
            weights = (positive | negative) / max(1, np.sum(labels >= 0))
        else:
            share = train.RPN_POSITIVE_WEIGHT
            weights = positive * (share / max(1, positive.sum())) + negative * ((1 - share) / max(1, negative.sum()))
        inside_weights = positive * np.array(train.RPN_BBOX_INSIDE_WEIGHTS, np.float64)
        columns = [labels[:, None], targets, inside_weights, np.repeat(weights, 4, 1)]

        def laid_out(values, fill):
            """Rows of the anchors inside, as a map [1, size * A, H, W]."""
            rows = np.full((height * width * len(self.anchors), values.shape[1]), fill, np.float32)
            rows[inds] = values
            rows = torch.from_numpy(rows).to(bottoms[0].device)
            return rows.view(1, height, width, -1).permute(0, 3, 1, 2).contiguous()

        labels, *boxes = (laid_out(values, fill) for values, fill in zip(columns, (-1, 0, 0, 0), strict=True))
        return [labels.view(1, 1, -1, width), *boxes]

    def label(self, overlaps: np.ndarray) -> np.ndarray:
        """1, 0 or -1 for each anchor, from its overlaps ``[N, G]`` with the ground truth; sampled."""
        train, rng = self.context.cfg.TRAIN, self.context.rng
        best = overlaps.max(1)
        labels = np.full(len(overlaps), -1, np.float32)
        negative = best < train.RPN_NEGATIVE_OVERLAP
        labels[negative] = 0
        labels[np.where(overlaps == overlaps.max(0))[0]] = 1
        labels[best >= train.RPN_POSITIVE_OVERLAP] = 1
        if train.RPN_CLOBBER_POSITIVES:
            labels[negative] = 0
        num_positive = int(train.RPN_FG_FRACTION * train.RPN_BATCHSIZE)
        for label in (1, 0):
            inds = np.where(labels == label)[0]
            surplus = len(inds) - (num_positive if label else train.RPN_BATCHSIZE - int((labels == 1).sum()))
            if surplus > 0:
                labels[rng.choice(inds, size=surplus, replace=False)] = -1
        return labels

    def relabel(self, labels: np.ndarray, inds: np.ndarray, bottoms) -> None:
        """Changes ``labels`` of the anchors ``inds``, for layers that know better."""


@register_python("rpn.proposal_layer", "ProposalLayer")
class ProposalLayer(AnchorLayer):
    """py-faster-rcnn's ``ProposalLayer``: the boxes that a region proposal network finds, best first.

    Bottoms: scores ``[1, 2A, H, W]`` (background of all anchors, then object), deltas ``[1, 4A, H, W]``, im_info
    ``[1, >= 3]`` (height, width, scale). Tops: rois ``[R, 5]`` with image 0, and optionally their scores ``[R, 1]``.

    Anchors are moved by the deltas and clipped to the image; boxes with a side below ``RPN_MIN_SIZE`` pixels of the
    unscaled image go; of the ``RPN_PRE_NMS_TOP_N`` best those that survive suppression at ``RPN_NMS_THRESH``, at most
    ``RPN_POST_NMS_TOP_N``. The keys are those of ``TRAIN`` or ``TEST``, by the layer's phase. With
    ``TRAIN.RPN_NORMALIZE_TARGETS`` (py-R-FCN) the deltas are un-normalised first, in training: snapshots hold a layer
    that needs it no more. No gradient.
    """

    num_bottoms, num_tops = (3, 3), (1, 2)

    def setup(self, bottoms):
        super().setup(bottoms)
        count = len(self.anchors)
        for bottom, blob, wanted in zip(self.param.bottom, bottoms, (2 * count, 4 * count), strict=False):
            if blob.shape[1] != wanted:
                raise self.error(
                    f"{count} anchors need {wanted} channels; '{bottom}' has {blob.shape[1]}",
                    hint="'scales' and 'ratios' of param_str must be those of the network",
                )
        if bottoms[2].shape[1:].numel() < 3:
            raise self.error(f"'{self.param.bottom[2]}' must be rows (height, width, scale)")

    def infer(self, bottoms):
        return [bottoms[0].new_empty((1, columns)) for columns in (5, 1)[: len(self.param.top)]]

    def forward(self, bottoms):
        boxes, scores, _ = self.propose(bottoms)
        rois = torch.cat((boxes.new_zeros((len(boxes), 1)), boxes), 1)
        return [rois, scores[:, None]][: len(self.param.top)]

    def shifted(self, bottom) -> torch.Tensor:
        """The anchors of all cells of a map ``[1, C, H, W]``: ``[H * W * A, 4]`` float64 on its device."""
        return torch.from_numpy(shifted_anchors(self.anchors, *bottom.shape[2:], self.stride)).to(bottom.device)

    @torch.no_grad()
    def propose(self, bottoms):
        """Boxes ``[R, 4]``, their scores ``[R]`` and which anchors ``[R]`` they come from (rows y, x, anchor)."""
        self.one_image(bottoms[0])
        train = self.context.cfg.TRAIN
        cfg = train if self.context.train else self.context.cfg.TEST
        scores, deltas, im_info = bottoms[0][0], bottoms[1][0], as_rows(bottoms[2], 3)[0]
        if self.context.train and train.RPN_NORMALIZE_TARGETS:
            stds, means = (
                deltas.new_tensor(v, dtype=torch.float64).repeat(len(self.anchors))[:, None, None]
                for v in (train.RPN_NORMALIZE_STDS, train.RPN_NORMALIZE_MEANS)
            )
            deltas = ((deltas * stds).to(deltas.dtype) + means).to(deltas.dtype)
        boxes = decode_proposals(self.shifted(bottoms[1]), deltas, im_info[:2].tolist())
        scores = by_anchor(scores[len(self.anchors) :], 1)[:, 0]
        smallest = float(np.float32(cfg.RPN_MIN_SIZE) * im_info[2])
        large = large_boxes(boxes, smallest, smallest).nonzero()[:, 0]
        top_n = {"pre_nms": cfg.RPN_PRE_NMS_TOP_N, "post_nms": cfg.RPN_POST_NMS_TOP_N}
        keep = large[best_proposals(boxes[large], scores[large], nms_thresh=cfg.RPN_NMS_THRESH, **top_n)]
        return boxes[keep], scores[keep], keep


class TargetLayer(RegionLayer):
    """Base of the layers that sample proposals; ``num_classes`` comes from param_str."""

    def read_classes(self) -> None:
        """``num_classes``. Two of them in a net for more classes mean boxes that are the same for all (py-R-FCN), which
        for one class and background is no difference: ``TRAIN.AGNOSTIC`` is set unless stated."""
        self.num_classes = self.setting("num_classes", int)
        cfg = self.context.cfg
        if self.num_classes == 2 and "TRAIN.AGNOSTIC" not in cfg.explicit:
            cfg.TRAIN.AGNOSTIC = True

    def infer(self, bottoms):
        widths = [5, 1, *[4 * self.num_classes] * 3]
        return [bottoms[0].new_empty((1, width, 1, 1)) for width in widths]

    def tops(self, rois: np.ndarray, gt_boxes, name: str, device) -> list[torch.Tensor]:
        """The five tops, ``[B, width, 1, 1]``, for proposals ``rois`` ``[R, 5]`` and the blob ``gt_boxes`` called
        ``name``."""
        blobs = self.sample(rois, self.ground_truth(gt_boxes, name))
        return [torch.from_numpy(blob.reshape(len(blob), *blob.shape[1:] or (1,), 1, 1)).to(device) for blob in blobs]

    def sample(self, rois: np.ndarray, gt_boxes: np.ndarray) -> list[np.ndarray]:
        """What the tops hold, ``[B, width]`` or ``[B]`` each, for ``rois`` ``[R, 5]`` and ``gt_boxes`` ``[G, 5]``."""
        cfg = self.context.cfg
        rois = np.vstack((rois, np.hstack((np.zeros((len(gt_boxes), 1), np.float32), gt_boxes[:, :4]))))
        if rois[:, 0].any():
            raise self.error("only minibatches of one image are supported; there are rois of others")
        if not cfg.TRAIN.AGNOSTIC and gt_boxes[:, 4].max() >= self.num_classes:
            raise self.error(
                f"num_classes is {self.num_classes}, an object has class {int(gt_boxes[:, 4].max())}",
                field="python_param.param_str",
                hint="train a net for as many classes as the data set has, or with TRAIN.AGNOSTIC True",
            )
        overlaps = bbox_overlaps(rois[:, 1:].astype(np.float64), gt_boxes[:, :4].astype(np.float64))
        keep, num_fg = sample_rois(overlaps.max(1), 1, cfg, self.context.rng)
        matched = gt_boxes[overlaps.argmax(1)[keep]]
        labels, rois = matched[:, 4].copy(), rois[keep]
        labels[num_fg:] = 0
        targets = bbox_transform(rois[:, 1:], matched[:, :4])
        if cfg.TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
            means, stds = cfg.TRAIN.BBOX_NORMALIZE_MEANS, cfg.TRAIN.BBOX_NORMALIZE_STDS
            targets = (targets - np.array(means, np.float64)) / np.array(stds, np.float64)
        compact = np.hstack((labels[:, None], targets)).astype(np.float32)
        expanded, inside = expand_bbox_targets(compact, self.num_classes, cfg.TRAIN)
        return [rois, labels, expanded, inside, (inside > 0).astype(np.float32)]


@register_python("rpn.proposal_target_layer", "ProposalTargetLayer")
class ProposalTargetLayer(TargetLayer):
    """py-faster-rcnn's ``ProposalTargetLayer``: a sample of proposals with labels and box targets.

    Bottoms: rois ``[R, 5]``, gt_boxes ``[G, 5]``. Tops: rois ``[B, 5, 1, 1]``, labels ``[B, 1, 1, 1]``, bbox_targets,
    bbox_inside_weights, bbox_outside_weights ``[B, 4 * num_classes, 1, 1]``, foreground first (py-R-FCN's axes, which
    its nets need; py-faster-rcnn's are without those of length 1). ``param_str``: ``'num_classes': 21``.

    The ground truth joins the proposals; of all ``TRAIN.BATCH_SIZE`` are drawn as Fast R-CNN does
    (:func:`ohem_caffe_port.data.minibatch.sample_rois`), or all with py-R-FCN's -1. Targets are normalised by
    ``BBOX_NORMALIZE_MEANS`` and ``STDS`` with ``BBOX_NORMALIZE_TARGETS_PRECOMPUTED``. ``AGNOSTIC`` (py-R-FCN) puts all
    classes into the columns of class 1. No gradient.
    """

    num_bottoms, num_tops = (2, 2), (5, 5)

    def setup(self, bottoms):
        self.read_classes()

    def forward(self, bottoms):
        return self.tops(as_rows(bottoms[0], 5), bottoms[1], self.param.bottom[1], bottoms[0].device)


@register_python("rpn.proposal_layer", "ProposalLayer2")
class ProposalLayer2(TargetLayer, ProposalLayer):
    """PVANet's ``ProposalLayer2``: :class:`ProposalLayer` and :class:`ProposalTargetLayer` in one.

    Bottoms: scores, deltas, im_info and gt_boxes. Tops: the five of ``ProposalTargetLayer``. Its code was not published
    with the nets that use it; here it is what those bottoms, tops and param_str (of both layers) say.
    """

    num_bottoms, num_tops = (4, 4), (5, 5)

    def setup(self, bottoms):
        self.read_classes()
        super().setup(bottoms)

    def forward(self, bottoms):
        boxes, _, _ = self.propose(bottoms)
        rois = np.hstack((np.zeros((len(boxes), 1), np.float32), boxes.cpu().numpy()))
        return self.tops(rois, bottoms[3], self.param.bottom[3], boxes.device)
