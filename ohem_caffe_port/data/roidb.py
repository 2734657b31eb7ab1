"""Turns an imdb's roidb into one to train from: derived quantities, filtering, box-regression targets.

``cfg`` is the configuration object with the original's keys (``cfg.TRAIN.FG_THRESH``, ``cfg.EPS`` ...).
"""

from __future__ import annotations

import logging

import numpy as np

from ..boxes import bbox_overlaps, bbox_transform
from ..errors import PortError
from .imdb import Imdb

log = logging.getLogger(__name__)


def get_training_roidb(imdb: Imdb, cfg) -> list[dict]:
    """The imdb's roidb, mirrored images appended (``cfg.TRAIN.USE_FLIPPED``), after :func:`prepare_roidb`."""
    if cfg.TRAIN.USE_FLIPPED:
        imdb.append_flipped_images()
    prepare_roidb(imdb)
    return imdb.roidb


def prepare_roidb(imdb: Imdb) -> None:
    """Adds to each entry of ``imdb.roidb``, in place:

    ``image`` (str path), ``image_id`` (str), ``width``, ``height`` (pixels), ``max_overlaps`` [N] float32 (highest IoU
    with any ground-truth box) and ``max_classes`` [N] int64 (its class, 0 without overlap).

    Raises:
        PortError: an overlap is booked to the background class.
    """
    for i, entry in enumerate(imdb.roidb):
        gt_overlaps = entry["gt_overlaps"].toarray()
        max_overlaps, max_classes = gt_overlaps.max(axis=1), gt_overlaps.argmax(axis=1)
        if ((max_overlaps > 0) != (max_classes > 0)).any():
            raise PortError(
                f"gt_overlaps of image '{imdb.image_id_at(i)}' has an overlap with the background class (column 0)",
                hint="The class of a ground-truth box must be 1 or more.",
            )
        entry["image"], entry["image_id"] = str(imdb.image_path_at(i)), imdb.image_id_at(i)
        entry["width"], entry["height"] = imdb.image_size_at(i)
        entry["max_overlaps"], entry["max_classes"] = max_overlaps, max_classes


def filter_roidb(roidb: list[dict], cfg) -> list[dict]:
    """The entries with at least one foreground RoI (IoU >= FG_THRESH) or background RoI (BG_THRESH_LO <= IoU <
    BG_THRESH_HI).

    Raises:
        PortError: none is left.
    """
    train = cfg.TRAIN

    def is_valid(entry) -> bool:
        overlaps = entry["max_overlaps"]
        fg = overlaps >= train.FG_THRESH
        bg = (overlaps < train.BG_THRESH_HI) & (overlaps >= train.BG_THRESH_LO)
        return bool((fg | bg).any())

    kept = [entry for entry in roidb if is_valid(entry)]
    log.info("Filtered %d roidb entries: %d -> %d", len(roidb) - len(kept), len(roidb), len(kept))
    if not kept:
        raise PortError(
            f"none of the {len(roidb)} images has a foreground or background RoI",
            field="TRAIN.FG_THRESH, BG_THRESH_HI, BG_THRESH_LO",
            hint="Check the proposals of this image set, and that BG_THRESH_LO < BG_THRESH_HI.",
        )
    return kept


