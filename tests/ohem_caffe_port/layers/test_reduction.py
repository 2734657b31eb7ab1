import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(4)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(
    ("operation", "of", "slope"),
    [
        ("SUM", np.sum, np.ones_like),
        ("ASUM", lambda x, a: np.abs(x).sum(a), np.sign),
        ("SUMSQ", lambda x, a: (x**2).sum(a), lambda x: 2 * x),
        ("MEAN", np.mean, np.ones_like),
    ],
)
def test_reduction(run_layer, operation, of, slope, axis):
    x = X.copy()
    x[0, 0, 0] = 0
    bottom = torch.tensor(x, requires_grad=True)
    (out,) = run_layer("Reduction", f"reduction_param {{ operation: {operation} axis: {axis} coeff: 0.5 }}", bottom)
    axes = tuple(range(axis % 3, 3))
    np.testing.assert_allclose(out.detach(), 0.5 * of(x, axes), rtol=1e-5)
    out.sum().backward()
    share = np.prod([x.shape[a] for a in axes]) if operation == "MEAN" else 1
    np.testing.assert_allclose(bottom.grad, 0.5 * slope(x) / share, rtol=1e-6)


def batch_reduction(operation, rest="", more="", axis=1):
    return f"batch_reduction_param {{ reduction_param {{ operation: {operation} axis: {axis} {more} }} {rest} }}"


@pytest.mark.parametrize(("operation", "of"), [("SUM", np.sum), ("MEAN", np.mean)])
@pytest.mark.parametrize("level", ["", "level: 1"])
def test_batch_reduction_of_a_whole_axis(run_layer, operation, of, level):
    (out,) = run_layer("BatchReduction", batch_reduction(operation, level), X)
    np.testing.assert_allclose(out, of(X, 1), rtol=1e-5)


@pytest.mark.parametrize(("operation", "of"), [("SUM", np.sum), ("MEAN", np.mean)])
def test_batch_reduction_of_a_pyramid(run_layer, operation, of):
    x = RNG.standard_normal((2, 1 + 4 + 9, 3)).astype(np.float32)
    (out,) = run_layer("BatchReduction", batch_reduction(operation, "level: 1 level: 2 level: 3"), x)
    np.testing.assert_allclose(out, np.stack([of(p, 1) for p in np.split(x, [1, 5], 1)], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("level", "size"), [("", 3), ("level: 2", 4)])
def test_batch_reduction_of_positions(run_layer, level, size):
    """pos takes cell (t, t) of the two axes, as a class score of every position-sensitive piece."""
    x = RNG.standard_normal((2, size, size, 5)).astype(np.float32)
    (out,) = run_layer("BatchReduction", batch_reduction("SUM", f"pos: true {level}"), x)
    expected = sum(x[:, t, t] for t in range(size))
    np.testing.assert_allclose(out, expected[:, None] if level else expected, rtol=1e-5)


def test_batch_reduction_of_the_largest(run_layer):
    x = torch.tensor([[[3.0], [1], [3], [3], [5]]], requires_grad=True)
    (out,) = run_layer("BatchReduction", batch_reduction("TOPK", more="k: 3"), x)
    assert out.tolist() == [[pytest.approx(11 / 3)]]
    out.backward()
    assert x.grad.flatten().tolist() == [pytest.approx(v) for v in (1 / 3, 0, 1 / 3, 0, 1 / 3)]


def slow_argmax(x, axis, k, smallest=False):
    """Places and values of the best along an axis, by Caffe's sort of (value, place)."""
    moved = np.moveaxis(x, axis, -1)
    places = np.empty((*moved.shape[:-1], k))
    values = np.empty_like(places)
    for index in np.ndindex(*moved.shape[:-1]):
        pairs = sorted(((v, i) for i, v in enumerate(moved[index])), reverse=not smallest)[:k]
        values[index], places[index] = zip(*pairs, strict=True)
    return np.moveaxis(places, -1, axis), np.moveaxis(values, -1, axis)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_argmax(run_layer, k, smallest, axis):
    x = RNG.integers(0, 4, (5, 4, 3, 3)).astype(np.float32)  # with ties
    settings = f"top_k: {k} min_first: {str(smallest).lower()}" + ("" if axis is None else f" axis: {axis}")
    (place,) = run_layer("ArgMax", f"argmax_param {{ {settings} }}", x)
    (both,) = run_layer("ArgMax", f"argmax_param {{ {settings} out_max_val: true }}", x)
    if axis is None:
        places, values = slow_argmax(x.reshape(5, 36), 1, k, smallest)
        np.testing.assert_array_equal(place, places.reshape(5, 1, k, 1))
        np.testing.assert_array_equal(both, np.stack([places, values], 1).reshape(5, 2, k, 1))
    else:
        places, values = slow_argmax(x, axis, k, smallest)
        np.testing.assert_array_equal(place, places)
        np.testing.assert_array_equal(both, values)


@pytest.mark.parametrize(("shape", "top"), [((3,), (3, 1, 1)), ((3, 5), (3, 1, 1)), ((3, 5, 2, 2, 2), (3, 1, 1, 1, 1))])
def test_argmax_has_three_axes_or_as_many_as_the_bottom(run_layer, shape, top):
    assert run_layer("ArgMax", "", np.zeros(shape))[0].shape == top


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Reduction", "reduction_param { operation: TOPK }", "TOPK is for BatchReduction"),
        ("Reduction", "reduction_param { k: 2 }", "not supported by the Reduction layer"),
        ("Reduction", "reduction_param { axis: 3 }", "axis 3 of a blob with 3 axes"),
        ("BatchReduction", batch_reduction("ASUM"), "only SUM, MEAN and TOPK"),
        ("BatchReduction", batch_reduction("SUM", more="coeff: 2"), "coeff: BatchReduction does not read it"),
        ("BatchReduction", batch_reduction("SUM", "level: 2"), "on an axis of 3"),
        ("BatchReduction", batch_reduction("SUM", "pos: true"), "axes 1 and the next differ"),
        ("BatchReduction", batch_reduction("SUM", "pos: true", axis=-1), "an axis after it"),
        ("BatchReduction", batch_reduction("TOPK", more="k: 4"), "the 4 largest of 3"),
        ("BatchReduction", batch_reduction("TOPK", "level: 1 level: 1"), "for one level"),
        ("ArgMax", "argmax_param { top_k: 0 }", "at least 1"),
        ("ArgMax", "argmax_param { top_k: 4 axis: 1 }", "the 4 largest of 3"),
        ("ArgMax", "argmax_param { top_k: 13 }", "the 13 largest of 12"),
    ],
)
def test_what_makes_no_sense(run_layer, kind, settings, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, X)
