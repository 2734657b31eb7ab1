"""Layers of this project's own for the other ways of mining: S-OHEM with two branches, and any method with one."""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from prototxt.errors import nearest

from ..layers import register_python
from ..mining import METHODS, Strata, select_stratified_rois
from .ohem import MiningLayer, OHEMDataLayer


def _fits(value, field) -> bool:
    """Whether a value from ``param_str`` is of the type of a dataclass's field."""
    wanted = type(field.default)
    if value is None:
        return "None" in field.type
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    return wanted is tuple or type(value) is wanted  # lists the dataclass looks through itself


class _Settings:
    """A dataclass of :mod:`ohem_caffe_port.mining` filled from ``param_str``, and the part of training that is done."""

    known_settings = None  # those of the dataclass, and an unknown one is an error

    def made(self, kind, own=("num_classes", "iterations"), **defaults):
        """An object of the dataclass ``kind``: ``defaults``, then what ``param_str`` says.

        Raises:
            PortError: an unknown setting, or a value that the dataclass refuses.
        """
        known = {f.name: f for f in fields(kind) if f.init}
        for name, value in self.settings.items():
            if name in known and not _fits(value, known[name]):
                wanted = type(known[name].default).__name__
                raise self.error(f"'{name}' must be of type {wanted}, not {value!r}", field="python_param.param_str")
            if name not in known and name not in own:
                near = nearest(str(name), known)
                raise self.error(
                    f"unknown setting '{name}'" + (f"; did you mean '{near}'?" if near else ""),
                    field="python_param.param_str",
                    hint=f"{kind.__name__} has {', '.join(known) or 'none'}",
                )
        given = {name: value for name, value in self.settings.items() if name in known}
        try:
            return kind(**{**{name: value for name, value in defaults.items() if name in known}, **given})
        except ValueError as error:
            raise self.error(str(error), field="python_param.param_str") from None

    def progress(self) -> float:
        """The part of training that is done, by the solver's iterations; so it is right after a resume, too.

        Raises:
            PortError: nobody said how many iterations there will be.
        """
        clock = self.context.clock
        iterations = self.setting("iterations", int, clock.max_iter)
        if iterations < 1:
            raise self.error(
                "how many iterations there will be is not known",
                field="python_param.param_str",
                hint="the solver's max_iter says it, or 'iterations'",
            )
        return clock.iter / iterations


@register_python("ohem_caffe_port.python_layers", "SOHEMDataLayer")
class SOHEMDataLayer(_Settings, OHEMDataLayer):
    """S-OHEM in the place of ``OHEMDataLayer``, with its bottoms, tops and ``TRAIN`` keys
    (:func:`ohem_caffe_port.mining.select_stratified_rois`).

    ``param_str``: ``'num_classes': 21``; any of ``alpha``, ``beta``, ``bounds``, ``shares`` of
    :class:`ohem_caffe_port.mining.Strata`; ``iterations``, how long training lasts, where that is not the solver's
    ``max_iter``. The iteration is the solver's own, so a training that is resumed goes on where it was.
    """

    def setup(self, bottoms):
        super().setup(bottoms)
        self.strata = self.made(Strata, ("num_classes", "iterations", "padded"))

    def choose(self, examples):
        return select_stratified_rois(
            examples.cls_loss, examples.loc_loss, examples.rois, examples.labels, self.context.cfg.TRAIN.BATCH_SIZE,
            progress=self.progress(), strata=self.strata, nms_thresh=self.nms_thresh, padded=self.padded,
        )  # fmt: skip


@register_python("ohem_caffe_port.python_layers", "MiningWeightsLayer")
class MiningWeightsLayer(_Settings, MiningLayer):
    """Any method of ``ohem_caffe_port.mining.METHODS`` in a net of one branch that sees all RoIs: it says how much the
    losses of each count.

    Bottoms as :class:`OHEMMaskLayer`, which is its special case. Tops: labels, -1 for RoIs that do not count; a weight
    for each label, ``[R]``; bbox_outside_weights times each RoI's weight. Normalisers are part of the weights, so the
    losses after it are sums::

        SoftmaxWithLoss (scores, labels, weights) { loss_param { ignore_label: -1 normalization: NONE } }
        SmoothL1Loss { loss_param { normalization: NONE } }

    ``param_str``: ``'num_classes': 21, 'method': 'focal'``, the method's settings, and ``iterations`` as in
    :class:`SOHEMDataLayer`. Unless stated, ``batch_size`` and ``rois_per_image`` come from ``TRAIN.BATCH_SIZE``,
    ``nms_thresh`` from ``OHEM_USE_NMS`` and ``OHEM_NMS_THRESH``. Overlaps are not known here, so ``fast_rcnn`` takes
    background of any. What a method remembers (GHM's average, a random stream) is kept for a resumed training.
    """

    top_names = ("labels_mined", "label_weights", "bbox_outside_weights_mined")

    def setup(self, bottoms):
        cfg = self.context.cfg.TRAIN
        if not cfg.BBOX_REG:
            raise self.error("needs TRAIN.BBOX_REG")
        super().setup(bottoms)
        name = self.setting("method", str)
        if name not in METHODS:
            near = nearest(name, METHODS)
            raise self.error(
                f"unknown method '{name}'" + (f"; did you mean '{near}'?" if near else ""),
                field="python_param.param_str",
                hint=f"known: {', '.join(METHODS)}",
            )
        self.method = self.made(
            METHODS[name], ("num_classes", "iterations", "method"), batch_size=cfg.BATCH_SIZE,
            rois_per_image=max(1, cfg.BATCH_SIZE // cfg.IMS_PER_BATCH), nms_thresh=self.nms_thresh, bg_thresh_lo=0.0,
        )  # fmt: skip
        self.scheduled = isinstance(self.method, Strata)

    def remembered(self):
        return {name: value.cpu().numpy() for name, value in self.method.state_dict().items()}

    def remember(self, state):
        self.method.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})

    def infer(self, bottoms):
        labels = bottoms[3]
        return [torch.empty_like(labels), labels.new_empty(labels.numel()), torch.empty_like(bottoms[6])]

    @torch.no_grad()
    def forward(self, bottoms):
        labels, outside = bottoms[3], bottoms[6]
        examples = self.examples(bottoms)
        examples.progress = self.progress() if self.scheduled else 0.0
        self.roi_loss = examples.loss
        weights = [w.to(outside.dtype) for w in self.method(examples)]
        counts = (weights[0] != 0).view_as(labels)
        return [torch.where(counts, labels, -1), weights[0], outside * weights[1].view(-1, *[1] * (outside.dim() - 1))]
