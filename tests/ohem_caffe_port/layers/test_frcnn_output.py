"""FrcnnOutput against loops written from cascade-rcnn's formulas, in float64, and its files."""

import math

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError

RNG = np.random.RandomState(0)
ROIS = np.column_stack((np.zeros(30), RNG.randint(0, 60, (30, 2)), RNG.randint(60, 100, (30, 2))))
PROB = RNG.rand(30, 3, 1, 1)
SIZE = np.array([[90.0, 95.0]])
STDS = (0.125, 0.125, 0.25, 0.25)
NORM = "".join(f"bbox_mean: 0 bbox_std: {s} " for s in STDS)


def iou(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return w * h / (sum(areas) - w * h) if w >= 1 and h > 1 else 0.0


def slow_output(deltas, aware, conf_thr, most):
    found = []
    for label in (1, 2):
        rows = []
        for roi, delta, prob in zip(ROIS, deltas, PROB, strict=True):
            if prob[label] < conf_thr:
                continue
            x1, y1, x2, y2 = roi[1:]
            w, h = x2 - x1 + 1, y2 - y1 + 1
            first = 4 * label if aware else 4
            dx, dy, dw, dh = delta[first : first + 4] * STDS
            tw, th = w * math.exp(dw), h * math.exp(dh)
            tx, ty = dx * w + (x1 + x2) / 2 - (tw - 1) / 2, dy * h + (y1 + y2) / 2 - (th - 1) / 2
            box = max(tx, 0), max(ty, 0), min(tx + tw - 1, 95), min(ty + th - 1, 90)
            rows.append((*box, label, float(prob[label, 0, 0])))
        kept = []
        for row in sorted(rows, key=lambda row: -row[5]):
            if all(iou(other, row) <= 0.5 for other in kept):
                kept.append(row)
        found += kept
    if most:
        best = sorted(found, key=lambda row: -row[5])[:most]
        found = [row for row in found if row in best]
    return np.array([(0, -1, -1, -1, -1, -1, -1), *((0, *row) for row in found)])


def settings(text="", reg=""):
    return f"frcnn_output_param {{ iou_thr: 0.5 {text} }} bbox_reg_param {{ {NORM} {reg} }}"


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("most", [0, 5])
def test_detections(run_layer, aware, most):
    deltas = RNG.randn(30, 12 if aware else 8)
    text = settings(f"conf_thr: 0.3 max_det_num: {most}", "" if aware else "cls_aware: false")
    (top,) = run_layer("FrcnnOutput", text, PROB, deltas, ROIS, SIZE, nominal=True)
    wanted = slow_output(deltas, aware, 0.3, most)
    assert top.shape == (len(wanted), 7, 1, 1) and len(wanted) > 5
    np.testing.assert_allclose(top.flatten(1), wanted, rtol=1e-5, atol=1e-4)


def test_nothing_found(run_layer):
    """The first row is there for DetectionEvaluate."""
    (top,) = run_layer("FrcnnOutput", settings("conf_thr: 2"), PROB, np.zeros((30, 12)), ROIS, SIZE)
    assert top.flatten().tolist() == [0, -1, -1, -1, -1, -1, -1]


def test_files(run_layer, tmp_path):
    """Boxes in pixels of the original image, here twice as wide and thrice as high, whole numbers."""
    names = "".join(f'item {{ name: "n{c}" label: {c} display_name: "c{c}" }}\n' for c in range(3))
    (tmp_path / "labels.prototxt").write_text(names)
    (tmp_path / "names.txt").write_text("first 270 190\n")
    save = (
        f'save_output_param {{ output_directory: "{tmp_path}/out" output_name_prefix: "det_" output_format: "VOC" '
        f'label_map_file: "{tmp_path}/labels.prototxt" name_size_file: "{tmp_path}/names.txt" }}'
    )
    rois, prob = np.array([[0, 10, 20, 29, 59], [0, 50, 5, 89, 44]]), np.array([[0.1, 0.9, 0], [0.4, 0.1, 0.5]])
    run_layer("FrcnnOutput", settings(f"conf_thr: 0.3 {save}"), prob, np.zeros((2, 12)), rois, SIZE, nominal=True)
    assert (tmp_path / "out/det_n1.txt").read_text() == "first 0.9 20 60 58 177\n"
    assert (tmp_path / "out/det_n2.txt").read_text() == "first 0.5 100 15 178 132\n"


@pytest.mark.parametrize(
    ("text", "bottoms", "message"),
    [
        (settings(), (PROB, np.zeros((30, 8)), ROIS, SIZE), r"they must be \[R, C\], \[R, 12\]"),
        (settings(), (PROB, np.zeros((30, 12)), ROIS, np.zeros((2, 2))), "one image at a time"),
        (settings(), (PROB, np.zeros((30, 12)), ROIS + 1, SIZE), "of a single image, image 0"),
        (settings(), (PROB, np.zeros((30, 12)), ROIS * [1, 9, 1, 1, 1], SIZE), "end lies before"),
        (settings('save_output_param { output_directory: "x" output_format: "?" label_map_file: "x" '
                  'name_size_file: "x" }'), (PROB, np.zeros((30, 12)), ROIS, SIZE), "none of VOC"),
    ],
)  # fmt: skip
def test_bad_input(run_layer, text, bottoms, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer("FrcnnOutput", text, *bottoms)
    assert caught.value.layer == "it"
