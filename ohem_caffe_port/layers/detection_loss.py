"""The losses of MS-CNN's and cascade-rcnn's proposal heads: sampled softmax and bounded box regression."""

from __future__ import annotations

import math

import torch

from ..ops.mscnn import bound_fields, descending, encode_fields
from .base import cheap_to_read, register
from .box_base import BBOX_REG
from .field_head import group_maps, one_field_maps, set_up_head
from .loss import LossLayer

_FLT_MIN = torch.finfo(torch.float32).tiny


class _FieldLoss(torch.autograd.Function):
    """``(class + box, box)`` as ``[1, 1, 1, 2]``; only the gradient of the first is used, as in Caffe.

    Bounded regression outputs keep their gradient; so do probabilities under the smallest float.
    """

    @staticmethod
    def forward(ctx, scores, deltas, labels, counted, weights, targets, positive, bounds, factor, smooth):
        prob = torch.softmax(scores, 1)
        index = torch.where(counted, labels, 0)[:, None]
        picked = prob.gather(1, index)[:, 0].clamp(min=_FLT_MIN)
        weights = torch.where(counted, weights, 0) / counted.sum().clamp(min=1)
        class_loss = -(picked.log() * weights).sum()

        positive = positive[:, None]
        bounded = bound_fields(deltas, *bounds) if bounds else deltas
        d = torch.where(positive, bounded - targets, 0)
        inside = d.abs() < 1
        error = torch.where(inside, d * d / 2, d.abs() - 0.5) if smooth else d * d / 2
        factor = factor / (4 * positive.sum()).clamp(min=1).to(d.dtype)
        box_loss = error.sum() * factor
        ctx.save_for_backward(prob, index, weights, (d.clamp(-1, 1) if smooth else d) * factor)
        return torch.stack((class_loss + box_loss, box_loss)).view(1, 1, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        prob, index, weights, box_grad = ctx.saved_tensors
        one_hot = torch.zeros_like(prob).scatter_(1, index, 1)
        grad = grad[0, 0, 0, 0]
        return (prob - one_hot) * weights[:, None] * grad, box_grad * grad, *[None] * 8


class FieldLoss(LossLayer):
    """What :class:`DetectionLoss` and :class:`DetectionGroupLoss` share: all but which cells count.

    A subclass sets ``smooth`` in its setup.
    """

    def setup(self, bottoms):
        set_up_head(self)
        self.bounds = self._normalized_bounds()

    def _normalized_bounds(self):
        """Least and largest normalised outputs. Both axes share one bound, made with the mean of their means and the
        geometric mean of their deviations."""
        (mx, my, mw, mh), (sx, sy, sw, sh) = self.norm
        parts = (1 / self.p.field_xyr, (mx + my) / 2, sx * sy), (math.log(self.p.field_whr), (mw + mh) / 2, sw * sh)
        return [
            [(sign * bound - mean) / math.sqrt(var) for bound, mean, var in parts for _ in "xy"] for sign in (-1, 1)
        ]

    def infer(self, bottoms):
        self.maps(bottoms)
        return [torch.empty((1, 1, 1, 2), device="meta")]

    def forward(self, bottoms):
        scores, deltas, truth = self.maps(bottoms)
        truth = truth.detach()
        raw, labels = self._labels(truth)
        kept = self.sample(scores.detach(), raw, labels, truth[:, 5])
        positive = kept & (raw != 0)
        weights = torch.ones_like(truth[:, 5])
        if getattr(self.p, "iou_weighted", False):
            weights = torch.where(positive, truth[:, 5], 1)
        if self.p.pos_neg_weighted:
            weights = self._balanced(weights, raw, kept)
        if self.ignore_label is not None:
            kept, positive = kept & (labels != self.ignore_label), positive & (raw != self.ignore_label)
        targets = encode_fields(truth[:, 1:5], self.group, self.stride, *self.norm)
        settings = self.bounds, getattr(self.p, "lambda"), self.smooth
        return [_FieldLoss.apply(scores, deltas, labels, kept, weights, targets, positive, *settings)]

    def maps(self, bottoms):
        """Scores, regression outputs and ground truth.

        Raises:
            PortError: shapes that do not fit.
        """
        raise NotImplementedError

    def sample(self, scores, raw, labels, iou):
        """The cells that count: bool, as ``raw``, the labels in the ground truth; ``labels`` are the class loss's."""
        raise NotImplementedError

    def _labels(self, truth):
        raw = truth[:, 0].long()
        labels = raw.clamp(max=1) if self.p.objectness else raw
        if cheap_to_read(raw):
            wrong = (labels < 0) | (labels >= self.p.cls_num)
            if self.ignore_label is not None:
                wrong &= labels != self.ignore_label
            if wrong.any():
                raise self.error(
                    f"label {labels[wrong][0].item()} in a head of {self.p.cls_num} classes, background included"
                )
        return raw, labels

    def _balanced(self, weights, raw, kept):
        """Foreground shall count ``1 / (1 + bg_multiple)`` of the kept cells, background the rest."""
        share = 1 / (1 + self.p.bg_multiple)
        for part, portion in ((raw != 0, share), (raw == 0, 1 - share)):
            total = (weights * (part & kept)).sum()
            scale = torch.where(total != 0, kept.sum() / total * portion, 1)
            weights = torch.where(part, weights * scale, weights)
        return weights


@register("DetectionLoss")
class DetectionLoss(FieldLoss):
    """MS-CNN's loss of a proposal head with one field: softmax over sampled cells plus ``lambda`` times box regression.

    Bottoms: ``[N, C + 4, H, W]`` class scores (background first) and regression outputs; ground truth ``[N, 6, H, W]``:
    label, centre x, centre y, width, height, IoU of the field with its best object. Top ``[1, 1, 1, 2]``: the loss, and
    the box loss as part of it; both enter the net's loss, only the first has a gradient.

    Every cell with a label counts. Of the cells without, and with an IoU under ``bg_threshold``, ``sample_mode`` picks:
    "random" looks at ``bg_multiple`` times as many random cells as there are labelled ones (4 for each foreground class
    at least; cells it meets twice or that are no background are not replaced); "bootstrap" takes for each class the
    ``bg_multiple`` times as many (at least 4) with the highest score; "mixture" half of each; anything else all.
    ``iou_weighted`` weights labelled cells by their IoU, ``pos_neg_weighted`` lets foreground count 1 to
    ``bg_multiple`` of background, both in the class loss; ``objectness`` makes all labels 1. Each loss is the mean over
    its cells (and four coordinates). Regression outputs are bounded by ``field_xyr`` and ``field_whr``, which does not
    stop their gradient; ``bb_smooth`` takes smooth L1 in place of half the square.

    MS-CNN, Cai et al. 2016, equations 1 to 5. Where the fork's two versions differ (a batch without foreground and
    ``pos_neg_weighted``) this is the GPU's, with which its models were trained.
    """

    fields = {
        "detection_loss_param": {
            "cls_num", "coord_num", "lambda", "field_h", "field_w", "downsample_rate", "bb_smooth", "field_whr",
            "field_xyr", "bg_threshold", "bg_multiple", "sample_mode", "objectness", "iou_weighted", "pos_neg_weighted",
        },
        "bbox_reg_param": BBOX_REG,
        "loss_param": {"ignore_label"},
    }  # fmt: skip

    def setup(self, bottoms):
        super().setup(bottoms)
        self.smooth = self.p.bb_smooth

    def maps(self, bottoms):
        return one_field_maps(self, bottoms)

    def sample(self, scores, raw, labels, iou):
        p, rng = self.p, self.context.rng
        labelled = (raw != 0).flatten(1)
        free = ((raw == 0) & (iou < p.bg_threshold)).flatten(1)
        share = p.bg_multiple * (0.5 if p.sample_mode == "mixture" else 1)
        chosen = labelled.clone()
        if p.sample_mode not in ("random", "bootstrap", "mixture"):
            chosen |= free
        if p.sample_mode in ("random", "mixture"):
            for image, count in enumerate(labelled.sum(1).tolist()):
                looks = rng.randint(free.shape[1], size=max(int(count * share), 4 * (p.cls_num - 1)))
                chosen[image, torch.from_numpy(looks).to(free.device)] = True
            chosen &= free | labelled
        if p.sample_mode in ("bootstrap", "mixture"):
            for image in range(len(free)):
                cells = free[image].nonzero()[:, 0]
                for k in range(1, p.cls_num):
                    count = max(4, int(int((labels[image] == k).sum()) * share))
                    chosen[image, cells[descending(scores[image, k].flatten()[cells])[:count]]] = True
        return chosen.view_as(raw)


@register("DetectionGroupLoss")
class DetectionGroupLoss(FieldLoss):
    """cascade-rcnn's loss of a proposal head with several fields: softmax over sampled cells plus box regression.

    Bottoms: class scores ``[N * G, C, H, W]`` (background first), regression outputs ``[N * G, 4, H, W]`` and ground
    truth ``[N * G, 6, H, W]`` (label, centre x, centre y, width, height, IoU), the G fields of an image next to each
    other. Top ``[1, 1, 1, 2]`` as of DetectionLoss.

    In each image, all fields together, ``batch_size`` cells count: ``1 / (1 + bg_multiple)`` of them labelled (drawn at
    random if there are more), the others without label and with an IoU under ``bg_threshold``; with ``batch_size: -1``
    all labelled ones and ``bg_multiple`` times as many of the others, ``min_num_neg`` at least. Of too many,
    ``neg_mining_type`` draws at "random", takes the hardest ("bootstrap") or half so and half at random ("mixture");
    hard is a cell of high loss ("conf_loss", ``neg_ranking_type``) or low probability of background ("conf_prob").
    ``bbox_loss_type`` is "Smooth_L1" or "Euclidean_L2"; outputs are bounded only if both ``field_xyr`` and
    ``field_whr`` are given. Other settings as of DetectionLoss, except that the fork also writes the bounded outputs
    back into its bottom, which this layer leaves as it is.
    """

    fields = {
        "detection_group_loss_param": {
            "cls_num", "lambda", "field_h", "field_w", "stride", "field_whr", "field_xyr", "bg_threshold",
            "bg_multiple", "neg_mining_type", "neg_ranking_type", "min_num_neg", "objectness", "batch_size",
            "pos_neg_weighted", "bbox_loss_type",
        },
        "bbox_reg_param": BBOX_REG,
        "loss_param": {"ignore_label"},
    }  # fmt: skip
    num_bottoms = (3, 3)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def setup(self, bottoms):
        super().setup(bottoms)
        p, name = self.p, "detection_group_loss_param"
        for field, known in (
            ("neg_mining_type", ("random", "bootstrap", "mixture")),
            ("neg_ranking_type", ("conf_loss", "conf_prob")),
            ("bbox_loss_type", ("Smooth_L1", "Euclidean_L2")),
        ):
            if getattr(p, field) not in known:
                raise self.error(f"'{getattr(p, field)}' is none of {', '.join(known)}", field=f"{name}.{field}")
        if p.batch_size < -1 or not p.batch_size:
            raise self.error("must be positive, or -1", field=f"{name}.batch_size")
        self.smooth = p.bbox_loss_type == "Smooth_L1"
        if not (p.HasField("field_xyr") and p.HasField("field_whr")):
            self.bounds = None

    def maps(self, bottoms):
        return group_maps(self, bottoms)

    def sample(self, scores, raw, labels, iou):
        p, images = self.p, len(raw) // len(self.group)
        labelled = (raw > 0).view(images, -1)
        free = ((raw == 0) & (iou < p.bg_threshold)).view(images, -1)
        background = scores.softmax(1)[:, 0].reshape(images, -1)
        hardness = 1 - background if p.neg_ranking_type == "conf_prob" else -background.clamp(min=_FLT_MIN).log()
        kept = torch.zeros_like(free)
        for image in range(images):
            positive, negative = labelled[image].nonzero()[:, 0], free[image].nonzero()[:, 0]
            if p.batch_size == -1:
                take, room = len(positive), max(len(positive) * p.bg_multiple, p.min_num_neg)
            else:
                take = min(math.floor(p.batch_size / (1 + p.bg_multiple) + 0.5), len(positive))
                room = p.batch_size - take
            kept[image, self._drawn(positive, take)] = True
            kept[image, self._mined(negative, room, hardness[image])] = True
        return kept.view_as(raw)

    def _drawn(self, cells, count):
        if len(cells) <= count:
            return cells
        return cells[torch.from_numpy(self.context.rng.permutation(len(cells))[:count]).to(cells.device)]

    def _mined(self, cells, count, hardness):
        if len(cells) <= count or self.p.neg_mining_type == "random":
            return self._drawn(cells, count)
        hard = count if self.p.neg_mining_type == "bootstrap" else math.floor(count * 0.5 + 0.5)
        cells = cells[descending(hardness[cells])]
        return torch.cat((cells[:hard], self._drawn(cells[hard:], count - hard)))
