"""Boxes through crops, resizes and SSD's batch sampler, against the same written for one box at a time."""

import numpy as np
import pytest
from google.protobuf import text_format

from ohem_caffe_port.data.annotations import (
    Annotations,
    check_sampler,
    extrapolated,
    intersections,
    resized,
    sampled_windows,
)
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2


def parsed(kind, text):
    return text_format.Parse(text, getattr(caffe_pb2, kind)())


def random_boxes(count, seed=0):
    corners = np.sort(np.random.RandomState(seed).rand(count, 2, 2), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


def annotations(boxes):
    boxes = np.array(boxes, np.float32)
    rows = np.stack([np.arange(len(boxes)), np.zeros(len(boxes)), np.arange(len(boxes)) % 2], axis=1)
    return Annotations(boxes, rows.astype(np.float32))


def test_groups_become_rows():
    record = parsed(
        "AnnotatedDatum",
        """type: BBOX
        annotation_group { group_label: 3 annotation { instance_id: 1 bbox { xmin: .1 ymin: .2 xmax: .5 ymax: .6 } }
                                          annotation { bbox { xmin: .3 ymax: 1 xmax: 1 difficult: true } } }
        annotation_group { group_label: 1 annotation { bbox { xmax: 1 ymax: 1 } } }""",
    )
    expected = [[7, 3, 1, 0.1, 0.2, 0.5, 0.6, 0], [7, 3, 0, 0.3, 0, 1, 1, 1], [7, 1, 0, 0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(Annotations.of(record).label_rows(7), np.float32(expected))
    assert Annotations.of(caffe_pb2.AnnotatedDatum()).label_rows(0).shape == (0, 8)


def slow_projection(window, box, emit):
    x1, y1, x2, y2 = box
    if emit == "CENTER":
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        if not (window[0] <= x <= window[2] and window[1] <= y <= window[3]):
            return None
    elif emit:
        w = min(x2, window[2]) - max(x1, window[0])
        h = min(y2, window[3]) - max(y1, window[1])
        inside = w * h if w > 0 and h > 0 else 0
        if not inside / ((x2 - x1) * (y2 - y1)) > emit:
            return None
    if x1 >= window[2] or x2 <= window[0] or y1 >= window[3] or y2 <= window[1]:
        return None
    w, h = window[2] - window[0], window[3] - window[1]
    cut = [(x1 - window[0]) / w, (y1 - window[1]) / h, (x2 - window[0]) / w, (y2 - window[1]) / h]
    cut = [min(max(v, 0), 1) for v in cut]
    return cut if (cut[2] - cut[0]) * (cut[3] - cut[1]) > 0 else None


@pytest.mark.parametrize(
    ("text", "emit"), [("", None), ("emit_type: CENTER", "CENTER"), ("emit_type: MIN_OVERLAP emit_overlap: 0.4", 0.4)]
)
@pytest.mark.parametrize("window", [[0.2, 0.3, 0.7, 0.8], [-0.5, -0.25, 1.5, 2], [0, 0, 1, 1]])
def test_through_a_window(text, emit, window):
    boxes = random_boxes(200)
    constraint = parsed("EmitConstraint", text) if text else None
    found = annotations(boxes).seen_through(np.array(window, np.float32), constraint)
    expected = [slow_projection(window, box, emit) for box in boxes.astype(float).tolist()]
    assert found.rows[:, 0].tolist() == [i for i, box in enumerate(expected) if box]
    np.testing.assert_allclose(found.boxes, [box for box in expected if box], atol=1e-6)


def test_mirrored():
    found = annotations([[0.1, 0.2, 0.4, 0.9]]).mirrored().boxes
    np.testing.assert_allclose(found, [[0.6, 0.2, 0.9, 0.9]], rtol=1e-6)


# ---- resize_param; an image of 200 x 100 (height x width)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("height: 30 width: 60", [0.25, 0.5, 0.5, 1]),
        ("resize_mode: FIT_SMALL_SIZE height: 50 width: 50", [0.25, 0.5, 0.5, 1]),
        # 50 high, 25 wide, so 12.5 pixels of padding left and right
        ("resize_mode: FIT_LARGE_SIZE_AND_PAD height: 50 width: 50", [0.375, 0.5, 0.5, 1]),
        # 25 wide makes 50 high, so 25 pixels above and below
        ("resize_mode: FIT_LARGE_SIZE_AND_PAD height: 100 width: 25", [0.25, 0.5, 0.5, 0.75]),
    ],
)
def test_resized(settings, expected):
    box = np.float32([[0.25, 0.5, 0.5, 1]])
    np.testing.assert_allclose(resized(box, parsed("ResizeParameter", settings), 200, 100)[0], expected, rtol=1e-6)


def test_extrapolated():
    settings = "resize_mode: FIT_SMALL_SIZE height: 50 width: 50 height_scale: 40 width_scale: 20"
    box, window = np.float32([[0.25, 0.5, 0.5, 1]]), np.float32([0, 0, 1, 0.5])
    # the resized image is 100 x 50, the window 50 x 50 of it
    found = extrapolated(box, parsed("ResizeParameter", settings), 200, 100, window)
    np.testing.assert_allclose(found[0], [0.25 * 50 / 20, 0.5 * 50 / 40, 0.5 * 50 / 20, 50 / 40], rtol=1e-6)
    with pytest.raises(PortError, match="greater than the crop"):
        extrapolated(box, parsed("ResizeParameter", settings), 200, 100, np.float32([0, 0, 0.1, 0.5]))


# ---- batch_sampler


def slow_overlaps(window, box):
    w = min(window[2], box[2]) - max(window[0], box[0])
    h = min(window[3], box[3]) - max(window[1], box[1])
    shared = w * h if w > 0 and h > 0 else 0.0
    size, box_size = ((b[2] - b[0]) * (b[3] - b[1]) for b in (window, box))
    return {"jaccard_overlap": shared / (size + box_size - shared), "sample_coverage": shared / size,
            "object_coverage": shared / box_size}  # fmt: skip


@pytest.mark.parametrize("kind", ["jaccard_overlap", "sample_coverage", "object_coverage"])
@pytest.mark.parametrize(("least", "most"), [(0.2, None), (None, 0.3), (0.1, 0.5)])
def test_constraints(kind, least, most):
    objects = np.float32([[0.1, 0.1, 0.7, 0.7], [0.2, 0, 0.9, 0.8], [0.1, 0.3, 0.6, 1]])
    bounds = {f"min_{kind}": least, f"max_{kind}": most}
    constraint = "".join(f"{name}: {value} " for name, value in bounds.items() if value is not None)
    text = "sampler { min_scale: 0.1 min_aspect_ratio: 0.5 max_aspect_ratio: 2 } max_trials: 300"
    everything = sampled_windows([parsed("BatchSampler", text)], objects, np.random.RandomState(1))
    assert len(everything) == 300
    assert intersections(everything, objects).shape == (300, 3)
    some = parsed("BatchSampler", f"{text} sample_constraint {{ {constraint} }}")
    found = sampled_windows([some], objects, np.random.RandomState(1))
    expected = [
        window
        for window in everything
        if any(
            (least is None or value >= least) and (most is None or value <= most)
            for value in (slow_overlaps(window.astype(float), box.astype(float))[kind] for box in objects)
        )
    ]
    np.testing.assert_array_equal(found, expected)
    assert 0 < len(found) < 300


def test_windows_have_the_scales_and_ratios_asked_for():
    text = "sampler { min_scale: 0.3 max_scale: 0.9 min_aspect_ratio: 0.5 max_aspect_ratio: 2 } max_trials: 2000"
    windows = sampled_windows([parsed("BatchSampler", text)], random_boxes(0), np.random.RandomState(0)).astype(float)
    width, height = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    scale, ratio = np.sqrt(width * height), width / height
    assert windows.min() >= 0 and windows.max() <= 1 + 1e-6
    assert 0.3 - 1e-6 <= scale.min() < 0.32 and 0.88 < scale.max() <= 0.9 + 1e-6
    # a window that large cannot be that flat: ratios are held within scale^2 and its inverse
    assert (ratio >= np.maximum(0.5, scale**2) - 1e-5).all() and (ratio <= np.minimum(2, scale**-2) + 1e-5).all()
    assert ratio.min() < 0.51 and ratio.max() > 1.95


def test_how_many_are_taken():
    samplers = [
        parsed("BatchSampler", "max_sample: 1 max_trials: 1"),
        parsed("BatchSampler", "sampler { min_scale: 0.5 } max_sample: 3 max_trials: 50"),
        parsed("BatchSampler", "use_original_image: false max_trials: 5"),
        parsed("BatchSampler", "sample_constraint { min_jaccard_overlap: 0.1 } max_trials: 50"),
    ]
    windows = sampled_windows(samplers, random_boxes(0), np.random.RandomState(0))
    assert len(windows) == 4  # no object, so nothing satisfies the last one
    np.testing.assert_array_equal(windows[0], [0, 0, 1, 1])
    assert sampled_windows([], random_boxes(1), np.random.RandomState(0)).shape == (0, 4)


def test_only_the_first_kind_of_constraint_counts():
    text = "sampler { min_scale: 0.1 } max_trials: 100 sample_constraint { min_jaccard_overlap: 0.1 %s }"
    one, both = (
        sampled_windows([parsed("BatchSampler", text % more)], random_boxes(2), np.random.RandomState(0))
        for more in ("", "min_object_coverage: 1")
    )
    np.testing.assert_array_equal(one, both)


@pytest.mark.parametrize(
    "text", ["min_scale: 0", "max_scale: 1.5", "min_scale: 0.9 max_scale: 0.2", "min_aspect_ratio: 3"]
)
def test_samplers_that_make_no_sense(text):
    with pytest.raises(PortError) as caught:
        check_sampler(parsed("BatchSampler", f"sampler {{ {text} }}"), "batch_sampler[0]")
    assert caught.value.field == "batch_sampler[0]"
