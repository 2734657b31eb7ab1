"""``roi_data_layer.layer.RoIDataLayer``: minibatches of images and RoIs."""

from __future__ import annotations

import torch

from ..data.loader import MinibatchLoader
from ..layers import PythonLayer, register_python


@register_python("roi_data_layer.layer", "RoIDataLayer")
class RoIDataLayer(PythonLayer):
    """The data layer of Fast R-CNN. Tops: data ``[N, 3, H, W]``, rois ``[R, 5]``, labels ``[R]`` and, with
    ``TRAIN.BBOX_REG``, bbox_targets, bbox_inside_weights, bbox_outside_weights ``[R, 4 * num_classes]``.

    ``param_str``: ``'num_classes': 21``. Call :meth:`set_roidb` before the first forward.
    """

    num_bottoms = (0, 0)

    def setup(self, bottoms):
        cfg = self.context.cfg.TRAIN
        if cfg.HAS_RPN:
            raise self.error("TRAIN.HAS_RPN is not supported by this data layer")
        self.num_classes = self.setting("num_classes", int)
        names = ["data", "rois", "labels"]
        if cfg.BBOX_REG:
            names += ["bbox_targets", "bbox_inside_weights", "bbox_outside_weights"]
        if len(self.param.top) != len(names):
            raise self.error(f"with TRAIN.BBOX_REG {cfg.BBOX_REG} its tops are {', '.join(names)}", field="top")
        self.names, self.loader = names, None

    def infer(self, bottoms):
        cfg = self.context.cfg.TRAIN
        shapes = [(cfg.IMS_PER_BATCH, 3, int(max(cfg.SCALES)), cfg.MAX_SIZE), (1, 5), (1,)]
        shapes += [(1, 4 * self.num_classes)] * 3
        return [torch.empty(shape, device="meta") for shape in shapes[: len(self.names)]]

    def set_roidb(self, roidb: list[dict]) -> None:
        """Gives the layer its images; shuffles them (the first use of the random stream, as in the original).

        Raises:
            PortError: settings or a data set that cannot make a minibatch.
        """
        self.loader = MinibatchLoader(roidb, self.num_classes, self.context.cfg, self.context.rng)

    def forward(self, bottoms):
        if self.loader is None:
            raise self.error("no data set was given to it", hint="call set_roidb(roidb) first")
        blobs = self.loader.next_minibatch()
        return [torch.from_numpy(blobs[name]) for name in self.names]
