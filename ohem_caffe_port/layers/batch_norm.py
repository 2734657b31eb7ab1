"""Batch normalisation: BatchNorm, whose parameters are its statistics, and BN, which scales and shifts too."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from prototxt.caffe_pb2 import FillerParameter

from .base import Layer, register
from .normalization import Standardize
from .scale import channel_affine, not_learned


def by_statistics(x, mean, var, eps, weight=None, bias=None, in_place=False):
    """``(x - mean) / sqrt(var + eps) * weight + bias``, each of them ``[C]``; ``in_place`` may overwrite ``x``."""
    if not in_place:
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    factor = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    return channel_affine(x, factor, -mean * factor if bias is None else bias - mean * factor, in_place=True)


def by_batch(x, eps, weight=None, bias=None):
    """The same by the batch's own mean and biased variance.

    Returns:
        the result, the mean and the unbiased variance (0 of a single value), both ``[C]`` and without gradient.
    """
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    alone = x.numel() == x.shape[1]  # torch would divide by 0
    running = (None, None) if alone else (mean, var)
    y = torch.batch_norm(x, weight, bias, *running, True, 1.0, eps, torch.backends.cudnn.enabled)
    return y, x.detach().reshape(-1) if alone else mean, var


class _Normalizer(Layer):
    saves_top = False

    def check_shape(self, x) -> None:
        if x.dim() < 2:
            raise self.error(f"takes blobs with two axes and more, not shape {tuple(x.shape)}")
        if len(self.blobs) and x.shape[1] != self.blobs[0].numel():
            raise self.error(f"{x.shape[1]} channels, but parameters of {self.blobs[0].numel()}", field="bottom")

    def statistic(self, index: int):
        """Parameter blob ``index``, which ``forward`` may change, as ``[C]``."""
        return self.blobs[index].detach().view(-1)


@register("BatchNorm")
class BatchNorm(_Normalizer):
    """``BatchNormLayer``: ``(x - mean) / sqrt(variance + eps)`` for each channel, by the batch's statistics in training
    and by the accumulated ones in testing, or as ``use_global_stats`` says.

    Three parameter blobs, never learned: sums of means and of variances (times m / (m - 1)) and of their weights, all
    multiplied by ``moving_average_fraction`` before a batch is added; the first two are divided by the third for use.
    Every forward by the batch's statistics adds to them.

    Forks, told apart by their fields:

    - ``scale_bias``, ``scale_filler`` or ``bias_filler`` (NVIDIA): with a learned scale and bias (blobs 3 and 4, always
      at lr_mult 1) unless ``scale_bias: false`` stands alone. The sums are running means with
      weights ``moving_average_fraction`` and the rest, starting at the first batch; only the phase decides which
      statistics are used; ``eps`` is at least 1e-5.
    - ``use_weight_bias``, ``bias_term`` or an MKL ``engine`` (Intel): the same scale and bias, unless those say
      otherwise, beside BVLC's sums. ``filler`` alone changes nothing, as in Intel's default engine. Every
      ``stats_batch_size`` images are normalised by themselves; ``relu`` is a ReLU fused into the layer.
    - ``add_eps_before_sqrt: false`` (synopsys-caffe) divides by ``sqrt(variance) + eps``. ``icnet`` only saves memory
      there; ``update_global_stats`` (PSPNet too) changes nothing, for without it the batch's variance is undefined.
    """

    fields = {
        "batch_norm_param": {
            "use_global_stats", "moving_average_fraction", "eps", "engine", "scale_bias", "scale_filler", "bias_filler",
            "use_weight_bias", "bias_term", "filler", "stats_batch_size", "relu",
            "add_eps_before_sqrt", "icnet", "update_global_stats",
        }
    }  # fmt: skip

    def setup(self, bottoms):
        p, channels = self.param.batch_norm_param, bottoms[0].shape[1:2]
        self.check_shape(bottoms[0])
        intel = p.HasField("use_weight_bias") or p.HasField("bias_term") or p.engine in (p.MKL2017, p.MKLDNN)
        fillers = p.HasField("scale_filler") or (p.HasField("bias_filler") and not p.HasField("filler"))
        self.nvidia = not intel and (p.HasField("scale_bias") or fillers)
        self.use_global_stats = p.use_global_stats if p.HasField("use_global_stats") else not self.context.train
        if self.nvidia:
            self.use_global_stats = not self.context.train
        elif not self.use_global_stats and p.HasField("update_global_stats") and not p.update_global_stats:
            raise self.error(
                "without it the batch's variance is not computed",
                field="batch_norm_param.update_global_stats",
                hint="leave it out, or state use_global_stats: true",
            )
        self.eps = max(p.eps, 1e-5) if self.nvidia else p.eps
        self.saves_top = p.relu or not p.add_eps_before_sqrt
        for shape, value in ((channels, 0), (channels, 0), ((1,), int(self.nvidia))):
            self.add_blob(shape, FillerParameter(value=value))
        if (self.nvidia and (p.scale_bias or fillers)) or (intel and p.use_weight_bias):
            name = "scale_filler" if self.nvidia else "filler"
            self.add_blob(channels, getattr(p, name) if p.HasField(name) else FillerParameter(value=1))
            if self.nvidia or p.bias_term:
                self.add_blob(channels, p.bias_filler)
        if self.nvidia:
            self._state_multipliers()
        not_learned(self, 3)

    def _state_multipliers(self) -> None:
        """NVIDIA's layer overrules what the prototxt says of its parameters."""
        specs = self.param.param
        for i in range(len(self.blobs)):
            spec = specs[i] if i < len(specs) else specs.add()
            spec.lr_mult = spec.decay_mult = float(i >= 3)

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.batch_norm_param
        self.check_shape(x)
        weight, bias = (self.blob(i) if i < len(self.blobs) else None for i in (3, 4))
        if self.use_global_stats:
            y = by_statistics(x, *self._statistics(), weight, bias, self.in_place)
        else:
            images = p.stats_batch_size or max(len(x), 1)
            if len(x) % images:
                raise self.error(f"{len(x)} images are no multiple", field="batch_norm_param.stats_batch_size")
            parts = [self._by_batch(part, weight, bias) for part in x.split(images)]
            y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return [F.relu(y) if p.relu else y]

    def _statistics(self):
        """Mean, variance and eps."""
        mean, var, total = (self.statistic(i) for i in range(3))
        if not self.nvidia:
            weight = total.reciprocal().nan_to_num_(math.nan, 0.0)  # nothing accumulated: 0, as in Caffe
            mean, var = mean * weight, var * weight
        if self.param.batch_norm_param.add_eps_before_sqrt:
            return mean, var, self.eps
        return mean, (var.sqrt() + self.eps).square(), 0.0

    def _by_batch(self, x, weight, bias):
        if self.param.batch_norm_param.add_eps_before_sqrt:
            y, mean, var = by_batch(x, self.eps, weight, bias)
        else:
            count = x.numel() // x.shape[1]
            y, mean, var = Standardize.apply(x, (0, *range(2, x.dim())), self.eps, False)
            mean, var = mean.view(-1), var.view(-1) * (count / max(count - 1, 1))
        with torch.no_grad():
            self._accumulate(mean, var)
        return y

    def _accumulate(self, mean, var) -> None:
        keep = self.param.batch_norm_param.moving_average_fraction
        sums = [self.statistic(i) for i in range(3)]
        if self.nvidia:
            keep = keep * (sums[1] != 0).any()  # the first batch's statistics replace the zeros
            for total, new in zip(sums, (mean, var), strict=False):
                total.mul_(keep).add_(new * (1 - keep))
        else:
            for total, new in zip(sums, (mean, var, 1), strict=True):
                total.mul_(keep).add_(new)


