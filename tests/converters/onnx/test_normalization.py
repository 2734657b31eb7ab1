import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

SHAPES = [(4, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4)]


def net(kind, message, *settings, shape=(2, 3, 4, 5), tops=1):
    """Layers of one type side by side, with these settings in ``message``."""
    sizes = " ".join(f"dim: {n}" for n in shape)
    text = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {sizes} }} }} }}\n'
    for i, setting in enumerate(settings):
        names = " ".join(f'top: "y{i}_{j}"' for j in range(tops))
        text += f'layer {{ name: "l{i}" type: "{kind}" bottom: "x" {names} {message} {{ {setting} }} }}\n'
    return text


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_by_accumulated_statistics(check, shape):
    settings = ["", "eps: 0.1", "scale_bias: true", "use_weight_bias: true", "use_weight_bias: true bias_term: false",
                "use_weight_bias: false relu: true", "add_eps_before_sqrt: false"]  # fmt: skip
    check(net("BatchNorm", "batch_norm_param", *settings, shape=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_by_the_batch(check, shape):
    settings = ["", "use_weight_bias: true relu: true", "add_eps_before_sqrt: false", "stats_batch_size: 2"]
    settings = [f"use_global_stats: false {s}" for s in settings]
    check(net("BatchNorm", "batch_norm_param", *settings, shape=shape))


def test_batch_norm_without_statistics(check):
    def nothing_accumulated(net):
        net.learnable_params[2].blob.data.zero_()

    check(net("BatchNorm", "batch_norm_param", ""), {"x": [[[[1e-3]]]]}, weights=nothing_accumulated)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bn(check, shape):
    check(net("BN", "bn_param", "", "eps: 0.1", "frozen: true", "bn_mode: INFERENCE", "bn_mode: LEARN", shape=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_segnets_statistics(check, shape):
    check(net("BN", "bn_param", "bn_mode: LEARN", shape=shape, tops=3))


@pytest.mark.parametrize(
    ("kind", "message", "setting"),
    [("BatchNorm", "batch_norm_param", "eps: 0.1"), ("BatchNorm", "batch_norm_param", "scale_bias: true"),
     ("BN", "bn_param", "eps: 0.1")],
)  # fmt: skip
def test_accumulated_statistics_are_one_operator(kind, message, setting):
    model = to_onnx(Net(prototxt.parse_net(net(kind, message, setting)), "TEST"))
    assert [node.op_type for node in model.graph.node] == ["BatchNormalization"]


def test_bn_that_follows_the_batches_is_refused():
    text = net("BN", "phase: TRAIN bn_param", "eps: 0.1")
    with pytest.raises(WeightsError, match="(?s)'l0'.*BN.*TRAIN phase"):
        to_onnx(Net(prototxt.parse_net(text), "TEST"))


@pytest.mark.parametrize("channels", [2, 7])
def test_lrn(check, channels):
    settings = ["", "local_size: 3 alpha: 0.5 beta: 0.75 k: 2", "local_size: 9 alpha: 1"]
    settings += [
        f"norm_region: WITHIN_CHANNEL {s}"
        for s in ("alpha: 0.7", "alpha: 1 local_size: 3 beta: 0.5", "alpha: 1 local_size: 1", "alpha: 9 local_size: 7")
    ]
    check(net("LRN", "lrn_param", *settings, shape=(2, channels, 4, 5)))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (2, 3, 4, 5)], ids=str)
def test_mvn(check, shape):
    settings = ["", "normalize_variance: false", "across_channels: true",
                "across_channels: true normalize_variance: false", "eps: 0.1",
                "eps: 0.1 add_eps_before_sqrt: true"]  # fmt: skip
    check(net("MVN", "mvn_param", *settings, shape=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normalize_of_ssd(check, shape):
    settings = ["", "across_spatial: false", "channel_shared: false", "across_spatial: false channel_shared: false",
                "eps: 0.1", "eps: 0.1 add_eps_before_sqrt: false",
                "eps: 0.1 add_eps_before_sqrt: false across_spatial: false"]  # fmt: skip
    check(net("Normalize", "norm_param", *settings, shape=shape))


@pytest.mark.parametrize("tops", [1, 2])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_normalize_of_caffe_windows(check, shape, tops):
    settings = ['normalize_type: "L1"', 'normalize_type: "L2"']
    check(net("Normalize", "normalize_param", *settings, shape=shape, tops=tops))
