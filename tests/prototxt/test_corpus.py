"""Every prototxt of the shared data: read, compared with protobuf's own text parser, written and read again."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from prototxt import caffe_pb2, locate, parse_net, parse_solver, read_net, read_solver, to_text
from prototxt.upgrade import upgrade_net, upgrade_solver

SHARED = Path(__file__).resolve().parents[2] / "../shared"
FOLDERS = ["corpus", "golden", "weights"]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")


def files(folder):
    return sorted(path for path in (SHARED / folder).rglob("*") if path.suffix in (".prototxt", ".pt"))


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_reads_as_protobuf_does(folder):
    paths = files(folder)
    assert len(paths) > 20
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if "solver" in path.name:
            message = read_solver(path)
            truth = upgrade_solver(text_format.Parse(text, caffe_pb2.SolverParameter()), path)
            again = parse_solver(to_text(message))
        else:
            message = read_net(path)
            truth = upgrade_net(text_format.Parse(text, caffe_pb2.NetParameter()))
            again = parse_net(to_text(message))
            assert message.layer, path
            assert not (message.layers or message.input or message.input_dim or message.input_shape), path
        assert message == truth, path
        assert message == again, path


@needs_shared
def test_a_real_v1_net():
    net = read_net(SHARED / "weights/lenet_v1/lenet_train_test.prototxt")
    kinds = [layer.type for layer in net.layer]
    assert kinds == ["Data", "Data", "Convolution", "Pooling", "Convolution", "Pooling", "InnerProduct", "ReLU",
                     "InnerProduct", "Accuracy", "SoftmaxWithLoss"]  # fmt: skip
    conv1 = next(layer for layer in net.layer if layer.name == "conv1")
    assert [param.lr_mult for param in conv1.param] == [1, 2]
    assert net.layer[0].transform_param.scale == 0.00390625


@needs_shared
def test_locate_finds_every_layer():
    for path in files("corpus"):
        if "solver" in path.name:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for layer in read_net(path).layer:
            if layer.type != "Input":
                line = locate(path, layer.name)
                assert lines[line - 1].lstrip().startswith("layer")
