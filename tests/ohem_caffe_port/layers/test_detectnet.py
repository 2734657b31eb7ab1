import cv2
import numpy as np
import pytest
import torch

from converters.binaryproto import write_binaryproto
from ohem_caffe_port.data.detectnet import Augmentation, LabelGrid
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

KIND = "DetectNetTransformation"
OFF = {f"{name}_prob": 0 for name in ("hue_rotation", "desaturation", "flip", "scale", "rotation", "crop")}
RNG = np.random.RandomState(0)
IMAGE = RNG.randint(0, 256, (1, 3, 32, 48)).astype(np.float32)


def labels(*boxes, images=1, room=5):
    """The label blob for boxes (x, y, width, height, class), the same for each image."""
    blob = np.zeros((images, 1, 1 + room, 16), np.float32)
    blob[:, 0, 0, :2] = len(boxes), 16
    for i, (x, y, w, h, number) in enumerate(boxes, 1):
        blob[:, 0, i, :6] = x, y, w, h, 0, number
    return blob


def settings(truth="", transform="", size=(48, 32), **augmentation):
    """The layer's messages, with every augmentation off but those given."""
    augmentation = "".join(f" {name}: {value}" for name, value in (OFF | augmentation).items())
    return f"""detectnet_groundtruth_param {{ image_size_x: {size[0]} image_size_y: {size[1]} {truth} }}
               detectnet_augmentation_param {{ {augmentation} }} transform_param {{ {transform} }}"""


# ---- images


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_nothing_to_change(run_layer, phase):
    image, label = run_layer(KIND, settings(truth="stride: 16"), IMAGE, labels(), phase=phase, tops=2)
    np.testing.assert_array_equal(image, IMAGE)
    assert label.shape == (1, 9, 2, 3)
    assert not label.any()


def test_one_and_three_means(run_layer):
    one, _ = run_layer(KIND, settings(transform="mean_value: 127"), IMAGE, labels(), tops=2)
    np.testing.assert_array_equal(one, IMAGE - 127)
    mean = "mean_value: 1 mean_value: 2 mean_value: 3"
    three, _ = run_layer(KIND, settings(transform=mean), IMAGE, labels(), tops=2)
    np.testing.assert_array_equal(three[0].numpy().transpose(1, 2, 0), IMAGE[0].transpose(1, 2, 0) - [1, 2, 3])


def test_a_mean_image_is_resized(run_layer, tmp_path):
    write_binaryproto(tmp_path / "mean", np.full((1, 3, 8, 8), 9, np.float32))
    found, _ = run_layer(KIND, settings(transform=f'mean_file: "{tmp_path}/mean"'), IMAGE, labels(), tops=2)
    np.testing.assert_allclose(found, IMAGE - 9, atol=1e-4)


def test_flip(run_layer):
    image, label = run_layer(KIND, settings(flip_prob=1), IMAGE, labels((4, 8, 12, 16, 1)), tops=2)
    np.testing.assert_array_equal(image, IMAGE[..., ::-1])
    assert label[0, 1, 3, 8] == 48 - 4 - 12 - 1 - 8 * 4  # x1, seen from the cell's corner


