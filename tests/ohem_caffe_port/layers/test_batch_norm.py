from pathlib import Path

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

CAFFE = Path(__file__).resolve().parents[3] / "../shared/golden/layers/BatchNorm"
GENERATOR = np.random.default_rng(0)
BATCHES = [(GENERATOR.standard_normal((4, 3, 2, 5)) * 2 + 1).astype(np.float32) for _ in range(3)]
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 2 dim: 5 } } }'


def net_of(kind, settings, phase="TRAIN", tops="y") -> Net:
    tops = "".join(f'top: "{t}" ' for t in tops)
    return Net(prototxt.parse_net(f'{INPUT} layer {{ name: "n" type: "{kind}" bottom: "x" {tops} {settings} }}'), phase)


def by_channel(values):
    return np.reshape(values, (1, -1, 1, 1))


def moments(x):
    """Mean, biased and unbiased variance of every channel, in double precision."""
    channels = np.moveaxis(x.astype(np.float64), 1, 0).reshape(x.shape[1], -1)
    return channels.mean(1), channels.var(1), channels.var(1, ddof=1)


def normalized(x, mean, var, eps=1e-5):
    return (x - by_channel(mean)) / np.sqrt(by_channel(var) + eps)


def assert_params(net, *expected):
    for ours, theirs in zip(net.params["n"], expected, strict=True):
        np.testing.assert_allclose(ours.detach().flatten(), np.ravel(theirs), rtol=2e-6, atol=1e-6)


def test_training_accumulates_and_testing_uses():
    net = net_of("BatchNorm", "batch_norm_param { moving_average_fraction: 0.75 }")
    sums = [np.zeros(3), np.zeros(3), 0]
    for x in BATCHES:
        mean, var, unbiased = moments(x)
        np.testing.assert_allclose(net(x=x)["y"], normalized(x, mean, var), rtol=1e-5, atol=2e-6)
        sums = [0.75 * s + new for s, new in zip(sums, (mean, unbiased, 1), strict=True)]
        assert_params(net, *sums)
    test = net_of("BatchNorm", "", "TEST")
    np.testing.assert_array_equal(
        test(x=x)["y"], x * np.float32(1e-5) ** -0.5
    )  # nothing is accumulated: mean 0, variance 0
    for ours, theirs in zip(test.params["n"], net.params["n"], strict=True):
        ours.data.copy_(theirs)
    expected = normalized(x, sums[0] / sums[2], sums[1] / sums[2])
    np.testing.assert_allclose(test(x=x)["y"], expected, rtol=1e-5, atol=2e-6)
    assert_params(test, *sums)


@pytest.mark.parametrize("case", ["train", "train_fwd3", "2d", "eps"])
def test_statistics_are_caffes(case):
    """What real Caffe's blobs hold after one forward, or three."""
    if not CAFFE.exists():
        pytest.skip("needs ../shared/golden, arrays of real Caffe")
    arrays = np.load(CAFFE / f"BatchNorm__{case}.npz")
    net = Net(CAFFE / f"BatchNorm__{case}.prototxt")
    for i, blob in enumerate(net.params["L"]):
        blob.data.copy_(torch.from_numpy(arrays[f"param/L/{i}"]))
    for _ in range(3 if case.endswith("fwd3") else 1):
        net(x=arrays["in/x"])
    for i, blob in enumerate(net.params["L"]):
        np.testing.assert_allclose(blob.detach(), arrays[f"param_after/L/{i}"], rtol=1e-6, atol=1e-6)


