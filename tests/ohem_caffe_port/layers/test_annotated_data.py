"""SSD's data layer on LMDBs of ``AnnotatedDatum``; its steps are tested one by one in tests/ohem_caffe_port/data."""

import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

IMAGES = [cv2.GaussianBlur(np.random.RandomState(i).randint(0, 256, (40, 60, 3)).astype(np.uint8), (9, 9), 0)
          for i in range(3)]  # fmt: skip
# label, box in pixels, difficult
BOXES = [[(2, (6, 4, 30, 20), False), (2, (30, 20, 60, 40), True)], [], [(5, (0, 0, 60, 40), False)]]


def record(i, encoded=True, typed=True):
    image = IMAGES[i]
    found = caffe_pb2.AnnotatedDatum()
    if typed:
        found.type = found.BBOX
    found.datum.channels, found.datum.height, found.datum.width, found.datum.label = 3, 40, 60, i
    found.datum.encoded = encoded
    found.datum.data = cv2.imencode(".png", image)[1].tobytes() if encoded else image.transpose(2, 0, 1).tobytes()
    for j, (label, (x1, y1, x2, y2), difficult) in enumerate(BOXES[i]):
        if not found.annotation_group or found.annotation_group[-1].group_label != label:
            found.annotation_group.add(group_label=label)
        annotation = found.annotation_group[-1].annotation.add(instance_id=j)
        box = annotation.bbox
        box.xmin, box.ymin, box.xmax, box.ymax, box.difficult = x1 / 60, y1 / 40, x2 / 60, y2 / 40, difficult
    return found


def layer(source, transform="", annotated="", tops=2, batch=3):
    names = "".join(f'top: "{name}" ' for name in ("data", "label")[:tops])
    return f"""layer {{ name: "in" type: "AnnotatedData" {names} transform_param {{ {transform} }}
               data_param {{ source: "{source}" backend: LMDB batch_size: {batch} }}
               annotated_data_param {{ label_map_file: "labelmap.prototxt" {annotated} }} }}"""


def rows_of(*items):
    """The rows of label, with boxes as they are in the files."""
    rows = [
        [item, label, j, x1 / 60, y1 / 40, x2 / 60, y2 / 40, difficult]
        for item, i in enumerate(items)
        for j, (label, (x1, y1, x2, y2), difficult) in enumerate(BOXES[i])
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("encoded", [True, False])
def test_images_and_boxes(build, write_lmdb, encoded):
    net = build(layer(write_lmdb([record(i, encoded) for i in range(3)]), "mean_value: 104"))
    assert net.shapes == [(3, 3, 40, 60), (1, 1, 2, 8)]
    net()
    expected = np.stack([image.transpose(2, 0, 1) for image in IMAGES]).astype(np.float32) - 104
    np.testing.assert_array_equal(net.blobs["data"], expected)
    np.testing.assert_allclose(net.blobs["label"][0, 0], rows_of(0, 1, 2), rtol=1e-6)


def test_a_batch_without_boxes_is_one_row_of_minus_one(build, write_lmdb):
    net = build(layer(write_lmdb([record(1)]), batch=2))
    net()
    assert net.blobs["label"].tolist() == [[[[-1.0] * 8]]]
    assert list(build(layer(write_lmdb([record(1)], "other"), tops=1))()) == ["data"]


def test_labels_without_types(build, write_lmdb):
    source = write_lmdb([record(i, typed=False) for i in range(3)])
    net = build(layer(source))
    net()
    assert net.blobs["label"].tolist() == [0, 1, 2]
    net = build(layer(source, annotated="anno_type: BBOX"))
    net()
    np.testing.assert_allclose(net.blobs["label"][0, 0], rows_of(0, 1, 2), rtol=1e-6)


def test_mirrored_with_the_image(build, write_lmdb):
    net, seen = build(layer(write_lmdb([record(0)]), "mirror: true", batch=1)), set()
    plain = rows_of(0)
    turned = plain.copy()
    turned[:, 3], turned[:, 5] = 1 - plain[:, 5], 1 - plain[:, 3]
    for _ in range(20):
        net()
        mirrored = not np.array_equal(net.blobs["data"][0].numpy(), IMAGES[0].transpose(2, 0, 1))
        np.testing.assert_array_equal(
            net.blobs["data"][0], (IMAGES[0][:, ::-1] if mirrored else IMAGES[0]).transpose(2, 0, 1)
        )
        np.testing.assert_allclose(net.blobs["label"][0, 0], turned if mirrored else plain, atol=1e-6)
        seen.add(mirrored)
    assert seen == {True, False}


def test_the_boxes_left_by_a_crop(build, write_lmdb):
    # in TEST the middle 20 x 20: x 20..40, y 10..30 of the image
    transform = "crop_size: 20 emit_constraint { emit_type: CENTER }"
    net = build(layer(write_lmdb([record(0)]), transform, batch=1), "TEST")
    net()
    np.testing.assert_array_equal(net.blobs["data"][0], IMAGES[0][10:30, 20:40].transpose(2, 0, 1))
    # the first box's centre (18, 12) is outside, the second's (45, 30) too
    assert net.blobs["label"].flatten().tolist() == [-1] * 8
    net = build(layer(write_lmdb([record(0)], "other"), "crop_size: 20", batch=1), "TEST")
    net()
    expected = [[0, 2, 0, 0, 0, 0.5, 0.5, 0], [0, 2, 1, 0.5, 0.5, 1, 1, 1]]
    np.testing.assert_allclose(net.blobs["label"][0, 0], expected, atol=1e-6)


def stored(image):
    """What the fork does to an image between two steps."""
    return cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_UNCHANGED)