def test_test_images_are_resized(run_layer):
    image, label = run_layer(KIND, settings(size=(24, 16)), IMAGE, labels((8, 8, 16, 16, 1)), phase="TEST", tops=2)
    resized = cv2.resize(IMAGE[0].transpose(1, 2, 0), (24, 16), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(image[0], resized.transpose(2, 0, 1), atol=1e-3)
    assert label[0, 1:5, 2, 2].tolist() == [-4, -4, 4, 4]


def test_smaller_images_have_a_border(run_layer):
    text = settings(scale_prob=1, scale_min=0.5, scale_max=0.5)
    image, _ = run_layer(KIND, text, np.full((1, 3, 32, 48), 10), labels(), tops=2)
    expected = np.zeros((32, 48))
    expected[8:24, 12:36] = 10
    np.testing.assert_allclose(image[0, 0], expected, atol=1e-4)


def test_turned_images_have_empty_corners(run_layer):
    text = settings(rotation_prob=1, max_rotate_degree=80, scale_prob=1, scale_min=0.85, scale_max=0.85)
    for seed in range(5):
        torch.manual_seed(seed)
        (image,), _ = run_layer(KIND, text, np.full((1, 3, 32, 32), 10), labels(), tops=2)
        # the smaller image leaves a border of 2 pixels, and turning moves its corners further in or out of the cut
        assert not image[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
        np.testing.assert_allclose(image[:, 16, 24], 10, atol=1e-3)


def test_colours(run_layer):
    grey, _ = run_layer(KIND, settings(desaturation_prob=1, desaturation_max=0.9), IMAGE, labels(), tops=2)
    spread, before = (x[0].max(0) - x[0].min(0) for x in (grey.numpy(), IMAGE))
    np.testing.assert_allclose(grey[0].amax(0), IMAGE[0].max(0), atol=0.1)  # the value stays
    factor = spread.sum() / before.sum()
    assert 0.1 <= factor < 0.99
    np.testing.assert_allclose(spread, before * factor, atol=0.1)
    red = np.zeros((1, 3, 4, 4), np.float32)
    red[:, 2] = 255
    turned = Augmentation((4, 4), hue=120).of_image(red[0].transpose(1, 2, 0).copy(), None, (4, 4))
    np.testing.assert_allclose(turned[0, 0], [0, 255, 0], atol=1e-3)


def test_draws_by_chance():
    param = caffe_pb2.DetectNetAugmentationParameter(
        hue_rotation_prob=0.5, hue_rotation=20, desaturation_prob=0.25, flip_prob=0.75, scale_prob=0.5, scale_min=0.5,
        scale_max=0.8, rotation_prob=0.5, max_rotate_degree=5, crop_prob=0.5, shift_x=10, shift_y=4,
    )  # fmt: skip
    rng = np.random.RandomState(1)
    drawn = [Augmentation.draw(param, (100, 60), (50, 30), rng) for _ in range(4000)]
    for name, expected in (("hue", 0.5), ("flip", 0.75), ("rotation", 0.5)):
        assert np.mean([bool(getattr(d, name)) for d in drawn]) == pytest.approx(expected, abs=0.03)
    assert np.mean([d.saturation < 1 for d in drawn]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([d.scale != (100, 60) for d in drawn]) == pytest.approx(0.5, abs=0.03)
    assert max(abs(d.hue) for d in drawn) <= 20
    assert min(d.saturation for d in drawn) >= 0.5
    assert max(abs(d.rotation) for d in drawn) <= 5
    assert {50, 80} <= {d.scale[0] for d in drawn} <= {*range(50, 81), 100}
    plain = [d.offset for d in drawn if d.scale == (100, 60) and not d.rotation]
    assert (25, 15) in plain  # in the middle
    x, y = np.array(plain).T
    assert (x.min(), x.max()) == (-5, 55)
    assert (y.min(), y.max()) == (-2, 32)


def test_halves_go_away_from_zero():
    param = caffe_pb2.DetectNetAugmentationParameter(
        flip_prob=0, scale_prob=0, rotation_prob=0, hue_rotation_prob=0, desaturation_prob=0, crop_prob=0
    )
    assert Augmentation.draw(param, (41, 37), (48, 32), np.random.RandomState(0)).offset == (-4, 3)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "rotation"), [((96, 64), 0), ((72, 80), 0), ((96, 64), 90), ((120, 80), 90)])
def test_boxes_follow_their_image(flip, scale, rotation):
    """A bright square in the image is where its box says."""
    image = np.zeros((64, 96, 3), np.float32)
    image[20:32, 50:62] = 255
    change = Augmentation(scale, flip=flip, rotation=rotation, offset=(3, -5))
    out = (160, 160)
    found = change.of_image(image, None, out)[:, :, 0] > 127
    ((x, y, w, h),) = change.of_boxes(np.array([[50, 20, 12, 12]], np.float32), (96, 64))
    ys, xs = np.nonzero(found)
    centre = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    assert (x + w / 2, y + h / 2) == pytest.approx(centre, abs=2)
    if not rotation:
        assert (w, h) == pytest.approx((np.ptp(xs) + 1, np.ptp(ys) + 1), abs=1.5)


# ---- labels


def slow_label(boxes, classes, p):
    """Cell by cell, in float64."""
    mapping = {m.src: m.dst for m in p.object_class} or {1: 0}
    s = p.stride
    columns, rows = round(p.image_size_x / s), round(p.image_size_y / s)
    label = np.zeros((9 + max(mapping.values()), rows, columns))
    for (x1, y1, w, h), number in zip(boxes.astype(float), classes, strict=True):
        x2, y2 = x1 + w, y1 + h
        if p.crop_bboxes:
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, p.image_size_x), min(y2, p.image_size_y)
        if number not in mapping or x2 <= x1 or y2 <= y1:
            continue
        w, h = x2 - x1, y2 - y1
        mw, mh = w * p.scale_cvg, h * p.scale_cvg
        if p.gridbox_type == p.GRIDBOX_MIN:
            mw, mh = min(w, max(p.min_cvg_len, mw)), min(h, max(p.min_cvg_len, mh))
        else:
            mw, mh = min(p.max_cvg_len, mw), min(p.max_cvg_len, mh)
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        for r in range(rows):
            for c in range(columns):
                wide = min(cx + mw / 2, (c + 1) * s) - max(cx - mw / 2, c * s)
                high = min(cy + mh / 2, (r + 1) * s) - max(cy - mh / 2, r * s)
                if wide > 0 and high > 0 and wide * high / s**2 > 1.2e-7:
                    weight = s**2 / (mw * mh)
                    corners = [x1 - c * s, y1 - r * s, x2 - c * s, y2 - r * s]
                    label[:, r, c] = 0
                    label[:8, r, c] = [1, *corners, 1 / w, 1 / h, weight if p.obj_norm else max(1, weight)]
                    label[8 + mapping[number], r, c] = 1
    return label


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gridbox_type": "GRIDBOX_MIN", "min_cvg_len": 20, "scale_cvg": 0.4, "obj_norm": True},
        {"max_cvg_len": 5, "crop_bboxes": False, "stride": 8},
        {"stride": 16, "image_size_x": 120, "image_size_y": 88, "scale_cvg": 1.0},  # 7.5 cells, 5.5 cells
        {"classes": {1: 0, 8: 2}, "gridbox_type": "GRIDBOX_MIN", "min_cvg_len": 3},
    ],
)
def test_labels_cell_by_cell(options):
    options = dict(options)
    classes = options.pop("classes", {})
    p = caffe_pb2.DetectNetGroundTruthParameter(**{"image_size_x": 64, "image_size_y": 48, **options})
    for src, dst in classes.items():
        p.object_class.add(src=src, dst=dst)
    rng = np.random.RandomState(3)
    boxes = np.concatenate([rng.uniform(-20, 60, (12, 2)), rng.uniform(1, 40, (12, 2))], 1).astype(np.float32)
    numbers = rng.choice([0, 1, 8], 12)
    found = LabelGrid(p).label(boxes, numbers.astype(np.float32))
    np.testing.assert_allclose(found, slow_label(boxes, numbers, p), rtol=1e-5, atol=1e-5)
    assert found.any()


