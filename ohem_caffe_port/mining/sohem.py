"""S-OHEM (Li et al., CCCV 2017): hard examples drawn from strata of RoIs, by which of their two losses weighs more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .ohem import chosen_mask, hardest_first, select_hard_rois
from .ranks import rank_in_groups


@dataclass
class Strata:
    """How S-OHEM weighs the two losses and divides RoIs, at every stage of training.

    The paper says that both change during training and localisation becomes more important late; **its numbers were
    never published, nor its code: these defaults are this project's**. Every field lists values at equal distances from
    the beginning of training to its end, straight lines between them; a single one holds throughout.

    Attributes:
        alpha, beta: weights of classification and localisation loss.
        bounds: ascending ratios ``alpha * cls / (beta * loc)`` that divide the strata, three of them for four strata;
            a RoI at a bound belongs above it. RoIs without localisation loss (background) are in the last stratum.
        shares: the strata's shares of the batch, from the one where localisation weighs most; they need not add up
            to 1.

    Raises:
        ValueError: lists that do not fit together, negative numbers, or nothing to share.
    """

    alpha: tuple = (1.0, 0.5)
    beta: tuple = (0.5, 1.0)
    bounds: tuple = ((1 / 3, 1.0, 3.0),)
    shares: tuple = ((0.1, 0.1, 0.2, 0.6), (0.3, 0.2, 0.2, 0.3))

    def __post_init__(self):
        for name, axes in (("alpha", 1), ("beta", 1), ("bounds", 2), ("shares", 2)):
            try:
                values = np.array(getattr(self, name), dtype=float)
            except (TypeError, ValueError):
                values = np.zeros(0)
            if values.ndim != axes or not len(values) or not ((values >= 0) & np.isfinite(values)).all():
                form = "numbers" if axes == 1 else f"stages, such as {getattr(type(self), name)}"
                given = getattr(self, name)
                raise ValueError(f"'{name}' must be a list of {form}, finite, none negative, not {given!r}")
        if (np.diff(self.bounds, axis=1) < 0).any():
            raise ValueError(f"'bounds' must ascend: {self.bounds!r}")
        if np.shape(self.shares)[1] != np.shape(self.bounds)[1] + 1:
            raise ValueError(f"{np.shape(self.bounds)[1]} bounds make one stratum more, 'shares' has other numbers")
        if not np.sum(self.shares, axis=1).all():
            raise ValueError("'shares' must not all be 0")

    def at(self, progress: float) -> tuple[float, float, np.ndarray, np.ndarray]:
        """``alpha, beta, bounds, shares`` after the fraction ``progress`` of training (below 0 and above 1: its
        ends)."""
        return tuple(_between(getattr(self, name), progress) for name in ("alpha", "beta", "bounds", "shares"))


def _between(stages, progress: float):
    stages = np.array(stages, dtype=float)
    place = min(max(progress, 0.0), 1.0) * (len(stages) - 1)
    low = int(place)
    high = min(low + 1, len(stages) - 1)
    return stages[low] + (place - low) * (stages[high] - stages[low])


def quotas(shares: np.ndarray, batch_size: int) -> np.ndarray:
    """``batch_size`` divided by ``shares``: whole numbers that add up to it."""
    return np.diff(np.round(np.cumsum(shares) / np.sum(shares) * batch_size), prepend=0).astype(np.int64)


@torch.no_grad()
def select_stratified_rois(
    cls_loss: Tensor,
    loc_loss: Tensor,
    rois: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    progress: float = 0.0,
    strata: Strata | None = None,
    nms_thresh: float | None = 0.7,
    padded: bool = False,
) -> Tensor:
    """Indices of the at most ``batch_size`` RoIs that S-OHEM trains on, hardest first: ``[B]`` int64.

    RoIs are ranked by ``alpha * cls_loss + beta * loc_loss``, after suppression as in :func:`select_hard_rois`. Each
    stratum gives its hardest ones, as many as its share of the batch; what one cannot fill goes to the hardest of all
    that are left, so that the batch is full where there are RoIs enough.

    Args:
        cls_loss, loc_loss, labels: ``[R]``; rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)``, inclusive pixels.
        progress: which part of training is done, 0 to 1.
        strata: see :class:`Strata`; None takes its defaults.
        nms_thresh: IoU above which the easier RoI of one image and label goes; None switches the suppression off.
        padded: as in :func:`select_hard_rois`.
    """
    alpha, beta, bounds, shares = (strata or Strata()).at(progress)
    cls, loc, total = float(alpha) * cls_loss, float(beta) * loc_loss, len(labels)
    survives = _survivors(cls + loc, rois, labels, batch_size, nms_thresh)
    ranked = hardest_first(cls + loc, survives)
    survives, cls, loc = survives[ranked], cls[ranked], loc[ranked]
    # no division: a RoI with neither loss is background
    stratum = sum((cls >= bound * loc for bound in bounds.tolist()), start=torch.zeros_like(ranked))
    quota = sum((stratum == i) * share for i, share in enumerate(quotas(shares, batch_size).tolist()))
    rank = rank_in_groups(torch.arange(total, device=ranked.device), torch.where(survives, stratum, -1))
    left_over = (rank >= quota).byte()
    places = torch.sort(torch.where(survives, left_over, 2), stable=True).indices[:batch_size].sort().values
    chosen = torch.where(survives[places], ranked[places], total)
    return chosen if padded else chosen[chosen < total]


def _survivors(loss: Tensor, rois: Tensor, labels: Tensor, batch_size: int, nms_thresh: float | None) -> Tensor:
    """The RoIs that survive the suppression, ``[R]`` bool; of background, which is of one stratum and suppresses
    nothing else, no more than the batch could hold."""
    kept = [
        select_hard_rois(loss, rois, labels, limit, nms_thresh=nms_thresh, eligible=members, padded=True)
        for members, limit in ((labels > 0, len(labels)), (labels <= 0, batch_size))
    ]
    return chosen_mask(torch.cat(kept), len(labels))