def test_a_single_value_per_channel():
    net = Net(prototxt.parse_net(INPUT.replace("dim: 4", "dim: 1").replace("dim: 2 dim: 5", "")
        + 'layer { name: "n" type: "BatchNorm" bottom: "x" top: "y" }'))  # fmt: skip
    assert net(x=[[1.0, 2, 3]])["y"].tolist() == [[0, 0, 0]]
    assert_params(net, [1, 2, 3], [0, 0, 0], 1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("BatchNorm", ""),
        ("BatchNorm", "batch_norm_param { stats_batch_size: 1 scale_bias: true }"),
        ("BatchNorm", "batch_norm_param { use_global_stats: true use_weight_bias: true }"),
        ("BatchNorm", "batch_norm_param { use_global_stats: true add_eps_before_sqrt: false eps: 0.5 }"),
        ("BN", "bn_param { frozen: true slope_filler { value: 2 } }"),
        ("BN", "bn_param { bn_mode: LEARN scale_filler { value: 2 } }"),
    ],
)
def test_gradient(kind, settings):
    layer = net_of(kind, settings).layer_by_name["n"].double()
    for i, blob in enumerate(layer.blobs):
        blob.data += i + 1
    x = torch.tensor(BATCHES[0][:2, :, :, :2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: layer([v])[0], (x,))


def test_statistics_are_not_learned():
    net = net_of("BatchNorm", "param { lr_mult: 0 }")
    assert [p.lr_mult for p in net.learnable_params] == [0, 0, 0]
    with pytest.raises(PortError, match=r"param\[1\].lr_mult: lr_mult 1 for a statistic, which is not learned"):
        net_of("BatchNorm", "param { lr_mult: 0 } param { decay_mult: 0 }")


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_nvidia(phase):
    settings = (
        "param { lr_mult: 3 } batch_norm_param { scale_filler { value: 2 } eps: 0 moving_average_fraction: 0.75 }"
    )
    net = net_of("BatchNorm", settings, phase)
    assert [p.lr_mult for p in net.learnable_params] == [0, 0, 0, 1, 1]
    assert_params(net, [0] * 3, [0] * 3, 1, [2] * 3, [0] * 3)
    with torch.no_grad():
        net.params["n"][4].copy_(torch.tensor([1.0, 2, 3]))
    shift = by_channel([1, 2, 3])
    if phase == "TEST":
        with torch.no_grad():
            net.params["n"][0].fill_(1)
            net.params["n"][1].fill_(4)
        expected = 2 * normalized(BATCHES[0], [1] * 3, [4] * 3) + shift
        np.testing.assert_allclose(net(x=BATCHES[0])["y"].detach(), expected, rtol=1e-5, atol=2e-6)
        return
    running = None
    for x in BATCHES:
        mean, var, unbiased = moments(x)
        expected = 2 * normalized(x, mean, var) + shift
        np.testing.assert_allclose(net(x=x)["y"].detach(), expected, rtol=1e-5, atol=4e-6)
        new = np.stack([mean, unbiased])
        running = new if running is None else 0.75 * running + 0.25 * new
        assert_params(net, *running, 1, [2] * 3, [1, 2, 3])


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ("scale_bias: false", 3),
        ("scale_bias: true", 5),
        ("scale_bias: false bias_filler { value: 1 }", 5),
        ("filler { value: 0 } bias_filler { value: 0 }", 3),
        ("engine: MKL2017", 5),
        ("engine: MKLDNN bias_term: false", 4),
        ("use_weight_bias: false", 3),
        ("bias_term: true filler { value: 5 } bias_filler { value: 6 }", 5),
    ],
)
def test_number_of_parameters(settings, number):
    net = net_of("BatchNorm", f"batch_norm_param {{ {settings} }}")
    assert len(net.params["n"]) == number
    assert {tuple(p.shape) for p in net.params["n"]} == {(3,), (1,)}
    assert torch.isfinite(net(x=BATCHES[0])["y"]).all()


def test_statistics_of_parts_of_the_batch():
    net = net_of("BatchNorm", "batch_norm_param { stats_batch_size: 2 moving_average_fraction: 0.5 relu: true }")
    x, sums = BATCHES[0], [np.zeros(3), np.zeros(3), 0]
    (y,) = net(x=x).values()
    for part in (slice(0, 2), slice(2, 4)):
        mean, var, unbiased = moments(x[part])
        np.testing.assert_allclose(y[part], np.maximum(normalized(x[part], mean, var), 0), rtol=1e-5, atol=2e-6)
        sums = [0.5 * s + new for s, new in zip(sums, (mean, unbiased, 1), strict=True)]
    assert_params(net, *sums)
    with pytest.raises(PortError, match="stats_batch_size: 3 images are no multiple"):
        net(x=x[:3])


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_eps_outside_the_root(phase):
    net = net_of("BatchNorm", "batch_norm_param { add_eps_before_sqrt: false eps: 0.5 icnet: true }", phase)
    mean, var, unbiased = moments(BATCHES[0])
    if phase == "TEST":
        for blob, value in zip(net.params["n"], (2 * mean, 2 * var, 2), strict=True):
            blob.data.copy_(torch.tensor(value))
    (y,) = net(x=BATCHES[0]).values()
    expected = (BATCHES[0] - by_channel(mean)) / (np.sqrt(by_channel(var)) + 0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6)
    if phase == "TRAIN":
        assert_params(net, mean, unbiased, 1)


def test_pspnet_trains_with_running_statistics():
    settings = "bn_param { slope_filler { value: 2 } bias_filler { value: 1 } momentum: 0.75 eps: 0.5 }"
    net, running = net_of("BN", f"param {{ lr_mult: 5 }} {settings}"), np.zeros((2, 3))
    assert [p.lr_mult for p in net.learnable_params] == [5, 1, 0, 0]
    for x in BATCHES:
        mean, var, _ = moments(x)
        expected = 2 * normalized(x, mean, var, 0.5) + 1
        np.testing.assert_allclose(net(x=x)["y"].detach(), expected, rtol=1e-5, atol=4e-6)
        running = 0.75 * running + 0.25 * np.stack([mean, var])
        assert_params(net, [2] * 3, [1] * 3, *running)


