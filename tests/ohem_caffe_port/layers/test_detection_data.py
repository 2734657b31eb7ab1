"""DetectionData and EvalData: what a batch shows, seen by pictures whose objects are white on black."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

# (height, width), objects (label, ignore, difficult, box)
PICTURES = [
    ((120, 160), [(1, 0, 0, (30, 20, 79, 79))]),
    ((160, 100), [(2, 0, 1, (20, 60, 69, 129))]),
    ((100, 180), [(3, 1, 0, (60, 10, 119, 69))]),
    ((150, 120), []),
]
MAPS = "stride: 8 field_w: 48 field_h: 48 stride: 16 field_w: 80 field_h: 80"
DISTORT = (
    "distort_param { brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 0.5 contrast_lower: 0.5 "
    "contrast_upper: 1.5 hue_prob: 0.5 hue_delta: 18 saturation_prob: 0.5 saturation_lower: 0.5 saturation_upper: 1.5 }"
)


@pytest.fixture
def folder(write_windows):
    return write_windows(PICTURES)


def training(folder, settings="", transform="", batch=1, tops=4, maps=MAPS):
    names = " ".join(f'top: "{name}"' for name in ("data", "small", "large", "boxes")[:tops])
    where = f'source: "{folder}/windows.txt" root_folder: "{folder}/" output_gt_boxes: true'
    return f"""layer {{ name: "in" type: "DetectionData" {names} transform_param {{ {transform} }}
               detection_data_param {{ {where} batch_size: {batch} {maps} {settings} }} }}"""


def evaluation(folder, settings="", transform="", batch=1):
    where = f'source: "{folder}/windows.txt" root_folder: "{folder}/"'
    return f"""layer {{ name: "in" type: "EvalData" top: "data" top: "boxes" top: "size"
               transform_param {{ {transform} }} eval_data_param {{ {where} batch_size: {batch} {settings} }} }}"""


def white(data):
    """The bright part of ``[3, H, W]``: x1, y1, x2, y2 inclusive."""
    bright = data[0] > 80
    rows, columns = bright.any(1).nonzero()[0], bright.any(0).nonzero()[0]
    return [columns[0], rows[0], columns[-1], rows[-1]]


SETTINGS = [
    "",
    "resize_ratio: 1.5",
    "resize_width: 200 resize_height: 150",
    "short_size: 128 long_size: 192",
    "short_size: 96 long_size: 160 template_ratio: 1 template_ratio: 1.4",
    "short_size: 128 long_size: 192 crop_short_size: 96 crop_long_size: 128",
    "crop_width: 112 crop_height: 96 low_scale_ratio: 0.5 high_scale_ratio: 2 multiscale_prob: 0.7",
    "crop_width: 112 crop_height: 96 min_scale: 30 max_scale: 60 multiscale_prob: 1 "
    "min_whaspect: 0.7 max_whaspect: 1.4",
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("transform", ["", "mirror: true"])
@pytest.mark.parametrize("batch", [1, 4])
def test_boxes_follow_their_objects(build, folder, settings, transform, batch):
    torch.manual_seed(0)
    net = build(training(folder, f"{settings} {DISTORT}" if batch == 1 else settings, transform, batch))
    for _ in range(8 // batch):
        net()
        data, boxes = net.blobs["data"].numpy(), net.blobs["boxes"].flatten(1).numpy()
        height, width = data.shape[2:]
        for name, stride in (("small", 8), ("large", 16)):
            assert net.blobs[name].shape == (batch, 6, int(height / stride + 0.5), int(width / stride + 0.5))
        for item, *box, label, ignored, difficult in boxes[boxes[:, 0] >= 0]:
            assert (ignored, difficult) == (label == 3, label == 2) or ignored
            seen = np.clip(box, 0, [width - 1, height - 1] * 2)
            if (seen[2:] - seen[:2]).min() > 8:
                np.testing.assert_allclose(white(data[int(item)]), seen, atol=4)
            if "max_scale" in settings and len(boxes) == 1:
                side = np.sqrt(np.prod(box[2:] - np.array(box[:2]) + 1))
                assert 29 < side < 61


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ("", [(120, 160), (160, 100), (100, 180), (150, 120)]),
        ("resize_ratio: 0.5", [(60, 80), (80, 50), (50, 90), (75, 60)]),
        ("short_size: 90 long_size: 170", [(96, 160), (160, 96), (96, 160), (160, 96)]),
        ("resize_width: 64 resize_height: 32 crop_short_size: 40 crop_long_size: 70", [(70, 40)] * 4),
        ("crop_short_size: 40 crop_long_size: 70", [(40, 70), (70, 40), (40, 70), (70, 40)]),
        ("short_size: 64 long_size: 128 template_ratio: 1.5", [(96, 192), (192, 96), (96, 192), (192, 96)]),
    ],
)
def test_shape_of_the_blob(build, folder, settings, shapes):
    net, found = build(training(folder, settings)), []
    for _ in range(4):
        net()
        found.append(tuple(net.blobs["data"].shape[2:]))
    assert found == shapes


def test_rows_and_maps(build, folder):
    net = build(training(folder, "min_gt_height: 65", batch=4))
    net()
    boxes = net.blobs["boxes"].flatten(1)
    assert boxes[:, [0, 5, 6, 7]].tolist() == [[0, 1, 1, 0], [1, 2, 0, 1], [2, 3, 1, 0]]
    labels = {name: net.blobs[name][:, 0].amax((1, 2)).tolist() for name in ("small", "large")}
    assert labels["small"][0] == labels["large"][0] == 0  # too small: ignored
    assert max(labels["small"][1], labels["large"][1]) == 2


def test_nothing_in_the_batch(build, folder):
    (folder / "windows.txt").write_text("# 0 3.png 3 150 120 0 0")
    for text in (training(folder), evaluation(folder)):
        net = build(text)
        net()
        assert net.blobs["boxes"].flatten().tolist() == [-1] * 8


def order(build, folder, shuffle):
    net, found = build(training(folder, shuffle)), []
    for _ in range(12):
        net()
        found.append(tuple(net.blobs["data"].shape[2:]))
    return [found[i : i + 4] for i in (0, 4, 8)]


def test_shuffling(build, folder):
    sizes = [size for size, _ in PICTURES]
    assert order(build, folder, "") == [sizes] * 3
    torch.manual_seed(0)
    passes = order(build, folder, 'shuffle: "random"')
    assert all(sorted(p) == sorted(sizes) for p in passes) and passes != [sizes] * 3
    for kind, wanted in (("random_aspect", (2, 1)), ("random_mix_aspect", (1, 2))):
        seen = set()
        for seed in range(3):
            torch.manual_seed(seed)
            for found in order(build, folder, f'shuffle: "{kind}" mix_group_size: 1'):
                assert sorted(found) == sorted(sizes)
                tall = [h >= w for h, w in found]
                assert tall == ([tall[0]] * 2 + [not tall[0]] * 2 if wanted == (2, 1) else [tall[0], not tall[0]] * 2)
                seen.add(tall[0])
        assert seen == {True, False}


@pytest.mark.parametrize(
    ("settings", "shapes", "factors"),
    [
        # sides are multiples of 32
        ("", [(128, 160), (160, 96)], None),
        ("short_size: 96 long_size: 140", [(96, 128), (128, 96)], [(96 / 120, 128 / 160), (128 / 160, 96 / 100)]),
        ("resize_width: 100 resize_height: 60", [(64, 96), (64, 96)], None),
    ],
)
def test_eval_data(build, folder, settings, shapes, factors):
    net = build(evaluation(folder, settings, "mean_value: 10 scale: 2"))
    for i, shape in enumerate(shapes):
        net()
        data, boxes = net.blobs["data"], net.blobs["boxes"].flatten(1)
        assert tuple(data.shape) == (1, 3, *shape) and net.blobs["size"].tolist() == [[[[shape[0]]], [[shape[1]]]]]
        assert data[0, :, 0, 0].tolist() == [-20] * 3
        (height, width), [(label, ignored, difficult, box)] = PICTURES[i]
        fy, fx = factors[i] if factors else (shape[0] / height, shape[1] / width)
        wanted = np.array(box) * [fx, fy, fx, fy]
        np.testing.assert_allclose(boxes[0], [0, *wanted, label, ignored, difficult], rtol=1e-5)


def test_eval_data_of_several(build, folder):
    net = build(evaluation(folder, "resize_width: 96 resize_height: 64", batch=3))
    net()
    assert net.blobs["data"].shape == (3, 3, 64, 96) and net.blobs["boxes"][:, 0].flatten().tolist() == [0, 1, 2]
    net()
    assert net.blobs["boxes"][:, 5].flatten().tolist() == [1, 2]  # the fourth has none, then the first ones again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda f: training(f, "short_size: 99 long_size: 99"), "below long_size"),
        (lambda f: training(f, "short_size: 9 long_size: 99 resize_ratio: 1"), "exclude each other"),
        (
            lambda f: training(f, "min_scale: 1 max_scale: 2 low_scale_ratio: 1 high_scale_ratio: 2"),
            "excludes low_scale",
        ),
        (lambda f: training(f, "low_scale_ratio: 3 high_scale_ratio: 2"), "3.0 to 2.0 is no range"),
        (lambda f: training(f, 'shuffle: "often"'), "'often' is no way of shuffling"),
        (lambda f: training(f, "fg_threshold: 0"), "must be positive"),
        (lambda f: training(f, tops=3), "3 tops; it makes 4"),
        (lambda f: evaluation(f, batch=2), "must be 1, for images of different sizes"),
        (lambda f: evaluation(f, "resize_width: 9 resize_height: 9"), "9 x 9 is no multiple of 32 but 0"),
    ],
)
def test_bad_settings(build, folder, text, message):
    with pytest.raises(PortError, match=message) as caught:
        build(text(folder))
    assert caught.value.layer == "in"
