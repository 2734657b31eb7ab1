"""SSD's operations on images, against OpenCV step by step and against formulas pixel by pixel."""

import cv2
import numpy as np
import pytest
from google.protobuf import text_format

from ohem_caffe_port.data import augment
from ohem_caffe_port.data.transform import Transformer
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

IMAGE = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8), (5, 5), 0)


def parsed(kind, text):
    return text_format.Parse(text, getattr(caffe_pb2, kind)())


def rng(seed=0):
    return np.random.RandomState(seed)


def resize(image, text, seed=0):
    return augment.resize(image, parsed("ResizeParameter", text), rng(seed))


# ---- resize_param


def test_warp_and_interpolation():
    np.testing.assert_array_equal(resize(IMAGE, "height: 20 width: 25"), cv2.resize(IMAGE, (25, 20)))
    expected = cv2.resize(IMAGE, (25, 20), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resize(IMAGE, "height: 20 width: 25 interp_mode: CUBIC"), expected)
    modes = "height: 20 width: 25 interp_mode: NEAREST interp_mode: AREA"
    found = {resize(IMAGE, modes, seed).tobytes() for seed in range(20)}
    flags = (cv2.INTER_NEAREST, cv2.INTER_AREA)
    assert found == {cv2.resize(IMAGE, (25, 20), interpolation=f).tobytes() for f in flags}


@pytest.mark.parametrize(
    ("size", "shape"),
    [("height: 30 width: 30", (30, 45)), ("height: 20 width: 50", (33, 50)), ("height: 7 width: 9", (7, 10))],
)  # fmt: skip
def test_fit_small_size_keeps_the_aspect(size, shape):
    # 60 / 40 = 1.5: the smaller side gets its size; the other is cut to whole pixels
    found = resize(IMAGE, f"resize_mode: FIT_SMALL_SIZE {size}")
    np.testing.assert_array_equal(found, cv2.resize(IMAGE, shape[::-1]))
    assert augment.resized_shape(parsed("ResizeParameter", f"resize_mode: FIT_SMALL_SIZE {size}"), 40, 60) == shape


@pytest.mark.parametrize(
    ("image", "inner", "padding"),
    [(IMAGE, (33, 22), (5, 6, 0, 0)), (IMAGE.transpose(1, 0, 2), (22, 33), (0, 0, 5, 6))],
    ids=["wide", "tall"],
)
@pytest.mark.parametrize(("mode", "border"), [("CONSTANT", 0), ("MIRRORED", 4), ("REPEAT_NEAREST", 1)])
def test_fit_large_size_and_pad(image, inner, padding, mode, border):
    settings = "resize_mode: FIT_LARGE_SIZE_AND_PAD height: 33 width: 33 pad_value: 7 pad_value: 8 pad_value: 9"
    expected = cv2.copyMakeBorder(cv2.resize(image, inner), *padding, border, value=(7, 8, 9))
    np.testing.assert_array_equal(resize(image, f"{settings} pad_mode: {mode}"), expected)


def test_grey_images_keep_their_axis():
    grey = IMAGE[:, :, :1]
    for mode in ("WARP", "FIT_SMALL_SIZE", "FIT_LARGE_SIZE_AND_PAD"):
        assert resize(grey, f"resize_mode: {mode} height: 20 width: 20").shape[2] == 1


def test_resize_comes_before_the_crop_and_the_mean():
    param = parsed("TransformationParameter", "resize_param { height: 20 width: 30 } crop_size: 10 mean_value: 9")
    blob, window = Transformer(param, False, rng()).apply(IMAGE)
    expected = cv2.resize(IMAGE, (30, 20))[5:15, 10:20].astype(np.float32) - 9
    np.testing.assert_array_equal(blob, expected.transpose(2, 0, 1))


# ---- noise_param


def noise(text, image=IMAGE):
    return augment.noise(image, parsed("NoiseParameter", text), rng())


def luminance(change):
    planes = list(cv2.split(cv2.cvtColor(IMAGE, cv2.COLOR_BGR2YCrCb)))
    planes[0] = change(planes[0])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2BGR)


