"""Focal loss (Lin et al., ICCV 2017) between scores and labels, as the Caffe forks have it."""

from __future__ import annotations

import math

import torch

from ..mining import focal_loss_star, sigmoid_focal_loss, softmax_focal_loss
from .base import canonical_axis, register
from .loss import LossLayer, class_labels, given_gradient, refuse_gradient

_FLT_MIN = torch.finfo(torch.float32).tiny
_LEAST_VALID = 100  # what VALID divides by at least, in the fork with `mode`


def focal_gamma(layer, message) -> float:
    """``gamma``, or ``gama`` as early code spells it.

    Raises:
        PortError: one that is negative or not finite, or two that differ.
    """
    gamma = message.gama if message.HasField("gama") and not message.HasField("gamma") else message.gamma
    if message.HasField("gama") and message.gama != gamma:
        raise layer.error(f"gama {message.gama:g} and gamma {gamma:g}", field="focal_loss_param.gamma",
                          hint="they are two spellings of one setting; state one")  # fmt: skip
    if not 0 <= gamma < math.inf:
        raise layer.error("must be finite and not negative", field="focal_loss_param.gamma")
    return gamma


def focal_alpha(layer, message, default: float) -> float | list[float]:
    """``alpha``, or one for each class with ``alpha_balance``.

    Raises:
        PortError: one that is not positive or not finite, or several without ``alpha_balance``.
    """
    alpha = list(message.alpha)
    if not all(0 < a < math.inf for a in alpha):
        raise layer.error("must be positive and finite", field="focal_loss_param.alpha")
    if message.HasField("alpha_balance"):
        return alpha if message.alpha_balance else 1.0
    if len(alpha) > 1:
        raise layer.error(f"{len(alpha)} given", field="focal_loss_param.alpha",
                          hint="state alpha_balance: true for one to a class")  # fmt: skip
    return alpha[0] if alpha else default


