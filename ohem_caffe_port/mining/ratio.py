"""Hard background and random foreground in a fixed ratio: adversarial-frcnn's variant of OHEM."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops import nms
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
    rng: np.random.RandomState,
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
        rng: one permutation of the foreground is drawn, then without ``hard_negative`` one of the background.
    """
    if nms_thresh is None and not corrected:
        return select_hard_rois(loss, rois, labels, batch_size, nms_thresh=None)
    num_foreground = int(batch_size * ratio)
    num_background = batch_size - num_foreground
    images, classes = rois[:, 0].long(), labels.long()
    groups = images * (classes.max() + 1 if len(classes) else 1) + classes
    order = torch.sort(groups, stable=True).indices  # image by image, label by label

    def drawn(candidates: Tensor, count: int) -> Tensor:
        permutation = torch.from_numpy(rng.permutation(len(candidates))[:count])
        return candidates[permutation.to(candidates.device)]

    foreground = order[classes[order] > 0]
    background = order[classes[order] == 0]
    if not hard_negative:
        return torch.cat((drawn(foreground, num_foreground), drawn(background, num_background)))
    limit = num_background if corrected else max(1, num_background)
    if nms_thresh is None:
        hard = background[torch.sort(loss[background], stable=True).indices.flip(0)[:limit]]
    else:
        boxes = rois[background, 1:5]
        hard = background[nms(boxes, loss[background], nms_thresh, groups=images[background], max_keep=limit)]
    return torch.cat((hard, drawn(foreground, num_foreground)))
