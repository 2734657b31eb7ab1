"""From an image and proposals to scored boxes, as the original's ``fast_rcnn/test.py`` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .config import Config
from .data.minibatch import image_info, images_to_blob, prep_image
from .errors import PortError
from .net import Net
from .ops import bbox_overlaps, bbox_transform_inv, clip_boxes, nms

_PYRAMID_AREA = 224 * 224  # the pyramid level of a box is the one where its area comes closest to this


def image_pyramid(image: np.ndarray, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """The image at every ``TEST.SCALES``: a data blob ``[S, 3, H, W]`` and the ``[S]`` scales, or ``[S, 4]``, one for
    each of x1, y1, x2, y2, with ``TEST.SCALE_MULTIPLE_OF``."""
    levels = [prep_image(image, cfg, target, cfg.TEST) for target in cfg.TEST.SCALES]
    return images_to_blob([level for level, _ in levels]), np.array([scale for _, scale in levels])


def project_rois(boxes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Boxes ``[R, 4]`` of the image as rois ``[R, 5]`` float32 ``(level, x1, y1, x2, y2)`` of its pyramid."""
    boxes, scales = boxes.astype(np.float64), scales.reshape(len(scales), -1)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    levels = np.abs(areas[:, None] * (scales[:, 0] * scales[:, -1])[None, :] - _PYRAMID_AREA).argmin(1)
    return np.hstack([levels[:, None], boxes * scales[levels]]).astype(np.float32)


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


@dataclass(frozen=True)
class DetectorForm:
    """How a test net is fed and read.

    ``classes``: how many it scores, background included; ``scores``: its blob of scores; ``has_rpn``: it makes its own
    proposals (input im_info, blob rois) and takes none; ``agnostic``: ``bbox_pred`` has one box for all classes.
    """

    classes: int
    scores: str
    has_rpn: bool
    agnostic: bool


def detector_form(net: Net, cfg: Config) -> DetectorForm:
    """The form of a test net, read from its inputs and blobs.

    Raises:
        PortError: the net has other inputs or outputs than :func:`im_detect` needs, or the configuration states
            ``TEST.HAS_RPN``, ``AGNOSTIC`` or ``SCALES`` that do not fit it.
    """
    test = cfg.TEST
    scores = "cls_score" if test.SVM else "cls_prob"
    has_rpn = "im_info" in net.inputs
    wanted = {scores} | ({"bbox_pred"} if test.BBOX_REG else set()) | ({"rois"} if has_rpn else set())
    columns = {value.name: math.prod(shape[1:]) for value, shape in zip(net.values, net.shapes, strict=True)}
    if set(net.inputs) != {"data", "im_info" if has_rpn else "rois"} or wanted - set(columns):
        raise PortError(
            f"detection needs inputs data and rois (or im_info) and blobs {', '.join(sorted(wanted))}; this net has "
            f"inputs {net.inputs} and outputs {net.outputs}",
            file=net.source,
            hint="give the test.prototxt of a Fast R-CNN or Faster R-CNN net",
        )
    agnostic = test.BBOX_REG and columns["bbox_pred"] == 8
    form = DetectorForm(columns[scores], scores, has_rpn, agnostic)
    if test.BBOX_REG and not agnostic and columns["bbox_pred"] != 4 * columns[scores]:
        raise PortError(
            f"{scores} has {columns[scores]} classes, so bbox_pred needs {4 * columns[scores]} columns; "
            f"it has {columns['bbox_pred']}",
            file=net.source,
        )
    one_box = agnostic and form.classes > 2
    for key, wrong, has in (
        ("HAS_RPN", has_rpn != test.HAS_RPN, "an input im_info" if has_rpn else "no input im_info"),
        ("AGNOSTIC", test.AGNOSTIC and not agnostic and test.BBOX_REG, f"{columns.get('bbox_pred')} box outputs"),
        ("AGNOSTIC", one_box and not test.AGNOSTIC, f"8 box outputs for {form.classes} classes"),
    ):
        stated = getattr(test, key)
        if wrong and (stated or f"TEST.{key}" in cfg.explicit):
            raise PortError(
                f"TEST.{key} is {stated}, but the net has {has}",
                file=net.source,
                hint="leave the key out: the net says it",
            )
    return form