@register("FocalLoss")
class FocalLoss(LossLayer):
    """Focal loss of softmax or sigmoid scores, ``-alpha (1 - p_t)^gamma log(p_t)``, by the fields of every known fork.

    Bottoms: scores, labels; a third one (of the fork with ``mode``) is not read. Tops: the loss; optionally the
    probabilities.

    **Softmax**, where labels are one for each position off ``axis`` (of ``focal_loss_param``, as in
    chuanqi305/FocalLoss, or of ``softmax_param``, in zimenglan-sysu-512, liaomingg, caffe-windows): ``p_t`` is the
    label's probability and ``alpha`` (0.25) weighs every class alike; with ``alpha_balance`` (owphoo/FocalLoss) there
    is one for each class, and ``alpha_balance: false`` means 1. ``normalization`` is VALID unless stated.
    ``type: ONEADDP`` (caffe-windows, for faces) is ``-(alpha + p_t)^gamma log(p_t)``, alpha 1, and its gradient that
    of alpha 1. ``type: LINEAR`` stands in the schema of several forks, and none of them looks at it: it changes nothing
    here either, which a warning tells.

    **Sigmoid**, where labels (0 or 1) are as many as scores, or ``activate: SIGMOID`` (troyliu0105/caffe) or ``mode``
    says so: ``alpha`` weighs positives, ``1 - alpha`` negatives. ``mode: REDUCTION`` and ``type: LINEAR`` are the
    paper's FL*, ``-log(sigmoid(gamma x_t + beta)) / gamma``, without alpha. ``normalization`` is BATCH_SIZE unless
    stated (sciencefans/Focal-Loss), with ``activate`` or ``mode`` VALID; with ``mode`` VALID divides by the number of
    positives, at least 100. In sciencefans' own code alpha weighs negatives as well: two equal ``alpha`` with
    ``alpha_balance`` do that, and a warning tells where no setting says which fork it is.

    ``valid_is_positive`` (ours) makes VALID the number of labels above 0, as the paper normalises. The ``gama`` of
    zimenglan's first day is read as ``gamma`` (alpha then 0.75): that code's loss was a constant and its gradient wrong
    until it was mended and the field renamed, so it is the mended formula that counts. The gradient is the derivative;
    ``log`` is of at least 1.2e-38.
    """

    fields = {
        "focal_loss_param": {
            "type", "gamma", "gama", "alpha", "beta", "axis", "alpha_balance", "mode", "activate", "valid_is_positive",
        },
        "softmax_param": {"axis"},
        "loss_param": {"ignore_label", "normalization", "normalize"},
    }  # fmt: skip
    num_bottoms = (2, 3)
    num_tops = (1, 2)
    message = "focal_loss_param"

    def setup(self, bottoms):
        p, loss = getattr(self.param, self.message), self.param.loss_param
        self.settings, self.sigmoid = p, self._is_sigmoid(bottoms)
        self.gamma, self.alpha = focal_gamma(self, p), focal_alpha(self, p, self.default_alpha())
        self.ignore_label = loss.ignore_label if loss.HasField("ignore_label") else None
        batch_size = self.sigmoid and not (p.HasField("activate") or p.HasField("mode"))
        self.mode = self.normalization(loss.BATCH_SIZE if batch_size else loss.VALID)
        self.linear = p.type == p.LINEAR or p.mode == p.REDUCTION
        if self.sigmoid and self.param.type == "FocalLoss" and not self.param.HasField("focal_loss_param"):
            same = "focal_loss_param { alpha_balance: true alpha: 0.25 alpha: 0.25 }"
            self.warnings.append(
                f"layer '{self.name}': negatives weigh 1 - alpha, 0.75; sciencefans' fork has alpha for both: {same}"
            )
        if self.linear and self.sigmoid and not self.gamma:
            raise self.error("must be positive for FL*", field=f"{self.message}.gamma")
        if self.sigmoid and p.type == p.ONEADDP:
            raise self.error("ONEADDP is of softmax scores", field=f"{self.message}.type")
        if self.linear and not self.sigmoid:
            self.warnings.append(f"layer '{self.name}': type LINEAR changes nothing, as in the forks; "
                                 "FL* is there for labels of 0 and 1, as many as scores")  # fmt: skip
        weights = 2 if self.sigmoid else None
        if not self.sigmoid:
            self.axis = self._axis(bottoms[0].dim())
            weights = bottoms[0].shape[self.axis]
        if isinstance(self.alpha, list) and len(self.alpha) != weights:
            raise self.error(f"{len(self.alpha)} for {weights} classes", field=f"{self.message}.alpha")

    def _is_sigmoid(self, bottoms) -> bool:
        p = self.settings = getattr(self.param, self.message)
        if p.HasField("activate"):
            return p.activate == p.SIGMOID
        return p.HasField("mode") or bottoms[0].numel() == bottoms[1].numel()

    def default_alpha(self) -> float:
        """Where none is stated."""
        p = self.settings
        return 1.0 if p.type == p.ONEADDP else 0.75 if p.HasField("gama") else 0.25

    def _axis(self, ndim: int) -> int:
        own, softmax = self.settings, self.param.softmax_param
        axis = own.axis if own.HasField("axis") else softmax.axis
        if softmax.HasField("axis") and softmax.axis != axis:
            raise self.error(f"axis {axis}, but softmax_param.axis {softmax.axis}", field=f"{self.message}.axis")
        return canonical_axis(self, axis, ndim)

    def forward(self, bottoms):
        self.check_rows(bottoms)
        scores, labels = bottoms[:2]
        loss = self._sigmoid_loss(scores, labels) if self.sigmoid else self._softmax_loss(scores, labels)
        if len(self.param.top) < 2:
            return [loss]
        detached = scores.detach()
        return [loss, torch.sigmoid(detached) if self.sigmoid else torch.softmax(detached, self.axis)]

    def _divided(self, total, rows: int, counted, positive):
        """By what ``normalization`` says."""
        if self.settings.HasField("mode"):
            valid = (counted & positive).sum().clamp(min=_LEAST_VALID)
        elif self.settings.valid_is_positive:
            valid = (counted & positive).sum()
        else:
            valid = None if self.ignore_label is None else counted.sum()
        return total / self.normalizer(self.mode, rows, counted.numel(), valid)

    # ---- softmax

    def _softmax_loss(self, scores, labels):
        index, counted = class_labels(self, scores.shape, labels, self.axis, self.ignore_label)
        total = self.softmax_total(scores, index, counted)
        return self._divided(total, math.prod(scores.shape[: self.axis]), counted, index > 0)

    def softmax_total(self, scores, index, counted):
        """The sum over positions that count; ``index`` is 0 where they do not."""
        alpha = self.alpha
        if self.settings.type == self.settings.ONEADDP:
            return self._one_add_p(scores, index, counted)
        alpha = scores.new_tensor(alpha) if isinstance(alpha, list) else alpha
        return (softmax_focal_loss(scores, index, alpha=alpha, gamma=self.gamma, axis=self.axis) * counted).sum()

    def _one_add_p(self, scores, index, counted):
        prob, index = torch.softmax(scores.detach(), self.axis), index.unsqueeze(self.axis)
        right = prob.gather(self.axis, index)
        alpha = torch.tensor(self.alpha, device=scores.device)
        alpha = alpha[index] if alpha.dim() else alpha
        log, power = torch.log(right.clamp(min=_FLT_MIN)), (alpha + right) ** self.gamma * counted.unsqueeze(self.axis)
        slope = power + self.gamma * power / (1 + right) * right * log
        return given_gradient(-(power * log).sum(), scores, (prob * slope).scatter_add_(self.axis, index, -slope))

    # ---- sigmoid

    def _sigmoid_loss(self, scores, labels):
        self.check_sizes([scores, labels])
        refuse_gradient(self, labels)
        labels = labels.reshape(scores.shape).long()
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_label is not None:
            counted = labels != self.ignore_label
        positive = counted & (labels > 0)
        total = self.sigmoid_total(scores, positive, counted)
        return self._divided(total, len(scores), counted, positive)

    def sigmoid_total(self, scores, positive, counted):
        """The sum over scores that count."""
        if self.linear:
            losses = focal_loss_star(scores, positive, gamma=self.gamma, beta=self.settings.beta)
        elif isinstance(self.alpha, list):
            losses = sigmoid_focal_loss(scores, positive, alpha=-1, gamma=self.gamma)
            losses = torch.where(positive, self.alpha[1] * losses, self.alpha[0] * losses)
        else:
            losses = sigmoid_focal_loss(scores, positive, alpha=self.alpha, gamma=self.gamma)
        return (losses * counted).sum()