def test_noise():
    grey = cv2.cvtColor(IMAGE, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(noise("decolorize: true"), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(noise("inverse: true"), 255 - IMAGE)
    np.testing.assert_array_equal(noise("posterize: true"), IMAGE // 64 * 64 + 32)
    np.testing.assert_array_equal(noise("gauss_blur: true"), cv2.GaussianBlur(IMAGE, (7, 7), 1.5))
    np.testing.assert_array_equal(noise("convert_to_hsv: true"), cv2.cvtColor(IMAGE, cv2.COLOR_BGR2HSV))
    np.testing.assert_array_equal(noise("hist_eq: true"), luminance(cv2.equalizeHist))
    np.testing.assert_array_equal(noise("clahe: true"), luminance(cv2.createCLAHE(4.0, (8, 8)).apply))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", IMAGE, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(noise("jpeg: 30"), jpeg)
    lab = cv2.cvtColor(IMAGE / np.float32(255), cv2.COLOR_BGR2Lab)
    np.testing.assert_allclose(noise("convert_to_lab: true"), lab, atol=1e-3)


def test_erosion_takes_the_least_of_a_cross():
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), constant_values=255)
    shifts = [padded[1 + y : 41 + y, 1 + x : 61 + x] for y, x in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    np.testing.assert_array_equal(noise("erode: true"), np.min(shifts, axis=0))


def test_saltpepper_replaces_a_fraction_and_spares_the_original():
    before = IMAGE.copy()
    found = noise("saltpepper: true saltpepper_param { fraction: 0.1 value: 1 value: 2 value: 3 }")
    changed = (found != IMAGE).any(2)
    assert 180 < changed.sum() <= 240  # some places are drawn twice
    assert (found[changed] == (1, 2, 3)).all()
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("settings", ["hist_eq: true", "clahe: true", "jpeg: 50", "erode: true", "gauss_blur: true"])
def test_noise_on_grey_images(settings):
    assert noise(settings, IMAGE[:, :, :1].copy()).shape == (40, 60, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("decolorize: true", "needs colour"),
        ("saltpepper: true", "is needed by saltpepper"),
        ("saltpepper: true saltpepper_param { value: 1 value: 2 }", "2 values for 1 channels"),
    ],
)
def test_noise_that_makes_no_sense(settings, message):
    with pytest.raises(PortError, match=message):
        noise(settings, IMAGE[:, :, :1])


# ---- distort_param


class Sequence:
    """Stands for the random stream: hands out fractions of the interval, in turn."""

    def __init__(self, *fractions):
        self.fractions = list(fractions)

    def uniform(self, low, high):
        return low + self.fractions.pop(0) * (high - low)


def slow_scaled(image, factor, offset):
    out = np.empty_like(image)
    for at in np.ndindex(*image.shape):
        out[at] = min(255, max(0, round(float(image[at]) * factor + offset)))
    return out


def slow_hsv(image, channel, factor, offset):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[:, :, channel] = slow_scaled(hsv[:, :, channel], factor, offset)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


DISTORT = """brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 0.5 contrast_lower: 0.5 contrast_upper: 1.5
             hue_prob: 0.5 hue_delta: 18 saturation_prob: 0.5 saturation_lower: 0.5 saturation_upper: 1.5"""
NO = 0.9


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        # order, then (whether, how much) of each; NO: not this one; the last: order of channels
        ([0.9, NO, NO, NO, NO, NO], lambda x: x),
        ([0.9, 0.1, 0.75, NO, NO, NO, NO], lambda x: slow_scaled(x, 1, 16)),
        ([0.9, NO, 0.1, 0.25, NO, NO, NO], lambda x: slow_scaled(x, 0.75, 0)),
        ([0.9, NO, NO, 0.1, 0.75, NO, NO], lambda x: slow_hsv(x, 1, 1.25, 0)),
        ([0.9, NO, NO, NO, 0.1, 0.75, NO], lambda x: slow_hsv(x, 0, 1, 9)),
        ([0.9, NO, 0.1, 1, NO, 0.1, 0.75, NO], lambda x: slow_hsv(slow_scaled(x, 1.5, 0), 0, 1, 9)),
        ([0.1, NO, NO, 0.1, 0.75, 0.1, 1, NO], lambda x: slow_scaled(slow_hsv(x, 0, 1, 9), 1.5, 0)),
    ],
)
def test_distortions_and_their_order(draws, expected):
    stream = Sequence(*draws)
    found = augment.distort(IMAGE[:8, :8].copy(), parsed("DistortionParameter", DISTORT), stream)
    np.testing.assert_array_equal(found, expected(IMAGE[:8, :8].copy()))
    assert stream.fractions == []


def test_random_order_of_channels():
    orders = {augment.distort(IMAGE, parsed("DistortionParameter", "random_order_prob: 1"), rng(s)).tobytes()
              for s in range(40)}  # fmt: skip
    assert len(orders) == 6


@pytest.mark.parametrize(
    "settings", ["brightness_prob: 1 brightness_delta: -1", "contrast_prob: 1 contrast_lower: 2 contrast_upper: 1"]
)
def test_distortions_that_make_no_sense(settings):
    with pytest.raises(PortError):
        augment.check_distortion(parsed("DistortionParameter", settings))


# ---- expand_param and crops


def test_expanded():
    canvas, box = augment.expanded(IMAGE, np.float32(2.5), np.array([104.4, 117.5, 123.6]), Sequence(0.26, 0.5))
    assert canvas.shape == (100, 150, 3)
    y, x = 15, 45  # floor(0.26 * 60), floor(0.5 * 90)
    np.testing.assert_array_equal(canvas[y : y + 40, x : x + 60], IMAGE)
    canvas[y : y + 40, x : x + 60] = (104, 118, 124)
    assert (canvas == (104, 118, 124)).all()
    np.testing.assert_allclose(box, [-45 / 60, -15 / 40, 105 / 60, 85 / 40], rtol=1e-6)


def test_cropped():
    found = augment.cropped(IMAGE, np.float32([0.26, 0.5, 0.52, 0.99]))
    np.testing.assert_array_equal(found, IMAGE[20:39, 15:30])  # 19.6 and 15.6 pixels, cut to whole ones
    assert augment.cropped(IMAGE, np.float32([1, 1, 1, 1])).shape == (1, 1, 3)
