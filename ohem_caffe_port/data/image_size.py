"""What an image file tells without decoding its pixels: width and height, and whether it is cut off."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2

from ..errors import PortError


def image_size(path) -> tuple[int, int]:
    """``(width, height)`` in pixels of the image file ``path``.

    JPEG and PNG headers are parsed; any other format is decoded by OpenCV. As in the original (which asked PIL), an
    EXIF orientation is not applied: read such images with ``cv2.IMREAD_IGNORE_ORIENTATION``.

    Raises:
        PortError: the file is missing, is no image, or is a JPEG that was cut off.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = _size_from_header(file)
            cut_off = size is not None and _may_be_cut_off(file) and is_cut_off(path.read_bytes())
    except FileNotFoundError:
        raise PortError(
            "image not found", file=path, hint="Put the image there or take it out of the image set."
        ) from None
    except (struct.error, IndexError):  # the header ends before the size
        size, cut_off = None, False
    if cut_off:
        raise PortError("not a readable image: the JPEG file is cut off", file=path, hint="Replace the file.")
    if size is None:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise PortError(
                "not a readable image", file=path, hint="Replace the file: it is cut off or of another kind."
            )
        size = image.shape[1], image.shape[0]
    return size


def encoded_size(encoded: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG that tells them in its header; None of others."""
    try:
        size = _size_from_header(io.BytesIO(encoded))
    except (struct.error, IndexError):
        return None
    return size and size[::-1]


def is_cut_off(encoded: bytes) -> bool:
    """Whether the bytes of a JPEG file end before its picture does; False for anything else.

    Some decoders fill what is missing with grey and go on, so nobody would notice.
    """
    if encoded[:2] != b"\xff\xd8":
        return False
    at = 2
    while encoded[at : at + 1] == b"\xff":
        if encoded[at + 1 : at + 2] == b"\xda":  # the first scan: from here on the end marker cannot be mistaken
            return encoded.find(b"\xff\xd9", at) < 0
        fill = encoded[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return at >= len(encoded)  # in the header already; else something that is no JPEG follows


def _may_be_cut_off(file) -> bool:
    """False, after one look at the last two bytes, for nearly every complete JPEG."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return False
    file.seek(-2, 2)
    return file.read(2) != b"\xff\xd9"


def _size_from_header(file) -> tuple[int, int] | None:
    start = file.read(2)
    if start == b"\xff\xd8":
        return _jpeg_size(file)
    if start == b"\x89P":
        file.seek(16)  # IHDR is always the first chunk
        return struct.unpack(">II", file.read(8))
    return None


def _jpeg_size(file) -> tuple[int, int] | None:
    """Walks the segments up to the first start of frame (ITU T.81, B.2.2)."""
    while True:
        marker = file.read(1)
        if marker != b"\xff":
            return None
        while marker == b"\xff":  # any number of fill bytes
            marker = file.read(1)
        length = struct.unpack(">H", file.read(2))[0]
        if 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xHH", file.read(5))
            return (width, height) if height else None  # height 0: given later by a DNL marker
        file.seek(length - 2, 1)