@pytest.mark.parametrize(("phase", "frozen"), [("TEST", "false"), ("TRAIN", "true")])
def test_pspnet_by_running_statistics(phase, frozen):
    settings = f"bn_param {{ slope_filler {{ value: 2 }} frozen: {frozen} }}"
    net = net_of("BN", settings, phase)
    assert_params(net, [2] * 3, [0] * 3, [0] * 3, [float(frozen == "true")] * 3)
    assert [p.lr_mult for p in net.learnable_params] == [int(frozen == "false")] * 2 + [0] * 2
    assert net.params["n"][0].shape == (1, 3, 1, 1)
    mean, var = np.arange(3.0), np.arange(1.0, 4)
    for i, value in ((2, mean), (3, var)):
        net.params["n"][i].data.copy_(torch.tensor(value).view(1, 3, 1, 1))
    expected = 2 * normalized(BATCHES[0], mean, var)
    np.testing.assert_allclose(net(x=BATCHES[0])["y"].detach(), expected, rtol=1e-5, atol=2e-6)
    assert_params(net, [2] * 3, [0] * 3, mean, var)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_segnet_always_by_the_batch(phase):
    settings = "bn_param { scale_filler { value: 2 } shift_filler { value: 0.001 } }"
    net = net_of("BN", settings, phase, ["y", "mean", "var"])
    assert_params(net, [2] * 3, [0.001] * 3)
    mean, var, _ = moments(BATCHES[0])
    tops = net(x=BATCHES[0])
    expected = 2 * normalized(BATCHES[0], mean, var, 1e-9) + 0.001
    np.testing.assert_allclose(tops["y"].detach(), expected, rtol=1e-5, atol=4e-6)
    np.testing.assert_allclose(tops["mean"], by_channel(mean), rtol=1e-5)
    np.testing.assert_allclose(tops["var"], by_channel(var), rtol=1e-5)


def test_segnet_inference_only_scales():
    settings = "bn_param { bn_mode: INFERENCE scale_filler { value: 2 } shift_filler { value: 1 } }"
    (y,) = net_of("BN", settings)(x=BATCHES[0]).values()
    np.testing.assert_allclose(y.detach(), 2 * BATCHES[0] + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["BatchNorm", "BN"])
def test_in_place_in_testing_overwrites(kind):
    """The same values as apart; and of three layers in place only the convolution has memory of its own."""

    def run(tops):
        torch.manual_seed(0)
        text = (
            INPUT
            + """layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param {
            num_output: 3 kernel_size: 1 weight_filler { type: "gaussian" std: 1 } } }"""
        )
        fields = {"BatchNorm": "", "BN": "bn_param { slope_filler { value: 2 } }"}[kind]
        text += f'layer {{ name: "n" type: "{kind}" bottom: "c" top: "{tops[0]}" {fields} }}'
        text += f'layer {{ name: "s" type: "Scale" bottom: "{tops[0]}" top: "{tops[1]}" }}'
        text += f'layer {{ name: "r" type: "ReLU" bottom: "{tops[1]}" top: "{tops[2]}" }}'
        net = Net(prototxt.parse_net(text), "TEST")
        for i, blob in enumerate(net.params["n"]):
            blob.data.fill_(i + 0.5)
        memory = []
        net.watch = lambda step, layer, tops: memory.append(tops[0].data_ptr())
        with torch.no_grad():
            (out,) = net(x=BATCHES[0]).values()
        return out, memory[-4:]

    (apart, _), (in_place, memory) = run("nsr"), run("ccc")
    torch.testing.assert_close(in_place, apart)
    assert len(set(memory)) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "tops", "message"),
    [
        ("BatchNorm", "batch_norm_param { update_global_stats: false }", 1, "variance is not computed"),
        ("BN", "bn_param { bn_mode: INFERENCE }", 2, "only bn_mode: LEARN gives more than one top"),
        ("BN", "bn_param { icnet: true }", 2, "only bn_mode: LEARN gives more than one top"),
    ],
)
def test_settings_that_make_no_sense(run_layer, kind, settings, tops, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, BATCHES[0], tops=tops)


@pytest.mark.parametrize("kind", ["BatchNorm", "BN"])
def test_shapes_that_make_no_sense(run_layer, kind):
    with pytest.raises(PortError, match="two axes and more"):
        run_layer(kind, "", np.ones(3))
    net = net_of(kind, "")
    with pytest.raises(PortError, match="2 channels, but parameters of 3"):
        net(x=np.ones((4, 2, 2, 5)))
