"""From roidb entries to the blobs of one minibatch, as the original's ``roi_data_layer/minibatch.py`` makes them.

It is done in two parts: :func:`plan_minibatch` makes every random choice (which scale, which RoIs) and reads no image;
:func:`load_minibatch` does the rest and is a pure function of the plan. So images can be prepared in other processes,
any number of them, without changing the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..config import Config
from ..errors import PortError
from .image_size import is_cut_off


@dataclass
class MinibatchPlan:
    """All choices of one minibatch; the lists have one element for each image."""

    roidb_inds: list[int]
    scales: list[float]  # length in pixels that the shorter side gets
    keep: list[np.ndarray]  # RoIs of the image, foreground first
    num_fg: list[int]  # how many of them are foreground


def plan_minibatch(roidb: list[dict], roidb_inds, cfg: Config, rng: np.random.RandomState) -> MinibatchPlan:
    """Draws scales and RoIs for the images ``roidb_inds``, using ``rng`` exactly as the original uses numpy's.

    With ``TRAIN.USE_OHEM`` all RoIs stay (``_all_rois``); otherwise ``BATCH_SIZE / images`` are sampled for each image,
    at most a fraction ``FG_FRACTION`` of them foreground (``_sample_rois``; Fast R-CNN, section 2.3).
    """
    train = cfg.TRAIN
    scale_inds = rng.randint(0, high=len(train.SCALES), size=len(roidb_inds))
    if train.BATCH_SIZE % len(roidb_inds):
        raise PortError(f"TRAIN.IMS_PER_BATCH ({len(roidb_inds)}) must divide TRAIN.BATCH_SIZE ({train.BATCH_SIZE})")
    rois_per_image = train.BATCH_SIZE // len(roidb_inds)
    plan = MinibatchPlan([int(i) for i in roidb_inds], [train.SCALES[i] for i in scale_inds], [], [])
    for i in roidb_inds:
        overlaps = roidb[i]["max_overlaps"]
        fg_inds = np.where(overlaps >= train.FG_THRESH)[0]
        if train.USE_OHEM:
            bg_inds = np.where(overlaps < train.BG_THRESH_HI)[0]
        else:
            bg_inds = np.where((overlaps < train.BG_THRESH_HI) & (overlaps >= train.BG_THRESH_LO))[0]
            fg_size = int(min(np.round(train.FG_FRACTION * rois_per_image), fg_inds.size))
            bg_size = min(rois_per_image - fg_size, bg_inds.size)
            if fg_inds.size:
                fg_inds = rng.choice(fg_inds, size=fg_size, replace=False)
            if bg_inds.size:
                bg_inds = rng.choice(bg_inds, size=bg_size, replace=False)
        plan.keep.append(np.append(fg_inds, bg_inds))
        plan.num_fg.append(len(fg_inds))
    return plan


def load_minibatch(roidb: list[dict], plan: MinibatchPlan, num_classes: int, cfg: Config) -> dict[str, np.ndarray]:
    """The blobs of a plan, float32.

    Returns:
        data ``[N, 3, H, W]`` (BGR minus ``PIXEL_MEANS``, scaled, zero-padded to the largest), rois ``[R, 5]`` rows
        ``(image, x1, y1, x2, y2)`` in the scaled image, labels ``[R]`` and, with ``TRAIN.BBOX_REG``, bbox_targets,
        bbox_inside_weights, bbox_outside_weights ``[R, 4 * num_classes]``.

    Raises:
        PortError: an image that is missing, cannot be decoded, or has another size than the annotations say.
    """
    images, rois, labels, targets = [], [], [], []
    for n, (i, scale, keep) in enumerate(zip(plan.roidb_inds, plan.scales, plan.keep, strict=True)):
        entry = roidb[i]
        image = entry_image(entry)
        image, im_scale = prep_image(image, cfg.PIXEL_MEANS, scale, cfg.TRAIN.MAX_SIZE)
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
        expanded, inside = expand_bbox_targets(np.vstack(targets), num_classes, cfg.TRAIN.BBOX_INSIDE_WEIGHTS)
        blobs["bbox_targets"], blobs["bbox_inside_weights"] = expanded, inside
        blobs["bbox_outside_weights"] = (inside > 0).astype(np.float32)
    return blobs


def read_image(path) -> np.ndarray:
    """An image file as ``[H, W, 3]`` uint8 BGR, as stored (no EXIF rotation, which annotations do not know either).

    Raises:
        PortError: it is missing, not an image, or a JPEG that was cut off.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise PortError(f"cannot read the image: {error.strerror}", file=path) from None
    cut_off, image = is_cut_off(encoded), None
    if encoded and not cut_off:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags)
    if image is None:
        what = "not an image, or damaged" + (": the JPEG file is cut off" if cut_off else "")
        raise PortError(what, file=path, hint="replace the file or remove it from the image set")
    return image


def entry_image(entry: dict) -> np.ndarray:
    """The image of a roidb entry, mirrored where ``flipped``; its size must be the one the boxes refer to."""
    image = read_image(entry["image"])
    size = (entry.get("width", image.shape[1]), entry.get("height", image.shape[0]))
    if size != (image.shape[1], image.shape[0]):
        raise PortError(
            f"the image is {image.shape[1]} x {image.shape[0]}, its annotation says {size[0]} x {size[1]}",
            file=entry["image"],
        )
    return image[:, ::-1, :] if entry["flipped"] else image


def prep_image(image: np.ndarray, pixel_means, target_size: float, max_size: float) -> tuple[np.ndarray, float]:
    """Subtracts the means and scales the shorter side to ``target_size``, the longer to at most ``max_size``.

    Returns:
        ``[H, W, 3]`` float32 and the scale.
    """
    image = image.astype(np.float32)
    image -= np.asarray(pixel_means, dtype=np.float64)
    shorter, longer = min(image.shape[:2]), max(image.shape[:2])
    im_scale = float(target_size) / float(shorter)
    if np.round(im_scale * longer) > max_size:
        im_scale = float(max_size) / float(longer)
    return cv2.resize(image, None, fx=im_scale, fy=im_scale, interpolation=cv2.INTER_LINEAR), im_scale


def images_to_blob(images: list[np.ndarray]) -> np.ndarray:
    """Images ``[H_i, W_i, 3]`` in one ``[N, 3, H, W]`` blob of the largest sides, padded with zeros at the end."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    blob = np.zeros((len(images), 3, height, width), dtype=np.float32)
    for i, image in enumerate(images):
        blob[i, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return blob


def expand_bbox_targets(compact: np.ndarray, num_classes: int, inside_weights) -> tuple[np.ndarray, np.ndarray]:
    """``[R, 5]`` rows ``(class, dx, dy, dw, dh)`` spread over four columns for each class: targets and inside weights,
    both ``[R, 4 * num_classes]`` float32, zero for background."""
    targets = np.zeros((len(compact), 4 * num_classes), dtype=np.float32)
    weights = np.zeros_like(targets)
    rows = np.where(compact[:, 0] > 0)[0]
    columns = 4 * compact[rows, 0].astype(np.int64)[:, None] + np.arange(4)
    targets[rows[:, None], columns] = compact[rows, 1:]
    weights[rows[:, None], columns] = inside_weights
    return targets, weights
