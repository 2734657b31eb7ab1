"""OHEM's layers: the original's ``OHEMDataLayer``, and the naive one-branch way for comparison."""

from __future__ import annotations

import numpy as np
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

    known_settings = {"num_classes"}
    top_names: tuple[str, ...] = ()
    padded = False  # whether indices are chosen as many as there can be, see select_hard_rois

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
        """All RoIs with their losses.

        Raises:
            PortError: bottoms that have not one row, or one label, for each RoI.
        """
        counts = [b.numel() if i == 3 else len(b) for i, b in enumerate(bottoms)]
        if len(set(counts)) > 1:
            named = ", ".join(f"'{name}' has {n}" for name, n in zip(self.param.bottom, counts, strict=True))
            raise self.error(f"needs one row for each RoI, but {named}")
        rows = [b.flatten(1) if b.dim() > 2 else b for b in bottoms]
        cls_prob, bbox_pred, rois, labels = rows[:4]
        labels = labels.reshape(-1)
        loc_loss = roi_loc_loss(labels, bbox_pred, *rows[4:7]) if self.box_bottoms else None
        return Examples(roi_cls_loss(cls_prob, labels), labels, loc_loss, rois)

    def select(self, bottoms):
        """Indices of the hard RoIs. ``roi_loss``, of all RoIs, and ``hard_inds`` remain for whoever wants to look."""
        examples = self.examples(bottoms)
        self.roi_loss, self._chosen = examples.loss, self.choose(examples)
        return self._chosen

    def choose(self, examples: Examples):
        """Indices of the hard RoIs, hardest first; with ``padded``, the number of RoIs where there are no more."""
        return select_hard_rois(
            examples.loss, examples.rois, examples.labels, self.context.cfg.TRAIN.BATCH_SIZE,
            nms_thresh=self.nms_thresh, padded=self.padded,
        )  # fmt: skip

    @property
    def hard_inds(self):
        """Indices of the hard RoIs in the last pass, hardest first."""
        return self._chosen[self._chosen < len(self.roi_loss)]

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

    A GPU's host waits once in a pass, to know how many RoIs survived; ``'padded': True`` in ``param_str`` spares it
    that. Then the tops always have ``BATCH_SIZE`` rows (or as many as there are RoIs). Those left over repeat a RoI,
    with label -1 and weights 0, and the other outside weights are scaled as :class:`OHEMMaskLayer` does; so with
    ``ignore_label: -1`` the losses and their gradients are those of the smaller batch.
    """

    top_names = (
        "rois_hard", "labels_hard", "bbox_targets_hard", "bbox_inside_weights_hard", "bbox_outside_weights_hard",
    )  # fmt: skip
    known_settings = {"num_classes", "iter_size", "maintain_before", "corrected", "padded"}

    def setup(self, bottoms):
        if self.context.cfg.TRAIN.USE_ASDN:
            self.top_names = (*self.top_names, "prop_before")
        super().setup(bottoms)
        self.iter_size = self.setting("iter_size", int, 1)
        self.maintain_before = self.setting("maintain_before", int, 0)
        for name, least in (("iter_size", 1), ("maintain_before", 0)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise self.error(f"'{name}' must be at least {least}, not {value}", field="python_param.param_str")
        self.corrected, self.passes = self.setting("corrected", bool, False), 0
        self.padded = self.setting("padded", bool, False)
        if self.padded and (self.context.cfg.TRAIN.USE_ASDN or self.context.cfg.TRAIN.OHEM_RATIO >= 0.1):
            raise self.error("'padded' is not for TRAIN.USE_ASDN or OHEM_RATIO", field="python_param.param_str")

    def remembered(self):
        return {"passes": np.array(self.passes)}

    def remember(self, state):
        self.passes = int(state["passes"])

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
        chosen, total = self.select(bottoms), len(bottoms[2])
        tops = [b.index_select(0, chosen.clamp(max=total - 1)) for b in self._gathered(bottoms)]
        if not self.padded:
            return tops
        rois, labels, *boxes = tops
        if not boxes:
            return [rois, labels.masked_fill((chosen == total).view_as(labels), -1)]
        rows = torch.where(chosen < total, torch.arange(len(chosen), device=chosen.device), len(chosen))
        labels, inside, outside = easy_rois_zeroed(rows, labels, *boxes[1:])
        return [rois, labels, boxes[0], inside, outside]

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
    padded = True

    def setup(self, bottoms):
        if not self.context.cfg.TRAIN.BBOX_REG:
            raise self.error("needs TRAIN.BBOX_REG")
        super().setup(bottoms)

    def infer(self, bottoms):
        return [torch.empty_like(b) for b in (bottoms[3], bottoms[5], bottoms[6])]

    def forward(self, bottoms):
        hard_inds = self.select(bottoms)
        return list(easy_rois_zeroed(hard_inds, bottoms[3], bottoms[5], bottoms[6]))
