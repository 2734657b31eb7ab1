"""Caffe's weight fillers (``include/caffe/filler.hpp``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import PortError


def _fan(shape, variance_norm: int) -> float:
    """The ``n`` of xavier and msra: fan in, fan out or their mean, by ``FillerParameter.VarianceNorm``."""
    count = math.prod(shape)
    fan_in = count / shape[0]
    fan_out = count / shape[1] if len(shape) > 1 else count
    return (fan_in, fan_out, (fan_in + fan_out) / 2)[variance_norm]


def _constant(blob, filler):
    blob.fill_(filler.value)


def _uniform(blob, filler):
    blob.uniform_(filler.min, filler.max)


def _gaussian(blob, filler):
    blob.normal_(filler.mean, filler.std)
    if filler.sparse >= 0:
        # an expected `sparse` non-zero inputs for each output
        blob.mul_(torch.bernoulli(torch.full_like(blob, min(1.0, filler.sparse / blob.shape[0]))))


def _positive_unitball(blob, filler):
    blob.uniform_(0, 1)
    rows = blob.view(blob.shape[0], -1)
    rows.div_(rows.sum(1, keepdim=True))


def _xavier(blob, filler):
    limit = math.sqrt(3 / _fan(blob.shape, filler.variance_norm))
    blob.uniform_(-limit, limit)


def _msra(blob, filler):
    blob.normal_(0, math.sqrt(2 / _fan(blob.shape, filler.variance_norm)))


def _bilinear(blob, filler):
    """Weights of a Deconvolution that upsamples: square kernels only."""
    size = blob.shape[-1]
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    ramp = 1 - (torch.arange(size, dtype=blob.dtype) / factor - centre).abs()
    blob.copy_(ramp[:, None] * ramp[None, :])


FILLERS = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}

_FIELDS = {"type", "value", "min", "max", "mean", "std", "sparse", "variance_norm"}


def filled(shape, filler) -> Tensor:
    """A new float32 tensor of ``shape`` filled as the ``FillerParameter`` says, from torch's global generator.

    Raises:
        PortError: a filler type or field that Caffe does not have, or ``bilinear`` on a blob that is no square kernel.
    """
    unknown = [f.name for f, _ in filler.ListFields() if f.name not in _FIELDS]
    if unknown:
        raise PortError("no filler reads this field", field=unknown[0], hint=f"they read {', '.join(sorted(_FIELDS))}")
    if filler.type not in FILLERS:
        raise PortError(f"unknown filler type '{filler.type}'", field="type", hint=f"known: {', '.join(FILLERS)}")
    if filler.sparse != -1 and (filler.type != "gaussian" or filler.sparse < 0):
        raise PortError(f"{filler.sparse} for a {filler.type} filler", field="sparse", hint="it is for gaussian")
    if filler.type == "bilinear" and (len(shape) != 4 or shape[2] != shape[3]):
        raise PortError(f"bilinear fills square 4-d kernels, not {tuple(shape)}", field="type")
    blob = torch.empty(tuple(shape))
    with torch.no_grad():
        FILLERS[filler.type](blob, filler)
    return blob
