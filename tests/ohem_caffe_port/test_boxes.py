import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.boxes import bbox_overlaps, bbox_transform, bbox_transform_inv, clip_boxes

BOTH = pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def as_numpy(array, wrap):
    assert isinstance(array, type(wrap(np.zeros(1))))
    return np.asarray(array)


@BOTH
def test_overlaps_by_hand(wrap):
    boxes = np.array([[0, 0, 9, 9], [0, 0, 0, 0]], dtype=np.float64)
    query = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [10, 0, 19, 9], [0, 0, 4, 4]], dtype=np.float64)
    expected = [[1, 50 / 150, 0, 25 / 100], [1 / 100, 0, 0, 1 / 25]]
    np.testing.assert_allclose(as_numpy(bbox_overlaps(wrap(boxes), wrap(query)), wrap), expected, rtol=1e-15)


def test_overlaps_of_integers_do_not_wrap():
    boxes = np.array([[0, 0, 999, 999]], dtype=np.uint16)
    assert bbox_overlaps(boxes, boxes).tolist() == [[1.0]]
    assert bbox_overlaps(boxes, boxes).dtype == np.float64


@BOTH
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_overlaps_of_nothing(wrap, shape):
    boxes, query = (wrap(np.zeros((n, 4), np.float32)) for n in shape)
    assert tuple(bbox_overlaps(boxes, query).shape) == shape


@BOTH
def test_transform_by_hand(wrap):
    """Width 10 to 20 and height 20 to 20, the centre from (5, 10) to (12, 13)."""
    ex, gt = np.array([[0, 0, 9, 19]], dtype=np.float64), np.array([[2, 3, 21, 22]], dtype=np.float64)
    expected = [[(12 - 5) / 10, (13 - 10) / 20, math.log(2), 0]]
    np.testing.assert_allclose(as_numpy(bbox_transform(wrap(ex), wrap(gt)), wrap), expected, rtol=1e-15)


@BOTH
def test_inverse_by_hand(wrap):
    """The same move for two classes, one of which stays: decoded ends are one pixel further than encoded ones."""
    boxes = np.array([[0, 0, 9, 19]], dtype=np.float64)
    deltas = np.array([[0.7, 0.15, math.log(2), 0, 0, 0, 0, 0]])
    expected = [[2, 3, 22, 23, 0, 0, 10, 20]]
    np.testing.assert_allclose(as_numpy(bbox_transform_inv(wrap(boxes), wrap(deltas)), wrap), expected, atol=1e-12)


def test_inverse_undoes_the_transform_but_for_a_pixel():
    rng = np.random.default_rng(0)
    first, second = (np.hstack([c, c + rng.uniform(1, 50, (30, 2))]) for c in rng.uniform(0, 100, (2, 30, 2)))
    back = bbox_transform_inv(first, bbox_transform(first, second))
    np.testing.assert_allclose(back, second + [0, 0, 1, 1], atol=1e-9)


@pytest.mark.parametrize("boxes_type", [np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("deltas_type", [np.float32, np.float64])
def test_the_type_of_the_deltas_decides(boxes_type, deltas_type):
    result = bbox_transform_inv(np.array([[1, 2, 11, 12]], dtype=boxes_type), np.zeros((1, 4), dtype=deltas_type))
    assert result.dtype == deltas_type


@BOTH
def test_no_boxes(wrap):
    assert tuple(bbox_transform_inv(wrap(np.zeros((0, 4))), wrap(np.zeros((0, 8)))).shape) == (0, 8)
    assert tuple(clip_boxes(wrap(np.zeros((0, 8))), (3, 4)).shape) == (0, 8)


@BOTH
def test_clip(wrap):
    boxes = np.array([[-5.0, -6, 100, 200, 3, 4, 5, 6], [39, 19, 40, 20, 50, 60, -1, -2]])
    expected = [[0, 0, 39, 19, 3, 4, 5, 6], [39, 19, 39, 19, 39, 19, 0, 0]]
    given = wrap(boxes.copy())
    assert as_numpy(clip_boxes(given, (20, 40, 3)), wrap).tolist() == expected
    assert np.array_equal(np.asarray(given), boxes), "the argument must stay as it is"
