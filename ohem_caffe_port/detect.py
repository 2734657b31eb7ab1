"""From an image and proposals to scored boxes, as the original's ``fast_rcnn/test.py`` does it."""

from __future__ import annotations

import math

import numpy as np
import torch

from .config import Config
from .data.minibatch import images_to_blob, prep_image
from .errors import PortError
from .net import Net
from .ops import bbox_transform_inv, clip_boxes, nms

_PYRAMID_AREA = 224 * 224  # the pyramid level of a box is the one where its area comes closest to this


def image_pyramid(image: np.ndarray, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """The image at every ``TEST.SCALES``: a data blob ``[S, 3, H, W]`` and the ``[S]`` scales."""
    levels = [prep_image(image, cfg.PIXEL_MEANS, target, cfg.TEST.MAX_SIZE) for target in cfg.TEST.SCALES]
    return images_to_blob([level for level, _ in levels]), np.array([scale for _, scale in levels])


def project_rois(boxes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Boxes ``[R, 4]`` of the image as rois ``[R, 5]`` float32 ``(level, x1, y1, x2, y2)`` of its pyramid."""
    boxes = boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    levels = np.abs(areas[:, None] * scales[None, :] ** 2 - _PYRAMID_AREA).argmin(1)
    return np.hstack([levels[:, None], boxes * scales[levels][:, None]]).astype(np.float32)


def unique_rois(rois: np.ndarray, dedup_boxes: float) -> tuple[np.ndarray, np.ndarray]:
    """Rois that fall on the same cells need the net only once.

    As in the original the level is scaled with the coordinates, so with several ``TEST.SCALES`` rois of different
    levels count as the same one when their coordinates agree; ``DEDUP_BOXES: 0`` avoids that.

    Returns:
        ``index`` of the rois to keep and ``inverse``: ``rois[index][inverse]`` stands for ``rois``.
    """
    hashes = np.round(rois * dedup_boxes).dot(np.array([1, 1e3, 1e6, 1e9, 1e12]))
    _, index, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return index, inverse.reshape(-1)


def detector_classes(net: Net, cfg: Config) -> int:
    """How many classes a test net scores, background included.

    Raises:
        PortError: the net has other inputs or outputs than :func:`im_detect` needs, or the configuration asks for
            what it does not do.
    """
    if cfg.TEST.HAS_RPN:
        raise PortError("TEST.HAS_RPN is not supported: boxes come from proposals", field="TEST.HAS_RPN")
    scores = "cls_score" if cfg.TEST.SVM else "cls_prob"
    wanted = {scores} | ({"bbox_pred"} if cfg.TEST.BBOX_REG else set())
    columns = {value.name: math.prod(shape[1:]) for value, shape in zip(net.values, net.shapes, strict=True)}
    if set(net.inputs) != {"data", "rois"} or wanted - set(columns):
        raise PortError(
            f"detection needs inputs data and rois and blobs {', '.join(sorted(wanted))}; this net has inputs "
            f"{net.inputs} and outputs {net.outputs}",
            file=net.source,
            hint="give the test.prototxt of a Fast R-CNN net",
        )
    if cfg.TEST.BBOX_REG and columns["bbox_pred"] != 4 * columns[scores]:
        raise PortError(
            f"{scores} has {columns[scores]} classes, so bbox_pred needs {4 * columns[scores]} columns; "
            f"it has {columns['bbox_pred']}",
            file=net.source,
        )
    return columns[scores]


@torch.no_grad()
def im_detect(net: Net, image: np.ndarray, boxes: np.ndarray, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Class scores and regressed boxes of every proposal.

    Args:
        net: a test net with inputs ``data`` and ``rois`` and outputs ``cls_prob`` and ``bbox_pred``.
        image: ``[H, W, 3]`` uint8 BGR.
        boxes: ``[R, 4]`` proposals in pixels of the image.

    Returns:
        scores ``[R, C]`` (column 0 is background; with ``TEST.SVM`` those before the softmax) and boxes ``[R, 4C]``,
        clipped to the image.

    Raises:
        PortError: the net has other inputs or outputs.
    """
    detector_classes(net, cfg)
    data, scales = image_pyramid(image, cfg)
    rois = project_rois(boxes, scales)
    inverse = None
    if cfg.DEDUP_BOXES > 0:
        index, inverse = unique_rois(rois, cfg.DEDUP_BOXES)
        rois, boxes = rois[index], boxes[index]
    net(data=data, rois=rois)
    scores = net.blobs["cls_score" if cfg.TEST.SVM else "cls_prob"].flatten(1).cpu().numpy()
    if cfg.TEST.BBOX_REG:
        deltas = net.blobs["bbox_pred"].flatten(1).cpu().numpy()
        pred_boxes = clip_boxes(bbox_transform_inv(boxes, deltas), image.shape)
    else:
        pred_boxes = np.tile(boxes.astype(np.float32), (1, scores.shape[1]))
    if inverse is not None:
        scores, pred_boxes = scores[inverse], pred_boxes[inverse]
    return scores, pred_boxes


def detections_by_class(
    scores: np.ndarray, boxes: np.ndarray, cfg: Config, *, thresh: float = 0.05, max_per_image: int = 100
) -> list[np.ndarray]:
    """What is reported for one image: for every class ``[N, 5]`` float32 ``(x1, y1, x2, y2, score)``, best first.

    Scores above ``thresh``, NMS at ``TEST.NMS`` within a class, then the ``max_per_image`` best of all classes together
    (more where the last of them ties; 0 keeps all). Class 0, background, is always empty.

    Args:
        scores: ``[R, C]``; boxes: ``[R, 4C]``, from :func:`im_detect`.
    """
    by_class = [np.zeros((0, 5), dtype=np.float32)]
    for cls in range(1, scores.shape[1]):
        inds = np.where(scores[:, cls] > thresh)[0]
        dets = np.hstack([boxes[inds, 4 * cls : 4 * cls + 4], scores[inds, cls, None]]).astype(np.float32)
        by_class.append(dets[nms(dets[:, :4], dets[:, 4], cfg.TEST.NMS)])
    if max_per_image > 0:
        best = np.sort(np.concatenate([dets[:, 4] for dets in by_class]))
        if len(best) > max_per_image:
            by_class = [dets[dets[:, 4] >= best[-max_per_image]] for dets in by_class]
    return by_class
