"""Minibatches with masks: of objects (MNC) and of proposals (CFM: Dai, He and Sun, "Convolutional Feature Masking for
Joint Object and Stuff Segmentation", CVPR 2015, in MNC's code)."""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..errors import PortError
from ..ops.masks import resize_mask
from .mat_files import read_mat
from .minibatch import MinibatchPlan, entry_image, expand_bbox_targets, images_to_blob, prep_image


def draw_groups(overlaps, wanted: int, fractions, lows, highs, rng: np.random.RandomState) -> np.ndarray:
    """Indices, ascending, of RoIs drawn in groups: ``fractions[i]`` of ``wanted`` among those whose overlap lies in
    ``[lows[i], highs[i]]``, or all of them where there are fewer."""
    chosen = np.zeros(0, np.int64)
    for fraction, low, high in zip(fractions, lows, highs, strict=True):
        inds = np.where((overlaps >= low) & (overlaps <= high))[0]
        if inds.size:
            inds = rng.choice(inds, size=int(min(inds.size, np.round(wanted * fraction))), replace=False)
        chosen = np.unique(np.hstack((chosen, inds)))
    return chosen


def entry_masks(entry: dict) -> dict[str, np.ndarray]:
    """``masks`` ``[N, S, S]``, ``mask_targets`` ``[N, S, S]`` and ``seg_overlaps`` ``[N]`` of an entry's RoIs: its own
    arrays, or those of the .mat file ``entry["mask_file"]`` (of MNC's ``prepare_mcg_maskdb.py``).

    Raises:
        PortError: neither is there, or the file is broken or of other RoIs.
    """
    if "masks" in entry:
        return {key: entry[key] for key in ("masks", "mask_targets", "seg_overlaps")}
    if "mask_file" not in entry:
        raise PortError(
            "the roidb has no masks of its proposals",
            file=entry.get("image"),
            hint="give each entry 'masks', 'mask_targets', 'seg_overlaps', or 'mask_file'",
        )
    path = entry["mask_file"]
    data = read_mat(path)
    if not {"masks", "mask_targets", "seg_overlap"} <= set(data):
        raise PortError("holds no masks, mask_targets and seg_overlap", file=path)
    found = {"masks": data["masks"], "mask_targets": data["mask_targets"], "seg_overlaps": data["seg_overlap"].ravel()}
    if any(len(values) != len(entry["boxes"]) for values in found.values()):
        raise PortError(f"has masks of {len(found['masks'])} RoIs, not {len(entry['boxes'])}", file=path)
    return found


def plan_cfm_minibatch(roidb, roidb_inds, cfg: Config, rng) -> MinibatchPlan:
    """As :func:`~.minibatch.plan_minibatch`: ``FRACTION_SAMPLE`` of ``BATCH_SIZE / images`` RoIs with an overlap in
    ``[THRESH_LO_SAMPLE, THRESH_HI_SAMPLE]``, those of ``FG_DET_THRESH`` and more first."""
    train = cfg.TRAIN
    scale_inds = rng.randint(0, high=len(train.SCALES), size=len(roidb_inds))
    plan = MinibatchPlan([int(i) for i in roidb_inds], [train.SCALES[i] for i in scale_inds], [], [])
    groups = (train.FRACTION_SAMPLE, train.THRESH_LO_SAMPLE, train.THRESH_HI_SAMPLE)
    for i in roidb_inds:
        overlaps = roidb[i]["max_overlaps"]
        inds = draw_groups(overlaps, train.BATCH_SIZE // len(roidb_inds), *groups, rng)
        is_object = overlaps[inds] >= train.FG_DET_THRESH
        plan.keep.append(np.append(inds[is_object], inds[~is_object]))
        plan.num_fg.append(int(is_object.sum()))
    return plan


def load_cfm_minibatch(roidb, plan: MinibatchPlan, num_classes: int, cfg: Config) -> dict[str, np.ndarray]:
    """The blobs of a plan, float32: data; rois ``[R, 5]``; masks ``[R, 1, M, M]``, those of the RoIs at
    ``TEST.CFM_INPUT_MASK_SIZE``; box_label and mask_label ``[R, 1]``, the latter 0 where masks overlap by less than
    ``FG_SEG_THRESH``; bbox_targets, bbox_inside_weights, bbox_outside_weights ``[R, 4C]``; mask_targets, mask_weight
    ``[R, 1, S, S]``."""
    size, parts, images = cfg.TEST.CFM_INPUT_MASK_SIZE, [], []
    for n, (i, scale, keep, num_fg) in enumerate(
        zip(plan.roidb_inds, plan.scales, plan.keep, plan.num_fg, strict=True)
    ):
        entry, of_masks = roidb[i], entry_masks(roidb[i])
        image, im_scale = prep_image(entry_image(entry), cfg, scale, cfg.TRAIN)
        images.append(image)
        labels = entry["max_classes"][keep].astype(np.float32)
        labels[num_fg:] = 0
        mask_labels = np.where(of_masks["seg_overlaps"][keep] < cfg.TRAIN.FG_SEG_THRESH, 0, labels)
        masks = [resize_mask(mask, size, size) >= cfg.BINARIZE_THRESH for mask in of_masks["masks"][keep]]
        mask_targets = of_masks["mask_targets"][keep][:, None]
        weights = np.zeros(mask_targets.shape)
        weights[:num_fg] = 1
        compact = entry["bbox_targets"][keep] * (np.arange(len(keep)) < num_fg)[:, None]
        targets, inside = expand_bbox_targets(compact, num_classes, cfg.TRAIN)
        parts.append(
            {
                "rois": np.hstack([np.full((len(keep), 1), n), entry["boxes"][keep] * im_scale]),
                "masks": np.reshape(masks, (-1, 1, size, size)),
                "box_label": labels[:, None],
                "mask_label": mask_labels[:, None],
                "bbox_targets": targets,
                "mask_targets": mask_targets,
                "bbox_inside_weights": inside,
                "bbox_outside_weights": inside > 0,
                "mask_weight": weights,
            }
        )
    blobs = {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}
    return {"data": images_to_blob(images), **blobs}