def test_expand_crop_and_resize(build, write_lmdb):
    """A crop around all of the image, found among many, after an expansion to twice the size."""
    transform = """expand_param { prob: 1 max_expand_ratio: 2 } mean_value: 100
                   resize_param { resize_mode: WARP height: 30 width: 30 } emit_constraint { emit_type: CENTER }"""
    sampler = """batch_sampler { sampler { min_scale: 0.3 } max_trials: 20 max_sample: 1
                 sample_constraint { min_object_coverage: 1 } }"""
    net = build(layer(write_lmdb([record(2)]), transform, sampler, batch=1))
    for _ in range(10):
        net()
        (row,) = net.blobs["label"][0, 0].numpy()
        assert row[[0, 1, 2, 7]].tolist() == [0, 5, 0, 0]
        x1, y1, x2, y2 = np.rint(row[3:7] * 30).astype(int)
        data = net.blobs["data"][0].numpy().transpose(1, 2, 0)
        # the box is the whole old image: what is in it looks like it, what is around is the mean
        inside = data[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
        wanted = cv2.resize(IMAGES[2], (x2 - x1, y2 - y1))[1:-1, 1:-1].astype(np.float32) - 100
        assert np.abs(inside - wanted).mean() < 12 < np.abs(wanted).mean()
        around = np.ones((30, 30), bool)
        around[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert np.abs(data[around]).max(initial=0) < 30


def test_images_are_stored_between_the_steps(build, write_lmdb):
    for name, transform, steps in (
        ("a", "distort_param {}", 1),
        ("b", "distort_param {} expand_param { max_expand_ratio: 1 }", 1),
        ("c", "expand_param { prob: 0 }", 0),
    ):
        net = build(layer(write_lmdb([record(0)], name), transform, batch=1))
        expected = stored(IMAGES[0]) if steps else IMAGES[0]
        np.testing.assert_array_equal(net()["data"][0], expected.transpose(2, 0, 1))
    crop = "batch_sampler { max_trials: 1 }"
    net = build(layer(write_lmdb([record(0)], "d"), "distort_param {}", crop, batch=1))
    np.testing.assert_array_equal(net()["data"][0], stored(stored(IMAGES[0])).transpose(2, 0, 1))


def test_the_seed_decides(build, write_lmdb):
    transform = """mirror: true resize_param { height: 20 width: 20 interp_mode: LINEAR interp_mode: AREA }
                   distort_param { brightness_prob: 0.5 brightness_delta: 30 } expand_param { max_expand_ratio: 3 }"""
    sampler = "batch_sampler { sampler { min_scale: 0.5 } max_sample: 1 max_trials: 10 }"
    text = layer(write_lmdb([record(i) for i in range(3)]), transform, sampler)

    def run(seed):
        torch.manual_seed(seed)
        net = build(text)
        return torch.cat([net()["data"] for _ in range(3)])

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_fit_small_size(build, write_lmdb):
    transform = "resize_param { resize_mode: FIT_SMALL_SIZE height: 20 width: 20 }"
    net = build(layer(write_lmdb([record(0)]), transform, batch=1))
    assert net.shapes[0] == (1, 3, 20, 30)
    np.testing.assert_array_equal(net()["data"][0], cv2.resize(IMAGES[0], (30, 20)).transpose(2, 0, 1))


# ---- MobileNet-YOLO


def test_yolo_labels(build, write_lmdb):
    source = write_lmdb([record(i) for i in range(3)])
    text = layer(source, "", "yolo_data_type: 1 yolo_data_jitter: 0")
    net = build(text)
    assert net.shapes == [(3, 3, 40, 60), (3, 1, 300, 5)]
    net()
    expected = np.zeros((3, 1, 300, 5), np.float32)
    expected[0, 0, 0] = 1, 18 / 60, 12 / 40, 24 / 60, 16 / 40
    expected[0, 0, 1] = 1, 45 / 60, 30 / 40, 30 / 60, 20 / 40
    expected[2, 0, 0] = 4, 0.5, 0.5, 1, 1
    np.testing.assert_allclose(net.blobs["label"], expected, atol=1e-6)
    net = build(text.replace("yolo_data_type", "train_diffcult: false yolo_data_type"))
    expected[0, 0, 1] = 0
    net()
    np.testing.assert_allclose(net.blobs["label"], expected, atol=1e-6)


def test_more_boxes_than_yolo_has_room_for(build, write_lmdb):
    crowded = record(0)
    for _ in range(300):
        crowded.annotation_group[0].annotation.add().CopyFrom(crowded.annotation_group[0].annotation[0])
    with pytest.raises(PortError, match="'00000000': 302 boxes"):
        build(layer(write_lmdb([crowded]), "", "yolo_data_type: 1"))()


def test_jitter_crops_without_a_batch_sampler(build, write_lmdb):
    source, settings = write_lmdb([record(2)]), "resize_param { height: 20 width: 30 }"
    net = build(layer(source, settings, "yolo_data_jitter: 0.4", batch=40))
    net()
    # the box is the whole image, so it stays the whole crop
    np.testing.assert_array_equal(net.blobs["label"][0, 0, :, 3:7], np.tile([0, 0, 1, 1], (40, 1)))
    plain = cv2.resize(stored(IMAGES[2]), (30, 20)).transpose(2, 0, 1)
    whole = sum(np.array_equal(plain, found) for found in net.blobs["data"].numpy())
    assert 1 <= whole <= 20  # one in five
    sampled = build(layer(source, settings, "yolo_data_jitter: 0.4 batch_sampler { max_trials: 1 }", batch=40))
    np.testing.assert_array_equal(sampled()["data"].numpy(), np.tile(plain, (40, 1, 1, 1)))


def test_one_of_several_sizes_for_ten_batches(build, write_lmdb):
    transform = "".join(f"resize_param {{ prob: {p} height: {n} width: {n} }}" for p, n in ((0.3, 20), (0.7, 40)))
    net = build(layer(write_lmdb([record(0)]), transform, batch=1))
    assert net.shapes[0] == (1, 3, 20, 20)
    sizes = [tuple(net()["data"].shape[2:]) for _ in range(100)]
    assert all(len(set(sizes[i : i + 10])) == 1 for i in range(0, 100, 10))
    assert set(sizes) == {(20, 20), (40, 40)}
    with pytest.raises(PortError, match="add up to 1.2, not to 1"):
        build(layer(write_lmdb([record(0)], "b"), transform.replace("0.3", "0.5")))


@pytest.mark.parametrize(
    ("transform", "annotated", "field", "message"),
    [
        ("resize_param { resize_mode: FIT_SMALL_SIZE height: 9 width: 9 }", "", "data_param.batch_size", "must be 1"),
        ("resize_param { height: 9 }", "", "transform_param.resize_param", "must be positive"),
        ("distort_param { hue_prob: 1 hue_delta: -1 }", "", "transform_param.distort_param.hue_delta", "negative"),
        ("expand_param { max_expand_ratio: 0.5 }", "", "transform_param.expand_param.max_expand_ratio", "below 1"),
        (
            "",
            "batch_sampler { sampler { min_scale: 0 } }",
            "annotated_data_param.batch_sampler[0]",
            "scales 0.0 to 1.0",
        ),
        ("force_gray: true distort_param {}", "", "transform_param.distort_param", "'00000000': needs colour"),
        ("crop_size: 41", "", "transform_param.crop_size", "a crop of 41 x 41"),
        ("scale_factors: 2", "", "transform_param.scale_factors", "not supported"),
        ("", "seg_scales: 4", "annotated_data_param.seg_scales", "not supported"),
        ("", "yolo_data_jitter: 1", "annotated_data_param.yolo_data_jitter", "less than 1"),
    ],
)
def test_what_makes_no_sense(build, write_lmdb, transform, annotated, field, message):
    with pytest.raises(PortError, match=message) as caught:
        build(layer(write_lmdb([record(0)]), transform, annotated))()
    assert (caught.value.layer, caught.value.field) == ("in", field)


def test_a_database_of_datums(build, write_lmdb):
    with pytest.raises(PortError, match="'00000000': it holds no image") as caught:
        build(layer(write_lmdb([record(0).datum])))
    assert "AnnotatedDatum" in caught.value.hint
