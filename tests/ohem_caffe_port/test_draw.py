import numpy as np
import pytest

from ohem_caffe_port.draw import class_colour, draw_detections

CLASSES = ("__background__", "cat", "dog")
NONE = np.zeros((0, 5), np.float32)


def dets(*rows):
    return np.array(rows, np.float32).reshape(-1, 5)


def test_colours_differ():
    colours = {class_colour(i, 20) for i in range(20)}
    assert len(colours) == 20
    assert all(isinstance(c, int) and 0 <= c <= 255 for colour in colours for c in colour)


def test_a_box_is_drawn_on_a_copy():
    image = np.zeros((80, 120, 3), np.uint8)
    picture = draw_detections(image, [NONE, dets((20, 30, 80, 60, 0.9)), NONE], CLASSES)
    assert not image.any()
    assert picture.shape == image.shape
    assert tuple(picture[45, 20]) == tuple(picture[60, 50]) == class_colour(0, 2)
    assert not picture[50, 60].any(), "the inside stays"


@pytest.mark.parametrize(("score", "drawn"), [(0.5, True), (0.49, False)])
def test_threshold(score, drawn):
    image = np.zeros((80, 120, 3), np.uint8)
    assert draw_detections(image, [NONE, NONE, dets((20, 30, 80, 60, score))], CLASSES).any() == drawn


@pytest.mark.parametrize("box", [(-50, -50, -10, -10), (0, 0, 119, 79), (110, 70, 300, 200), (5, 5, 5, 5)])
def test_boxes_at_the_edge(box):
    image = np.zeros((80, 120, 3), np.uint8)
    assert draw_detections(image[:, ::-1], [NONE, dets((*box, 1)), NONE], CLASSES).shape == image.shape


def test_a_view_is_not_drawn_on():
    image = np.zeros((80, 240, 3), np.uint8)
    draw_detections(image[:, ::2], [NONE, dets((20, 30, 80, 60, 1)), NONE], CLASSES)
    draw_detections(image[:40], [NONE, dets((20, 10, 80, 30, 1)), NONE], CLASSES)
    assert not image.any()
