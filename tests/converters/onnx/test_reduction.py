import numpy as np
import pytest


@pytest.mark.parametrize("axis", ["", "axis: 2", "axis: -1"])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax(check_layer, kind, axis):
    message = "softmax_param" if kind == "Softmax" else "log_softmax_param"
    check_layer(kind, f"{message} {{ {axis} }}", (2, 5, 3, 4), inputs=lambda s, rng: {"x0": 5 * rng.randn(*s["x0"])})


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_of_large_scores(check_layer, kind):
    """LogSoftmax ends at log(1e-45), in single precision."""
    check_layer(kind, "", (2, 4), inputs={"x0": [[0, 300, 100, 210], [-1e4, 1e4, 0, 5]]})


@pytest.mark.parametrize("operation", ["SUM", "ASUM", "SUMSQ", "MEAN"])
@pytest.mark.parametrize("settings", ["", "axis: 1", "axis: -1 coeff: 0.5", "axis: 2 coeff: -3"])
def test_reduction(check_layer, operation, settings):
    check_layer("Reduction", f"reduction_param {{ operation: {operation} {settings} }}", (2, 3, 4, 5))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("reduction_param { operation: SUM axis: 1 }", (2, 3, 4)),
        ("reduction_param { operation: MEAN axis: -1 } level: 1", (2, 3, 4)),
        ("reduction_param { operation: TOPK axis: 1 k: 2 }", (2, 5, 4)),
        ("reduction_param { operation: SUM axis: 1 } level: [1, 2, 3]", (2, 14, 4)),
        ("reduction_param { operation: MEAN axis: 2 } level: [2]", (2, 3, 4)),
        ("reduction_param { operation: MEAN axis: 1 } pos: true", (2, 4, 4, 3)),
        ("reduction_param { operation: SUM axis: 1 } pos: true level: 2", (2, 4, 4)),
    ],
)
def test_batch_reduction(check_layer, settings, shape):
    check_layer("BatchReduction", f"batch_reduction_param {{ {settings} }}", shape)


def test_batch_reduction_of_the_batch(check_layer):
    check_layer("BatchReduction", "batch_reduction_param { reduction_param { operation: MEAN axis: 0 } }", (3, 4))


@pytest.mark.parametrize("order", ["", "min_first: true"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("values", ["", "out_max_val: true"])
@pytest.mark.parametrize(("axis", "shape"), [("", (2, 6)), ("", (2, 3, 2, 2)), ("axis: 1", (2, 5, 3)),
                                             ("axis: -1", (2, 3, 4))])  # fmt: skip
def test_arg_max_with_equal_values(check_layer, order, top_k, values, axis, shape):
    """Small whole numbers: most have equals, of which Caffe takes the last (min_first: the first)."""
    settings = f"argmax_param {{ top_k: {top_k} {order} {values} {axis} }}"
    check_layer("ArgMax", settings, shape, inputs=lambda s, rng: {"x0": rng.randint(0, 3, s["x0"])})


@pytest.mark.parametrize("top_k", [1, 2])
def test_arg_max_along_the_batch(check_layer, top_k):
    numbers = {"x0": np.array([[1, 0], [2, 2], [2, 1], [0, 2]])}
    check_layer("ArgMax", f"argmax_param {{ axis: 0 top_k: {top_k} }}", (4, 2), inputs=numbers)


@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("settings", ["num_output: 4", "num_output: 4 normalize: true", "num_output: 3 axis: 2"])
def test_inner_distance(check_layer, kind, settings):
    settings = f"inner_distance_param {{ {settings} distance_type: '{kind}' }}"
    check_layer("InnerDistance", settings, (2, 3, 2, 2))


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_distances_to_a_bottom(check_layer, kind):
    check_layer("InnerDistance", f"inner_distance_param {{ distance_type: '{kind}' }}", (2, 3, 2), (5, 6))
    settings = f"inner_distance_param {{ distance_type: '{kind}' update_center_only: true }}"
    check_layer("InnerDistance", settings, (2, 6), (5, 6), (2,), inputs={"x2": [1, 4]})


def test_losses_in_python(check_layer):
    python = "python_param {{ module: '{}' layer: '{}' }}"
    check_layer("Python", python.format("pyloss", "EuclideanLossLayer"), (2, 3, 4), (2, 12))
    numbers = lambda shapes, rng: {"x1": rng.randint(0, 2, shapes["x1"])}  # noqa: E731
    check_layer("Python", python.format("pyLayer", "DiceLoss"), (2, 2, 30), (2, 1, 30), inputs=numbers)


@pytest.mark.parametrize("operation", ["SUM", "ASUM", "SUMSQ", "MEAN"])
def test_layers_that_read_a_scalar(check, inputs_of, operation):
    check(
        inputs_of(x=(2, 3), y=(4,))
        + f"""
        layer {{ name: "r" type: "Reduction" bottom: "x" top: "r" reduction_param {{ operation: {operation} }} }}
        layer {{ name: "b" type: "BatchReduction" bottom: "y" top: "b" batch_reduction_param {{ reduction_param {{
            operation: MEAN }} }} }}
        layer {{ name: "p" type: "Power" bottom: "r" top: "p" power_param {{ scale: 2 shift: 1 }} }}
        layer {{ name: "e" type: "Eltwise" bottom: "b" bottom: "p" top: "e" }}
        layer {{ name: "s" type: "Scale" bottom: "x" bottom: "e" top: "s" scale_param {{ axis: 0 }} }}
        layer {{ name: "v" type: "Reshape" bottom: "e" top: "v" reshape_param {{ shape {{ dim: 1 dim: 1 }} }} }}"""
    )