def add_bbox_regression_targets(roidb: list[dict], cfg) -> tuple[np.ndarray, np.ndarray]:
    """Adds ``bbox_targets`` [N, 5] float32 (class, dx, dy, dw, dh; class 0 rows are zero) to each entry, in place.

    Targets follow Fast R-CNN (Girshick, ICCV 2015; R-CNN appendix C) for RoIs with IoU >= BBOX_THRESH. With
    BBOX_NORMALIZE_TARGETS the mean is subtracted and the result divided by the standard deviation, each per class over
    the whole roidb, or BBOX_NORMALIZE_MEANS / STDS for all classes with BBOX_NORMALIZE_TARGETS_PRECOMPUTED. With
    AGNOSTIC (py-R-FCN) all classes together are class 1 of C = 2.

    Returns ``means, stds``, each [4 * C] float64 in the order class, coordinate. Classes without foreground have 0.

    Raises:
        PortError: a class whose targets are all alike (std 0), so that they cannot be normalised.
    """
    if not roidb:
        raise PortError("the roidb is empty: no box-regression targets to compute")
    if "max_classes" not in roidb[0]:
        raise PortError("the roidb is not prepared", hint="Call prepare_roidb (or get_training_roidb) first.")
    train = cfg.TRAIN
    num_classes = 2 if train.AGNOSTIC else roidb[0]["gt_overlaps"].shape[1]
    for entry in roidb:
        entry["bbox_targets"] = _compute_targets(entry, train.BBOX_THRESH)

    if train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
        means = np.tile(np.array(train.BBOX_NORMALIZE_MEANS, dtype=np.float64), (num_classes, 1))
        stds = np.tile(np.array(train.BBOX_NORMALIZE_STDS, dtype=np.float64), (num_classes, 1))
    else:
        means, stds = _target_statistics(roidb, num_classes, cfg)

    if train.BBOX_NORMALIZE_TARGETS:
        for entry in roidb:
            targets = entry["bbox_targets"]
            rows = np.flatnonzero(targets[:, 0] > 0)
            classes = _regression_classes(targets[rows, 0], cfg)
            _check_stds(stds, classes)
            values = targets[rows, 1:]  # float32 in between, as in the original
            values -= means[classes]
            values /= stds[classes]
            targets[rows, 1:] = values
    return means.ravel(), stds.ravel()


def _regression_classes(classes, cfg) -> np.ndarray:
    """The class whose statistics and columns a target has: its own, or 1 with AGNOSTIC."""
    return np.minimum(classes, 1).astype(np.int64) if cfg.TRAIN.AGNOSTIC else classes.astype(np.int64)


def _target_statistics(roidb, num_classes: int, cfg) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the targets per class, [C, 4] each: var(x) = E(x^2) - E(x)^2."""
    counts = np.zeros((num_classes, 1)) + cfg.EPS
    sums, squared_sums = np.zeros((num_classes, 4)), np.zeros((num_classes, 4))
    for entry in roidb:
        targets = entry["bbox_targets"]
        classes = _regression_classes(targets[:, 0], cfg)
        for cls in np.unique(classes):
            if cls > 0:
                # summed in float32 within an image and in float64 over images: the original's numbers to the last bit
                values = targets[classes == cls, 1:]
                counts[cls] += len(values)
                sums[cls] += values.sum(axis=0)
                squared_sums[cls] += (values**2).sum(axis=0)
    means = sums / counts
    return means, np.sqrt(np.maximum(squared_sums / counts - means**2, 0))


def _check_stds(stds, classes) -> None:
    flat = np.flatnonzero((stds == 0).any(axis=1))
    bad = np.intersect1d(flat, classes)
    if bad.size:
        raise PortError(
            f"all box-regression targets of class {bad[0]} are alike (std 0): they cannot be normalised",
            field="TRAIN.BBOX_NORMALIZE_TARGETS",
            hint="Add images or proposals of this class, or set TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED True.",
        )


def _compute_targets(entry: dict, bbox_thresh: float) -> np.ndarray:
    """[N, 5] float32 (class, dx, dy, dw, dh) of one image, not normalised."""
    rois, overlaps = entry["boxes"].astype(np.float64), entry["max_overlaps"]
    targets = np.zeros((len(rois), 5), dtype=np.float32)
    gt_inds = np.flatnonzero(overlaps == 1)  # ground truth, and proposals equal to it
    if gt_inds.size == 0:
        return targets
    ex_inds = np.flatnonzero(overlaps >= bbox_thresh)
    assignment = bbox_overlaps(rois[ex_inds], rois[gt_inds]).argmax(axis=1)
    targets[ex_inds, 0] = entry["max_classes"][ex_inds]
    targets[ex_inds, 1:] = bbox_transform(rois[ex_inds], rois[gt_inds[assignment]])
    return targets
