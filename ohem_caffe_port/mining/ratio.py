"""Hard background and random foreground in a fixed ratio: adversarial-frcnn's variant of OHEM."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .ohem import select_hard_rois


@torch.no_grad()
def select_rois_by_ratio(
    loss: Tensor,
    rois: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    ratio: float = 0.25,
    hard_negative: bool = True,
    nms_thresh: float | None = 0.7,
    rng: np.random.RandomState | torch.Generator,
    corrected: bool = False,
) -> Tensor:
    """Indices of at most ``batch_size`` RoIs, a fraction ``ratio`` of them random foreground: ``[B]`` int64.

    The original's ``get_ohem_minibatch_ratio``. ``int(batch_size * ratio)`` RoIs with a label above 0 are drawn at
    random; the rest is background: with ``hard_negative`` the hardest that survive suppression among the background of
    an image, and they come first; else random ones, after the foreground. Too few of one kind are not made up for by
    the other.

    Two things of the original are hardly meant: without suppression the ratio is not looked at (the hardest RoIs of any
    label are taken), and one background RoI is taken where none is wanted. ``corrected`` mends both.

    Args:
        loss: ``[R]``; rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)``, inclusive pixels; labels: ``[R]``.
        nms_thresh: IoU above which the easier background RoI goes; None switches the suppression off.
        rng: the original's stream, of which one permutation of the foreground is drawn, then without ``hard_negative``
            one of the background. Or a generator on the device of the RoIs: the draws are its own, and the result is
            padded, with ``R`` where there is no RoI to choose, so that a GPU's host waits for nothing.
    """
    if nms_thresh is None and not corrected:
        return select_hard_rois(loss, rois, labels, batch_size, nms_thresh=None)
    total, padded = len(labels), isinstance(rng, torch.Generator)
    groups = rois[:, 0].long() * (labels.long().max() + 1 if total else 1) + labels.long()
    order = torch.sort(groups, stable=True).indices  # image by image, label by label
    loss, rois, labels = loss[order], rois[order], labels[order]
    foreground, background = labels > 0, labels == 0
    num_foreground = int(batch_size * ratio)
    num_background = batch_size - num_foreground

    def drawn(kind: Tensor, count: int) -> Tensor:
        if padded:
            keys = torch.rand(total, generator=rng, device=kind.device)
            first = torch.where(kind, keys, 2.0).argsort()[:count]
            return torch.where(kind[first], first, total)
        candidates = kind.nonzero()[:, 0]
        permutation = torch.from_numpy(rng.permutation(len(candidates))[:count])
        return candidates[permutation.to(candidates.device)]

    if hard_negative:
        limit = num_background if corrected else max(1, num_background)
        hard = select_hard_rois(loss, rois, labels, limit, nms_thresh=nms_thresh, eligible=background, padded=padded)
        chosen = torch.cat((hard, drawn(foreground, num_foreground)))
    else:
        chosen = torch.cat((drawn(foreground, num_foreground), drawn(background, num_background)))
    return torch.cat((order, order.new_full((1,), total)))[chosen]
