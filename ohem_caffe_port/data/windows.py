"""R-CNN's window files: images with boxes and how much each overlaps an object; and cutting such a box out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import PortError


@dataclass
class Windows:
    """``images``: paths; ``foreground`` and ``background``: ``[n, 6]`` float32 rows of image, label, x1, y1, x2, y2 in
    pixels, inclusive corners, label 0 in the background."""

    images: list[str]
    foreground: np.ndarray
    background: np.ndarray


def read_windows(source: str, fg_threshold: float, bg_threshold: float) -> Windows:
    """Reads a window file. For each image: ``# index``, path, channels, height, width, number of windows, each on a
    line of its own; then a line ``class overlap x1 y1 x2 y2`` for each window.

    A window is foreground with an overlap of at least ``fg_threshold``, background below ``bg_threshold``, else it is
    not used.

    Raises:
        PortError: the file cannot be read, or a line is not what it should be; ``line`` says which.
    """
    images, kept = [], {True: [], False: []}
    try:
        with Path(source).open(encoding="utf-8", errors="surrogateescape") as file:
            lines = ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())
            for number, line in lines:
                if line.split() != ["#", str(len(images))]:
                    raise PortError(f"'{line}' should be '# {len(images)}'", file=source, line=number)
                path = _next(lines, source)[1]
                channels, _, _, count = (_whole(*_next(lines, source), source) for _ in range(4))
                if channels != 3:
                    raise PortError(f"image of {channels} channels; 3 are read", file=source, line=number)
                rows = np.array([_row(*_next(lines, source), source) for _ in range(count)], np.float32).reshape(-1, 6)
                overlaps = rows[:, 1]
                foreground = overlaps >= np.float32(fg_threshold)
                if (rows[foreground, 0] <= 0).any():
                    raise PortError("a foreground window needs a class above 0", file=source, line=number)
                background = ~foreground & (overlaps < np.float32(bg_threshold))
                rows[background, 0] = 0
                rows[:, 0], rows[:, 1] = len(images), rows[:, 0].copy()
                for is_fg, mask in ((True, foreground), (False, background)):
                    kept[is_fg].append(rows[mask])
                images.append(path)
    except (OSError, ValueError) as error:
        raise PortError(f"the window file '{source}' cannot be read: {getattr(error, 'strerror', error)}") from None
    if not images:
        raise PortError(f"the window file '{source}' is empty")
    return Windows(images, np.concatenate(kept[True]), np.concatenate(kept[False]))


def _next(lines, source: str) -> tuple[int, str]:
    found = next(lines, None)
    if found is None:
        raise PortError("the window file ends in the middle of an image", file=source)
    return found


def _whole(number: int, line: str, source: str) -> int:
    if not line.isdecimal():
        raise PortError(f"'{line}' should be a whole number", file=source, line=number)
    return int(line)


def _row(number: int, line: str, source: str) -> list[float]:
    try:
        row = [float(word) for word in line.split()]
    except ValueError:
        row = []
    if len(row) != 6 or not all(map(math.isfinite, row)):
        raise PortError(f"'{line}' should be  class overlap x1 y1 x2 y2", file=source, line=number)
    return row


def round_half_away(x: float) -> int:
    """C's ``round`` of a number; that of tensors is :func:`ohem_caffe_port.ops.rois.round_half_away`."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x))


def _with_context(box, crop_size: int, context_pad: int, square: bool) -> list[int]:
    """The box grown so that ``context_pad`` pixels of surroundings are on each side after the warp, and to a square."""
    x1, y1, x2, y2 = box
    scale = np.float32(crop_size) / np.float32(crop_size - 2 * context_pad)
    half_height, half_width = np.float32((y2 - y1 + 1) / 2), np.float32((x2 - x1 + 1) / 2)
    x, y = np.float32(x1) + half_width, np.float32(y1) + half_height
    if square:
        half_height = half_width = max(half_height, half_width)
    return [round_half_away(x - half_width * scale), round_half_away(y - half_height * scale),
            round_half_away(x + half_width * scale), round_half_away(y + half_height * scale)]  # fmt: skip


def warped_window(image, box, crop_size: int, context_pad: int, square: bool, mirror: bool):
    """A box of an image, warped to ``crop_size x crop_size`` with context around it (R-CNN, appendix A).

    Args:
        image: ``[H, W, 3]`` uint8.
        box: ``(x1, y1, x2, y2)`` whole pixels, inclusive.
        context_pad: pixels of surroundings on each side of the result.
        square: ``crop_mode: "square"``: the tightest square instead of the box.
        mirror: left and right exchanged.

    Returns:
        the warped patch ``[h, w, 3]``, and the row and column where it lies in the crop; what is outside the image is
        not covered.

    Raises:
        PortError: the box lies outside the image.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    rows = columns = crop_size
    pad_h = pad_w = 0
    if context_pad > 0 or square:
        x1, y1, x2, y2 = _with_context(box, crop_size, context_pad, square)
        scale_x = np.float32(crop_size) / np.float32(x2 - x1 + 1)
        scale_y = np.float32(crop_size) / np.float32(y2 - y1 + 1)
        left, top, right = max(0, -x1), max(0, -y1), max(0, x2 - width + 1)
        x1, y1, x2, y2 = x1 + left, y1 + top, x2 - right, min(y2, height - 1)
        columns = round_half_away(np.float32(x2 - x1 + 1) * scale_x)
        rows = round_half_away(np.float32(y2 - y1 + 1) * scale_y)
        pad_h = round_half_away(np.float32(top) * scale_y)
        pad_w = round_half_away(np.float32(right if mirror else left) * scale_x)
        rows, columns = min(rows, crop_size - pad_h), min(columns, crop_size - pad_w)
    if not (0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height and rows > 0 and columns > 0):
        raise PortError(f"window {tuple(box)} lies outside the image of {width} x {height} (width x height)")
    patch = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], (columns, rows), interpolation=cv2.INTER_LINEAR)
    return (patch[:, ::-1] if mirror else patch), pad_h, pad_w
