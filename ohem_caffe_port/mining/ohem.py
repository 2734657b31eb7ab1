"""Online hard example mining (Shrivastava, Gupta, Girshick, CVPR 2016): the loss that ranks RoIs, and the choice."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..ops import nms, nms_padded

_EPS = 2.220446049250313e-16  # the original clamps probabilities at float64's epsilon


def _log(x: Tensor) -> Tensor:
    """On the CPU numpy's logarithm, as in the original: torch's differs in the last bit, enough to reorder RoIs."""
    return torch.from_numpy(np.log(x.numpy())) if x.is_cpu else torch.log(x)


@torch.no_grad()
def roi_cls_loss(cls_prob: Tensor, labels: Tensor) -> Tensor:
    """``-log(max(p[label], 2.2e-16))`` of every RoI, ``[R, C], [R] -> [R]`` float64; the logarithm is taken in the type
    of ``cls_prob``."""
    prob = cls_prob.gather(1, labels.long()[:, None])[:, 0]
    return torch.where(prob > _EPS, -_log(prob.clamp(min=_EPS)).double(), -math.log(_EPS))


@torch.no_grad()
def roi_loc_loss(
    labels: Tensor,
    bbox_pred: Tensor,
    bbox_targets: Tensor,
    bbox_inside_weights: Tensor,
    bbox_outside_weights: Tensor,
) -> Tensor:
    """Box loss of every RoI, ``[R]`` float64: for RoIs with ``label > 0`` the sum over coordinates with a non-zero
    inside weight of ``outside * smoothL1(inside * (pred - target))``, sigma fixed to 1, not divided by anything.

    The difference is taken in the type of ``bbox_pred``, squared and summed in float64. All but ``labels`` ``[R]`` are
    ``[R, 4C]``.
    """
    foreground = labels > 0
    # the few rows of foreground; on a GPU all, since to find those few its host would have to wait
    rows = foreground.nonzero()[:, 0] if labels.is_cpu else torch.arange(len(labels), device=labels.device)
    inside = bbox_inside_weights[rows]
    x = inside * (bbox_pred[rows] - bbox_targets[rows])
    magnitude = x.double().abs()
    error = torch.where(magnitude < 1, 0.5 * magnitude * magnitude, magnitude - 0.5)
    counts = (inside != 0) & foreground[rows, None]
    error = torch.where(counts, bbox_outside_weights[rows].double() * error, 0.0)
    return error.new_zeros(len(labels)).index_copy_(0, rows, error.sum(1))


def ohem_roi_loss(
    cls_prob: Tensor,
    labels: Tensor,
    bbox_pred: Tensor | None = None,
    bbox_targets: Tensor | None = None,
    bbox_inside_weights: Tensor | None = None,
    bbox_outside_weights: Tensor | None = None,
) -> Tensor:
    """Loss of every RoI under the current network, ``[R]`` float64: :func:`roi_cls_loss` plus :func:`roi_loc_loss`, as
    in the original's ``OHEMDataLayer.forward``.

    Args:
        cls_prob: ``[R, C]`` softmax probabilities.
        labels: ``[R]`` class of each RoI, 0 is background.
        bbox_pred, bbox_targets, bbox_inside_weights, bbox_outside_weights: ``[R, 4C]``; leave out for a ranking by
            classification loss alone.
    """
    loss = roi_cls_loss(cls_prob, labels)
    if bbox_pred is None:
        return loss
    return loss + roi_loc_loss(labels, bbox_pred, bbox_targets, bbox_inside_weights, bbox_outside_weights)


@torch.no_grad()
def select_hard_rois(
    loss: Tensor,
    rois: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    nms_thresh: float | None = 0.7,
    eligible: Tensor | None = None,
    padded: bool = False,
) -> Tensor:
    """Indices of the at most ``batch_size`` hardest RoIs, hardest first: ``[B]`` int64.

    Co-located RoIs have correlated losses, so among RoIs of the same image and the same label those that overlap a
    harder one by more than ``nms_thresh`` are dropped first (paper, section 4.2; in the released code background is one
    label and RoIs of different labels never suppress each other). The choice is global over the images of the batch.
    Fewer survivors than ``batch_size`` give a smaller batch.

    Equal losses: the RoI that comes last in the input wins. (The original reverses an unstable ascending sort; this is
    what it gives where that sort happens to be stable.)

    Args:
        loss: ``[R]``, of any detector and kind.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)``, inclusive pixels.
        labels: ``[R]``.
        nms_thresh: IoU above which the easier RoI goes; None switches the suppression off.
        eligible: ``[R]`` bool; other RoIs are not chosen and suppress none. None: all.
        padded: always ``min(batch_size, R)`` indices, with ``R`` where there is no RoI to choose. For the number of
            indices a GPU's host must wait; with this it waits for nothing.
    """
    if nms_thresh is not None:
        images = rois[:, 0].long()
        groups = images * (labels.long().max() + 1 if len(labels) else 1) + labels.long()
        suppress = nms_padded if padded else nms
        return suppress(rois[:, 1:5], loss, nms_thresh, groups=groups, eligible=eligible, max_keep=batch_size)
    order = hardest_first(loss, eligible)
    if eligible is None:
        return order[:batch_size]
    chosen = torch.where(eligible[order], order, len(loss))[:batch_size]
    return chosen if padded else chosen[chosen < len(loss)]


def hardest_first(loss: Tensor, eligible: Tensor | None = None) -> Tensor:
    """Indices in descending order of loss, of equal ones the last first; before all others those that are ``eligible``:
    ``[R]`` int64."""
    order = torch.sort(loss, stable=True).indices.flip(0)
    return order if eligible is None else order[torch.sort((~eligible[order]).byte(), stable=True).indices]


def easy_rois_zeroed(
    hard_inds: Tensor, labels: Tensor, bbox_inside_weights: Tensor, bbox_outside_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The naive form of OHEM: all RoIs stay in the batch, easy ones without loss.

    Args:
        hard_inds: ``[B]`` from :func:`select_hard_rois`, padded or not.
        labels: ``[R]``; bbox_inside_weights, bbox_outside_weights: ``[R, 4C]``.

    Returns:
        labels with -1 (to be ignored) for easy RoIs, inside weights zeroed for them, and outside weights zeroed and
        multiplied by ``R / B``, so that a mean over all ``R`` rows equals the mean over the ``B`` hard ones.
    """
    hard = chosen_mask(hard_inds, len(labels))
    rows = hard.view(-1, *[1] * (bbox_inside_weights.dim() - 1))
    scale = len(labels) / hard.sum().clamp(min=1).double()
    return (
        torch.where(hard.view_as(labels), labels, -1),
        bbox_inside_weights * rows,
        bbox_outside_weights * rows * scale,
    )


def chosen_mask(inds: Tensor, total: int) -> Tensor:
    """Indices, padded or not, as a mask over all ``total`` RoIs: ``[total]`` bool."""
    return torch.zeros(total + 1, dtype=torch.bool, device=inds.device).index_fill_(0, inds, True)[:total]
