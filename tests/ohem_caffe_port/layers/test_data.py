import pytest

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
