"""From roidb entries to the blobs of one minibatch, as the original's ``roi_data_layer/minibatch.py`` makes them.

It is done in two parts: :func:`plan_minibatch` makes every random choice (which scale, which RoIs) and reads no image;
:func:`load_minibatch` does the rest and is a pure function of the plan. So images can be prepared in other threads,
any number of them, without changing the result.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import cv2
import numpy as np

from ..config import Config
from ..errors import PortError
from .images import read_image


@dataclass
class MinibatchPlan:
    """All choices of one minibatch; the lists have one element for each image."""

    roidb_inds: list[int]
    scales: list[float]  # length in pixels that the shorter side gets
    keep: list[np.ndarray]  # RoIs of the image, foreground first; no elements with TRAIN.HAS_RPN
    num_fg: list[int]  # how many of them are foreground


def plan_minibatch(roidb: list[dict], roidb_inds, cfg: Config, rng: np.random.RandomState) -> MinibatchPlan:
    """Draws scales and RoIs for the images ``roidb_inds``, using ``rng`` exactly as the original uses numpy's.

    With ``TRAIN.HAS_RPN`` no RoIs are drawn: the net proposes its own. With ``TRAIN.USE_OHEM`` all RoIs stay
    (``_all_rois``); otherwise ``BATCH_SIZE / images`` are sampled for each image by :func:`sample_rois`.
    """
    train = cfg.TRAIN
    scale_inds = rng.randint(0, high=len(train.SCALES), size=len(roidb_inds))
    if train.BATCH_SIZE > 0 and train.BATCH_SIZE % len(roidb_inds):
        raise PortError(f"TRAIN.IMS_PER_BATCH ({len(roidb_inds)}) must divide TRAIN.BATCH_SIZE ({train.BATCH_SIZE})")
    plan = MinibatchPlan([int(i) for i in roidb_inds], [train.SCALES[i] for i in scale_inds], [], [])
    for i in roidb_inds if not train.HAS_RPN else ():
        overlaps = roidb[i]["max_overlaps"]
        if train.USE_OHEM:
            fg_inds = np.where(overlaps >= train.FG_THRESH)[0]
            bg_inds = np.where((overlaps < train.BG_THRESH_HI) & (overlaps >= 0))[0]  # -1: in a crowd of COCO
            keep, num_fg = np.append(fg_inds, bg_inds), len(fg_inds)
        else:
            keep, num_fg = sample_rois(overlaps, len(roidb_inds), cfg, rng)
        plan.keep.append(keep)
        plan.num_fg.append(num_fg)
    return plan


def sample_rois(max_overlaps, images: int, cfg: Config, rng: np.random.RandomState) -> tuple[np.ndarray, int]:
    """Draws the RoIs of one image: ``BATCH_SIZE / images`` of them (all, where ``BATCH_SIZE`` is -1), at most a
    fraction ``FG_FRACTION`` foreground, the rest background (Fast R-CNN, section 2.3).

    Args:
        max_overlaps: ``[R]`` IoU with the best ground-truth box.
        images: in the minibatch.

    Returns:
        indices, foreground first, and the number of foreground ones.
    """
    train = cfg.TRAIN
    wanted = train.BATCH_SIZE // images if train.BATCH_SIZE > 0 else sys.maxsize
    fg_inds = np.where(max_overlaps >= train.FG_THRESH)[0]
    bg_inds = np.where((max_overlaps < train.BG_THRESH_HI) & (max_overlaps >= train.BG_THRESH_LO))[0]
    fg_size = int(min(np.round(train.FG_FRACTION * wanted), fg_inds.size))
    bg_size = min(wanted - fg_size, bg_inds.size)
    if fg_inds.size:
        fg_inds = rng.choice(fg_inds, size=fg_size, replace=False)
    if bg_inds.size:
        bg_inds = rng.choice(bg_inds, size=bg_size, replace=False)
    return np.append(fg_inds, bg_inds), fg_size


def load_minibatch(roidb: list[dict], plan: MinibatchPlan, num_classes: int, cfg: Config) -> dict[str, np.ndarray]:
    """The blobs of a plan, float32.

    Returns:
        data ``[N, 3, H, W]`` (BGR minus ``PIXEL_MEANS``, scaled, zero-padded to the largest), rois ``[R, 5]`` rows
        ``(image, x1, y1, x2, y2)`` in the scaled image, labels ``[R]`` and, with ``TRAIN.BBOX_REG``, bbox_targets,
        bbox_inside_weights, bbox_outside_weights ``[R, 4 * num_classes]`` (``[R, 8]`` with ``TRAIN.AGNOSTIC``).
        With ``TRAIN.HAS_RPN`` it is data ``[1, 3, H, W]``, im_info (:func:`image_info`) and gt_boxes ``[G, 5]``, rows
        ``(x1, y1, x2, y2, class)`` in the scaled image, and :func:`mask_blobs` of an entry with ``gt_masks``.

    Raises:
        PortError: an image that is missing, cannot be decoded, or has another size than the annotations say.
    """
    if cfg.TRAIN.HAS_RPN:
        entry = roidb[plan.roidb_inds[0]]
        image, im_scale = prep_image(entry_image(entry), cfg, plan.scales[0], cfg.TRAIN)
        rows = entry["gt_classes"] > 0
        gt_boxes = np.hstack([entry["boxes"][rows] * im_scale, entry["gt_classes"][rows, None]])
        data = images_to_blob([image])
        blobs = {"data": data, "im_info": image_info(data, im_scale), "gt_boxes": gt_boxes.astype(np.float32)}
        return blobs | (mask_blobs(entry["gt_masks"]) if "gt_masks" in entry else {})
    images, rois, labels, targets = [], [], [], []
    for n, (i, scale, keep) in enumerate(zip(plan.roidb_inds, plan.scales, plan.keep, strict=True)):
        entry = roidb[i]
        image, im_scale = prep_image(entry_image(entry), cfg, scale, cfg.TRAIN)
        images.append(image)
        scaled = entry["boxes"][keep] * im_scale
        rois.append(np.hstack([np.full((len(keep), 1), n), scaled]).astype(np.float32))
        image_labels = entry["max_classes"][keep].astype(np.float32)
        image_labels[plan.num_fg[n] :] = 0
        labels.append(image_labels)
        if cfg.TRAIN.BBOX_REG:
            targets.append(entry["bbox_targets"][keep])
    blobs = {"data": images_to_blob(images), "rois": np.vstack(rois), "labels": np.hstack(labels)}
    if cfg.TRAIN.BBOX_REG:
        classes = 2 if cfg.TRAIN.AGNOSTIC else num_classes
        expanded, inside = expand_bbox_targets(np.vstack(targets), classes, cfg.TRAIN)
        blobs["bbox_targets"], blobs["bbox_inside_weights"] = expanded, inside
        blobs["bbox_outside_weights"] = (inside > 0).astype(np.float32)
    return blobs


def entry_image(entry: dict) -> np.ndarray:
    """The image of a roidb entry, mirrored where ``flipped``; its size must be the one the boxes refer to."""
    image = read_image(entry["image"])
    size = (entry.get("width", image.shape[1]), entry.get("height", image.shape[0]))
    if size != (image.shape[1], image.shape[0]):
        raise PortError(
            f"the image is {image.shape[1]} x {image.shape[0]}, its annotation says {size[0]} x {size[1]}",
            file=entry["image"],
        )
    return cv2.flip(image, 1) if entry["flipped"] else image


def prep_image(image: np.ndarray, cfg: Config, target_size: float, phase) -> tuple[np.ndarray, float | np.ndarray]:
    """Subtracts ``PIXEL_MEANS``, divides by ``PIXEL_STDS`` and scales the shorter side to ``target_size``, the longer
    to at most ``MAX_SIZE``.

    With ``SCALE_MULTIPLE_OF`` above 1 both sides are then cut down to multiples of it (PVANet), so that the scale is
    one for each of x1, y1, x2, y2.

    Args:
        image: ``[H, W, 3]`` uint8 BGR.
        phase: ``cfg.TRAIN`` or ``cfg.TEST``, for the last two keys.

    Returns:
        ``[H, W, 3]`` float32, and the scale: a number, or ``[4]`` with ``SCALE_MULTIPLE_OF``.
    """
    values = np.repeat(np.arange(256, dtype=np.float32), 3).reshape(1, 256, 3)
    values -= np.asarray(cfg.PIXEL_MEANS, dtype=np.float64)
    values /= np.asarray(cfg.PIXEL_STDS, dtype=np.float64)
    fx, fy = image_scale(image.shape, target_size, phase)
    scaled = cv2.resize(cv2.LUT(image, values), None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return scaled, fx if phase.SCALE_MULTIPLE_OF <= 1 else np.array([fx, fy, fx, fy])


def image_scale(shape, target_size: float, phase) -> tuple[float, float]:
    """How much :func:`prep_image` stretches the sides of an image of ``shape = (height, width, ...)``: x, y.

    The result is ``round(width * x)`` by ``round(height * y)`` pixels.
    """
    height, width = shape[:2]
    scale = float(target_size) / float(min(height, width))
    if np.round(scale * max(height, width)) > phase.MAX_SIZE:
        scale = float(phase.MAX_SIZE) / float(max(height, width))
    multiple = phase.SCALE_MULTIPLE_OF
    if multiple <= 1:
        return scale, scale
    return tuple(max(1, np.floor(side * scale / multiple)) * multiple / side for side in (width, height))


def image_info(data: np.ndarray, im_scale) -> np.ndarray:
    """The blob ``im_info`` ``[1, 3]`` float32 of a data blob: height and width of the scaled image, and the scale; or
    ``[1, 6]`` where that is one for each of x1, y1, x2, y2."""
    return np.hstack([data.shape[2], data.shape[3], im_scale]).astype(np.float32)[None]


def mask_blobs(masks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """gt_masks ``[G, H, W]``, every mask ``[h, w]`` at the top left of its own, and mask_info ``[G, 2]``, heights and
    widths. (MNC; a mask is of the pixels in its object's box.)"""
    info = np.array([mask.shape for mask in masks], np.float32)
    blob = np.zeros((len(masks), *info.max(0).astype(int)), np.float32)
    for page, mask in zip(blob, masks, strict=True):
        page[: mask.shape[0], : mask.shape[1]] = mask
    return {"gt_masks": blob, "mask_info": info}


def images_to_blob(images: list[np.ndarray], least: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Images ``[H_i, W_i, 3]`` float32 in one ``[N, 3, H, W]`` blob of the largest sides, padded with zeros at the end.

    ``least``: the height and width that it has at least.
    """
    height, width = (max(least[axis], *(image.shape[axis] for image in images)) for axis in (0, 1))
    blob = np.empty((len(images), 3, height, width), dtype=np.float32)
    for planes, image in zip(blob, images, strict=True):
        bottom, right = image.shape[:2]
        cv2.split(image, list(planes[:, :bottom, :right]))
        planes[:, bottom:], planes[:, :bottom, right:] = 0, 0
    return blob


def expand_bbox_targets(compact: np.ndarray, num_classes: int, train) -> tuple[np.ndarray, np.ndarray]:
    """``[R, 5]`` rows ``(class, dx, dy, dw, dh)`` spread over four columns for each class: targets and inside weights,
    both ``[R, 4 * num_classes]`` float32, zero for background.

    ``train`` is ``cfg.TRAIN``: its ``BBOX_INSIDE_WEIGHTS``, and ``AGNOSTIC``, with which every class counts as class 1.
    """
    targets = np.zeros((len(compact), 4 * num_classes), dtype=np.float32)
    weights = np.zeros_like(targets)
    rows = np.where(compact[:, 0] > 0)[0]
    classes = np.ones(len(rows), np.int64) if train.AGNOSTIC else compact[rows, 0].astype(np.int64)
    columns = 4 * classes[:, None] + np.arange(4)
    targets[rows[:, None], columns] = compact[rows, 1:]
    weights[rows[:, None], columns] = train.BBOX_INSIDE_WEIGHTS
    return targets, weights
