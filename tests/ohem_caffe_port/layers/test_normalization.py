import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net


def slow_lrn(x, size, alpha, beta, k):
    out = np.zeros_like(x)
    for n, c in np.ndindex(*x.shape[:2]):
        window = x[n, max(0, c - size // 2) : c + size // 2 + 1]
        out[n, c] = x[n, c] * (k + alpha / size * (window**2).sum(0)) ** -beta
    return out


@pytest.mark.parametrize(("size", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 1), (3, 0.5, 0.75, 2), (7, 2.0, 1.5, 0.5)])
def test_across_channels(run_layer, size, alpha, beta, k):
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 4)) * 2
    settings = f"lrn_param {{ local_size: {size} alpha: {alpha} beta: {beta} k: {k} }}"
    np.testing.assert_allclose(run_layer("LRN", settings, x)[0], slow_lrn(x, size, alpha, beta, k), rtol=2e-5)
    doubles = torch.tensor(x[:1, :, :2, :2], requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: run_layer("LRN", settings, v)[0], (doubles,))


def test_within_a_channel(run_layer):
    """The mean over a square counts the cells of the padding too."""
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 5))
    padded = np.pad(x**2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    mean = sum(padded[:, :, i : i + 4, j : j + 5] for i in range(3) for j in range(3)) / 9
    settings = "lrn_param { local_size: 3 alpha: 0.7 beta: 0.6 norm_region: WITHIN_CHANNEL }"
    np.testing.assert_allclose(run_layer("LRN", settings, x)[0], x * (1 + 0.7 * mean) ** -0.6, rtol=2e-5)


@pytest.mark.parametrize(("size", "shape", "message"), [(4, (1, 2, 3, 3), "must be odd"), (3, (2, 3), "not shape")])
def test_settings_that_make_no_sense(run_layer, size, shape, message):
    with pytest.raises(PortError, match=message):
        run_layer("LRN", f"lrn_param {{ local_size: {size} }}", np.zeros(shape))


def standardized(x, axes, eps, inside):
    """In the words of the formula, cell by cell of the mean."""
    out = np.empty_like(x)
    for index in np.ndindex(*(1 if a in axes else n for a, n in enumerate(x.shape))):
        cell = tuple(slice(None) if a in axes else i for a, i in enumerate(index))
        part = x[cell] - x[cell].mean()
        var = (part**2).mean()
        out[cell] = part / (np.sqrt(var + eps) if inside else np.sqrt(var) + eps)
    return out


@pytest.mark.parametrize(
    ("settings", "axes", "eps", "inside"),
    [
        ("", (2, 3), 1e-9, False),
        ("across_channels: true eps: 0.5", (1, 2, 3), 0.5, False),
        ("eps: 0.5 add_eps_before_sqrt: true", (2, 3), 0.5, True),
    ],
)
def test_mvn(run_layer, settings, axes, eps, inside):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 2)) * 2 + 1
    settings = f"mvn_param {{ {settings} }}"
    np.testing.assert_allclose(
        run_layer("MVN", settings, x)[0], standardized(x, axes, eps, inside), rtol=2e-5, atol=1e-6
    )
    v = torch.tensor(x, requires_grad=True)
    weight = torch.randn(x.shape, dtype=torch.float64)
    (out,) = run_layer("MVN", settings, v)
    (out * weight).sum().backward()
    std = ((v - v.mean(axes, keepdim=True)) / out).detach()
    along = (weight * out.detach()).mean(axes, keepdim=True)
    torch.testing.assert_close(v.grad, (weight - weight.mean(axes, keepdim=True) - out.detach() * along) / std)
    if inside or eps < 1e-6:
        assert torch.autograd.gradcheck(lambda b: run_layer("MVN", settings, b)[0], (v,))


