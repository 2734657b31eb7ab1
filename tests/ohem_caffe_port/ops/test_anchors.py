import numpy as np
import pytest

from ohem_caffe_port.ops.anchors import generate_anchors, shifted_anchors


def golden_settings(golden_data):
    arrays = np.load(golden_data / "rpn" / "generate_anchors.npz")
    for name in (key for key in arrays.files if "/" not in key):
        base = int(arrays[f"{name}/base_size"].item())
        yield arrays[name], (base, arrays[f"{name}/ratios"], arrays[f"{name}/scales"])


def test_the_originals_anchors(golden_data):
    """What py-faster-rcnn's generate_anchors gave."""
    settings = list(golden_settings(golden_data))
    assert len(settings) == 7
    for expected, arguments in settings:
        np.testing.assert_array_equal(generate_anchors(*arguments), expected)


def test_default_anchors():
    """The boxes of py-faster-rcnn's comment on MATLAB's anchors, from 0 instead of from 1."""
    from_one = [
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200], [-55, -55, 72, 72], [-119, -119, 136, 136],
        [-247, -247, 264, 264], [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
    ]  # fmt: skip
    assert generate_anchors().tolist() == (np.array(from_one) - 1).tolist()


@pytest.mark.parametrize(("rounded", "height"), [(np.round, 22), (lambda v: np.floor(v + 0.5), 23)])
def test_halves(rounded, height):
    """32 x 32 pixels at ratio 0.5: 45 wide, and 22.5 high."""
    ((x1, y1, x2, y2),) = generate_anchors(32, [0.5], [1], rounded)
    assert (x2 - x1 + 1, y2 - y1 + 1) == (45, height)
    assert (x1 + x2, y1 + y2) == (31, 31)


def test_shifted_anchors():
    anchors = np.array([[0, 1, 2, 3], [10, 10, 20, 20.5]])
    expected = [a + 4 * np.array([x, y, x, y]) for y in range(2) for x in range(3) for a in anchors]
    np.testing.assert_array_equal(shifted_anchors(anchors, 2, 3, 4), expected)