@torch.no_grad()
def im_detect(net: Net, image: np.ndarray, boxes: np.ndarray | None, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Class scores and regressed boxes of every proposal.

    Args:
        net: a test net with inputs ``data`` and ``rois`` and outputs ``cls_prob`` and ``bbox_pred``; or with the input
            ``im_info`` and a blob ``rois`` of its own proposals.
        image: ``[H, W, 3]`` uint8 BGR.
        boxes: ``[R, 4]`` proposals in pixels of the image; not read where the net makes its own.

    Returns:
        scores ``[R, C]`` (column 0 is background; with ``TEST.SVM`` those before the softmax) and boxes ``[R, 4C]``
        (``[R, 8]``, those of all classes in columns 4 to 7, where ``bbox_pred`` has one box for all), clipped to the
        image.

    Raises:
        PortError: the net has other inputs or outputs.
    """
    form = detector_form(net, cfg)
    inverse = None
    if form.has_rpn:
        boxes, _ = im_proposals(net, image, cfg)
    else:
        data, scales = image_pyramid(image, cfg)
        rois = project_rois(boxes, scales)
        if cfg.DEDUP_BOXES > 0:
            index, inverse = unique_rois(rois, cfg.DEDUP_BOXES)
            rois, boxes = rois[index], boxes[index]
        net(data=data, rois=rois)
    scores = net.blobs[form.scores].flatten(1).cpu().numpy()
    if cfg.TEST.BBOX_REG:
        deltas = net.blobs["bbox_pred"].flatten(1).cpu().numpy()
        pred_boxes = clip_boxes(bbox_transform_inv(boxes, deltas), image.shape)
    else:
        pred_boxes = np.tile(boxes.astype(np.float32), (1, scores.shape[1]))
    if inverse is not None:
        scores, pred_boxes = scores[inverse], pred_boxes[inverse]
    return scores, pred_boxes


@torch.no_grad()
def im_proposals(net: Net, image: np.ndarray, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """The proposals of a region proposal network, as py-faster-rcnn's ``rpn/generate.py`` makes them.

    Args:
        net: a test net with inputs ``data`` and ``im_info`` and blobs ``rois`` and, where it gives them, ``scores``.
        image: ``[H, W, 3]`` uint8 BGR.

    Returns:
        boxes ``[R, 4]`` float32 in pixels of the image, best first, and their scores ``[R]`` (empty without the blob).

    Raises:
        PortError: a net of another form, or more than one ``TEST.SCALES``.
    """
    names = {value.name for value in net.values}
    if set(net.inputs) != {"data", "im_info"} or "rois" not in names:
        raise PortError(
            f"proposals need inputs data and im_info and a blob rois; this net has inputs {net.inputs} and outputs "
            f"{net.outputs}",
            file=net.source,
            hint="give the rpn_test.pt of a region proposal network, or the test.prototxt of a Faster R-CNN net",
        )
    if len(cfg.TEST.SCALES) > 1:
        raise PortError("a net that makes its own proposals is tested at one scale", field="TEST.SCALES")
    data, scales = image_pyramid(image, cfg)
    net(data=data, im_info=image_info(data, scales[0]))
    boxes = net.blobs["rois"].flatten(1)[:, 1:5].cpu().numpy() / scales[0].astype(np.float32)
    scores = net.blobs["scores"].flatten().cpu().numpy() if "scores" in names else np.zeros(0, np.float32)
    return boxes, scores


def detections_by_class(
    scores: np.ndarray, boxes: np.ndarray, cfg: Config, *, thresh: float = 0.05, max_per_image: int = 100
) -> list[np.ndarray]:
    """What is reported for one image: for every class ``[N, 5]`` float32 ``(x1, y1, x2, y2, score)``, best first.

    Scores above ``thresh``, NMS at ``TEST.NMS`` within a class, then the ``max_per_image`` best of all classes together
    (more where the last of them ties; 0 keeps all). Class 0, background, is always empty.

    Args:
        scores: ``[R, C]``; boxes: ``[R, 4C]`` or ``[R, 8]``, from :func:`im_detect`.
    """
    by_class = [np.zeros((0, 5), dtype=np.float32)]
    for cls in range(1, scores.shape[1]):
        inds = np.where(scores[:, cls] > thresh)[0]
        column = 4 * min(cls, boxes.shape[1] // 4 - 1)
        dets = np.hstack([boxes[inds, column : column + 4], scores[inds, cls, None]]).astype(np.float32)
        kept = dets[nms(dets[:, :4], dets[:, 4], cfg.TEST.NMS)]
        by_class.append(vote_boxes(kept, dets, cfg) if cfg.TEST.BBOX_VOTE else kept)
    if max_per_image > 0:
        best = np.sort(np.concatenate([dets[:, 4] for dets in by_class]))
        if len(best) > max_per_image:
            by_class = [dets[dets[:, 4] >= best[-max_per_image]] for dets in by_class]
    return by_class


def vote_boxes(kept: np.ndarray, dets: np.ndarray, cfg: Config, thresh: float = 0.5) -> np.ndarray:
    """PVANet's ``bbox_vote``: each of ``kept`` ``[K, 5]`` becomes the mean, weighted by score, of the boxes in ``dets``
    ``[N, 5]`` whose IoU with it is ``thresh`` or more (Gidaris and Komodakis 2015, section 4).

    With ``TEST.BBOX_VOTE_N_WEIGHTED_SCORE`` n above 1 the score becomes the mean of the n best of those, ones that are
    missing counted as ``BBOX_VOTE_WEIGHT_EMPTY`` of the mean of those that are there; it never grows.
    """
    voters = bbox_overlaps(kept[:, :4].astype(np.float64), dets[:, :4].astype(np.float64)) >= thresh
    weights = voters * dets[:, 4]
    voted = np.hstack([weights @ dets[:, :4] / weights.sum(1, keepdims=True), kept[:, 4:]]).astype(np.float32)
    wanted, share = cfg.TEST.BBOX_VOTE_N_WEIGHTED_SCORE, cfg.TEST.BBOX_VOTE_WEIGHT_EMPTY
    if wanted > 1:
        best = -np.sort(-weights, 1)[:, :wanted]
        number = np.minimum(voters.sum(1), wanted)
        score = best.sum(1) / number * (number + (wanted - number) * share) / wanted
        voted[:, 4] = np.minimum(score, voted[:, 4])
    return voted
