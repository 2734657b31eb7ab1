"""Boxes as SSD has them: overlap, coding against priors, and matching with the ground truth.

Boxes are ``(x1, y1, x2, y2)`` in units of the image, 0 to 1, and continuous: the width is ``x2 - x1``, without the 1 of
pixel boxes. All is computed in float32 in the order of operations of weiliu89/caffe's ``bbox_util.cpp`` (branch ssd).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_OVERLAP = 1e-6  # pairs that overlap less are no candidates for a match


def box_area(boxes: Tensor) -> Tensor:
    """``[..., 4] -> [...]``: width times height, 0 for boxes whose ends are swapped (``BBoxSize``)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def jaccard_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of every box with every other: ``[..., N, 4], [..., K, 4] -> [..., N, K]``; boxes without area overlap 0."""
    x1, y1, x2, y2 = boxes.unsqueeze(-2).unbind(-1)
    u1, v1, u2, v2 = others.unsqueeze(-3).unbind(-1)
    inter = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    inter = inter * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    union = box_area(boxes).unsqueeze(-1) + box_area(others).unsqueeze(-2) - inter
    return torch.where(inter > 0, inter / union, 0)


def _centre_size(boxes):
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2), -1), torch.stack((x2 - x1, y2 - y1), -1)


def _sizes(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.cat((size, size), -1)


def _exp(x: Tensor) -> Tensor:
    """Rounded once, from float64: what the C library gives, where torch's own may be off by the last bit."""
    return torch.exp(x.double()).to(x.dtype)


def encode_boxes(priors: Tensor, boxes: Tensor, code_type: str, variances: Tensor | None = None) -> Tensor:
    """What a net should predict to move ``priors`` onto ``boxes``, all ``[..., 4]``.

    SSD (Liu et al., ECCV 2016), equation 2, is CENTER_SIZE: ``(centre - prior's) / prior's size`` and
    ``log(size / prior's)``. CORNER is the difference of the corners, CORNER_SIZE the same over the prior's size.

    Args:
        variances: ``[..., 4]``, what the code is divided by; None with ``encode_variance_in_target``.
    """
    if code_type == "CENTER_SIZE":
        (centre, size), (prior_centre, prior_size) = _centre_size(boxes), _centre_size(priors)
        code = torch.cat(((centre - prior_centre) / prior_size, torch.log(size / prior_size)), -1)
    else:
        code = boxes - priors
        if code_type == "CORNER_SIZE":
            code = code / _sizes(priors)
    return code if variances is None else code / variances


def decode_boxes(priors: Tensor, codes: Tensor, code_type: str, variances: Tensor | None = None) -> Tensor:
    """The boxes that predictions ``codes`` make of ``priors``, ``[..., 4]``: the inverse of :func:`encode_boxes`."""
    if variances is not None:
        codes = variances * codes
    if code_type == "CENTER_SIZE":
        prior_centre, prior_size = _centre_size(priors)
        centre = codes[..., :2] * prior_size + prior_centre
        half = _exp(codes[..., 2:]) * prior_size / 2
        return torch.cat((centre - half, centre + half), -1)
    if code_type == "CORNER_SIZE":
        codes = codes * _sizes(priors)
    return priors + codes


def crosses_boundary(boxes: Tensor) -> Tensor:
    """``[..., 4] -> [...]`` bool: some corner lies outside the image."""
    return ((boxes < 0) | (boxes > 1)).any(-1)


def match_boxes(
    boxes: Tensor,
    targets: Tensor,
    *,
    overlap_threshold: float = 0.5,
    per_prediction: bool = True,
    ignore_cross_boundary: bool = False,
) -> tuple[Tensor, Tensor]:
    """Which target each box of one image is responsible for (``MatchBBox``).

    First the bipartite matching of SSD, section 2.2: of all pairs of a free box and a free target the one that overlaps
    most is matched, and so on, so that every target that touches a box gets one. Then, ``per_prediction``, every box
    that is still free takes the target it overlaps most, if by at least ``overlap_threshold``. Equal overlaps: the
    first box, then the first target.

    Args:
        boxes: ``[P, 4]``; targets: ``[G, 4]``.
        ignore_cross_boundary: boxes that reach out of the image take no part.

    Returns:
        indices ``[P]`` int64: the target, -1 none, -2 ignored; overlaps ``[P]`` with it, or else the largest.
    """
    index = torch.full((len(boxes),), -1, device=boxes.device)
    if not len(targets):
        return index, boxes.new_zeros(len(boxes))
    overlaps = jaccard_overlap(boxes, targets)
    overlaps = torch.where(overlaps > _LEAST_OVERLAP, overlaps, 0)
    if ignore_cross_boundary:
        ignored = crosses_boundary(boxes)
        overlaps[ignored], index[ignored] = 0, -2
    most, favourite = overlaps.max(1)
    # A pair that is the best of its row and of its column is one that the greedy search picks sooner or later; taking
    # all of them at once needs two or three rounds in place of one for each target.
    free, columns = overlaps.clone(), torch.arange(len(targets), device=boxes.device)
    while True:
        value, box = free.max(0)
        won = (free[box].argmax(1) == columns) & (value > 0)
        if not won.any():
            break
        index[box[won]], most[box[won]] = columns[won], value[won]
        free[box[won]] = 0
        free[:, won] = 0
    if per_prediction:
        index = torch.where((index == -1) & (most > 0) & (most >= overlap_threshold), favourite, index)
    return index, most
