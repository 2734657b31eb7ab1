import numpy as np
import pytest

from ohem_caffe_port.errors import PortError

X = np.random.default_rng(0).standard_normal((2, 3, 4))


@pytest.mark.parametrize(
    ("settings", "shape", "flat"),
    [
        ("", (5, 12), (2, 12)),
        ("transpose: true", (12, 5), (2, 12)),
        ("axis: 2", (5, 4), (2, 3, 4)),
        ("axis: -1", (5, 4), (2, 3, 4)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_values(run_layer, settings, shape, flat, bias):
    weight, offset = np.random.default_rng(1).standard_normal(shape), np.arange(5.0) * bias
    text = f"inner_product_param {{ num_output: 5 {settings} bias_term: {str(bias).lower()} }}"
    params = (weight, offset) if bias else (weight,)
    matrix = weight if "transpose" in settings else weight.T
    (out,) = run_layer("InnerProduct", text, X, params=params)
    np.testing.assert_allclose(out.detach(), X.reshape(flat) @ matrix + offset, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slope", [0, 0.25])
def test_the_fused_relu(run_layer, slope):
    weight, text = np.random.default_rng(1).standard_normal((5, 12)), f"relu: true negative_slope: {slope}"
    settings = f"inner_product_param {{ num_output: 5 bias_term: false {text} }}"
    (out,) = run_layer("InnerProduct", settings, X, params=[weight])
    product = X.reshape(2, 12) @ weight.T
    np.testing.assert_allclose(out.detach(), np.where(product > 0, product, slope * product), rtol=1e-5, atol=1e-5)


def test_num_output_is_needed(run_layer):
    with pytest.raises(PortError, match="must be positive"):
        run_layer("InnerProduct", "", X)
