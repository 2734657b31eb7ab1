"""OHEM's layers: the original's ``OHEMDataLayer``, and the naive one-branch way for comparison."""

from __future__ import annotations

import torch

from ..layers import PythonLayer, register_python
from ..mining import (
    Examples,
    easy_rois_zeroed,
    roi_cls_loss,
    roi_loc_loss,
    select_hard_rois,
    select_rois_by_ratio,
)


class MiningLayer(PythonLayer):
    """Bottoms: class probabilities, box predictions, rois, labels, and with ``TRAIN.BBOX_REG`` bbox_targets,
    bbox_inside_weights, bbox_outside_weights; all with one row for each RoI. ``param_str``: ``'num_classes': 21``."""

    top_names: tuple[str, ...] = ()

    def setup(self, bottoms):
        cfg = self.context.cfg.TRAIN
        self.num_classes = self.setting("num_classes", int)
        if cfg.BATCH_SIZE < 1:
            raise self.error(f"TRAIN.BATCH_SIZE is {cfg.BATCH_SIZE}; it says how many hard RoIs are chosen")
        self.box_bottoms = 3 if cfg.BBOX_REG else 0
        wanted = (4 + self.box_bottoms, len(self.top_names) - (0 if cfg.BBOX_REG else 3))
        given = (len(self.param.bottom), len(self.param.top))
        if given != wanted:
            raise self.error(f"takes {wanted[0]} bottoms and makes {wanted[1]} tops (TRAIN.BBOX_REG {cfg.BBOX_REG}, "
                             f"USE_ASDN {cfg.USE_ASDN}); it has {given[0]} and {given[1]}")  # fmt: skip
        if bottoms[0].shape[1] != self.num_classes:
            raise self.error(
                f"num_classes is {self.num_classes}, but '{self.param.bottom[0]}' has {bottoms[0].shape[1]} columns"
            )

    def examples(self, bottoms) -> Examples:
        """All RoIs with their losses."""
        rows = [b.flatten(1) if b.dim() > 2 else b for b in bottoms]
        cls_prob, bbox_pred, rois, labels = rows[:4]
        labels = labels.reshape(-1)
        loc_loss = roi_loc_loss(labels, bbox_pred, *rows[4:7]) if self.box_bottoms else None
        return Examples(roi_cls_loss(cls_prob, labels), labels, loc_loss, rois)

    def select(self, bottoms):
        """Indices of the hard RoIs and the loss of all of them; both are kept for whoever wants to look."""
        examples = self.examples(bottoms)
        self.roi_loss, self.hard_inds = examples.loss, self.choose(examples)
        return self.hard_inds

    def choose(self, examples: Examples):
        """Indices of the hard RoIs, hardest first."""
        batch_size, thresh = self.context.cfg.TRAIN.BATCH_SIZE, self.nms_thresh
        return select_hard_rois(examples.loss, examples.rois, examples.labels, batch_size, nms_thresh=thresh)

    @property
    def nms_thresh(self) -> float | None:
        cfg = self.context.cfg.TRAIN
        return cfg.OHEM_NMS_THRESH if cfg.OHEM_USE_NMS else None


@register_python("roi_data_layer.layer", "OHEMDataLayer")
class OHEMDataLayer(MiningLayer):
    """The original's ``hard_roi_mining`` layer: the ``TRAIN.BATCH_SIZE`` RoIs with the highest loss after NMS among
    RoIs of one image and label. Tops: rois_hard, labels_hard, bbox_targets_hard, bbox_inside_weights_hard,
    bbox_outside_weights_hard, hardest RoI first. See :mod:`ohem_caffe_port.mining`.

    adversarial-frcnn's variant is switched on by its keys. ``TRAIN.USE_ASDN``: a last top, the class probabilities of
    the chosen RoIs. ``TRAIN.OHEM_RATIO`` from 0.1 on: :func:`~ohem_caffe_port.mining.select_rois_by_ratio` chooses (of
    background the hardest with ``TRAIN.OHEM_HARD_NEG``), save in pass ``k`` (from 1) with ``k % iter_size <
    maintain_before``, both of ``param_str`` (1, 0); ``corrected`` there is that function's.
    """

    top_names = (
        "rois_hard", "labels_hard", "bbox_targets_hard", "bbox_inside_weights_hard", "bbox_outside_weights_hard",
    )  # fmt: skip

    def setup(self, bottoms):
        if self.context.cfg.TRAIN.USE_ASDN:
            self.top_names = (*self.top_names, "prop_before")
        super().setup(bottoms)
        self.iter_size = self.setting("iter_size", int, 1)
        self.maintain_before = self.setting("maintain_before", int, 0)
        if self.iter_size < 1:
            raise self.error(f"'iter_size' must be positive, not {self.iter_size}", field="python_param.param_str")
        self.corrected, self.passes = self.setting("corrected", bool, False), 0

    def choose(self, examples):
        cfg = self.context.cfg.TRAIN
        self.passes = (self.passes + 1) % self.iter_size
        if self.passes < self.maintain_before or cfg.OHEM_RATIO < 0.1:
            return super().choose(examples)
        return select_rois_by_ratio(
            examples.loss, examples.rois, examples.labels, cfg.BATCH_SIZE, ratio=cfg.OHEM_RATIO,
            hard_negative=cfg.OHEM_HARD_NEG, nms_thresh=self.nms_thresh, rng=self.context.rng,
            corrected=self.corrected,
        )  # fmt: skip

    def infer(self, bottoms):
        rows = min(len(bottoms[2]), self.context.cfg.TRAIN.BATCH_SIZE)
        return [b.new_empty((rows, *b.shape[1:])) for b in self._gathered(bottoms)]

    def forward(self, bottoms):
        hard_inds = self.select(bottoms)
        return [b.index_select(0, hard_inds) for b in self._gathered(bottoms)]

    def _gathered(self, bottoms):
        probabilities = bottoms[:1] if self.context.cfg.TRAIN.USE_ASDN else []
        return [*bottoms[2 : 4 + self.box_bottoms], *probabilities]


@register_python("ohem_caffe_port.python_layers", "OHEMMaskLayer")
class OHEMMaskLayer(MiningLayer):
    """OHEM the naive way (paper, section 4.3): one branch computes all RoIs, and the losses of easy ones are zeroed.

    Tops: labels (easy RoIs get the ignore label -1), bbox_inside_weights and bbox_outside_weights (zero for easy RoIs,
    scaled so that a loss divided by the number of all rows is divided by the number of hard ones). With
    ``SoftmaxWithLoss { loss_param { ignore_label: -1 } }`` and ``SmoothL1Loss`` this trains exactly as two branches do,
    dropout aside, at the cost of a backward pass through every RoI.
    """

    top_names = ("labels_masked", "bbox_inside_weights_masked", "bbox_outside_weights_masked")

    def setup(self, bottoms):
        if not self.context.cfg.TRAIN.BBOX_REG:
            raise self.error("needs TRAIN.BBOX_REG")
        super().setup(bottoms)

    def infer(self, bottoms):
        return [torch.empty_like(b) for b in (bottoms[3], bottoms[5], bottoms[6])]

    def forward(self, bottoms):
        hard_inds = self.select(bottoms)
        return list(easy_rois_zeroed(hard_inds, bottoms[3], bottoms[5], bottoms[6]))