def test_mvn_of_the_mean_only(run_layer):
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    (out,) = run_layer("MVN", "mvn_param { normalize_variance: false }", x)
    np.testing.assert_allclose(out, (x - x.mean(2, keepdims=True))[..., None], rtol=1e-5, atol=1e-6)
    with pytest.raises(PortError, match="up to 4 axes"):
        run_layer("MVN", "", np.zeros((1, 1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("settings", "axes", "scale"),
    [
        ("", (1, 2, 3), 3.0),
        ("across_spatial: false", (1,), 3.0),
        ("across_spatial: false channel_shared: false eps: 0.5", (1,), [3.0, -1, 2]),
        ("channel_shared: false eps: 0.5 add_eps_before_sqrt: false", (1, 2, 3), [3.0, -1, 2]),
    ],
)
def test_normalize_of_ssd(run_layer, settings, axes, scale):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 2))
    eps = 0.5 if "eps: 0.5" in settings else 1e-10
    outside = eps if "sqrt: false" in settings else 0
    settings = f"norm_param {{ {settings} }}"
    norm = np.sqrt((x**2).sum(axes, keepdims=True) + (0 if outside else eps)) + outside
    factor = np.reshape(scale, (-1, 1, 1)) if isinstance(scale, list) else scale
    v = torch.tensor(x, requires_grad=True)
    (out,) = run_layer("Normalize", settings, v, params=[scale])
    np.testing.assert_allclose(out.detach(), x / norm * factor, rtol=1e-6)
    weight = np.random.default_rng(1).standard_normal(x.shape)
    (out * torch.tensor(weight)).sum().backward()
    # SSD's layer takes the scale out of the sum, as if it were one for all channels
    along = (weight * x).sum(axes, keepdims=True)
    np.testing.assert_allclose(v.grad, factor * (weight - x * along / norm**2) / norm, rtol=1e-5, atol=1e-9)


def test_normalize_learns_its_scale():
    net = Net(
        prototxt.parse_net("""
            layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 } } }
            layer { name: "n" type: "Normalize" bottom: "x" top: "y"
                    norm_param { channel_shared: false across_spatial: false scale_filler { value: 20 } } }
            layer { name: "l" type: "EuclideanLoss" bottom: "y" bottom: "x" top: "loss" }
        """)
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    net(x=x)
    net.backward()
    (scale,) = net.params["n"]
    assert scale.tolist() == [20, 20, 20]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(scale.grad, ((20 * unit - x) * unit).sum((0, 2)) / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("bp_norm", [False, True])
@pytest.mark.parametrize("fix_gradient", [False, True])
def test_normalize_of_caffe_windows(run_layer, kind, bp_norm, fix_gradient):
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 4, 1)), requires_grad=True)
    settings = f'normalize_param {{ normalize_type: "{kind}" bp_norm: {str(bp_norm).lower()} '
    settings += f"fix_gradient: {str(fix_gradient).lower()} }}"
    out, norm = run_layer("Normalize", settings, x, tops=2)
    values = x.detach()
    expected = values.abs().sum(1, keepdim=True) if kind == "L1" else values.norm(dim=1, keepdim=True)
    torch.testing.assert_close(norm.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.detach(), values / norm.detach())
    weight, norm_weight = torch.randn(2, *x.shape, dtype=torch.float64)
    norm_weight = norm_weight[:, :1]
    ((out * weight).sum() + (norm * norm_weight).sum()).backward()
    along = (weight * out.detach()).sum(1, keepdim=True)
    slope = values.sign() if kind == "L1" else out.detach()
    gradient = (weight - slope * along) / (1 if fix_gradient else norm.detach())
    torch.testing.assert_close(x.grad, gradient + (slope * norm_weight if bp_norm else 0))


@pytest.mark.parametrize(
    ("settings", "tops", "message"),
    [
        ('normalize_param { normalize_type: "L3" }', 1, "normalize_param.normalize_type: must be L1 or L2"),
        ("norm_param { eps: 1 }", 2, "norm_param: of SSD's layer"),
        ("norm_param { eps: 1 } normalize_param { bp_norm: true }", 1, "norm_param: of SSD's layer"),
    ],
)
def test_normalize_settings_that_make_no_sense(run_layer, settings, tops, message):
    with pytest.raises(PortError, match=message):
        run_layer("Normalize", settings, np.ones((2, 3)), tops=tops)
    with pytest.raises(PortError, match="two axes and more"):
        run_layer("Normalize", "", np.ones(2))
