"""``roi_data_layer.layer.RoIDataLayer``: minibatches of images and RoIs."""

from __future__ import annotations

import torch

from ..data.loader import MinibatchLoader
from ..layers import PythonLayer, register_python

# experiments/cfgs/faster_rcnn_end2end.yml of py-faster-rcnn
END_TO_END = {
    "HAS_RPN": True,
    "IMS_PER_BATCH": 1,
    "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": True,
    "PROPOSAL_METHOD": "gt",
    "BG_THRESH_LO": 0.0,
}


@register_python("roi_data_layer.layer", "RoIDataLayer")
class RoIDataLayer(PythonLayer):
    """The data layer of Fast R-CNN. Tops: data ``[N, 3, H, W]``, rois ``[R, 5]``, labels ``[R]`` and, with
    ``TRAIN.BBOX_REG``, bbox_targets, bbox_inside_weights, bbox_outside_weights ``[R, 4 * num_classes]``.

    With ``TRAIN.HAS_RPN``, as in py-faster-rcnn, they are data ``[1, 3, H, W]``, im_info ``[1, 3]`` (height, width and
    scale of the scaled image; ``[1, 6]`` with ``SCALE_MULTIPLE_OF``) and gt_boxes ``[G, 5]``, rows
    ``(x1, y1, x2, y2, class)``. A second top called im_info says as much: unless ``HAS_RPN`` is stated, such a layer
    gives every key of :data:`END_TO_END` that was not stated its value for end-to-end training.

    With ``TRAIN.AGNOSTIC`` (py-R-FCN) box targets are of two classes, and all but data and im_info have four axes.
    ``param_str``: ``'num_classes': 21``. Call :meth:`set_roidb` before the first forward.
    """

    num_bottoms = (0, 0)

    def __init__(self, param, context):
        super().__init__(param, context)
        cfg = context.cfg
        given = {k: v for k, v in self.unstated().items() if f"TRAIN.{k}" not in cfg.explicit}
        if given:
            for key, value in given.items():
                setattr(cfg.TRAIN, key, value)
            settings = ", ".join(f"TRAIN.{key} {value}" for key, value in given.items())
            self.warnings.append(f"layer '{self.name}', its project's settings where none are stated: {settings}")

    def unstated(self) -> dict:
        """Values that ``TRAIN`` gets where no others are stated."""
        train, explicit = self.context.cfg.TRAIN, self.context.cfg.explicit
        feeds_rpn = list(self.param.top[1:2]) == ["im_info"]
        return END_TO_END if feeds_rpn and not train.HAS_RPN and "TRAIN.HAS_RPN" not in explicit else {}

    def setup(self, bottoms):
        cfg = self.context.cfg.TRAIN
        self.num_classes = self.setting("num_classes", int)
        if cfg.HAS_RPN:
            names, condition = ["data", "im_info", "gt_boxes"], "TRAIN.HAS_RPN"
        else:
            names, condition = ["data", "rois", "labels"], f"TRAIN.BBOX_REG {cfg.BBOX_REG}"
            if cfg.BBOX_REG:
                names += ["bbox_targets", "bbox_inside_weights", "bbox_outside_weights"]
        if len(self.param.top) != len(names):
            raise self.error(f"with {condition} its tops are {', '.join(names)}", field="top")
        self.names, self.loader = names, None

    def infer(self, bottoms):
        cfg = self.context.cfg.TRAIN
        image = (cfg.IMS_PER_BATCH, 3, int(max(cfg.SCALES)), cfg.MAX_SIZE)
        if cfg.HAS_RPN:
            shapes = [image, (1, 6 if cfg.SCALE_MULTIPLE_OF > 1 else 3), (1, 5)]
        else:
            shapes = [image, (1, 5), (1,), *[(1, 4 * (2 if cfg.AGNOSTIC else self.num_classes))] * 3]
        return self._with_axes([torch.empty(shape, device="meta") for shape in shapes[: len(self.names)]])

    def set_roidb(self, roidb: list[dict]) -> None:
        """Gives the layer its images; shuffles them (the first use of the random stream, as in the original).

        Raises:
            PortError: settings or a data set that cannot make a minibatch.
        """
        self.loader = self._loader(roidb)

    def _loader(self, roidb, **functions) -> MinibatchLoader:
        context = self.context
        return MinibatchLoader(roidb, self.num_classes, context.cfg, context.rng, device=context.device, **functions)

    def forward(self, bottoms):
        if self.loader is None:
            raise self.error("no data set was given to it", hint="call set_roidb(roidb) first")
        blobs = self.loader.next_minibatch()
        return self._with_axes([blobs[name] for name in self.names])

    def _with_axes(self, tops):
        """py-R-FCN gives everything but data and im_info four axes, and its nets add losses in the labels' shape."""
        if self.context.cfg.TRAIN.AGNOSTIC:
            return [b if b.dim() == 4 or n == "im_info" else b.view(len(b), -1, 1, 1)
                    for n, b in zip(self.names, tops, strict=True)]  # fmt: skip
        return tops
