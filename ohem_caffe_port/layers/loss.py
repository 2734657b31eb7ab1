"""Softmax and its loss, and what all losses share: labels, normalisers, gradients that Caffe writes down itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Layer, canonical_axis, cheap_to_read, register

_FLT_MIN = torch.finfo(torch.float32).tiny
_LEAST_LOG = math.log(2.0**-149)  # of the smallest float32, which is the fork's 1e-45f


@register("Softmax")
class Softmax(Layer):
    """``SoftmaxLayer``: scores as probabilities, ``exp(x) / sum exp(x)`` along ``axis``."""

    fields = {"softmax_param": {"axis"}}

    def setup(self, bottoms):
        self.axis = canonical_axis(self, self.param.softmax_param.axis, bottoms[0].dim())

    def forward(self, bottoms):
        return [torch.softmax(bottoms[0], self.axis)]


@register("LogSoftmax")
class LogSoftmax(Layer):
    """synopsys-caffe's ``LogSoftmaxLayer``: the logarithm of Softmax along ``axis``, at least log(1e-45).

    The fork has no backward; here it has its true gradient.
    """

    fields = {"log_softmax_param": {"axis"}}

    def setup(self, bottoms):
        self.axis = canonical_axis(self, self.param.log_softmax_param.axis, bottoms[0].dim())

    def forward(self, bottoms):
        return [torch.log_softmax(bottoms[0], self.axis).clamp(min=_LEAST_LOG)]


# ---- what losses share


def refuse_gradient(layer: Layer, *bottoms: Tensor, what: str = "its labels") -> None:
    """Caffe stops a training that wants a gradient of such bottoms: a loss's labels, indices, what ArgMax reads...

    Raises:
        PortError: one of the bottoms comes from layers that train, and ``propagate_down`` does not cut it off.
    """
    if torch.is_grad_enabled() and any(bottom.requires_grad for bottom in bottoms):
        raise layer.error(
            f"cannot pass a gradient to {what}",
            field="propagate_down",
            hint="layers that train lie below; say propagate_down: false for this bottom",
        )


def class_labels(layer: Layer, shape, labels: Tensor, axis: int, ignore_label: int | None = None):
    """The class of every position off ``axis`` of scores of ``shape``, cut to an integer as Caffe does.

    Returns:
        (labels, counted): both of the positions' shape; where a label is ``ignore_label``, ``counted`` is False and
        the label is 0, so that it can be an index.

    Raises:
        PortError: not one label for each position, a label that is no class, or labels that want a gradient. (Their
            values are looked at where :func:`~ohem_caffe_port.layers.base.cheap_to_read`.)
    """
    refuse_gradient(layer, labels)
    positions, classes = (*shape[:axis], *shape[axis + 1 :]), shape[axis]
    if labels.numel() != math.prod(positions):
        raise layer.error(f"{labels.numel()} labels for {math.prod(positions)} predictions {tuple(shape)}")
    labels = labels.reshape(positions).long()
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    if cheap_to_read(labels):
        wrong = counted & ((labels < 0) | (labels >= classes))
        if wrong.any():
            raise layer.error(
                f"label {labels[wrong][0].item()} in a net of {classes} classes",
                hint="the data set has other classes than the net; check num_output and the imdb's class list",
            )
    return torch.where(counted, labels, 0), counted


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, x, slope):
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return None, grad * ctx.saved_tensors[0], None


def given_gradient(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The scalar ``value`` with ``slope`` as its gradient by ``x``, where Caffe's backward is not the derivative."""
    return _GivenGradient.apply(value.detach(), x, slope.detach())


class LossLayer(Layer):
    """A layer whose first top is a scalar with loss_weight 1 unless stated."""

    is_loss = True
    num_bottoms = (2, 2)

    def check_rows(self, bottoms) -> None:
        """``LossLayer::Reshape``: prediction and target have as many rows."""
        shapes = [tuple(b.shape) for b in bottoms[:2]]
        if not all(shapes) or shapes[0][0] != shapes[1][0]:
            raise self.error(f"prediction {shapes[0]} and target {shapes[1]} differ in rows")

    def check_sizes(self, bottoms) -> None:
        """All bottoms are of one size, whatever their shapes."""
        if len({b.numel() for b in bottoms}) > 1:
            raise self.error(f"bottoms differ in size: {[tuple(b.shape) for b in bottoms]}")

    def normalization(self, default: int, pre_fixed: bool = False) -> int:
        """The mode that ``loss_param`` states with ``normalization`` or the older ``normalize`` (true is VALID, false
        BATCH_SIZE), or the default."""
        p = self.param.loss_param
        if p.HasField("normalize") and not p.HasField("normalization"):
            return p.VALID if p.normalize else p.BATCH_SIZE
        mode = p.normalization if p.HasField("normalization") else default
        if mode not in (p.FULL, p.VALID, p.BATCH_SIZE, p.NONE) and not pre_fixed:
            raise self.error(
                f"this normalisation does not exist for {self.type}",
                field="loss_param.normalization",
                hint="it knows FULL, VALID, BATCH_SIZE and NONE",
            )
        return mode

    def normalizer(self, mode: int, rows: int, positions: int, valid: Tensor | None = None):
        """``LossLayer::GetNormalizer``: what the sum is divided by, never less than 1.

        Args:
            rows: what BATCH_SIZE divides by.
            positions: what FULL divides by, and VALID where every position is valid.
            valid: what VALID divides by, where not every position is.
        """
        p = self.param.loss_param
        if mode == p.VALID and valid is not None:
            return valid.clamp(min=1)
        return max(1, {p.BATCH_SIZE: rows, p.NONE: 1, p.PRE_FIXED: p.pre_fixed_normalizer}.get(mode, positions))


