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
from .pyramid import FeaturePyramid, scale_groups

_PAIRS_AT_A_TIME = 1 << 21  # of boxes that are compared when they vote: 16 MiB for one array of float64


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
            ``TEST.HAS_RPN``, ``AGNOSTIC``, ``SCALES`` or ``BBOX_ITERS`` that do not fit it.
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
    if has_rpn and len(test.SCALES) > 1 and test.SCALE_USE == "nearest":
        raise PortError(
            "a net that makes its own proposals is tested at one scale, or at all",
            field="TEST.SCALES",
            hint="give one, or --set TEST.SCALE_USE all",
        )
    if test.BBOX_ITERS > 1 and not test.BBOX_REG:
        raise PortError("without box regression there is nothing to repeat", field="TEST.BBOX_ITERS")
    return form


@torch.no_grad()
def im_detect(
    net: Net, image: np.ndarray, boxes: np.ndarray | None, cfg: Config, *, thresh: float = -math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Class scores and regressed boxes of every proposal.

    With several ``TEST.SCALES`` a proposal goes to the one where its area comes closest to 224 x 224 (``SCALE_USE``
    nearest, the original's way) or to every one (all). With ``BBOX_ITERS`` 2 the boxes are proposals once more: the box
    of a class is scored for that class again, and moved again (iterative box regression: OHEM, section 5; Gidaris and
    Komodakis 2015, section 4). The scales and the rounds follow each other in the rows.

    Args:
        net: a test net with inputs ``data`` and ``rois`` and outputs ``cls_prob`` and ``bbox_pred``; or with the input
            ``im_info`` and a blob ``rois`` of its own proposals.
        image: ``[H, W, 3]`` uint8 BGR.
        boxes: ``[R, 4]`` proposals in pixels of the image; not read where the net makes its own.
        thresh: boxes of a class that score no more than this, or less than ``TEST.BBOX_ITER_THRESH``, are not scored
            again.

    Returns:
        scores ``[N, C]`` (column 0 is background; with ``TEST.SVM`` those before the softmax; -inf where a box was not
        scored again) and boxes ``[N, 4C]`` (``[N, 8]``, those of all classes in columns 4 to 7, where ``bbox_pred`` has
        one box for all), clipped to the image. N is R, times the number of scales and rounds.

    Raises:
        PortError: the net has other inputs or outputs.
    """
    form = detector_form(net, cfg)
    blobs = [form.scores, "bbox_pred"][: 1 + cfg.TEST.BBOX_REG]
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for targets in scale_groups(image.shape, cfg):
        pyramid = FeaturePyramid(net, image, cfg, targets, blobs)
        rows.append(_first_round(pyramid, boxes, form))
        for _ in range(1, cfg.TEST.BBOX_ITERS):
            rows.append(_next_round(pyramid, *rows[-1], thresh))
    scores, pred_boxes = zip(*rows, strict=True)
    return np.concatenate(scores), np.concatenate(pred_boxes)


def _first_round(pyramid: FeaturePyramid, boxes, form: DetectorForm) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[R, C]`` and boxes ``[R, 4C]`` of proposals ``[R, 4]``, or of the net's own."""
    if form.has_rpn:
        rois = pyramid.features(0)["rois"].flatten(1).cpu().numpy()
        boxes = rois[:, 1:5] / pyramid.scales[0].astype(np.float32)
        scores, *deltas = pyramid.score_rois(rois)
    else:
        computed, (scores, *deltas) = pyramid.score_boxes(boxes)
        boxes = boxes[computed]  # as in the original
    if not deltas:
        return scores, np.tile(boxes.astype(np.float32), (1, scores.shape[1]))
    return scores, clip_boxes(bbox_transform_inv(boxes, deltas[0]), pyramid.image.shape)


def _next_round(pyramid: FeaturePyramid, scores, boxes, thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Of scores ``[R, C]`` and boxes ``[R, 4C]`` those of the round that follows; a score is -inf where the box was not
    scored again. The box of a class that scores well is one RoI, of which the other classes' outputs are not read."""
    good = (scores > thresh) & (scores >= pyramid.cfg.TEST.BBOX_ITER_THRESH)
    good[:, 0] = False
    rows, classes = np.nonzero(good)
    columns = 4 * np.minimum(classes, boxes.shape[1] // 4 - 1)[:, None] + np.arange(4)
    again, moved = np.full_like(scores, -np.inf), boxes.copy()
    if len(rows):
        rois = boxes[rows[:, None], columns]
        _, (new_scores, deltas) = pyramid.score_boxes(rois)
        each = np.arange(len(rows))
        again[rows, classes] = new_scores[each, classes]
        deltas = deltas[each[:, None], columns]
        moved[rows[:, None], columns] = clip_boxes(bbox_transform_inv(rois, deltas), pyramid.image.shape)
    return again, moved


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
    scaled, scale = prep_image(image, cfg, cfg.TEST.SCALES[0], cfg.TEST)
    data = images_to_blob([scaled])
    found = net(data=data, im_info=image_info(data, scale), blobs=sorted(names & {"rois", "scores"}))
    boxes = found["rois"].flatten(1)[:, 1:5].cpu().numpy() / np.float32(scale)
    scores = found["scores"].flatten().cpu().numpy() if "scores" in names else np.zeros(0, np.float32)
    return boxes, scores


def detections_by_class(
    scores: np.ndarray, boxes: np.ndarray, cfg: Config, *, thresh: float = 0.05, max_per_image: int = 100
) -> list[np.ndarray]:
    """What is reported for one image: for every class ``[N, 5]`` float32 ``(x1, y1, x2, y2, score)``, best first.

    Scores above ``thresh``, NMS at ``TEST.NMS`` within a class, with ``TEST.BBOX_VOTE`` the votes of the boxes before
    it, and the ``max_per_image`` best of all classes together (more where the last of them ties; 0 keeps all). Class 0,
    background, is always empty.

    Args:
        scores: ``[R, C]``; boxes: ``[R, 4C]`` or ``[R, 8]``, from :func:`im_detect`.
    """
    test = cfg.TEST
    by_class = [np.zeros((0, 5), dtype=np.float32)]
    voters = list(by_class)
    for cls in range(1, scores.shape[1]):
        inds = np.where(scores[:, cls] > thresh)[0]
        column = 4 * min(cls, boxes.shape[1] // 4 - 1)
        dets = np.hstack([boxes[inds, column : column + 4], scores[inds, cls, None]]).astype(np.float32)
        by_class.append(dets[nms(dets[:, :4], dets[:, 4], test.NMS)])
        voters.append(dets)
    new_scores = test.BBOX_VOTE and test.BBOX_VOTE_N_WEIGHTED_SCORE > 1
    if new_scores:
        by_class = [vote_boxes(*pair, cfg) for pair in zip(by_class, voters, strict=True)]
    if max_per_image > 0:
        best = np.sort(np.concatenate([dets[:, 4] for dets in by_class]))
        if len(best) > max_per_image:
            by_class = [dets[dets[:, 4] >= best[-max_per_image]] for dets in by_class]
    if test.BBOX_VOTE and not new_scores:  # for fewer boxes, and the same
        by_class = [vote_boxes(*pair, cfg) for pair in zip(by_class, voters, strict=True)]
    return by_class


def vote_boxes(kept: np.ndarray, dets: np.ndarray, cfg: Config) -> np.ndarray:
    """PVANet's ``bbox_vote``: each of ``kept`` ``[K, 5]`` becomes the mean, weighted by score, of the boxes in ``dets``
    ``[N, 5]`` whose IoU with it is ``TEST.BBOX_VOTE_THRESH`` or more (Gidaris and Komodakis 2015, section 4). Scores
    below 0 have no weight, as there.

    With ``TEST.BBOX_VOTE_N_WEIGHTED_SCORE`` n above 1 the score becomes the mean of the n best of those, ones that are
    missing counted as ``BBOX_VOTE_WEIGHT_EMPTY`` of the mean of those that are there; it never grows.
    """
    parts = np.array_split(kept, max(1, min(len(kept), len(kept) * len(dets) // _PAIRS_AT_A_TIME)))
    return np.concatenate([_voted(part, dets, cfg.TEST) for part in parts])


def _voted(kept: np.ndarray, dets: np.ndarray, test) -> np.ndarray:
    overlaps = bbox_overlaps(kept[:, :4].astype(np.float64), dets[:, :4].astype(np.float64))
    voters = (overlaps >= test.BBOX_VOTE_THRESH) & (dets[:, 4] > 0)
    weights = voters * dets[:, 4]
    total = weights.sum(1, keepdims=True)
    voted = np.where(total > 0, weights @ dets[:, :4] / np.maximum(total, np.finfo(np.float32).tiny), kept[:, :4])
    scores = kept[:, 4]
    wanted, share = test.BBOX_VOTE_N_WEIGHTED_SCORE, test.BBOX_VOTE_WEIGHT_EMPTY
    if wanted > 1:
        best = -np.sort(-weights, 1)[:, :wanted]
        number = np.minimum(voters.sum(1), wanted)
        mean = best.sum(1) / np.maximum(number, 1)
        scores = np.where(number > 0, np.minimum(mean * (number + (wanted - number) * share) / wanted, scores), scores)
    return np.hstack([voted, scores[:, None]]).astype(np.float32)
