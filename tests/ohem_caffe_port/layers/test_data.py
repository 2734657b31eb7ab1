import pytest
import torch

from ohem_caffe_port.errors import PortError


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [("shape { dim: 2 dim: 3 }", [(2, 3), (2, 3)]), ("shape { dim: 2 } shape { dim: 4 }", [(2,), (4,)])],
)
def test_shapes_for_all_tops_or_for_each(build, shapes, expected):
    text = f'layer {{ name: "in" type: "Input" top: "a" top: "b" input_param {{ {shapes} }} }}'
    assert build(text).shapes == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "declares no shape"),
        (f"input_param {{ {'shape { dim: 1 } ' * 3} }}", "3 shapes for 2 tops"),
    ],
)
def test_shapes_that_make_no_sense(build, settings, message):
    with pytest.raises(PortError, match=message):
        build(f'layer {{ name: "in" type: "Input" top: "a" top: "b" {settings} }}')


# ---- DummyData


def dummy(settings, tops=2):
    names = "".join(f'top: "t{i}" ' for i in range(tops))
    return f'layer {{ name: "in" type: "DummyData" {names} dummy_data_param {{ {settings} }} }}'


def test_zeros_by_default(build):
    net = build(dummy("shape { dim: 2 dim: 3 }"))
    assert net.shapes == [(2, 3), (2, 3)]
    assert all(not blob.any() and blob.shape == (2, 3) for blob in net().values())


def test_one_filler_for_each_top(build):
    fillers = 'data_filler { value: 2 } data_filler { type: "uniform" min: 3 max: 4 }'
    net = build(dummy(f"{fillers} num: 2 num: 5 channels: 3 height: 1 width: 4"))
    assert net.shapes == [(2, 3, 1, 4), (5, 3, 1, 4)]
    first, second = net(), net()
    assert (first["t0"] == 2).all() and first["t0"] is second["t0"]
    assert first["t1"].min() >= 3 and first["t1"].max() <= 4
    assert not torch.equal(first["t1"], second["t1"])


def test_random_blobs_come_from_torchs_generator(build):
    net = build(dummy('data_filler { type: "gaussian" std: 1 } shape { dim: 4 }', 1))
    torch.manual_seed(3)
    found = net()["t0"]
    torch.manual_seed(3)
    assert torch.equal(found, torch.empty(4).normal_())


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ("", "shape", "0 given for 2 tops"),
        ("shape { dim: 1 } shape { dim: 1 } shape { dim: 1 }", "shape", "3 given for 2 tops"),
        ("shape { dim: 1 } num: 1", "shape", "together with num"),
        ("num: 1 channels: 1 height: 1", "width", "0 given for 2 tops"),
        ("shape { dim: -1 }", "shape", "below 0"),
        ("shape { dim: 1 } data_filler { type: 'unknown' }", "data_filler.type", "unknown filler type"),
        ("shape { dim: 1 }" + "data_filler { value: 1 }" * 3, "data_filler", "3 given for 2 tops"),
    ],
)
def test_dummies_that_make_no_sense(build, settings, field, message):
    with pytest.raises(PortError, match=message) as caught:
        build(dummy(settings))
    assert (caught.value.layer, caught.value.field) == ("in", f"dummy_data_param.{field}")