@register("BN")
class BN(_Normalizer):
    """Batch normalisation with its own scale and shift: PSPNet's layer (also yjxiong's, caffe-windows'), or SegNet's.

    PSPNet: parameter blobs ``[1, C, 1, 1]`` for slope, bias, running mean and running (biased) variance, which keep
    ``momentum`` of themselves in each training batch. Testing uses the running ones; so does training when ``frozen``,
    which also learns nothing. lr_mult of the running ones, and of all when frozen, is 0 whatever the prototxt says.

    SegNet (``bn_mode``, ``scale_filler``, ``shift_filler`` or more than one top, without ``icnet``): blobs for scale
    and shift only. ``LEARN`` normalises by the batch, in testing too, with eps 1e-9, and gives the batch's mean and
    variance ``[1, C, 1, 1]`` as second and third top; ``INFERENCE`` only scales and shifts.

    As in the forks, a filler that is not stated is the constant 0.
    """

    fields = {
        "bn_param": {
            "slope_filler", "bias_filler", "momentum", "eps", "frozen", "icnet",
            "bn_mode", "scale_filler", "shift_filler",
        }
    }  # fmt: skip
    num_tops = (1, 3)

    def setup(self, bottoms):
        p = self.param.bn_param
        self.check_shape(bottoms[0])
        segnet = any(p.HasField(f) for f in ("bn_mode", "scale_filler", "shift_filler")) or len(self.param.top) > 1
        self.segnet = segnet and not p.icnet
        if len(self.param.top) > 1 and (not self.segnet or p.bn_mode == p.INFERENCE):
            raise self.error("only bn_mode: LEARN gives more than one top", field="top")
        fillers = (p.scale_filler, p.shift_filler) if self.segnet else (p.slope_filler, p.bias_filler)
        if not self.segnet:
            fillers += FillerParameter(value=0), FillerParameter(value=int(p.frozen))
        for filler in fillers:
            self.add_blob((1, bottoms[0].shape[1], 1, 1), filler)
        for i in range(len(self.blobs)):
            spec = self.param.param[i] if i < len(self.param.param) else self.param.param.add()
            if i >= 2 or (p.frozen and not self.segnet):
                spec.lr_mult = spec.decay_mult = 0

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.bn_param
        self.check_shape(x)
        weight, bias = self.blob(0).view(-1), self.blob(1).view(-1)
        if self.segnet:
            return self._segnet(x, weight, bias)
        mean, var = self.statistic(2), self.statistic(3)
        if p.frozen or not self.context.train:
            return [by_statistics(x, mean, var, p.eps, weight, bias, self.in_place)]
        y, *new = self._by_batch(x, p.eps, weight, bias)
        with torch.no_grad():
            for running, value in zip((mean, var), new, strict=True):
                running.lerp_(value, 1 - p.momentum)
        return [y]

    def _segnet(self, x, weight, bias):
        if self.param.bn_param.bn_mode == self.param.bn_param.INFERENCE:
            return [channel_affine(x, weight, bias, self.in_place)]
        y, mean, var = self._by_batch(x, 1e-9, weight, bias)
        return [y, mean.view(1, -1, 1, 1), var.view(1, -1, 1, 1)][: len(self.param.top)]

    def _by_batch(self, x, eps, weight, bias):
        y, mean, unbiased = by_batch(x, eps, weight, bias)
        count = x.numel() // x.shape[1]
        return y, mean, unbiased * ((count - 1) / max(count, 1))
