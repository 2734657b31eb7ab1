import numpy as np
import pytest

from ohem_caffe_port.ops.masks import mask_overlap, mask_target

RNG = np.random.default_rng(0)


def random_mask(box, density=0.6):
    return RNG.random((box[3] - box[1] + 1, box[2] - box[0] + 1)) < density


def on_canvas(box, mask):
    canvas = np.zeros((40, 40), bool)
    canvas[box[1] : box[3] + 1, box[0] : box[2] + 1] = mask
    return canvas


@pytest.mark.parametrize(
    "boxes",
    [((2, 3, 20, 15), (10, 8, 30, 25)), ((2, 3, 20, 15), (5, 5, 9, 9)), ((0, 0, 5, 5), (5, 5, 9, 9)),
     ((0, 0, 5, 5), (6, 0, 9, 9))],
)  # fmt: skip
def test_overlap(boxes):
    masks = [random_mask(box) for box in boxes]
    a, b = (on_canvas(box, mask) for box, mask in zip(boxes, masks, strict=True))
    assert mask_overlap(*boxes, *masks) == pytest.approx((a & b).sum() / (a | b).sum())
    assert mask_overlap(*boxes[::-1], *masks[::-1]) == pytest.approx((a & b).sum() / (a | b).sum())


def test_empty_masks():
    assert mask_overlap((0, 0, 4, 4), (2, 2, 6, 6), np.zeros((5, 5), bool), np.zeros((5, 5), bool)) == 0


@pytest.mark.parametrize("gt_box", [(5, 5, 30, 20), (0, 0, 11, 9), (12, 12, 14, 14), (25, 25, 30, 30)])
def test_target(gt_box):
    """A box of the target's size, so that nothing is resized: the object's pixels within it."""
    box, mask = (8, 6, 15, 13), random_mask(gt_box)
    expected = on_canvas(gt_box, mask)[6:14, 8:16]
    found = mask_target(box, gt_box, mask, 8, 0.4)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


def test_resized_target():
    """The left half of a box twice the size."""
    found = mask_target((0, 0, 15, 15), (0, 0, 7, 15), np.ones((16, 8), bool), 8, 0.4)
    assert found.tolist() == [[True] * 4 + [False] * 4] * 8