# ---- SoftmaxWithLoss


class _SoftmaxLoss(torch.autograd.Function):
    """``-log(max(p[label], FLT_MIN))`` at each position, and ``p``.

    The gradient at a position is ``scale * p - off`` and, for the label, ``drop`` less (1, 0, 1: ``p - onehot``).
    """

    @staticmethod
    def forward(ctx, scores, labels, axis, scale, off, drop):
        prob = torch.softmax(scores, axis)
        index = labels.unsqueeze(axis)
        ctx.save_for_backward(prob, index)
        ctx.settings = axis, scale, off, drop
        ctx.mark_non_differentiable(prob)
        return -torch.log(prob.gather(axis, index).squeeze(axis).clamp(min=_FLT_MIN)), prob

    @staticmethod
    def backward(ctx, grad, _):
        prob, index = ctx.saved_tensors
        axis, scale, off, drop = ctx.settings
        diff = prob.clone() if (scale, off) == (1, 0) else prob * scale - off
        diff.scatter_add_(axis, index, diff.new_full((), -drop).expand(index.shape))
        return diff.mul_(grad.unsqueeze(axis)), None, None, None, None, None


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(LossLayer):
    """``SoftmaxWithLossLayer``: the multinomial logistic loss of the softmax of the scores.

    Bottoms: scores, labels (one for each position off the softmax axis) and, in caffe-windows' and Intel's forks, a
    weight for each label. Tops: the loss; optionally the probabilities; optionally (caffe-rfcn, cascade-rcnn) the loss
    of every position, 0 where it is ignored, in the labels' shape.

    ``loss_param.normalization``: VALID (default; positions that are not ``ignore_label``), FULL, BATCH_SIZE (all axes
    before the softmax axis), NONE, never less than 1. The older ``normalize: false`` means BATCH_SIZE. With weights,
    VALID divides by their sum (caffe-windows; Intel's fork divides by it in every mode, also below 1).

    SegNet: ``weight_by_label_freqs`` multiplies a position by its label's ``class_weighting``; the normaliser still
    counts positions.

    ``label_smoothing`` changes the gradient alone, as in both forks that have it. With ``D`` scores in a row
    (channels x positions), NVIDIA's aims at ``s / (D - 1)``, and ``1 - s`` more for the label. Intel's, meant where
    there are weights, aims at ``s / D``, and at ``1 - s`` for the label, and multiplies p by the sum of these.
    """

    fields = {
        "softmax_param": {"axis"},
        "loss_param": {
            "ignore_label", "normalization", "normalize", "label_smoothing", "weight_by_label_freqs", "class_weighting",
        },
    }  # fmt: skip
    num_bottoms = (2, 3)
    num_tops = (1, 3)

    def setup(self, bottoms):
        p = self.param.loss_param
        self.axis = canonical_axis(self, self.param.softmax_param.axis, bottoms[0].dim())
        self.ignore_label = p.ignore_label if p.HasField("ignore_label") else None
        self.mode = self.normalization(p.VALID)

    def forward(self, bottoms):
        scores, labels = bottoms[:2]
        self.check_rows(bottoms)
        index, counted = class_labels(self, scores.shape, labels, self.axis, self.ignore_label)
        row = math.prod(scores.shape[self.axis :])
        losses, prob = _SoftmaxLoss.apply(scores, index, self.axis, *self._target(row, len(bottoms) == 3))
        weights = counted.to(losses.dtype)
        valid = None if self.ignore_label is None else weights.sum()
        if len(bottoms) == 3:
            if bottoms[2].numel() != index.numel():
                raise self.error(f"{bottoms[2].numel()} weights for {index.numel()} labels")
            weights = weights * bottoms[2].detach().reshape(weights.shape)
            valid = weights.sum()
        if self.param.loss_param.weight_by_label_freqs:
            weights = weights * self._class_weights(scores)[index]
        divisor = self.normalizer(self.mode, math.prod(scores.shape[: self.axis]), index.numel(), valid)
        tops = [(losses * weights).sum() / divisor, prob]
        if len(self.param.top) == 3:
            tops.append((losses.detach() * counted).reshape(labels.shape))
        return tops[: max(1, len(self.param.top))]

    def _target(self, row: int, weighted: bool) -> tuple[float, float, float]:
        """``scale, off, drop`` of :class:`_SoftmaxLoss`."""
        s = self.param.loss_param.label_smoothing
        if not s:
            return 1, 0, 1
        if weighted:  # Intel
            return 1 - s + (row - 1) * s / row, s / row, 1 - s - s / row
        return 1, s / max(1, row - 1), 1 - s

    def _class_weights(self, scores):
        weights = list(self.param.loss_param.class_weighting)
        if len(weights) != scores.shape[self.axis]:
            raise self.error(
                f"{len(weights)} weights for {scores.shape[self.axis]} classes", field="loss_param.class_weighting"
            )
        return scores.new_tensor(weights)
