import pytest
import torch
from torch.nn import functional as F

from ohem_caffe_port.ops.linear import linear


def case(rows, inputs, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 8, 33])  # below and above where oneDNN takes over
def test_values_and_gradients(rows, transposed, bias):
    """Against the same in double precision."""
    x, weight, offset, grad = case(rows, 300, 260)
    if transposed:
        weight = weight.t().contiguous().t()
    inputs = [t.requires_grad_() for t in ((x, weight, offset) if bias else (x, weight))]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got, expected = linear(*inputs), F.linear(*exact)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)
    for mine, its in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(mine.double(), its, rtol=1e-5, atol=1e-4)


def test_only_the_gradients_that_are_asked_for():
    x, weight, offset, grad = case(16, 300, 260)
    linear(x, weight.requires_grad_(), offset).backward(grad)
    assert x.grad is None
    assert offset.grad is None
    torch.testing.assert_close(weight.grad, grad.t() @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs_own(dtype):
    x, weight, offset, _ = case(16, 300, 260, dtype)
    assert torch.equal(linear(x, weight, offset), F.linear(x, weight, offset))


def test_more_axes_and_none():
    x, weight, offset, _ = case(24, 300, 260)
    assert torch.equal(linear(x.view(4, 6, 300), weight, offset), F.linear(x.view(4, 6, 300), weight, offset))
    assert linear(x[:0], weight, offset).shape == (0, 260)


def test_autocast_decides_for_itself():
    x, weight, offset, _ = case(16, 300, 260)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, offset).dtype == torch.bfloat16
