import pytest

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.graph import connect, filter_layers, plan_backward


def layers_of(text):
    return list(prototxt.parse_net(text).layer)


def rule_net(rules):
    return prototxt.parse_net(f'layer {{ name: "x" type: "ReLU" {rules} }}')


@pytest.mark.parametrize(
    ("rules", "state", "takes_part"),
    [
        ("", {}, True),
        ("include { phase: TRAIN }", {}, True),
        ("include { phase: TEST }", {}, False),
        ("exclude { phase: TRAIN }", {}, False),
        ("exclude { phase: TEST }", {}, True),
        ("include { min_level: 1 }", {}, False),
        ("include { min_level: 1 }", {"level": 1}, True),
        ("include { max_level: 1 }", {"level": 2}, False),
        ("include { min_level: 1 max_level: 3 }", {"level": 3}, True),
        ("include { max_level: -1 }", {}, False),
        ('include { stage: "a" }', {}, False),
        ('include { stage: "a" }', {"stages": ["a", "b"]}, True),
        ('include { stage: "a" stage: "b" }', {"stages": ["a"]}, False),
        ('include { not_stage: "a" }', {"stages": ["a"]}, False),
        ('include { not_stage: "a" }', {"stages": ["b"]}, True),
        ('exclude { stage: "a" }', {"stages": ["a"]}, False),
        ('include { phase: TEST } include { stage: "a" }', {"stages": ["a"]}, True),
        ('exclude { phase: TEST } exclude { stage: "a" }', {"stages": ["a"]}, False),
        ('include { phase: TRAIN stage: "a" }', {}, False),
    ],
)
def test_rules(rules, state, takes_part):
    assert bool(filter_layers(rule_net(rules), "TRAIN", **state)) is takes_part


def test_include_and_exclude_together():
    with pytest.raises(PortError, match="not both") as caught:
        filter_layers(rule_net("include { phase: TRAIN } exclude { phase: TEST }"), "TRAIN")
    assert caught.value.layer == "x"


CHAIN = """
layer { name: "in" type: "Input" top: "x" }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
layer { name: "drop" type: "Dropout" bottom: "y" top: "y" }
layer { name: "a" type: "InnerProduct" bottom: "y" top: "a" }
layer { name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "y" top: "loss" }
"""


def test_in_place_layers_make_new_values():
    steps, values = connect(layers_of(CHAIN))
    assert [v.name for v in values] == ["x", "y", "y", "y", "a", "loss"]
    assert values[3].readers == [(4, 0), (5, 1)], "later readers see the value after the last in-place layer"
    assert values[1].readers == [(2, 0)]
    assert steps[5].bottoms == [4, 3]


@pytest.mark.parametrize(
    ("text", "message", "layer", "field"),
    [
        ('layer { name: "x" type: "ReLU" bottom: "dta" top: "y" }', "no earlier layer makes bottom 'dta'; did you mean "
         "'data'?", "x", "bottom"),
        ('layer { name: "x" type: "ReLU" bottom: "zz" top: "y" }', "no earlier layer makes bottom 'zz'$",
         "x", "bottom"),
        ('layer { name: "x" type: "ReLU" bottom: "late" top: "y" } layer { name: "z" type: "ReLU" top: "late" }',
         "only later, by layer 'z'", "x", "bottom"),
        ('layer { name: "x" type: "ReLU" bottom: "w" top: "data" }', "made by an earlier layer", "x", "top"),
        ('layer { name: "x" type: "ReLU" bottom: "data" top: "y" propagate_down: true propagate_down: true }',
         "2 values for 1 bottoms", "x", "propagate_down"),
        ('layer { name: "x" type: "ReLU" bottom: "data" top: "y" top: "y" }', "made by an earlier layer", "x", "top"),
    ],
)  # fmt: skip
def test_errors(text, message, layer, field):
    with pytest.raises(PortError, match=message) as caught:
        connect(layers_of('layer { name: "in" type: "Input" top: "data" top: "w" }' + text))
    assert (caught.value.layer, caught.value.field) == (layer, field)


def plan(text, trains, forced=None):
    """``{layer: (runs_backward, propagate)}`` when the layers named in ``trains`` have parameters to train."""
    layers = layers_of(text)
    steps, values = connect(layers)
    has_loss = [bool(layer.loss_weight) or layer.type.endswith("Loss") for layer in layers]
    plan_backward(steps, values, has_loss, [layer.name in trains for layer in layers], forced)
    return {step.param.name: (step.runs_backward, step.propagate) for step in steps}


def test_nothing_below_wants_a_gradient():
    planned = plan(CHAIN, trains={"a"})
    assert not any(planned[name][0] for name in ("in", "ip", "relu", "drop"))
    assert planned["a"] == (True, [False])
    assert planned["loss"] == (True, [True, False])


def test_a_gradient_flows_down_to_the_lowest_trained_layer():
    planned = plan(CHAIN, trains={"ip"})
    assert planned["ip"] == (True, [False])
    assert all(planned[name] == (True, [True]) for name in ("relu", "drop", "a"))
    assert planned["loss"] == (True, [True, True])


def test_propagate_down_cuts_one_bottom():
    text = CHAIN.replace('bottom: "y" top: "a"', 'bottom: "y" top: "a" propagate_down: false')
    text = text.replace('bottom: "a" bottom: "y"', 'bottom: "a" bottom: "y" propagate_down: true propagate_down: false')
    planned = plan(text, trains={"ip", "a"})
    assert planned["a"] == (True, [False])
    assert planned["ip"][0] is False, "both ways down are cut"


def test_layers_without_a_loss_do_not_run_backward():
    text = CHAIN + 'layer { name: "side" type: "InnerProduct" bottom: "y" top: "side" }'
    assert plan(text, trains={"ip", "side"})["side"] == (False, [False])


@pytest.mark.parametrize(("weight", "trains"), [("", False), ("loss_weight: 1", True)])
def test_a_loss_that_only_a_silence_reads(weight, trains):
    """``Net::Init``: a stated weight makes a split, whose other top asks for the gradient; the 1 of losses does not."""
    text = CHAIN.replace('top: "loss"', f'top: "loss" {weight}') + 'layer { name: "s" type: "Silence" bottom: "loss" }'
    planned = plan(text, trains={"ip", "a"})
    assert [planned[name][0] for name in ("ip", "a", "loss")] == [trains] * 3


def test_force_backward():
    planned = plan(CHAIN, trains=set(), forced=lambda i, bottom: (i, bottom) != (5, 1))
    assert all(runs for runs, _ in planned.values())
    assert planned["ip"][1] == [True]
    assert planned["loss"][1] == [True, False]
