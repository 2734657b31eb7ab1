import math

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.python_layers.detectnet import group_rectangles

CLUSTERING, MEAN_AP = "caffe.layers.detectnet.clustering", "caffe.layers.detectnet.mean_ap"


@pytest.fixture
def run(build, inputs_of):
    """``run(module, layer, param_str, bottoms, tops)``: the tops of one layer."""

    def go(module, layer, param_str, bottoms, tops=1):
        blobs = {f"b{i}": np.asarray(b, np.float32) for i, b in enumerate(bottoms)}
        names = "".join(f'bottom: "{b}" ' for b in blobs) + "".join(f'top: "t{i}" ' for i in range(tops))
        text = f'python_param {{ module: "{module}" layer: "{layer}" param_str: "{param_str}" }}'
        net = build(inputs_of(**{b: v.shape for b, v in blobs.items()}) +
                    f'layer {{ name: "it" type: "Python" {names} {text} }}', "TEST")  # fmt: skip
        net(**blobs)
        return [net.blobs[f"t{i}"].numpy() for i in range(tops)]

    return go


def grid(cells, classes=1, size=(4, 6)):
    """Coverage and corners for ``{(row, column, class): (coverage, x1, y1, x2, y2)}``."""
    coverage, corners = np.zeros((1, classes, *size)), np.zeros((1, 4, *size))
    for (row, column, number), (value, *box) in cells.items():
        coverage[0, number, row, column] = value
        corners[0, :, row, column] = box
    return coverage, corners


def listed(*rows, images=1):
    blob = np.zeros((images, 50, 5), np.float32)
    for i, row in enumerate(rows):
        blob[0, i, : len(row)] = row
    return blob


# ---- clusters


def test_clusters_by_hand():
    four = [[10, 10, 20, 20], [11, 10, 20, 20], [10, 12, 20, 20], [11, 11, 21, 20]]
    rects = np.array([[60, 60, 20, 20], *four, [61, 60, 20, 20]])
    found, counts = group_rectangles(rects, 1, 0.2)
    assert found.tolist() == [[60, 60, 20, 20], [10, 11, 20, 20]]  # 60.5 and 10.5 go to even, 10.75 to 11
    assert counts.tolist() == [2, 4]
    assert group_rectangles(rects, 2, 0.2)[0].tolist() == [[10, 11, 20, 20]]
    assert len(group_rectangles(rects, 0, 0.2)[0]) == 6
    assert not len(group_rectangles(rects[:0], 3, 0.2)[0])


def test_small_clusters_inside_large_ones_are_left_out():
    small, large = [[14, 14, 10, 10]] * 4, [[10, 10, 40, 40]] * 5
    assert group_rectangles(np.array(small + large), 1, 0.1)[1].tolist() == [5]
    assert group_rectangles(np.array(small + large[:4]), 1, 0.1)[1].tolist() == [4, 4]
    assert group_rectangles(np.array(small[:2] + large[:4]), 1, 0.1)[1].tolist() == [4]
    assert group_rectangles(np.array(small[:2] + large[:2]), 1, 0.1)[1].tolist() == [2]


def test_clusters_are_chains():
    """Every member is near another one, not near all."""
    rng = np.random.RandomState(0)
    rects = np.concatenate([rng.randint(0, 60, (80, 2)), rng.randint(18, 22, (80, 2))], 1)
    groups = []
    for i, (x, y, w, h) in enumerate(rects):
        near = [g for g in groups for x2, y2, w2, h2 in rects[g]
                if max(abs(x - x2), abs(y - y2), abs(x + w - x2 - w2), abs(y + h - y2 - h2))
                <= 0.1 * (min(w, w2) + min(h, h2))]  # fmt: skip
        merged = sorted({i}.union(*near))
        groups = [g for g in groups if g not in near] + [merged]
    sizes = sorted(len(g) for g in groups if len(g) > 1)
    found = sorted(group_rectangles(rects, 1, 0.2)[1].tolist())
    assert len(sizes) > 5
    assert set(found) <= set(sizes)
    assert found[-1] == sizes[-1]


def test_detections_of_two_classes(run):
    cells = {(r, c, 0): (0.9, 20 - 16 * c, 10 - 16 * r, 60 - 16 * c, 40 - 16 * r) for r in (1, 2) for c in (1, 2)}
    cells[0, 5, 0] = (0.4, 0, 0, 16, 16)  # below the threshold
    cells |= {(0, 4, 1): (0.6, 0, 0, 12, 12), (3, 0, 1): (0.7, 1, 1, 99, 99)}  # alone each
    first, second = run(CLUSTERING, "ClusterDetections", "96, 64, 16, 0.6, 3, 0.02, 22, 2", grid(cells, 2), 2)
    assert first.shape == second.shape == (1, 50, 5)
    np.testing.assert_array_equal(first[0, 0], [20, 10, 60, 40, np.float16(math.log(4))])
    assert not first[0, 1:].any()
    assert not second.any()
    low, _ = run(CLUSTERING, "ClusterDetections", "96,64,16,0.6,3,0.02,31,2", grid(cells, 2), 2)
    assert not low.any()  # 30 pixels high


