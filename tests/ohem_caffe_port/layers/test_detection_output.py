"""Real Caffe's numbers for every setting are in tests/data/golden/layers_ssd; here, what these do not show."""

import json

import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer
from ohem_caffe_port.ops import decode_boxes

PRIORS = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.45], [0.5, 0.5, 0.9, 0.9], [0.2, 0.6, 0.4, 0.8]])
VARIANCE = torch.tensor([0.1, 0.1, 0.2, 0.2])
BLOB = torch.stack((PRIORS.flatten(), VARIANCE.repeat(4)))[None]
STILL = torch.zeros(1, 16)  # predictions that leave the priors where they are
SCORES = torch.tensor([[[0.1, 0.9, 0.3], [0.2, 0.8, 0.0], [0.6, 0.4, 0.4], [0.9, 0.05, 0.6]]]).flatten(1)
SETTINGS = "num_classes: 3 code_type: CENTER_SIZE confidence_threshold: 0.1 nms_param { nms_threshold: 0.45 }"


def layer_of(settings, *bottoms):
    names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms)))
    text = f'layer {{ name: "it" type: "DetectionOutput" {names} top: "t" detection_output_param {{ {settings} }} }}'
    layer = create_layer(prototxt.parse_net(text).layer[0], Context("TEST"))
    layer.setup([b.to("meta") for b in bottoms])
    assert layer.infer([b.to("meta") for b in bottoms])[0].shape == (1, 1, 1, 7)
    return layer


def detect(settings, *bottoms):
    return layer_of(settings, *bottoms)(list(bottoms))[0]


def as_rows(top):
    return [(int(r[0]), int(r[1]), round(float(r[2]), 3), *(round(float(v), 3) for v in r[3:])) for r in top[0, 0]]


def test_by_class_then_score():
    assert as_rows(detect(SETTINGS, STILL, SCORES, BLOB)) == [
        (0, 1, 0.9, 0.1, 0.1, 0.5, 0.5),  # prior 1 overlaps this one
        (0, 1, 0.4, 0.5, 0.5, 0.9, 0.9),
        (0, 2, 0.6, 0.2, 0.6, 0.4, 0.8),
        (0, 2, 0.4, 0.5, 0.5, 0.9, 0.9),
        (0, 2, 0.3, 0.1, 0.1, 0.5, 0.5),
    ]


@pytest.mark.parametrize(("keep", "scores"), [(3, [0.9, 0.4, 0.6]), (2, [0.9, 0.6]), (0, []), (-1, 5), (9, 5)])
def test_an_image_keeps_its_best(keep, scores):
    rows = as_rows(detect(f"{SETTINGS} keep_top_k: {keep}", STILL, SCORES, BLOB))
    if scores == 5:
        assert len(rows) == 5
    elif scores:
        assert [row[2] for row in rows] == scores
    else:
        assert [row[:2] for row in rows] == [(0, -1)]


def test_images_without_detections():
    two, none = torch.cat((SCORES, SCORES * 0)), torch.zeros(2, 12)
    assert {row[0] for row in as_rows(detect(SETTINGS, STILL.repeat(2, 1), two, BLOB))} == {0}
    assert detect(SETTINGS, STILL.repeat(2, 1), none, BLOB).tolist() == [[[[0.0] + [-1] * 6, [1.0] + [-1] * 6]]]


def test_refined_priors():
    """RefineDet: boxes are refined twice, and what the first stage takes for background is background."""
    steps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    objects = torch.tensor([[0.999, 0.001, 0.5, 0.5, 0.9, 0.1, 0.5, 0.5]])
    rows = as_rows(detect(SETTINGS, steps[:1].flatten(1), SCORES, BLOB, objects, steps[1:].flatten(1)))
    boxes = PRIORS
    for step in (steps[1], steps[0]):
        boxes = decode_boxes(boxes, step, "CENTER_SIZE", VARIANCE)
    assert [row[1:3] for row in rows] == [(1, 0.8), (1, 0.4), (2, 0.6), (2, 0.4)]
    assert rows[2][3:] == tuple(round(v, 3) for v in boxes[3].tolist())
    rows = as_rows(detect(f"{SETTINGS} objectness_score: 0.2", STILL, SCORES, BLOB, objects))
    assert [row[1:3] for row in rows] == [(1, 0.8), (2, 0.6)]


def test_visualize_draws_nothing():
    layer = layer_of(
        f"{SETTINGS} visualize: true visualize_threshold: 0.6", STILL, SCORES, BLOB, torch.zeros(1, 3, 9, 9)
    )
    assert len(layer.warnings) == 2
    assert all("has no effect here" in warning for warning in layer.warnings)
    assert layer([STILL, SCORES, BLOB, torch.zeros(1, 3, 9, 9)])[0].shape == (1, 1, 5, 7)


@pytest.mark.parametrize(
    ("settings", "message", "field"),
    [
        ("", "must be given", "num_classes"),
        ("num_classes: 3 background_label_id: -1", "label of shared locations", "background_label_id"),
        ("num_classes: 3 nms_param { nms_threshold: -1 }", "not be negative", "nms_param.nms_threshold"),
        ("num_classes: 3 nms_param { eta: 0 }", "above 0 and at most 1", "nms_param.eta"),
        ("num_classes: 3 nms_param { eta: 1.5 }", "above 0 and at most 1", "nms_param.eta"),
    ],
)
def test_bad_settings(settings, message, field):
    with pytest.raises(PortError, match=message) as caught:
        layer_of(settings, STILL, SCORES, BLOB)
    assert (caught.value.layer, caught.value.field) == ("it", f"detection_output_param.{field}")


