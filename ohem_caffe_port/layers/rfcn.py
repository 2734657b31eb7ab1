"""R-FCN's online hard example mining in layers: losses of every RoI, and the annotator that drops the easy ones.

(py-R-FCN's spelling, in microsoft/caffe and Intel's fork; caffe-rfcn has the losses' extra tops in SoftmaxWithLoss and
SmoothL1Loss themselves.)
"""

from __future__ import annotations

import torch

from ..mining import hardest_per_image
from .base import Layer, register
from .loss import SoftmaxWithLoss
from .regression_loss import SmoothL1Loss


@register("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """``SoftmaxWithLoss`` with a third top: the loss of every RoI, 0 where it is ignored, not normalised.

    Bottoms: scores and labels; tops: loss, probabilities, losses in the labels' shape. ``loss_param.normalization`` is
    as in SoftmaxWithLoss; Intel's fork also knows PRE_FIXED, which divides by ``pre_fixed_normalizer``. Only the first
    top has a gradient. With more than one top ``loss_weight`` has to be given, as Caffe demands.
    """

    fields = {
        "softmax_param": {"axis"},
        "loss_param": {"ignore_label", "normalization", "normalize", "pre_fixed_normalizer"},
    }
    num_bottoms = (2, 2)

    def normalization(self, default, pre_fixed=True):
        return super().normalization(default, pre_fixed)

    def setup(self, bottoms):
        super().setup(bottoms)
        if len(self.param.top) > 1 and not self.param.loss_weight:
            raise self.error(
                f"must be given once for each of its {len(self.param.top)} tops",
                field="loss_weight",
                hint="0 for all of a layer that only ranks RoIs",
            )


@register("SmoothL1LossOHEM")
class SmoothL1LossOHEM(SmoothL1Loss):
    """Smooth L1 loss (sigma 1) with a second top, the loss of every RoI; without a loss_weight it is no loss.

    Bottoms: prediction, target and optionally weights, ``d = weights * (prediction - target)``. Tops: the sum of
    ``s(d)`` (see :class:`SmoothL1Loss`) over the normaliser, and its sum over the channels ``[N, 1, H, W]``.
    ``loss_param.normalization``: VALID (default) and FULL divide by rows x places, BATCH_SIZE by rows, PRE_FIXED by
    ``pre_fixed_normalizer``, NONE by 1; never by less than 1.

    The weights are not part of the gradient (they are 0 or 1), which prediction and target can get. The original's
    set-up leaves out that of losses, so loss_weight is 0 unless stated.
    """

    is_loss = False
    fields = {"loss_param": {"normalization", "normalize", "pre_fixed_normalizer"}}
    num_bottoms = (2, 3)

    def setup(self, bottoms):
        if bottoms[0].dim() > 4:
            raise self.error(f"takes bottoms of at most four axes, not shape {tuple(bottoms[0].shape)}")
        self.param.ClearField("smooth_l1_loss_param")
        super().setup(bottoms)
        self.mode = self.normalization(self.param.loss_param.VALID, pre_fixed=True)


@register("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    """R-FCN's OHEM: all but each image's ``roi_per_img`` hardest RoIs get the ``ignore_label`` and no box weights.

    Bottoms: rois ``[N, 5, H, W]``, their losses ``[N, 1, H, W]``, labels ``[N, 1, H, W]`` and box weights
    ``[N, C, H, W]``; tops: labels and weights of the hard ones. (For H x W > 1 the original reads past its blobs; here
    every place is a RoI of its own.) Equal losses: see :func:`~ohem_caffe_port.mining.hardest_per_image`.
    """

    fields = {"box_annotator_ohem_param": {"roi_per_img", "ignore_label"}}
    num_bottoms, num_tops = (4, 4), (2, 2)

    def setup(self, bottoms):
        if self.param.box_annotator_ohem_param.roi_per_img < 1:
            raise self.error("must be positive", field="box_annotator_ohem_param.roi_per_img")

    @torch.no_grad()
    def forward(self, bottoms):
        shapes = [(*b.shape, *(1,) * (4 - b.dim())) for b in bottoms]
        places = {(s[0], *s[2:]) for s in shapes}
        if len(places) > 1 or [s[1] for s in shapes[:3]] != [5, 1, 1]:
            raise self.error(
                f"takes rois [N, 5, H, W], losses and labels [N, 1, H, W] and weights [N, C, H, W]; got {shapes}"
            )
        rois, loss, labels, weights = (b.reshape(s) for b, s in zip(bottoms, shapes, strict=True))
        if labels.is_meta:
            return [torch.empty_like(labels), torch.empty_like(weights)]
        p = self.param.box_annotator_ohem_param
        image = rois[:, :1].long()
        if not bool((image >= 0).any()):
            raise self.error("no RoI names an image: all batch indices are negative, or there are no RoIs")
        hard = hardest_per_image(loss.flatten(), image.flatten(), p.roi_per_img).view(loss.shape)
        return [torch.where(hard, labels, p.ignore_label), torch.where(hard, weights, 0)]
