"""``transform_param`` against a slow pixel-by-pixel formula."""

import numpy as np
import pytest
from google.protobuf import text_format

from converters.binaryproto import write_binaryproto
from ohem_caffe_port.data.transform import Transformer
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

IMAGE = np.random.RandomState(0).randint(0, 256, (7, 9, 3)).astype(np.uint8)
MEAN = np.random.RandomState(1).uniform(0, 255, (3, 7, 9)).astype(np.float32)


def transformer(settings="", train=True, seed=0):
    param = text_format.Parse(settings, caffe_pb2.TransformationParameter())
    return Transformer(param, train, np.random.RandomState(seed))


def slow(image, window, scale=1.0, mean=None, values=None, mirror_mean=True):
    """Caffe's loops (``DataTransformer::Transform``) in single precision, for the window that was drawn."""
    out = np.zeros((image.shape[2], window.height, window.width), np.float32)
    for c in range(image.shape[2]):
        for i in range(window.height):
            for j in range(window.width):
                target = window.width - 1 - j if window.mirrored else j
                pixel = np.float32(image[window.y + i, window.x + j, c])
                if mean is not None:
                    pixel -= mean[c, window.y + i, window.x + (j if mirror_mean else target)]
                if values is not None:
                    pixel -= np.float32(values[c if len(values) > 1 else 0])
                out[c, i, target] = pixel * np.float32(scale)
    return out


@pytest.fixture
def mean_file(tmp_path):
    write_binaryproto(tmp_path / "mean.binaryproto", MEAN)
    return f'mean_file: "{tmp_path / "mean.binaryproto"}"'


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("image", [IMAGE, IMAGE[:, :, :1], IMAGE.astype(np.float32) / 3], ids=["bgr", "grey", "float"])
@pytest.mark.parametrize(
    ("settings", "scale", "values"),
    [
        ("", 1, None),
        ("crop_size: 4", 1, None),
        ("crop_size: 4 mirror: true scale: 0.00390625 mean_value: 104.3", 0.00390625, [104.3]),
        ("mirror: true scale: 0.017 mean_value: 99", 0.017, [99]),
    ],
)
def test_every_pixel(settings, image, scale, values, train):
    transform = transformer(settings, train)
    for _ in range(6):
        blob, window = transform.apply(image)
        np.testing.assert_array_equal(blob, slow(image, window, scale, values=values))
        assert blob.dtype == np.float32 and blob.shape == transform.shape(image)


def test_a_value_for_each_channel():
    blob, window = transformer("mean_value: 1 mean_value: 2.5 mean_value: 200 scale: 0.3").apply(IMAGE)
    np.testing.assert_array_equal(blob, slow(IMAGE, window, 0.3, values=[1, 2.5, 200]))


@pytest.mark.parametrize(("settings", "mirror_mean"), [("", True), ("noise_param {}", False)], ids=["bvlc", "ssd"])
@pytest.mark.parametrize("train", [True, False])
def test_the_mean_image_is_cut_and_mirrored_like_the_image(mean_file, settings, mirror_mean, train):
    transform = transformer(f"{mean_file} crop_size: 5 mirror: true scale: 0.5 {settings}", train)
    seen = set()
    for _ in range(20):
        blob, window = transform.apply(IMAGE)
        cut = window._replace(y=0, x=0)
        mean = MEAN[:, window.y : window.y + 5, window.x : window.x + 5]
        expected = slow(IMAGE[window.y : window.y + 5, window.x : window.x + 5], cut, 0.5, mean, None, mirror_mean)
        np.testing.assert_array_equal(blob, expected)
        seen.add(window.mirrored)
    assert seen == {True, False}


def test_the_crop_is_random_in_train_and_centred_in_test():
    places = {transformer("crop_size: 5", seed=seed).apply(IMAGE)[1][:2] for seed in range(150)}
    assert places == {(y, x) for y in range(3) for x in range(5)}
    assert transformer("crop_size: 4", train=False).apply(IMAGE)[1][:2] == (1, 2)


@pytest.mark.parametrize("settings", ["crop_h: 3 crop_w: 6", "crop_height: 3 crop_width: 6"])
def test_crops_that_are_no_squares(settings):
    blob, window = transformer(settings, train=False).apply(IMAGE)
    assert blob.shape == (3, 3, 6) and window[:2] == (2, 1)
    np.testing.assert_allclose(window.box, [1 / 9, 2 / 7, 7 / 9, 5 / 7], rtol=1e-6)


def test_mirror_happens_half_of_the_time():
    transform = transformer("mirror: true", train=False)
    count = sum(transform.apply(IMAGE)[1].mirrored for _ in range(400))
    assert 160 < count < 240


def test_one_seed_gives_one_stream():
    settings = "mirror: true crop_size: 3"
    one, two, other = (transformer(settings, seed=seed) for seed in (5, 5, 6))
    streams = [np.stack([t(IMAGE) for _ in range(8)]) for t in (one, two, other)]
    np.testing.assert_array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ("crop_size: 8", "crop_size", "8 x 8 from an image of 7 x 9"),
        ("crop_h: 8 crop_w: 1", "", "8 x 1 from an image"),
        ("crop_h: 8", "", "a height or a width, not both"),
        ("mean_value: 1 mean_value: 2", "mean_value", "2 values for 3 channels"),
        ('mean_value: 1 mean_file: "x"', "mean_file", "together with mean_value"),
        ('mean_file: "no/such.binaryproto"', "mean_file", "no/such.binaryproto: there is no such file"),
        ("force_color: true force_gray: true", "force_color", "together with force_gray"),
        ("resize_param { height: 3 }", "resize_param", "must be positive"),
    ],
)
def test_what_makes_no_sense(settings, field, message):
    with pytest.raises(PortError, match=message) as caught:
        transformer(settings)(IMAGE)
    assert caught.value.field == f"transform_param.{field}".rstrip(".")


def test_a_mean_of_another_size(mean_file):
    with pytest.raises(PortError, match=r"the mean is \(3, 7, 9\).*the image \(3, 6, 9\)") as caught:
        transformer(mean_file)(IMAGE[:6])
    assert caught.value.field == "transform_param.mean_file"
