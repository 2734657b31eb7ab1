"""MS-CNN's and cascade-rcnn's window files, and their way of scaling and cropping an image with its boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import PortError
from .windows import round_half_away


@dataclass
class Picture:
    """One image of a window file.

    Attributes:
        path: as in the file.
        height, width: of the image, pixels.
        boxes: objects ``[n, 4]`` (x1, y1, x2, y2) float32, pixels.
        labels: ``[n]`` int64, above 0.
        ignored, difficult: ``[n]`` bool.
        regions: ``[m, 4]`` float32, where nothing shall be learnt from.
    """

    path: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    difficult: np.ndarray
    regions: np.ndarray


def read_gt_windows(source: str, difficult: bool) -> list[Picture]:
    """Reads a window file: words, on lines as you like. For each image: ``# index``, path (without spaces), channels,
    height, width; the number of objects and for each ``label ignore [difficult] x1 y1 x2 y2``; the number of regions to
    leave out and for each ``x1 y1 x2 y2``; all whole numbers.

    Args:
        difficult: whether the file has that column: cascade-rcnn's have, MS-CNN's have not.

    Raises:
        PortError: the file cannot be read, or a word is not what it should be; ``line`` says where.
    """
    try:
        lines = Path(source).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise PortError(f"the window file '{source}' cannot be read: {getattr(error, 'strerror', error)}") from None
    words = _Words(source, ((n, word) for n, line in enumerate(lines, start=1) for word in line.split()))
    pictures = []
    while words.more():
        pictures.append(_picture(words, difficult))
    if not pictures:
        raise PortError(f"the window file '{source}' is empty")
    return pictures


def _picture(words: _Words, difficult: bool) -> Picture:
    if words.take() != "#":
        raise words.error("'#' should begin an image")
    words.number()
    path, channels, height, width, count = words.take(), *(words.number() for _ in range(4))
    if channels != 3 or height < 1 or width < 1:
        raise words.error(f"an image of {channels} channels, {height} x {width}; 3 channels are read")
    columns = 7 if difficult else 6
    rows = np.array([words.number() for _ in range(columns * count)], np.int64).reshape(-1, columns)
    boxes = rows[:, -4:].astype(np.float32)
    if (rows[:, 0] <= 0).any():
        raise words.error("a box with a label of 0 or less: 0 is background")
    if difficult and (boxes[:, 2:] < boxes[:, :2]).any():
        raise words.error("a box that ends before it starts")
    regions = np.array([words.number() for _ in range(4 * words.number())], np.float32).reshape(-1, 4)
    flags = rows[:, 2] if difficult else np.zeros(len(rows))
    return Picture(path, height, width, boxes, rows[:, 0], rows[:, 1] != 0, flags != 0, regions)


class _Words:
    """The words of a file one by one, and where the last one stood."""

    def __init__(self, source, words):
        self.source, self._words = source, words
        self._last, self._next = (1, ""), next(words, None)

    def more(self) -> bool:
        return self._next is not None

    def take(self) -> str:
        if self._next is None:
            raise self.error("the window file ends in the middle of an image")
        self._last, self._next = self._next, next(self._words, None)
        return self._last[1]

    def number(self) -> int:
        word = self.take()
        try:
            return int(word)
        except ValueError:
            raise self.error(f"'{word}' should be a whole number") from None

    def error(self, message: str) -> PortError:
        return PortError(message, file=self.source, line=self._last[0])


class View:
    """An image on its way into a blob, with the boxes and regions that move with it (all float32).

    Attributes:
        image: ``[H, W, 3]`` uint8.
        boxes, regions: ``[n, 4]``, in pixels of the image as it is now.
        area: after :meth:`place`, (x, y, width, height) of the part of the blob that shows the image.
    """

    def __init__(self, image: np.ndarray, boxes: np.ndarray, regions: np.ndarray):
        self.image, self.boxes, self.regions = image, boxes, regions

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.shape[1], self.image.shape[0]

    def _move(self, scale, shift=(0, 0)) -> None:
        scale, shift = (np.array([*v, *v], np.float32) for v in (scale, shift))
        self.boxes, self.regions = (boxes * scale + shift for boxes in (self.boxes, self.regions))

    def mirror(self) -> None:
        """Left and right exchanged: ``x`` becomes ``width - x``."""
        self.image = self.image[:, ::-1]
        flipped = [boxes[:, [2, 1, 0, 3]] for boxes in (self.boxes, self.regions)]
        for boxes in flipped:
            boxes[:, ::2] = self.size[0] - boxes[:, ::2]
        self.boxes, self.regions = flipped

    def resize(self, width: int, height: int) -> None:
        """Another size; nothing happens if it has that size."""
        if (width, height) != self.size:
            self._move((np.float32(width) / self.size[0], np.float32(height) / self.size[1]))
            self.image = cv2.resize(np.ascontiguousarray(self.image), (width, height), interpolation=cv2.INTER_LINEAR)

    def zoom(self, factors, centre) -> np.ndarray:
        """Scales by ``factors`` (x, y), float32; of what grows by more than 1.5, only the surroundings of ``centre``.

        Returns:
            where the centre is afterwards.
        """
        centre = np.array(centre, np.float32)
        if max(factors) > 1.5:
            size = [
                min(round_half_away(1.2 * side / float(f)), side) for side, f in zip(self.size, factors, strict=True)
            ]
            first = [max(round_half_away(float(c) - s * 0.5), 0) for c, s in zip(centre, size, strict=True)]
            x, y = (f - max(f + s - side, 0) for f, s, side in zip(first, size, self.size, strict=True))
            self.image = self.image[y : y + size[1], x : x + size[0]]
            self._move((1, 1), (-x, -y))
            centre -= np.array([x, y], np.float32)
        if tuple(factors) != (1, 1):
            width, height = (round_half_away(side * factor) for side, factor in zip(self.size, factors, strict=True))
            self.image = cv2.resize(np.ascontiguousarray(self.image), (width, height), interpolation=cv2.INTER_LINEAR)
            self._move(factors)
        return centre * np.array(factors, np.float32)

    def place(self, blob: np.ndarray, centre, noise, mean, scale) -> None:
        """Puts the image, minus ``mean`` and times ``scale``, into ``blob [3, h, w]`` of zeros, and sets :attr:`area`.

        Along an axis where it is smaller it lies in the middle, moved by ``noise`` pixels; where it is larger, what is
        around ``centre``, moved likewise, is shown.
        """
        target, source, extent = [], [], []
        for side, full, c, n in zip(self.size, blob.shape[:0:-1], centre, noise, strict=True):
            free = full - side
            target.append(min(max(round_half_away(free / 2) + n, 0), free) if free > 0 else 0)
            source.append(min(max(round_half_away(c) + n - round_half_away(full / 2), 0), -free) if free < 0 else 0)
            extent.append(min(side, full))
        (x, y), (from_x, from_y), (w, h) = target, source, extent
        pixels = self.image[from_y : from_y + h, from_x : from_x + w].transpose(2, 0, 1).astype(np.float32)
        if mean is not None:
            pixels -= mean
        blob[:, y : y + h, x : x + w] = pixels * np.float32(scale)
        self._move((1, 1), (x - from_x, y - from_y))
        self.area = x, y, w, h
