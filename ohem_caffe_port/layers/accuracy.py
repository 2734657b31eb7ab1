"""Layers that measure: Accuracy and SegAccuracy. They have no gradient."""

from __future__ import annotations

import torch

from .base import Layer, canonical_axis, register
from .loss import class_labels, refuse_gradient


@register("Accuracy")
class Accuracy(Layer):
    """``AccuracyLayer`` of BVLC master: the share of labels among the ``top_k`` best scores; ties count against.

    Bottoms: scores, labels (one for each position off ``axis``) and, in caffe-windows, a number for each label, 0 where
    it is left out, as those of ``ignore_label`` are. Tops: the share (0 of nothing), and optionally that of each class
    (0 for a class without labels; SegNet's fork says 1). ``min_is_better`` (caffe-windows) looks for the smallest
    scores, of equal ones the first. Before 2018, of equal scores the class of the higher index won.
    """

    fields = {"accuracy_param": {"top_k", "axis", "ignore_label", "min_is_better"}}
    num_bottoms = (2, 3)
    num_tops = (1, 2)

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p = self.param.accuracy_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        self.ignore_label = p.ignore_label if p.HasField("ignore_label") else None

    def forward(self, bottoms):
        refuse_gradient(self, *bottoms, what="its bottoms")
        p, scores = self.param.accuracy_param, bottoms[0].detach()
        classes = scores.shape[self.axis]
        if p.top_k > classes:
            raise self.error(f"the {p.top_k} best of {classes} classes", field="accuracy_param.top_k")
        labels, counted = class_labels(self, scores.shape, bottoms[1].detach(), self.axis, self.ignore_label)
        if len(bottoms) == 3:
            if bottoms[2].numel() != labels.numel():
                raise self.error(f"{bottoms[2].numel()} weights for {labels.numel()} labels")
            counted = counted & (bottoms[2].reshape(labels.shape) != 0)
        index = labels.unsqueeze(self.axis)
        own = scores.gather(self.axis, index)
        if p.min_is_better:
            place = torch.arange(classes, device=scores.device)
            place = place.reshape(-1, *(1,) * (scores.dim() - self.axis - 1))
            better = ((scores < own) | ((scores == own) & (place < index))).sum(self.axis)
        else:
            better = (scores >= own).sum(self.axis) - 1
        hits = (better < p.top_k) & counted
        tops = [hits.sum() / counted.sum().clamp(min=1)]
        if len(self.param.top) == 2:
            zeros, flat = scores.new_zeros(classes), labels.flatten()
            found, there = (zeros.index_add(0, flat, m.flatten().to(zeros.dtype)) for m in (hits, counted))
            tops.append(found / there.clamp(min=1))
        return tops


@register("SegAccuracy")
class SegAccuracy(Layer):
    """PSPNet's ``SegAccuracyLayer``: pixel accuracy, mean class accuracy and mean IoU of a segmentation.

    Bottoms: scores [N, C, H, W] and labels [N, 1, H, W]; pixels whose label is one of ``ignore_label`` do not count.
    Top: [1, 1, 1, 3] of the confusion matrix, which ``reset: false`` keeps adding to over the forwards: the share of
    pixels, the mean share over the classes that occur, and the mean IoU over all classes, 1 for one that neither
    occurs nor is predicted. Of equal scores the class of the higher index wins. ``metric`` chooses nothing in the fork
    either.
    """

    fields = {"seg_accuracy_param": {"metric", "ignore_label", "reset"}}
    num_bottoms = (2, 2)

    def setup(self, bottoms):
        self.counts = None

    def infer(self, bottoms):
        scores, labels = (tuple(b.shape) for b in bottoms)
        if len(scores) != 4 or labels != (scores[0], 1, *scores[2:]):
            raise self.error(f"takes scores [N, C, H, W] and labels [N, 1, H, W], not {scores} and {labels}")
        return [bottoms[0].new_empty(1, 1, 1, 3)]

    def forward(self, bottoms):
        self.infer(bottoms)
        p, scores, labels = self.param.seg_accuracy_param, bottoms[0].detach(), bottoms[1][:, 0].long()
        classes = scores.shape[1]
        counted = torch.ones_like(labels, dtype=torch.bool)
        for ignored in p.ignore_label:
            counted &= labels != ignored
        predicted, labels = classes - 1 - scores.flip(1).argmax(1)[counted], labels[counted]
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            raise self.error(f"label {labels[wrong][0].item()} in a net of {classes} classes",
                             hint="labels that do not count must be listed as ignore_label")  # fmt: skip
        counts = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
        if p.reset or self.counts is None:
            self.counts = counts
        else:
            self.counts += counts
        matrix = self.counts.double()
        hit, actual, union = matrix.diag(), matrix.sum(1), matrix.sum(0) + matrix.sum(1) - matrix.diag()
        occurs = actual > 0
        result = [
            hit.sum() / matrix.sum().clamp(min=1),
            (hit / actual.clamp(min=1)).sum() / occurs.sum().clamp(min=1),
            torch.where(union > 0, hit / union.clamp(min=1), 1).mean(),
        ]
        return [torch.stack(result).to(scores.dtype).reshape(1, 1, 1, 3)]
