"""ohem_caffe_port.compress against numpy's SVD, and against the whole net."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.compress import check_ranks, compress, low_rank_net, ranks_of, truncated_svd
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from prototxt import parse_net, to_text

INPUT = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 6 kernel_size: 1 } }
"""
REST = """
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7" inner_product_param { num_output: 10 } }
layer { name: "out" type: "Sigmoid" bottom: "fc7" top: "out" }
"""
FC6 = 'layer { name: "fc6" type: "InnerProduct" bottom: "y" top: "fc6" %s inner_product_param { num_output: 8 %s } }'
NET = INPUT + FC6 % ("", "") + REST
# wired as Fast R-CNN's models/VGG16/compressed/test.prototxt
COMPRESSED = (
    INPUT
    + """
layer { name: "fc6_L" type: "InnerProduct" bottom: "y" top: "fc6_L"
        inner_product_param { num_output: 3 bias_term: false } }
layer { name: "fc6_U" type: "InnerProduct" bottom: "fc6_L" top: "fc6_U" inner_product_param { num_output: 8 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6_U" top: "fc6_U" }
layer { name: "fc7" type: "InnerProduct" bottom: "fc6_U" top: "fc7" inner_product_param { num_output: 10 } }
layer { name: "out" type: "Sigmoid" bottom: "fc7" top: "out" }
"""
)


def filled(text) -> Net:
    net = Net(parse_net(text), "TEST")
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in net.learnable_params:
            parameter.blob.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.blob.shape))))
    return net


def share(low: Net, whole: Net) -> None:
    with torch.no_grad():
        for name in set(low.params) & set(whole.params):
            for target, blob in zip(low.params[name], whole.params[name], strict=True):
                target.copy_(blob)


# ---- the factors


@pytest.mark.parametrize("shape", [(7, 19), (19, 7), (12, 12)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_against_numpy(shape, rank):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    upper, lower, error = truncated_svd(weight, rank)
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(upper @ lower, (u[:, :rank] * s[:rank]) @ v[:rank], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(lower, axis=1), s[:rank], rtol=1e-6)
    np.testing.assert_allclose(upper.T @ upper, np.eye(rank), atol=1e-6)
    assert error == pytest.approx(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=1e-6)
    assert upper.dtype == lower.dtype == np.float32


@pytest.mark.parametrize("shape", [(9, 30), (30, 9)])
def test_singular_values_of_zero(shape):
    """A weight of rank 4, and of rank 0, taken apart at a higher one."""
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1]))).astype(np.float32)
    upper, lower, error = truncated_svd(weight, 6)
    np.testing.assert_allclose(upper @ lower, weight, atol=1e-5)
    assert error < 1e-6
    upper, lower, error = truncated_svd(0 * weight, 6)
    assert (np.abs(upper @ lower).max(), error) == (0, 0)


def test_more_columns_than_are_summed_at_a_time(monkeypatch):
    weight = np.random.default_rng(2).standard_normal((5, 23)).astype(np.float32)
    expected = truncated_svd(weight, 2)
    monkeypatch.setattr("ohem_caffe_port.compress._COLUMNS_AT_A_TIME", 4)
    for ours, theirs in zip(truncated_svd(weight, 2), expected, strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)


# ---- nets


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ("", ""),
        ("", "transpose: true"),
        ("", "bias_term: false"),
        ("", "axis: -3"),
        ("", "axis: 2"),
        ("", "axis: -1"),
        ("", "relu: true"),
        ('param { name: "w" lr_mult: 3 } param { name: "b" }', ""),
    ],
)
def test_full_rank(params, settings):
    """At full rank nothing is lost: the outputs are the same to rounding."""
    text = INPUT + FC6 % (params, settings) + (REST if "axis: 2" not in settings and "axis: -1" not in settings else "")
    whole = filled(text)
    rows = whole.layer_by_name["fc6"].blob_shapes[0]
    ranks = {"fc6": min(rows)}
    check_ranks(whole, ranks)
    low = Net(low_rank_net(parse_net(text), ranks), "TEST")
    share(low, whole)
    done = compress(whole, low, "fc6")
    assert (done.rank, done.error) == (min(rows), pytest.approx(0, abs=1e-6))
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 5))
    (name,) = whole.outputs
    expected = whole(x=x)[name].detach().numpy()
    np.testing.assert_allclose(low(x=x)[name].detach().numpy(), expected, atol=2e-6 * np.abs(expected).max())
    assert [len(low.params[half]) for half in ("fc6_L", "fc6_U")] == [1, len(whole.params["fc6"])]


