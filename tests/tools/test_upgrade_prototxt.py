"""``tools/upgrade_prototxt.py``."""

import pytest

import prototxt

V0 = """
name: "old" input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "data" top: "pad" }
layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 5 blobs_lr: 1 blobs_lr: 2 } bottom: "pad" top: "c" }
"""
V1 = """
layers { name: "d" type: DATA top: "data" top: "label" data_param { source: "x" scale: 0.5 batch_size: 4 } }
layers { name: "s" type: SOFTMAX_LOSS bottom: "data" bottom: "label" loss_weight: 2 }
"""


@pytest.fixture
def upgrade(workspace):
    for name, text in (("v0", V0), ("v1", V1), ("solver", "net: 'x' solver_type: ADAGRAD base_lr: 1")):
        workspace.write(f"{name}.prototxt", text)
    return lambda *options: workspace.run(workspace.tools.upgrade_prototxt, options)


def test_v0_to_the_terminal(upgrade):
    run = upgrade("v0.prototxt")
    assert (run.code, run.new) == (0, set())
    net = prototxt.parse_net(run.out)
    assert [layer.type for layer in net.layer] == ["Input", "Convolution"]
    conv = net.layer[1]
    assert (list(conv.bottom), list(conv.convolution_param.pad)) == (["data"], [2])
    assert [param.lr_mult for param in conv.param] == [1, 2]
    assert "layers" not in run.out


def test_v1_to_a_file(upgrade, workspace):
    run = upgrade("v1.prototxt", "new.prototxt")
    assert (run.code, run.new) == (0, {"new.prototxt"})
    assert "new.prototxt: 2 layers" in run.out
    net = prototxt.read_net(workspace.folder / "new.prototxt")
    assert net.layer[0].transform_param.scale == 0.5
    assert list(net.layer[1].loss_weight) == [2]


def test_a_solver(upgrade):
    run = upgrade("solver.prototxt")
    assert 'type: "AdaGrad"' in run.out
    assert "solver_type" not in run.out


def test_nothing_is_overwritten(upgrade, workspace):
    workspace.write("new.prototxt", "old")
    upgrade("v1.prototxt", "new.prototxt").ended_in_one_message(["new.prototxt", "--force"])
    assert (workspace.folder / "new.prototxt").read_text() == "old"
    assert upgrade("v1.prototxt", "new.prototxt", "--force").code == 0


def test_unknown_fields(upgrade, workspace):
    workspace.write("odd.prototxt", 'layer { name: "a" type: "ReLU" frob: 1 }')
    upgrade("odd.prototxt", "new.prototxt").ended_in_one_message(["odd.prototxt:1", "frob"])
    run = upgrade("odd.prototxt", "--lenient")
    assert run.code == 0
    assert "unknown field dropped: " in run.err
    assert "frob" not in run.out


@pytest.mark.parametrize("content", ["", "layer {", "\0\0", "frob: 1"])
def test_no_prototxt(upgrade, workspace, content):
    workspace.write("bad.prototxt", content)
    upgrade("bad.prototxt", "new.prototxt").ended_in_one_message(["bad.prototxt"])