@register("SoftmaxFocalLoss")
class SoftmaxFocalLoss(FocalLoss):
    """The softmax form of FocalLoss, as zimenglan-sysu-512/Focal-Loss once named it; gamma 2 and alpha 0.25 unless
    stated."""

    fields = FocalLoss.fields | {"focal_loss_param": {"type", "gamma", "gama", "alpha", "axis", "valid_is_positive"}}
    num_bottoms = (2, 2)

    def _is_sigmoid(self, bottoms):
        return False


@register("SoftmaxWithFocalLoss")
class SoftmaxWithFocalLoss(SoftmaxFocalLoss):
    """Softmax focal loss of other forks, with ``softmax_focal_loss_param`` (gamma 2, alpha 0.25) or
    ``focal_loss_param`` (gamma 2, alpha 1).

    The first (libcaffe, chenbinghui1, GuohongWu/caffe-windows) is not differentiated rightly: in the second term of its
    backward, class c has ``(1 - p_c)^(gamma - 1)`` where the derivative has ``(1 - p_t)^(gamma - 1)``, and "is it the
    label?" is asked of ``c * positions + position``, true for one position to a row only. As there, so here; a warning
    tells. The second (pietermessely/caffe) has the derivative.
    """

    fields = SoftmaxFocalLoss.fields | {
        "softmax_focal_loss_param": {"gamma", "alpha", "valid_is_positive"},
        "focal_loss_param": {"gamma", "gama", "alpha", "axis", "valid_is_positive"},
    }

    def setup(self, bottoms):
        self.own = not self.param.HasField("focal_loss_param")
        self.message = "softmax_focal_loss_param" if self.own else "focal_loss_param"
        super().setup(bottoms)
        if self.own:
            self.warnings.append(f"layer '{self.name}': its gradient is its fork's, not the derivative; "
                                 "type FocalLoss has that")  # fmt: skip

    def default_alpha(self):
        return 0.25 if self.own else 1.0

    def softmax_total(self, scores, index, counted):
        if not self.own:
            return super().softmax_total(scores, index, counted)
        outer, classes, inner = scores.shape[: self.axis], scores.shape[self.axis], scores.shape[self.axis + 1 :]
        shape = math.prod(outer), classes, math.prod(inner)
        prob = torch.softmax(scores.detach(), self.axis).reshape(shape)
        index, counted = index.reshape(shape[0], 1, shape[2]), counted.reshape(shape[0], 1, shape[2])
        right = prob.gather(1, index).clamp(min=_FLT_MIN)
        scale, loss = self.alpha * (1 - right) ** self.gamma * counted, -torch.log(right)
        first = (prob * scale).scatter_add_(1, index, -scale)
        places = torch.arange(classes * shape[2], device=prob.device).view(shape[1:])
        others = self.alpha * (1 - prob).clamp(min=_FLT_MIN) ** (self.gamma - 1) * right * prob * counted
        second = self.gamma * loss * torch.where(places == index, -scale * right, others)
        return given_gradient((scale * loss).sum(), scores, (first + second).view(scores.shape))


