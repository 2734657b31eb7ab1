import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers.dropout import random_mask


@pytest.mark.parametrize(
    ("settings", "train", "test"),
    [
        ("", {0, 4}, {1}),
        ("scale_train: true", {0, 4}, {1}),
        ("scale_train: false", {0, 1}, {0.25}),
        ("sqrt_scale: true", {0, 2}, {1}),
        ("sample_weights_test: true", {0, 4}, {0, 4}),
    ],
)
def test_dropout(run_layer, settings, train, test):
    settings, x = f"dropout_param {{ dropout_ratio: 0.75 {settings} }}", torch.ones(20_000, requires_grad=True)
    (out,) = run_layer("Dropout", settings, x)
    assert set(out.unique().tolist()) == train
    assert (out != 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach()), "the gradient has the same mask and scale"
    assert set(run_layer("Dropout", settings, x, phase="TEST")[0].unique().tolist()) == test


def test_a_random_seed_gives_a_stream_of_its_own(run_layer):
    x, settings = torch.ones(1000), "dropout_param { random_seed: 3 }"
    (first,) = run_layer("Dropout", settings, x)
    torch.rand(7)
    assert torch.equal(run_layer("Dropout", settings, x)[0], first)
    assert not torch.equal(run_layer("Dropout", "dropout_param { random_seed: 4 }", x)[0], first)


@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.75, 255 / 256])
@pytest.mark.parametrize("shape", [(1003,), (7, 11, 13), (0, 5)])
def test_every_value_is_dropped_with_the_ratio_and_by_itself(ratio, shape):
    torch.manual_seed(0)
    masks = torch.stack([random_mask(torch.empty(shape), 1 - ratio) for _ in range(400)]).flatten(1).float()
    if masks.numel():
        assert masks.mean().item() == pytest.approx(1 - ratio, abs=0.004)
        deviation = (ratio * (1 - ratio) / 400) ** 0.5
        assert (masks.mean(0) - (1 - ratio)).abs().max() < 6 * deviation + 0.01, "no place is preferred"
        both = (masks[:, :-1] * masks[:, 1:]).mean().item()
        assert both == pytest.approx((1 - ratio) ** 2, abs=0.005), "neighbours know nothing of each other"


@pytest.mark.parametrize("message", ["dropout_param", "spatial_dropout_param"])
def test_spatial_dropout_drops_channels(run_layer, message):
    settings, x = f"{message} {{ dropout_ratio: 0.75 }}", torch.rand(40, 50, 2, 3) + 1
    (out,) = run_layer("SpatialDropout", settings, x)
    factor = (out / x).flatten(2)
    assert torch.allclose(factor, factor[..., :1]), "one factor for all places of a channel"
    assert {round(f, 5) for f in factor[..., 0].flatten().tolist()} == {0, 4}
    assert (factor[..., 0] != 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(run_layer("SpatialDropout", settings, x, phase="TEST")[0], x)


@pytest.mark.parametrize("kind", ["SeLUDropout", "SeLuDropout"])
def test_alpha_dropout_keeps_mean_and_variance(run_layer, kind):
    """Klambauer et al., 2017, appendix: for mean 0 and variance 1."""
    settings, x = "selu_dropout_param { dropout_ratio: 0.2 }", torch.randn(200_000, requires_grad=True)
    (out,) = run_layer(kind, settings, x)
    alpha = -1.75809934
    scale = (0.8 * (1 + alpha**2 * 0.2)) ** -0.5
    kept = x.new_tensor(np.isclose(out.detach(), scale * x.detach() - scale * 0.2 * alpha, atol=1e-6)).bool()
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(out[~kept].detach(), scale * alpha * (1 - 0.2), rtol=1e-5)
    assert (out.mean().item(), out.var().item()) == pytest.approx((0, 1), abs=0.02)
    out.sum().backward()
    torch.testing.assert_close(x.grad, kept * scale)
    assert torch.equal(run_layer(kind, settings, x, phase="TEST")[0], x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Dropout", "dropout_param"),
        ("SpatialDropout", "dropout_param"),
        ("SpatialDropout", "spatial_dropout_param"),
        ("SeLUDropout", "selu_dropout_param"),
    ],
)
def test_the_limits_of_the_ratio(run_layer, kind, message):
    x = np.random.default_rng(0).standard_normal((4, 5))
    np.testing.assert_allclose(run_layer(kind, f"{message} {{ dropout_ratio: 0 }}", x)[0], x, rtol=1e-6)
    for ratio in (1, -0.5):
        with pytest.raises(PortError, match=f"{message}.dropout_ratio: must be at least 0 and below 1"):
            run_layer(kind, f"{message} {{ dropout_ratio: {ratio} }}", x)
