import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

A, B = np.arange(24.0).reshape(2, 3, 4), np.arange(24.0)[::-1].reshape(2, 3, 4).copy()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", A + B + A),
        ("operation: SUM coeff: 2 coeff: -1 coeff: 0.5", 2 * A - B + 0.5 * A),
        ("operation: PROD stable_prod_grad: false", A * B * A),
        ("operation: MAX", np.maximum(A, B)),
        ("operation: MIN", np.minimum(A, B)),
        ("operation: SORT", (A + 1) * (B + 1) * (A + 1)),
    ],
)
def test_eltwise(run_layer, settings, expected):
    (out,) = run_layer("Eltwise", f"eltwise_param {{ {settings} }}", A, B, A)
    np.testing.assert_array_equal(out, expected)


def test_division(run_layer):
    (out,) = run_layer("Eltwise", "eltwise_param { operation: DIV }", A, B + 1)
    np.testing.assert_allclose(out, A / (B + 1), rtol=1e-6)


@pytest.mark.parametrize(("operation", "best"), [("MAX", 1), ("MIN", 1)])
def test_a_tie_is_not_halved(run_layer, operation, best):
    bottoms = [torch.ones(2, requires_grad=True) for _ in range(3)]
    run_layer("Eltwise", f"eltwise_param {{ operation: {operation} }}", *bottoms)[0].sum().backward()
    assert [0 if b.grad is None else b.grad.sum().item() for b in bottoms] == [0, 2, 0]


@pytest.mark.parametrize(("operation", "expected"), [("MAX", [2, np.nan]), ("MIN", [2, np.nan])])
def test_what_is_no_number_loses_as_first_bottom(run_layer, operation, expected):
    (out,) = run_layer("Eltwise", f"eltwise_param {{ operation: {operation} }}", [np.nan, 1], [2, np.nan])
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("operation", "of"), [("SUM", np.add), ("PROD", np.multiply), ("DIV", np.divide),
                                               ("MAX", np.maximum), ("MIN", np.minimum)])  # fmt: skip
@pytest.mark.parametrize(("axis", "shape"), [(0, (2,)), (1, (3,)), (-2, (3, 4)), (0, (2, 3))])
def test_a_smaller_second_bottom(run_layer, operation, of, axis, shape):
    small = np.arange(1.0, np.prod(shape) + 1).reshape(shape)
    (out,) = run_layer("Eltwise", f"eltwise_param {{ operation: {operation} axis: {axis} }}", A, small)
    spread = small.reshape(*(1,) * (axis % 3), *shape, *(1,) * (3 - axis % 3 - len(shape)))
    np.testing.assert_allclose(out, of(A, spread), rtol=1e-6)


def test_stochastic_sum(run_layer):
    settings = "eltwise_param { operation: STOCHASTIC_SUM coeff: 1 coeff: 0.25 }"
    bottoms = [torch.ones(1), torch.tensor([10.0], requires_grad=True)]
    (out,) = run_layer("Eltwise", settings, *bottoms, phase="TEST")
    assert out.item() == 3.5
    torch.manual_seed(0)
    draws = [run_layer("Eltwise", settings, *bottoms)[0] for _ in range(400)]
    assert {d.item() for d in draws} == {1, 11}
    taken = sum(d.item() == 11 for d in draws)
    assert 70 < taken < 130  # 100 expected, standard deviation 9
    sum(draws).backward()
    assert bottoms[1].grad.item() == taken


@pytest.mark.parametrize(
    ("settings", "bottoms", "message"),
    [
        ("coeff: 1", [(2,), (2,)], "1 coefficients for 2 bottoms"),
        ("operation: MAX coeff: 1 coeff: 2", [(2,), (2,)], "only SUM takes coefficients"),
        ("", [(2,), (3,)], "differ in shape"),
        ("", [(2, 3), (2,)], "differ in shape"),
        ("operation: DIV", [(2,), (2,), (2,)], "DIV of 3 bottoms"),
        ("axis: 1", [(2, 3), (2,)], r"\(2,\) does not fit \(2, 3\) from axis 1 on"),
    ],
)
def test_eltwise_that_makes_no_sense(run_layer, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer("Eltwise", f"eltwise_param {{ {settings} }}", *(np.zeros(shape) for shape in bottoms))
