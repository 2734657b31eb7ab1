"""``tools/net_info.py``."""

import json

import pytest

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "not/here" batch_size: 8 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "y" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "loss" }
"""


@pytest.fixture
def info(workspace):
    workspace.write("net.prototxt", NET)
    return lambda *options: workspace.run(workspace.tools.net_info, options)


def test_a_table_of_a_detector(info):
    run = info("model/train.prototxt")
    assert run.code == 0
    assert "tiny_ohem, phase TRAIN" in run.out or "tiny, phase TRAIN" in run.out
    for words in ("roi_pool_readonly", "of fc6_readonly", "no: its readers pass no gradient down"):
        assert words in run.out


def test_shapes_stand_in_for_data_that_are_not_here(info):
    run = info("net.prototxt", "--shape", "data=2,3,4,4", "label=2", "--phase", "TRAIN", "--json")
    summary = json.loads(run.out)
    assert (summary["phase"], summary["parameters"]) == ("TRAIN", 490)
    assert summary["multiply_adds"] == 2 * 10 * 48
    assert [layer["type"] for layer in summary["layers"]] == ["Input", "InnerProduct", "SoftmaxWithLoss"]


def test_the_phase_of_a_net_with_inputs(info):
    assert "phase TEST" in info("model/test.prototxt").out
    assert "phase TRAIN" in info("model/test.prototxt", "--phase", "TRAIN").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("net.prototxt", "--shape", "data=2,3"), ["layer 'data'", "'label' needs a shape"]),
        (("net.prototxt", "--shape", "data"), ["--shape data", "BLOB=N,C,H,W"]),
        (("net.prototxt", "--shape", "dat=1"), ["no input or data layer makes 'dat'"]),
        (("net.prototxt", "--shape", "data=-1"), ["not negative"]),
        (("net.prototxt", "--shape", "data=99999999999999999999"), ["below 2^63"]),
        (("absent.prototxt",), ["absent.prototxt", "no such file"]),
        (("model/solver.prototxt",), ["this is a solver"]),
    ],
)
def test_mistakes(info, options, words):
    info(*options).ended_in_one_message(words)