def test_bad_bottoms():
    with pytest.raises(PortError, match=r"must be \[1, 3 \* 4 priors\]"):
        layer_of(SETTINGS, STILL, SCORES[:, :-1], BLOB)
    with pytest.raises(PortError, match=r"must be \[1, 4 \* 4 priors\]"):
        layer_of(SETTINGS, STILL, SCORES, BLOB, torch.zeros(1, 8), torch.zeros(1, 12))


# ---- files


@pytest.fixture
def save(tmp_path):
    """``save(format, prefix, more)``: the settings that write to ``tmp_path / "out"``."""
    labels = "".join(
        f'item {{ name: "{n}" label: {i} display_name: "x" }} ' for i, n in enumerate(("none", "17", "dog"))
    )
    (tmp_path / "labels.prototxt").write_text(labels)
    (tmp_path / "names.txt").write_text("000005 375 500\n42 200 100\n")

    def settings(kind, prefix="det_", more=""):
        return (
            f'{SETTINGS} save_output_param {{ output_directory: "{tmp_path}/out/deep" output_format: "{kind}" '
            f'output_name_prefix: "{prefix}" label_map_file: "{tmp_path}/labels.prototxt" '
            f'name_size_file: "{tmp_path}/names.txt" {more} }}'
        )

    return settings


def run_twice(settings):
    layer = layer_of(settings, STILL, SCORES, BLOB)
    for _ in range(2):
        layer([STILL, SCORES, BLOB])
    return layer


def test_nothing_is_touched_before_the_first_forward(save, tmp_path):
    layer_of(save("VOC"), STILL, SCORES, BLOB)
    layer_of(save("VOC").replace(".prototxt", ".missing"), STILL, SCORES, BLOB)
    assert not (tmp_path / "out").exists()


def test_voc_files(save, tmp_path):
    run_twice(save("VOC"))
    files = {path.name: path.read_text().splitlines() for path in (tmp_path / "out" / "deep").iterdir()}
    assert set(files) == {"det_17.txt", "det_dog.txt"}
    # 500 x 375: 50 37.5 250 187.5, corner and side cut to integers
    assert files["det_17.txt"] == ["000005 0.9 50 37 250 187", "000005 0.4 250 187 450 337", *files["det_17.txt"][2:]]
    assert [line.split()[:2] for line in files["det_dog.txt"]] == [
        [name, score] for name in ("000005", "42") for score in ("0.6", "0.4", "0.3")
    ]


def test_coco_file(save, tmp_path):
    run_twice(save("COCO"))
    (path,) = (tmp_path / "out" / "deep").iterdir()
    assert path.name == "det_.json"
    found = json.loads(path.read_text())
    assert len(found) == 10
    assert found[0]["image_id"] == "000005"  # no number in JSON
    assert [(d["image_id"], d["category_id"]) for d in found[5:]] == [(42, 17)] * 2 + [(42, "dog")] * 3
    assert found[0]["bbox"] == pytest.approx([50, 37.5, 200, 150], abs=0.02)
    assert found[0]["score"] == pytest.approx(0.9)


def test_ilsvrc_file(save, tmp_path):
    run_twice(save("ILSVRC", "all"))
    lines = (tmp_path / "out" / "deep" / "all.txt").read_text().splitlines()
    assert lines[0] == "000005 1 0.9 50 37 250 187"
    assert lines[7].startswith("42 2 0.6 20 120 ")


def test_a_part_of_the_images(save, tmp_path):
    layer = layer_of(save("ILSVRC", "a", "num_test_image: 1"), STILL, SCORES, BLOB)
    layer([STILL, SCORES, BLOB])
    assert len((tmp_path / "out" / "deep" / "a.txt").read_text().splitlines()) == 5


def test_files_that_are_not_asked_for_completely(tmp_path):
    settings = f'{SETTINGS} save_output_param {{ output_directory: "{tmp_path}/out" output_format: "VOC" }}'
    layer = layer_of(settings, STILL, SCORES, BLOB)
    assert layer.warnings == ["layer 'it': save_output_param writes nothing without label_map_file and name_size_file"]
    layer([STILL, SCORES, BLOB])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("labels.prototxt", "missing"), "cannot be read|No such file|missing"),
        (("names.txt", "missing"), "cannot be read"),
        (("name_size_file", "num_test_image: 3 name_size_file"), "lists 2 images, but num_test_image is 3"),
        (("num_classes: 3", "num_classes: 4"), "has no name for label 3"),
        (('prefix: "det_"', 'prefix: "../det_"'), "cannot be part of a file name"),
    ],
)
def test_files_that_do_not_fit(save, tmp_path, change, message):
    settings = save("VOC").replace(*change)
    scores = SCORES if "num_classes: 3" in settings else torch.zeros(1, 16)
    with pytest.raises(prototxt.CaffePortError, match=message):
        layer_of(settings, STILL, scores, BLOB)([STILL, scores, BLOB])
    assert not (tmp_path / "det_dog.txt").exists()


def test_labels_that_would_leave_the_folder(save, tmp_path):
    path = tmp_path / "labels.prototxt"
    path.write_text(path.read_text().replace("dog", "../../dog"))
    with pytest.raises(PortError, match="cannot be part of a file name"):
        run_twice(save("VOC"))
    run_twice(save("COCO"))


def test_a_format_that_does_not_exist(save):
    with pytest.raises(PortError, match="'XML' is none of VOC, COCO, ILSVRC"):
        layer_of(save("XML"), STILL, SCORES, BLOB)
