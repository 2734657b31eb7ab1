"""MNC's data layers: images with objects and their masks, and CFM's proposals with masks."""

from __future__ import annotations

import torch

from ..data.mask_minibatch import load_cfm_minibatch, plan_cfm_minibatch
from ..layers import register_python
from .roi_data import RoIDataLayer

COMMON = {"IMS_PER_BATCH": 1, "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": True, "SNAPSHOT_ITERS": 5000}
# MNC's defaults with its mnc_5stage.yml, and with its faster_rcnn_end2end.yml
CASCADE = {**COMMON, "HAS_RPN": True, "PROPOSAL_METHOD": "gt", "BATCH_SIZE": 64, "RPN_POST_NMS_TOP_N": 300}
FASTER_RCNN = {
    **COMMON, "HAS_RPN": True, "PROPOSAL_METHOD": "gt", "BATCH_SIZE": 128, "FG_FRACTION_LIST": (0.25,),
    "BG_FRACTION": (1.0,), "BG_THRESH_HI_LIST": (0.5,), "BG_THRESH_LO_LIST": (0.1,),
}  # fmt: skip
CFM = {"IMS_PER_BATCH": 1, "HAS_RPN": False, "BATCH_SIZE": 64, "SNAPSHOT_ITERS": 5000}


@register_python("pylayer.mnc_data_layer", "MNCDataLayer")
class MNCDataLayer(RoIDataLayer):
    """MNC's data layer: an image, its objects and their masks.

    Tops: data, im_info, gt_boxes as of :class:`~.roi_data.RoIDataLayer`, and with five of them gt_masks ``[G, H, W]``
    and mask_info ``[G, 2]``, their heights and widths. ``TRAIN`` keys that are not stated get MNC's values. The entries
    of the roidb then need ``gt_masks``: a list with the mask ``[h, w]`` of each ground-truth box, of the box's size
    (the imdbs ``voc_2012_seg_train`` and ``_val`` have them).
    """

    def unstated(self):
        return CASCADE if len(self.param.top) > 3 else FASTER_RCNN

    def setup(self, bottoms):
        self.num_classes, self.loader = self.setting("num_classes", int), None
        if not self.context.cfg.TRAIN.HAS_RPN:
            raise self.error("feeds a region proposal network, so TRAIN.HAS_RPN must be True")
        self.names = ["data", "im_info", "gt_boxes", "gt_masks", "mask_info"][: len(self.param.top)]
        if len(self.param.top) not in (3, 5):
            raise self.error("its tops are data, im_info, gt_boxes, and for masks gt_masks, mask_info", field="top")

    def infer(self, bottoms):
        nominal = super().infer(bottoms)
        return nominal + [torch.empty(shape, device="meta") for shape in ((1, 21, 21), (1, 2))[: len(self.names) - 3]]

    def set_roidb(self, roidb):
        """As :meth:`~.roi_data.RoIDataLayer.set_roidb`.

        Raises:
            PortError: besides, an image whose entry has no masks, or masks that do not fit its boxes.
        """
        if "gt_masks" in self.names:
            for entry in roidb:
                boxes = entry["boxes"][entry["gt_classes"] > 0].astype(int)
                sizes = [(y2 - y1 + 1, x2 - x1 + 1) for x1, y1, x2, y2 in boxes]
                if [tuple(mask.shape) for mask in entry.get("gt_masks", ())] != sizes:
                    state = "do not have the sizes of its boxes" if "gt_masks" in entry else "are missing"
                    raise self.error(
                        f"masks of the objects in {entry.get('image', 'an image')} {state}",
                        hint="train on an imdb with masks, such as voc_2012_seg_train, or give the entries 'gt_masks'",
                    )
        super().set_roidb(roidb)


@register_python("pylayer.cfm_data_layer", "CFMDataLayer")
class CFMDataLayer(RoIDataLayer):
    """MNC's data layer for convolutional feature masking: RoIs, each with a mask.

    Tops: data, rois, masks, box_label, mask_label, bbox_targets, mask_targets, bbox_inside_weights,
    bbox_outside_weights, mask_weight; see :func:`ohem_caffe_port.data.mask_minibatch.load_cfm_minibatch`. The roidb is
    a prepared one of ground truth and proposals whose entries have ``masks``, ``mask_targets``, ``seg_overlaps``, or
    ``mask_file`` (:func:`~ohem_caffe_port.data.mask_minibatch.entry_masks`). Images are shuffled as in RoIDataLayer.
    """

    def unstated(self):
        return CFM

    def setup(self, bottoms):
        self.num_classes, self.loader = self.setting("num_classes", int), None
        self.names = [
            *("data", "rois", "masks", "box_label", "mask_label", "bbox_targets", "mask_targets"),
            *("bbox_inside_weights", "bbox_outside_weights", "mask_weight"),
        ]
        if len(self.param.top) != len(self.names):
            raise self.error(f"its tops are {', '.join(self.names)}", field="top")

    def infer(self, bottoms):
        cfg = self.context.cfg
        image = (cfg.TRAIN.IMS_PER_BATCH, 3, int(max(cfg.TRAIN.SCALES)), cfg.TRAIN.MAX_SIZE)
        given, mask, wide = (
            cfg.TEST.CFM_INPUT_MASK_SIZE,
            (1, 1, cfg.MASK_SIZE, cfg.MASK_SIZE),
            (1, 4 * self.num_classes),
        )
        shapes = [image, (1, 5), (1, 1, given, given), (1, 1), (1, 1), wide, mask, wide, wide, mask]
        return [torch.empty(shape, device="meta") for shape in shapes]

    def set_roidb(self, roidb):
        self.loader = self._loader(roidb, plan=plan_cfm_minibatch, load=load_cfm_minibatch)