@register("SigmoidFocalLoss")
class SigmoidFocalLoss(FocalLoss):
    """The sigmoid form of FocalLoss; labels, 0 or 1, are as many as scores.

    With ``focal_loss_param`` it is FocalLoss in that form. With ``gamma`` or ``weight_by_label_freqs`` in
    ``loss_param`` (a fork of SegNet's) alpha is 1, or ``class_weighting`` of negatives and positives. With neither it
    is tfzhou/caffe's, alpha 0.25 and gamma 2, whose backward takes negatives for positives in part: its slope is
    ``alpha (1 - p_t)^gamma (gamma p log(p) + p - 1)`` for both; a warning tells. ``normalization`` is BATCH_SIZE unless
    stated.
    """

    fields = FocalLoss.fields | {
        "focal_loss_param": FocalLoss.fields["focal_loss_param"] - {"axis", "activate"},
        "loss_param": FocalLoss.fields["loss_param"] | {"gamma", "weight_by_label_freqs", "class_weighting"},
    }
    num_bottoms = (2, 2)

    def setup(self, bottoms):
        super().setup(bottoms)
        loss = self.param.loss_param
        segnet = loss.HasField("gamma") or loss.HasField("weight_by_label_freqs")
        self.derived = segnet or self.param.HasField("focal_loss_param")
        if segnet:
            self.gamma, self.alpha = loss.gamma, list(loss.class_weighting) if loss.weight_by_label_freqs else -1.0
        if loss.weight_by_label_freqs and len(self.alpha) != 2:
            raise self.error(f"{len(self.alpha)} weights for 2 classes", field="loss_param.class_weighting")
        if not 0 <= self.gamma < math.inf:
            raise self.error("must be finite and not negative", field="loss_param.gamma")
        if not self.derived:
            self.warnings.append(f"layer '{self.name}': its gradient of negatives is its fork's, not the derivative; "
                                 "with focal_loss_param {} it is the derivative")  # fmt: skip

    def _is_sigmoid(self, bottoms):
        return True

    def sigmoid_total(self, scores, positive, counted):
        total = super().sigmoid_total(scores, positive, counted)
        if self.derived:
            return total
        prob = torch.sigmoid(scores.detach())
        wrong = torch.where(positive, 1 - prob, prob)
        log = torch.log(prob.clamp(min=_FLT_MIN))
        slope = self.alpha * wrong**self.gamma * (self.gamma * prob * log + prob - 1)
        return given_gradient(total, scores, slope * counted)