def test_the_originals_net():
    """Ranks from the compressed prototxt; blobs may be named as in the original."""
    whole, low = filled(NET), Net(parse_net(COMPRESSED), "TEST")
    assert ranks_of(whole, low) == {"fc6": 3}
    share(low, whole)
    done = compress(whole, low, "fc6")
    weight = whole.params["fc6"][0].detach().numpy()
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    lower, (upper, bias) = low.params["fc6_L"][0].detach().numpy(), (b.detach().numpy() for b in low.params["fc6_U"])
    np.testing.assert_allclose(upper @ lower, (u[:, :3] * s[:3]) @ v[:3], atol=2e-5)
    np.testing.assert_array_equal(bias, whole.params["fc6"][1].detach())
    assert (done.layer, done.outputs, done.inputs, done.rank) == ("fc6", 8, 120, 3)
    assert done.ratio == 3 * 128 / (8 * 120)


def test_the_generated_net():
    """What it looks like: two layers, the blob's name stays, nothing else changes."""
    text = INPUT + FC6 % ("param { lr_mult: 1 } param { lr_mult: 2 }", 'weight_filler { type: "xavier" }') + REST
    expected = (
        INPUT
        + """
layer { name: "fc6_L" type: "InnerProduct" bottom: "y" top: "fc6_L" param { lr_mult: 1 }
        inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "fc6_U" type: "InnerProduct" bottom: "fc6_L" top: "fc6" param { lr_mult: 1 } param { lr_mult: 2 }
        inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
"""
        + REST
    )
    assert to_text(low_rank_net(parse_net(text), {"fc6": 3})) == to_text(parse_net(expected))


SHARED = NET.replace('top: "fc7" inner', 'top: "fc7" param { name: "w" } inner') + (
    'layer { name: "two" type: "InnerProduct" bottom: "fc6" top: "two" param { name: "w" } '
    "inner_product_param { num_output: 10 } }"
)


@pytest.mark.parametrize(
    ("text", "ranks", "words"),
    [
        (NET, {"fc8": 2}, "no layer 'fc8'"),
        (NET, {"f6": 2}, "did you mean 'fc6'"),
        (NET, {"conv": 2}, "is a Convolution layer"),
        (NET, {"fc6": 9}, "rank 9 of a weight of 8 x 120"),
        (NET, {"fc7": 0}, "rank 0 of a weight of 10 x 8"),
        (SHARED, {"fc7": 2}, "shares its parameters with two"),
    ],
)
def test_ranks_that_do_not_fit(text, ranks, words):
    with pytest.raises(PortError) as caught:
        check_ranks(Net(parse_net(text), "TEST"), ranks)
    assert words in str(caught.value)


def test_a_name_that_is_taken():
    text = NET.replace('"out"', '"fc6_L"')
    with pytest.raises(PortError, match="has this name already"):
        low_rank_net(parse_net(text), {"fc6": 2})


UPPER = COMPRESSED[COMPRESSED.index('layer { name: "fc6_U"') : COMPRESSED.index('layer { name: "relu6"')]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("_L", "_M", "no layer 'fc6_L'"),
        ("_U", "_V", "no layer 'fc6_U'"),
        ('"fc6_', '"ip_', "no layer of"),
        ("num_output: 6", "num_output: 7", "is 3 x 140; layer 'fc6' needs 3 x 120"),
        ("num_output: 8", "num_output: 9", "is 9 x 3; layer 'fc6' needs 8 x 3"),
        ("num_output: 3 bias_term: false", "num_output: 3", "must have no bias"),
        ("num_output: 8", "num_output: 8 bias_term: false", "must have a bias"),
        ("num_output: 3", "num_output: 9", "rank 9 of a weight of 8 x 120"),
        ('layer { name: "relu6"', FC6 % ("", "") + '\nlayer { name: "relu6"', "this layer whole, too"),
        ('layer { name: "fc6_L" type: "InnerProduct"', 'layer { name: "fc6_L" type: "ReLU"', None),
    ],
)
def test_nets_that_do_not_fit(old, new, words):
    text = COMPRESSED.replace(old, new)
    if words is None:
        text, words = text.replace("inner_product_param { num_output: 3 bias_term: false }", ""), "is a ReLU layer"
    with pytest.raises(PortError) as caught:
        ranks_of(filled(NET), Net(parse_net(text), "TEST"))
    assert words in str(caught.value)


def test_weights_that_are_not_finite():
    whole, low = filled(NET), Net(parse_net(COMPRESSED), "TEST")
    with torch.no_grad():
        whole.params["fc6"][0][2, 3] = torch.inf
    with pytest.raises(PortError, match="not finite"):
        compress(whole, low, "fc6")
