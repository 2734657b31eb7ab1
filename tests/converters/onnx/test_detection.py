import numpy as np
import pytest

import prototxt
from converters import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

CASES = ["ssd", "keep20", "nothresh", "corner", "cornersize", "vartarget", "nodet", "noshare", "bg2"]
PRIORS, CLASSES = 60, 4
SHAPES = (2, 4 * PRIORS), (2, CLASSES * PRIORS), (1, 2, 4 * PRIORS)
SSD = f"num_classes: {CLASSES} confidence_threshold: 0.3 nms_param {{ nms_threshold: 0.4 top_k: 30 }} %s"
STDS = "".join(f"bbox_mean: {m} bbox_std: {s} " for m, s in ((0.1, 0.1), (0, 0.1), (-0.1, 0.2), (0, 0.2)))


def param(text):
    return f"detection_output_param {{ {text} }}"


def predictions(shapes, rng):
    """Of SSD: small offsets, probabilities, priors that overlap; of RefineDet also those of its first stage."""
    low = rng.uniform(0, 0.7, (PRIORS, 2))
    priors = np.concatenate([low, low + rng.uniform(0.05, 0.3, (PRIORS, 2))], 1)
    variances = np.tile([0.1, 0.1, 0.2, 0.2], PRIORS)
    fed = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("x1", "x3"):
        if name in shapes:
            fed[name] = rng.uniform(0, 1, shapes[name])
    return fed | {"x2": np.stack([priors.ravel(), variances])[None]}


@pytest.mark.parametrize("case", CASES)
def test_golden(check_golden, case):
    check_golden(f"layers_ssd/DetectionOutput/DetectionOutput__{case}", tolerance=1e-6)


@pytest.mark.parametrize(
    "more",
    ["code_type: CENTER_SIZE keep_top_k: 25", "code_type: CORNER", "code_type: CORNER_SIZE background_label_id: 2"],
)
def test_ssd(check_layer, more):
    check_layer("DetectionOutput", param(SSD % more), *SHAPES, inputs=predictions)


def test_boxes_of_every_class(check_layer):
    shapes = (2, 4 * PRIORS * CLASSES), *SHAPES[1:]
    check_layer("DetectionOutput", param(SSD % "share_location: false keep_top_k: 40"), *shapes, inputs=predictions)


@pytest.mark.parametrize("bottoms", [4, 5])
def test_refinedet(check_layer, bottoms):
    shapes = (*SHAPES, (2, 2 * PRIORS), (2, 4 * PRIORS))[:bottoms]
    settings = param(SSD % "code_type: CENTER_SIZE objectness_score: 0.4")
    check_layer("DetectionOutput", settings, *shapes, inputs=predictions)


def test_equal_scores_and_boxes(check_layer):
    """The first prior goes first; a class in which all boxes are one keeps a single box."""

    def inputs(shapes, rng):
        fed = predictions(shapes, rng)
        scores = np.round(fed["x1"] * 3).reshape(-1, PRIORS, CLASSES) / 4
        return fed | {"x1": scores.reshape(shapes["x1"])}

    check_layer("DetectionOutput", param(SSD % "code_type: CENTER_SIZE"), *SHAPES, inputs=inputs)
    same = {"x0": np.zeros(SHAPES[0]), "x2": np.tile([0.2, 0.2, 0.5, 0.5], (1, 2, PRIORS))}
    check_layer(
        "DetectionOutput", param(SSD % "code_type: CENTER_SIZE"), *SHAPES,
        inputs=lambda shapes, rng: same | {"x1": rng.uniform(0, 1, shapes["x1"])},
    )  # fmt: skip


def test_no_detection_in_one_image(check_layer):
    """It has no row; both have one when neither has a detection."""

    def inputs(shapes, rng, silent=slice(1, None)):
        fed = predictions(shapes, rng)
        fed["x1"][silent] = 0
        return fed

    check_layer("DetectionOutput", param(SSD % "keep_top_k: 9"), *SHAPES, inputs=inputs)
    nothing = lambda shapes, rng: inputs(shapes, rng, slice(None))  # noqa: E731
    check_layer("DetectionOutput", param(SSD % "keep_top_k: 9"), *SHAPES, inputs=nothing)


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("DetectionOutput", param("num_classes: 4 nms_param { eta: 0.9 }"), SHAPES, "nms_param.eta 0.9"),
        ("DetectionOutput", param("num_classes: 4 keep_top_k: 0"), SHAPES, "keeps nothing"),
        ("FrcnnOutput", "frcnn_output_param { nms_type: 'IOMU' }", ((9, 3), (9, 12), (9, 5), (1, 2)), "IOMU"),
    ],
)
def test_refused(layer_net, kind, settings, shapes, message):
    with pytest.raises(WeightsError, match=f"layer 'it': {kind}: .*{message}"):
        to_onnx(Net(prototxt.parse_net(layer_net(kind, settings, *shapes)), "TEST"))


# ---- cascade-rcnn


def proposals(shapes, rng):
    count = shapes["x0"][0]
    corners = np.column_stack((rng.uniform(0, 60, (count, 2)), rng.uniform(60, 100, (count, 2))))
    return {
        "x0": rng.uniform(0, 1, shapes["x0"]),
        "x2": np.column_stack((np.zeros(count), corners, np.ones(count)))[:, : shapes["x2"][1]],
        "x3": [[90, 95]],
    }


@pytest.mark.parametrize("most", [0, 7])
@pytest.mark.parametrize("aware", [True, False])
def test_frcnn_output(check_layer, most, aware):
    settings = (
        f"frcnn_output_param {{ conf_thr: 0.4 iou_thr: 0.5 max_det_num: {most} }} "
        f"bbox_reg_param {{ {STDS} {'' if aware else 'cls_aware: false'} }}"
    )
    shapes = (30, 3), (30, 12 if aware else 8), (30, 5 if aware else 6), (1, 2)
    check_layer("FrcnnOutput", settings, *shapes, inputs=proposals)


def test_frcnn_output_without_a_detection(check_layer):
    shapes = (30, 3), (30, 12), (30, 5), (1, 2)
    settings = "frcnn_output_param { conf_thr: 2 iou_thr: 0.5 }"
    check_layer("FrcnnOutput", settings, *shapes, inputs=proposals)


def test_decode_bbox(check_layer):
    def inputs(shapes, rng):
        return {"x1": proposals({"x0": shapes["x0"], "x2": shapes["x1"]}, rng)["x2"]}

    check_layer("DecodeBBox", f"bbox_reg_param {{ {STDS} }}", (12, 8), (12, 5), inputs=inputs)
