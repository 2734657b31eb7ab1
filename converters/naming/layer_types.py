"""What PyTorch calls the parameter blobs of each layer type, and which shape it gives them.

| types | names |
|---|---|
| Convolution, Deconvolution, DepthwiseConvolution, ConvolutionDepthwise, Local | weight, bias |
| InnerProduct, Embed, Scale, InnerDistance | weight, bias |
| PReLU, Normalize, Parameter | weight |
| Bias, and a Scale layer whose factor is its second bottom | bias |
| BatchNorm | running_mean, running_var, scale_factor; with 4 and 5 blobs (Intel, NVIDIA) also weight, bias |
| BN | weight, bias (SegNet); with 4 blobs (PSPNet, yjxiong) also running_mean, running_var |
| LSTM | weight_ih_l0, bias_ih_l0, weight_hh_l0 as torch.nn.LSTM's; weight_static for a third bottom |
| RNN | the same as torch.nn.RNN's; weight_ho, bias_ho of the output |
| CenterLoss | centers |
| ChannelScale | global_scale |

A type nobody knows is named by its blobs' shapes: ``weight`` alone, ``weight`` and ``bias`` when the second is a row of
as many values as the first has rows, numbers otherwise. In HDF5 files, which know no types, two rows of one length and
a single value are a BatchNorm.
"""

from __future__ import annotations

import math

_LINEAR = (("weight",), ("weight", "bias"))
_STATISTICS = ("running_mean", "running_var", "scale_factor")
_IH = ("weight_ih_l0", "bias_ih_l0")
_SUFFIXES: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("Convolution", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise"), _LINEAR),
    **dict.fromkeys(("InnerProduct", "Embed", "Local", "Scale", "InnerDistance"), _LINEAR),
    **dict.fromkeys(("PReLU", "Normalize", "Parameter"), (("weight",),)),
    "Bias": (("bias",),),
    "BatchNorm": (_STATISTICS, (*_STATISTICS, "weight"), (*_STATISTICS, "weight", "bias")),
    "BN": (("weight", "bias"), ("weight", "bias", "running_mean", "running_var")),
    "LSTM": ((*_IH, "weight_hh_l0"), (*_IH, "weight_static", "weight_hh_l0")),
    "RNN": tuple((*_IH, *static, "weight_hh_l0", "weight_ho", "bias_ho") for static in ((), ("weight_static",))),
    "CenterLoss": (("centers",),),
    "ChannelScale": (("global_scale",),),
}
# Elsewhere (Scale, Local) more axes than PyTorch has mean something.
_ROW_BIASES = {"Convolution", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise", "InnerProduct", "Embed"}
_ROW_BIASES |= {"LSTM", "RNN", "ChannelScale"}
_ALL_ROWS = {"PReLU", "BatchNorm", "BN"}
_MATRICES = {"InnerProduct", "Embed", "InnerDistance", "LSTM", "RNN", "CenterLoss"}


def suffixes(type: str, count: int, shapes=()) -> list[str]:
    """The names of the ``count`` parameter blobs of a layer; ``shapes`` help with types nobody knows."""
    names = _known(type, count) or _known(_guessed(type, shapes), count)
    return list(names or map(str, range(count)))


def known_names(type: str) -> tuple[tuple[str, ...], ...]:
    """The names that a layer of this type can have, for each number of blobs; () of a type nobody knows."""
    return _SUFFIXES.get(type, ())


def pytorch_shapes(type: str, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes that PyTorch gives blobs of these ``shapes``: without the axes of length 1 that older files and some
    layers put in front of (or behind) a row or matrix."""
    if not _known(type, len(shapes)):
        type = _guessed(type, shapes)
    return [_shape(type, name, shape) for name, shape in zip(suffixes(type, len(shapes)), shapes, strict=True)]


def _known(type: str, count: int) -> tuple[str, ...]:
    return next((names for names in known_names(type) if len(names) == count), ())


def _guessed(type: str, shapes) -> str:
    """The type whose names and shapes suit a layer nobody knows, by its blobs' shapes; "" when there is none."""
    if len(shapes) == 1:
        return "Parameter"
    if len(shapes) == 2 and shapes[0] and _is_row(shapes[1]):
        if math.prod(shapes[1]) == shapes[0][0]:
            return "Convolution"
        if _is_legacy_matrix(shapes[0]) and math.prod(shapes[1]) == shapes[0][2]:
            return "InnerProduct"
    if len(shapes) == 3 and not type and len(shapes[0]) == 1 and shapes[0] == shapes[1] and shapes[2] == (1,):
        return "BatchNorm"
    return ""


def _shape(type: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    is_bias = not name.startswith("weight")
    if _is_row(shape) and (type in _ALL_ROWS or (type in _ROW_BIASES and is_bias)):
        return (math.prod(shape),)
    if type in _MATRICES and _is_legacy_matrix(shape) and (not is_bias or name == "centers"):
        return shape[2:]
    return shape


def _is_row(shape) -> bool:
    return sum(size != 1 for size in shape) <= 1


def _is_legacy_matrix(shape) -> bool:
    return len(shape) == 4 and shape[:2] == (1, 1)
