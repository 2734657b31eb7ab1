"""Which priors a single-shot detector learns from: SSD's hardest negatives, and OHEM over all priors.

Of weiliu89/caffe, branch ssd (``MineHardExamples``): MAX_NEGATIVE is section 2.2 of SSD (Liu et al., ECCV 2016),
HARD_EXAMPLE is OHEM (Shrivastava, Gupta, Girshick, CVPR 2016) with priors in place of RoIs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import box_area, jaccard_overlap, nms_ranked
from ..ops.std_sort import std_sort_descending

_FLT_MIN = torch.finfo(torch.float32).tiny
_SMALLEST_AREA = 1e-5  # NMS drops boxes below, in units of the image


@torch.no_grad()
def multibox_conf_loss(scores: Tensor, labels: Tensor, loss_type: str = "SOFTMAX") -> Tensor:
    """Class loss of every prior, ``[..., C], [...] -> [...]``.

    SOFTMAX: ``-log(max(p[label], 1.2e-38))``; LOGISTIC: the sum over classes of the sigmoid's cross-entropy against
    one-hot labels. Exponentials and logarithms are rounded once from float64 and summed class by class, which is what
    Caffe's loop gives on a CPU, so that the order of nearly equal losses is Caffe's.
    """
    if loss_type == "LOGISTIC":
        target = labels.unsqueeze(-1) == torch.arange(scores.shape[-1], device=scores.device)
        positive = (scores >= 0).to(scores.dtype)
        softplus = _rounded(torch.log, 1 + _rounded(torch.exp, scores - 2 * scores * positive))
        return -_summed(scores * (target.to(scores.dtype) - positive) - softplus)
    power = _rounded(torch.exp, scores - scores.amax(-1, keepdim=True))
    prob = power.gather(-1, labels.unsqueeze(-1)).squeeze(-1) / _summed(power)
    return -_rounded(torch.log, prob.clamp(min=_FLT_MIN))


def _rounded(function, x: Tensor) -> Tensor:
    return function(x.double()).to(x.dtype)


def _summed(terms: Tensor) -> Tensor:
    """The sum over the last axis, from first to last."""
    total = torch.zeros_like(terms[..., 0])
    for term in terms.unbind(-1):
        total = total + term
    return total


@torch.no_grad()
def multibox_loc_loss(diff: Tensor, loss_type: str = "SMOOTH_L1") -> Tensor:
    """Box loss of matched priors from what prediction and target differ by, ``[M, 4] -> [M]``: SMOOTH_L1 (``0.5 d^2``
    below 1, ``|d| - 0.5`` beyond) or L2 (``0.5 d^2``), each term added in float64 and rounded."""
    d = diff.double()
    terms = 0.5 * d * d
    if loss_type == "SMOOTH_L1":
        terms = torch.where(d.abs() < 1, terms, d.abs() - 0.5)
    total = torch.zeros_like(diff[:, 0])
    for term in terms.unbind(1):
        total = (total.double() + term).to(diff.dtype)
    return total


@torch.no_grad()
def max_negatives(
    loss: Tensor,
    matches: Tensor,
    overlaps: Tensor,
    *,
    neg_pos_ratio: float = 3.0,
    neg_overlap: float = 0.5,
    eligible: Tensor | None = None,
    **nms,
) -> Tensor:
    """SSD's negatives: of each image's unmatched priors the hardest, at most ``neg_pos_ratio`` for every match.

    Args:
        loss: ``[B, P]`` loss of each prior as background.
        matches: ``[B, P]`` ground truth of each prior, -1 none, -2 ignored (:func:`~ohem_caffe_port.ops.match_boxes`).
        overlaps: ``[B, P]`` largest overlap with any ground truth; negatives have less than ``neg_overlap``.
        eligible: ``[B, P]`` bool, a further condition (RefineDet's objectness).
        nms: ``boxes``, ``nms_threshold``, ``top_k`` of :func:`hardest`.

    Returns:
        ``[B, P]`` bool. An image without matches has none.
    """
    negative = (matches == -1) & (overlaps < neg_overlap)
    if eligible is not None:
        negative &= eligible
    count = ((matches > -1).sum(1).to(loss.dtype) * neg_pos_ratio).long()
    return hardest(loss, negative, torch.minimum(count, negative.sum(1)), **nms)


@torch.no_grad()
def hard_examples(loss: Tensor, eligible: Tensor, *, sample_size: int = 64, **nms) -> Tensor:
    """OHEM over priors: the ``sample_size`` hardest of each image, matched or not: ``[B, P]`` bool.

    Args:
        loss: ``[B, P]`` class loss plus, of matched priors, box loss.
        eligible: ``[B, P]`` bool; Caffe takes all priors of the images that have ground truth.
        nms: as :func:`max_negatives`.
    """
    return hardest(loss, eligible, eligible.sum(1).clamp(max=sample_size), **nms)


@torch.no_grad()
def hardest(
    loss: Tensor,
    eligible: Tensor,
    count: Tensor,
    *,
    boxes: Tensor | None = None,
    nms_threshold: float = 0.0,
    top_k: int = -1,
) -> Tensor:
    """The ``count[b]`` eligible priors of image b with the greatest loss, as a mask ``[B, P]``; of equal ones at
    the cut those that Caffe's ``std::sort`` leaves first.

    With ``boxes`` ``[B or 1, P, 4]`` (units of the image) and ``nms_threshold > 0``, those that overlap a harder one by
    more are passed over, and boxes smaller than 1e-5 too; ``top_k >= 0`` limits how many enter the suppression (0,
    which is what a ``nms_param`` without ``top_k`` says, leaves nothing).
    """
    if not loss.numel():
        return torch.zeros_like(eligible)
    order = torch.where(eligible, loss, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(loss.shape[1], device=loss.device)
    chosen = rank < count[:, None]
    if boxes is None or nms_threshold <= 0:
        ordered = torch.where(eligible, loss, -torch.inf).gather(1, order)
        last = (count - 1).clamp(min=0)[:, None]
        tied = (count > 0) & (ordered.gather(1, last) == ordered.roll(-1, 1).gather(1, last))[:, 0]
        for i in (tied & (count < eligible.sum(1))).nonzero()[:, 0].tolist():
            among = eligible[i].nonzero()[:, 0]
            order[i, : len(among)] = among[std_sort_descending(loss[i, among])]
    else:
        ranked = boxes.expand(len(loss), -1, -1).gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        entering = rank < eligible.sum(1)[:, None]
        if top_k > -1:
            entering &= rank < top_k
        entering &= box_area(ranked).double() >= _SMALLEST_AREA
        survives = nms_ranked(ranked, entering, nms_threshold, overlap=jaccard_overlap, max_keep=count)
        chosen = survives & (survives.cumsum(1) <= count[:, None])
    return torch.zeros_like(eligible).scatter_(1, order, chosen)