def test_a_label_by_hand(run_layer):
    """A box of 32 x 16 at (16, 16) of half its size: the middle is (24, 20) to (40, 28), cells 1 and 2 of row 1."""
    _, label = run_layer(KIND, settings(truth="stride: 16"), IMAGE, labels((16, 16, 32, 16, 1)), tops=2)
    weight = 256 / (16 * 8)
    assert label[0, :, 1, 1].tolist() == [1, 0, 0, 32, 16, 1 / 32, 1 / 16, weight, 1]
    assert label[0, :, 1, 2].tolist() == [1, -16, 0, 16, 16, 1 / 32, 1 / 16, weight, 1]
    assert label[0, 0].sum() == 2


# ---- errors


@pytest.mark.parametrize(
    ("text", "images", "boxes", "field", "message"),
    [
        (settings(truth="stride: 0"), IMAGE, labels(), "detectnet_groundtruth_param.stride", "must be positive"),
        (settings(truth="stride: 100"), IMAGE, labels(), "detectnet_groundtruth_param.stride", "has no cell"),
        (settings(transform="mean_value: 1 mean_value: 2"), IMAGE, labels(), "transform_param.mean_value", "one or"),
        (settings(transform='mean_file: "/nowhere"'), IMAGE, labels(), "transform_param.mean_file", "nowhere"),
        (settings(), IMAGE[:, :1], labels(), "bottom[0]", "needs images"),
        (settings(), IMAGE, labels(images=2), "bottom[1]", "boxes of 1 images"),
        (settings(), IMAGE, np.zeros((1, 1, 3, 16)), "bottom[1]", "begins with the number of boxes"),
        (settings(), IMAGE, labels((0, 0, 1, 1, 1))[:, :, :1], "bottom[1]", "announces 1 boxes, but has room for 0"),
        (settings(scale_prob=1, scale_min=0, scale_max=0), IMAGE, labels(),
         "detectnet_augmentation_param.scale_min", "leaves nothing"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(run_layer, text, images, boxes, field, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(KIND, text, images, boxes, tops=2)
    assert (caught.value.layer, caught.value.field) == ("it", field)