def test_cells_outside_the_stated_image_do_not_count(run):
    cells = {(3, c, 0): (1, 0, 0, 50, 50) for c in range(6)}
    (found,) = run(CLUSTERING, "ClusterDetections", "96,48,16,0.5,1,5,1", grid(cells))
    assert not found.any()
    (found,) = run(CLUSTERING, "ClusterDetections", "96,64,16,0.5,1,5,1", grid(cells))
    assert found[0, 0, 1] == 48


def test_ground_truth_once_each(run):
    cells = {(r, c, 0): (1, 2.25 - 16 * c, 3 - 16 * r, 40 - 16 * c, 50 - 16 * r) for r in (0, 1) for c in (0, 1, 2)}
    cells[3, 5, 0] = (1, -1030, 0, 5, 5)
    (found,) = run(CLUSTERING, "ClusterGroundtruth", "96,64,16", grid(cells))
    assert found[0, :2].tolist() == [[-950, 48, 85, 53, 0], [2.25, 3, 40, 50, 0]]
    assert not found[0, 2:].any()


def test_boxes_have_half_precision(run):
    (found,) = run(CLUSTERING, "ClusterGroundtruth", "96,64,16", grid({(0, 0, 0): (1, 1.0003, 1025.6, 2051, 9)}))
    assert found[0, 0].tolist() == [1, 1026, 2052, 9, 0]


@pytest.mark.parametrize(
    ("layer", "param_str", "tops", "field", "message"),
    [
        ("ClusterGroundtruth", "96,64", 1, "python_param.param_str", "should be 'image_size_x,image_size_y,stride,"),
        ("ClusterGroundtruth", "96,64,x", 1, "python_param.param_str", "should be"),
        ("ClusterGroundtruth", "96,64,0", 1, "python_param.param_str", "positive"),
        ("ClusterGroundtruth", "96,64,16,2", 1, "top", "1 tops for 2 classes"),
        ("ClusterGroundtruth", "96,64,16,2", 2, "bottom[0]", r"needs a coverage \[N, 2"),
        ("ClusterGroundtruth", "96,64,128", 1, "python_param.param_str", "smaller than the stride"),
        ("ClusterDetections", "96,64,16", 1, "python_param.param_str", "should be"),
    ],
)
def test_what_makes_no_sense(run, layer, param_str, tops, field, message):
    with pytest.raises(PortError, match=message) as caught:
        run(CLUSTERING, layer, param_str, grid({}), tops)
    assert (caught.value.layer, caught.value.field) == ("it", field)


def test_more_boxes_than_a_list_holds(run):
    coverage, corners = np.ones((1, 1, 8, 8)), np.zeros((1, 4, 8, 8))
    with pytest.raises(PortError, match="64 boxes of class 0 in image 0; a list holds 50"):
        run(CLUSTERING, "ClusterGroundtruth", "128,128,16", [coverage, corners])


# ---- marks


def test_marks_by_hand(run):
    truth = listed([0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60])
    found = listed([20, 20, 30, 30, 2], [0, 0, 10, 8, 1], [0, 1, 10, 10, 3], [50, 50, 60, 56.9, 1])
    (marked,) = run(MEAN_AP, "ScoreDetections", "", [truth, found])
    # the second detection is the first box's (80 of 100), the third the second's (80 of 100), the last is nobody's (69)
    right, wrong = [[0, 0, 10, 8, 1], [0, 1, 10, 10, 1]], [[20, 20, 30, 30, 2], [50, 50, 60, np.float32(56.9), 2]]
    assert marked[0, :5].tolist() == [*right, *wrong, [50, 50, 60, 60, 3]]
    assert not marked[0, 5:].any()


def test_marks_of_nothing(run):
    (marked,) = run(MEAN_AP, "ScoreDetections", "", [listed(), listed()])
    assert not marked.any()


def test_mean_ap_by_hand(run):
    marked = np.concatenate([listed([0] * 4 + [1], [0] * 4 + [2]), listed([0] * 4 + [1], [0] * 4 + [3])])
    marked[1, 2, 4] = 1
    values = run(MEAN_AP, "mAP", "1248, 352, 16", [marked], 3)
    assert [v.shape for v in values] == [(1,)] * 3
    np.testing.assert_allclose(np.concatenate(values), [100 * 0.75 * 0.75, 75, 75])
    assert [v.item() for v in run(MEAN_AP, "mAP", "", [listed()], 3)] == [0, 0, 0]


def test_lists_of_another_form(run):
    with pytest.raises(PortError, match="needs lists"):
        run(MEAN_AP, "ScoreDetections", "", [listed(), listed(images=2)])
    with pytest.raises(PortError, match="needs rows with marks"):
        run(MEAN_AP, "mAP", "", [listed()[..., :4]], 3)
    with pytest.raises(PortError, match="100 rows for image 0"):
        boxes = listed(*([i * 20, 0, i * 20 + 10, 10] for i in range(50)))
        run(MEAN_AP, "ScoreDetections", "", [boxes, boxes + 1000])
