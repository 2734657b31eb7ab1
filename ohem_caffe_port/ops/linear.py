"""The inner product ``x W^T + b`` by the fastest routine that torch has on this processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_WEIGHTS, _LEAST_ROWS = 1 << 16, 8  # below, starting oneDNN costs more than it saves


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _one_dnn(grad, weight.t(), None) if to_x else None,
            grad.t() @ x if to_weight else None,  # both libraries take the same time for it
            grad.sum(0) if to_bias else None,
        )


def _one_dnn(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _one_dnn_pays(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler chooses for itself, and cannot follow what is asked below
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and x.shape[0] >= _LEAST_ROWS
        and weight.numel() >= _LEAST_WEIGHTS
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: ``[..., K], [M, K], [M] -> [..., M]``, as :func:`torch.nn.functional.linear`.

    Large products in single precision on a CPU go to oneDNN, where torch's own choice is MKL: on AMD's processors that
    is 1.2 to 1.9 times slower (``benchmarks/iteration.py`` prints both). The sums are the same but for rounding.
    """
    return _OneDnnLinear.apply(x, weight, bias) if _one_dnn_pays(x, weight) else F.linear(x, weight, bias)
