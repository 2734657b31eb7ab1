import zlib

import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.images import AS_STORED, COLOR, GRAY, decode_image, images_ahead, read_image, read_indices
from ohem_caffe_port.errors import PortError

IMAGE = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8), (3, 3), 0)


def encoded(kind, image=IMAGE):
    return cv2.imencode(kind, image)[1].tobytes()


def test_flags():
    grey = IMAGE[:, :, 0].copy()
    np.testing.assert_array_equal(decode_image(encoded(".png")), IMAGE)
    assert decode_image(encoded(".png"), GRAY).shape == (6, 8)
    np.testing.assert_array_equal(decode_image(encoded(".png", grey), COLOR), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(decode_image(encoded(".png", grey), AS_STORED), grey)


@pytest.mark.parametrize("flags", [COLOR, GRAY, AS_STORED])
def test_orientation_is_not_applied(flags):
    jpeg = encoded(".jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # rotate by 90 degrees
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    np.testing.assert_array_equal(decode_image(turned, flags), decode_image(jpeg, flags))


@pytest.mark.parametrize("content", [b"", b"no image", encoded(".jpg")[:-30], encoded(".png")[:20]])
def test_what_is_no_image(tmp_path, content):
    assert decode_image(content) is None
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(PortError, match="not an image, or damaged"):
        read_image(tmp_path / "image")


@pytest.mark.parametrize("name", ["nothing.jpg", "", "with\0null"])
def test_what_cannot_be_read(tmp_path, name):
    with pytest.raises(PortError, match="cannot read the image"):
        read_image(f"{tmp_path}/{name}")


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_images_ahead_come_in_order(tmp_path, count):
    paths = [tmp_path / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((2, 3, 3), k, np.uint8))
    assert [image[0, 0, 0] for image in images_ahead(paths)] == list(range(count))


def test_few_images_are_ahead(tmp_path):
    """Also where the caller takes its time, and none is read once it has gone."""
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    asked = []
    images = images_ahead(asked.append(k) or tmp_path / "a.png" for k in range(20))
    for taken in range(1, 6):
        next(images)
        assert len(asked) == taken + 2
    images.close()
    assert len(asked) == 7


def test_an_error_comes_in_the_turn_of_its_image(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    images = images_ahead([tmp_path / "a.png", tmp_path / "absent.png", tmp_path / "a.png"])
    np.testing.assert_array_equal(next(images), IMAGE)
    with pytest.raises(PortError, match="cannot read the image"):
        next(images)


def palette_png(indices, bits, extra=()):
    """A PNG with a palette, from the specification: every index has a colour of its own."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    height, width = indices.shape
    shifted = [[int(v) << (8 - bits - i % (8 // bits) * bits) for i, v in enumerate(row)] for row in indices]
    rows = [bytes(sum(row[i : i + 8 // bits]) for i in range(0, width, 8 // bits)) for row in shifted]
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    colours = bytes((i * 7 + c * 50) % 256 for i in range(2**bits) for c in range(3))
    parts = [(b"IHDR", size + bytes([bits, 3, 0, 0, 0])), (b"PLTE", colours), *extra,
             (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("extra", [[], [(b"tRNS", b"\0\xff"), (b"tEXt", b"a\0b")]])
def test_indices_of_a_palette(tmp_path, bits, extra):
    indices = np.random.RandomState(bits).randint(0, 2**bits, (5, 16))
    (tmp_path / "map.png").write_bytes(palette_png(indices, bits, extra))
    assert read_image(tmp_path / "map.png").shape == (5, 16, 3)  # it is an image to everybody else, too
    np.testing.assert_array_equal(read_indices(tmp_path / "map.png"), indices)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_maps_are_read_as_they_are(tmp_path, kind):
    indices = np.random.RandomState(0).randint(0, np.iinfo(kind).max, (4, 5)).astype(kind)
    cv2.imwrite(str(tmp_path / "map.png"), indices)
    np.testing.assert_array_equal(read_indices(tmp_path / "map.png"), indices)


def test_a_map_with_colours(tmp_path):
    cv2.imwrite(str(tmp_path / "map.png"), IMAGE)
    with pytest.raises(PortError, match="has 3 channels"):
        read_indices(tmp_path / "map.png")
    (tmp_path / "cut.png").write_bytes(palette_png(np.zeros((3, 8)), 8)[:60])
    with pytest.raises(PortError, match="damaged"):
        read_indices(tmp_path / "cut.png")
