"""``GtBoxDataLayer``: images of a data set and their ground truth, as SSD's losses take them."""

from __future__ import annotations

import numpy as np
import torch

from ..data.minibatch import MinibatchPlan, entry_image, images_to_blob, prep_image
from ..layers import register_python
from .roi_data import RoIDataLayer

# no proposals, and no box targets of proposals
SINGLE_SHOT = {"PROPOSAL_METHOD": "gt", "BBOX_REG": False, "BG_THRESH_LO": 0.0, "ASPECT_GROUPING": False}


@register_python("ohem_caffe_port.python_layers", "GtBoxDataLayer")
class GtBoxDataLayer(RoIDataLayer):
    """Images and boxes for a single-shot detector, from any imdb (ours). Tops: data ``[N, 3, H, W]`` as RoIDataLayer's,
    and label ``[1, 1, G, 8]`` as AnnotatedData's.

    A row of label is image of the batch, class, 0, xmin, ymin, xmax, ymax, difficult (0). Corners are in units of the
    data blob, 0 to 1, of boxes that end where the next pixel begins; a batch without objects gives one row of -1.
    ``TRAIN.IMS_PER_BATCH`` images to a batch, scaled by ``TRAIN.SCALES`` and ``MAX_SIZE``, of different sizes padded at
    the end. Keys of :data:`SINGLE_SHOT` that are not stated get their values. ``param_str``: ``'num_classes': 21``.
    """

    def unstated(self):
        return SINGLE_SHOT

    def setup(self, bottoms):
        self.num_classes, self.loader = self.setting("num_classes", int), None
        self.names = ["data", "label"]
        if len(self.param.top) != 2:
            raise self.error("its tops are data and label", field="top")

    def infer(self, bottoms):
        cfg = self.context.cfg.TRAIN
        image = (cfg.IMS_PER_BATCH, 3, int(max(cfg.SCALES)), cfg.MAX_SIZE)
        return [torch.empty(shape, device="meta") for shape in (image, (1, 1, 1, 8))]

    def set_roidb(self, roidb):
        self.loader = self._loader(roidb, plan=plan_images, load=load_images)


def plan_images(roidb, roidb_inds, cfg, rng) -> MinibatchPlan:
    """Draws a scale for every image, and nothing else."""
    scales = rng.randint(0, high=len(cfg.TRAIN.SCALES), size=len(roidb_inds))
    return MinibatchPlan([int(i) for i in roidb_inds], [cfg.TRAIN.SCALES[i] for i in scales], [], [])


def load_images(roidb, plan: MinibatchPlan, num_classes: int, cfg) -> dict[str, np.ndarray]:
    """data and label of a plan; see :class:`GtBoxDataLayer`."""
    images, boxes = [], []
    for n, (i, scale) in enumerate(zip(plan.roidb_inds, plan.scales, strict=True)):
        entry = roidb[i]
        image, im_scale = prep_image(entry_image(entry), cfg, scale, cfg.TRAIN)
        images.append(image)
        objects = entry["gt_classes"] > 0
        corners = (entry["boxes"][objects].astype(np.float64) + (0, 0, 1, 1)) * im_scale
        rows = np.zeros((len(corners), 8))
        rows[:, 0], rows[:, 1], rows[:, 3:7] = n, entry["gt_classes"][objects], corners
        boxes.append(rows)
    data, label = images_to_blob(images), np.concatenate(boxes)
    label[:, 3:7] /= np.tile(data.shape[:1:-1], 2)
    if not len(label):
        label = np.full((1, 8), -1.0)
    return {"data": data, "label": label.astype(np.float32)[None, None]}
