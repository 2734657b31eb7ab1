"""Decoding image files: one home for how pixels come from bytes."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ..errors import PortError
from .image_size import is_cut_off

COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
AS_STORED = cv2.IMREAD_UNCHANGED  # grey stays grey, transparency and 16 bits stay too


def decode_image(encoded: bytes, flags: int = COLOR) -> np.ndarray | None:
    """The bytes of an image file as ``[H, W]`` or ``[H, W, C]`` BGR, as stored (no EXIF rotation); None when they are
    no image or a JPEG that was cut off."""
    if not encoded or is_cut_off(encoded):
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV takes
        return None


def read_image(path, flags: int = COLOR) -> np.ndarray:
    """An image file as ``[H, W, 3]`` uint8 BGR (``[H, W]`` with :data:`GRAY`), as stored: no EXIF rotation, which
    annotations do not know either.

    Raises:
        PortError: it is missing, not an image, or a JPEG that was cut off.
    """
    return _decoded(_read(path), flags, path)


def images_ahead(paths: Iterable) -> Iterator[np.ndarray]:
    """:func:`read_image` of one path after the other, up to two ahead of use, in a thread of its own.

    Raises:
        PortError: as :func:`read_image`, in the turn of the image that it is about.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
        for path in paths:
            waiting.append(pool.submit(read_image, path))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_indices(path) -> np.ndarray:
    """A map of labels ``[H, W]``, uint8 or uint16: the numbers that its file stores. Of a PNG with a palette, as those
    of PASCAL VOC, these are the indices, where OpenCV knows nothing but colours.

    Raises:
        PortError: as :func:`read_image`, or the image has more than one channel.
    """
    encoded = _read(path)
    bits = _palette_bits(encoded)
    if bits:
        encoded = _without_palette(encoded)
    image = _decoded(encoded, AS_STORED, path)
    if image.ndim != 2:
        raise PortError(f"has {image.shape[2]} channels; a map of labels has one", file=path)
    return image // (255 // (2**bits - 1)) if 0 < bits < 8 else image  # 0 to 255 is what a decoder makes of few bits


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise PortError(f"cannot read the image: {getattr(error, 'strerror', error)}", file=path) from None


def _decoded(encoded: bytes, flags: int, path) -> np.ndarray:
    image = decode_image(encoded, flags)
    if image is None:
        what = "not an image, or damaged" + (": the JPEG file is cut off" if is_cut_off(encoded) else "")
        raise PortError(what, file=path, hint="replace the file or remove it from the image set")
    return image


def _palette_bits(encoded: bytes) -> int:
    """Bits of an index, 1 to 8, of a PNG with a palette; 0 for anything else."""
    is_one = encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[12:16] == b"IHDR" and encoded[25:26] == b"\3"
    return encoded[24] if is_one else 0


def _without_palette(png: bytes) -> bytes:
    """The same PNG as a grey one: another colour type, and no chunks that belong to the palette."""
    header = png[12:25] + b"\0" + png[26:29]
    parts, start = [png[:12], header, zlib.crc32(header).to_bytes(4, "big")], 33
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        if png[start + 4 : start + 8] not in (b"PLTE", b"tRNS", b"bKGD", b"hIST"):
            parts.append(png[start:end])
        start = end
    return b"".join(parts)
