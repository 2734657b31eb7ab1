"""Hard RoI mining alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ohem_caffe_port.mining import ohem_roi_loss, select_hard_rois

from .common import Differences


def replay_selection(folder: Path) -> dict:
    found = Differences()
    index = json.loads((folder / "index.json").read_text())
    for name, case in index.items():
        arrays = np.load(folder / f"{name}.npz")
        bottoms = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("in/")}
        boxes = [bottoms[k] for k in ("bbox_pred", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights")]
        loss = ohem_roi_loss(bottoms["cls_prob"], bottoms["labels"], *boxes)
        thresh = case["thresh"] if case["use_nms"] else None
        hard = select_hard_rois(loss, bottoms["rois"], bottoms["labels"], case["batch"], nms_thresh=thresh)
        found.add("roi_loss", loss, arrays["loss"], name)
        # exact ties: numpy's unstable sort decided which of equals is taken, their losses are the same
        ours, reference = np.sort(loss[hard].numpy()), np.sort(arrays["loss"][arrays["hard_inds"]])
        found.add("selected_losses", ours, reference, name)
        if not case["n_tied"]:
            found.add("indices", hard, arrays["hard_inds"], name)
            found.add("rois", bottoms["rois"][hard], arrays["out/rois_hard"], name)
    found.tolerances["selected_losses"] = {"abs": 0}
    found.notes["cases"] = len(index)
    return found.report()
