"""Images from a list of files, with a label each."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from ..data.augment import with_channels
from ..data.image_size import image_size
from ..data.images import COLOR, GRAY, read_image
from ..data.transform import PIXELS, SSD_IMAGE
from ..errors import PortError
from .base import check_memory, register
from .batches import BatchLayer

LIST_FIELDS = {
    "source", "batch_size", "rand_skip", "shuffle", "new_height", "new_width", "is_color", "root_folder",
}  # fmt: skip


class ImageListLayer(BatchLayer):
    """Base of the layers that read ``image_data_param.source``: an image and what belongs to it on each line.

    ``root_folder`` is put before paths as it is, without a slash. The list is read over and over, with ``shuffle`` in
    a new order each time; ``rand_skip`` leaves out fewer than so many lines at the start, at random.
    """

    own_fields = "image_data_param"

    def open(self):
        p = self.settings
        if bool(p.new_height) != bool(p.new_width):
            raise self.error("new_height and new_width go together", field="image_data_param.new_height")
        check_memory(self, [(self.batch_size, 3 if p.is_color else 1, p.new_height, p.new_width)])
        self._lines = self._read_list(p.source)
        self._next = 0
        if p.shuffle:
            self._shuffle()
        if p.rand_skip:
            self._next = int(self.rng.randint(p.rand_skip))
            if self._next >= len(self._lines):
                raise PortError(
                    f"leaves out {self._next} images at random; the list has {len(self._lines)}",
                    field="image_data_param.rand_skip",
                    hint="it must not be larger than the list is long",
                )
        number, *entry = self._lines[self._next]
        with self.blaming(f"{p.source}:{number}"):
            return self.shapes_of(*entry)

    def parse(self, line: str) -> tuple[str, object]:
        """``(path, what belongs to it)`` of a line.

        Raises:
            PortError: the line lacks something.
        """
        raise NotImplementedError

    def shapes_of(self, path: str, other) -> list[tuple[int, ...]]:
        """Shapes of the tops, if all images are like this one."""
        raise NotImplementedError

    def load_item(self, path: str, other) -> list[np.ndarray]:
        """What the image at ``path`` adds to each top."""
        raise NotImplementedError

    def load_batch(self):
        rows, items = [], []
        for _ in range(self.batch_size):
            number, *entry = self.next_line()
            items.append(f"{self.settings.source}:{number}")
            with self.blaming(items[-1]):
                rows.append(self.load_item(*entry))
        return [self.stack(list(blobs), items) for blobs in zip(*rows, strict=True)]

    def next_line(self) -> tuple:
        """``(number of the line, path, what belongs to it)``."""
        line = self._lines[self._next]
        self._next += 1
        if self._next == len(self._lines):
            self._next = 0
            if self.settings.shuffle:
                self._shuffle()
        return line

    def read(self, path: str, color: bool, resize: bool = True) -> np.ndarray:
        """``[H, W, C]`` uint8, resized to ``new_height x new_width`` if they are given."""
        image = read_image(self.settings.root_folder + path, COLOR if color else GRAY)
        if resize and self.settings.new_height:
            image = cv2.resize(image, (self.settings.new_width, self.settings.new_height))
        return with_channels(image)

    def _read_list(self, source: str) -> list[tuple]:
        """``(number of the line, path, what belongs to it)`` for each line that is not blank."""
        try:
            text = Path(source).read_text(encoding="utf-8", errors="surrogateescape")
        except (OSError, ValueError) as error:
            raise PortError(f"the list '{source}' cannot be read: {getattr(error, 'strerror', error)}") from None
        lines = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                with self.blaming(f"{source}:{number}"):
                    lines.append((number, *self.parse(line.rstrip())))
        if not lines:
            raise PortError(f"the list '{source}' is empty")
        return lines

    def _shuffle(self) -> None:
        self._lines = [self._lines[i] for i in self.rng.permutation(len(self._lines))]


@register("ImageData")
class ImageData(ImageListLayer):
    """``ImageDataLayer``: batches of image files named in a list, with a label each. Tops: data ``[N, C, H, W]``, label
    ``[N]``.

    A line of the list is ``<path> <label>``; the path may hold spaces. Images are resized to ``new_height x new_width``
    before anything else; ``is_color: false`` makes them grey. Without resizing or cropping, shapes may differ from
    batch to batch. A line without a whole number is refused where Caffe would take 0.
    """

    fields = {"image_data_param": LIST_FIELDS, "transform_param": PIXELS | SSD_IMAGE}

    def parse(self, line):
        path, _, label = line.rpartition(" ")
        if not path or not re.fullmatch(r"[+-]?[0-9]{1,10}", label):
            raise PortError(f"'{line}' does not end with a label", hint="a line is  <path> <whole number>")
        return path.rstrip(), int(label)

    def shapes_of(self, path, label):
        image = self.transformer.shape(self.read(path, self.settings.is_color))
        return [(self.batch_size, *image), (self.batch_size,)]

    def load_item(self, path, label):
        return [self.transformer(self.read(path, self.settings.is_color)), np.array(label, np.float32)]

    def skip_batch(self):
        if self.transformer.needs_pixels:
            super().skip_batch()
            return
        for _ in range(self.batch_size):
            number, path, _ = self.next_line()
            with self.blaming(f"{self.settings.source}:{number}"):
                self.transformer.pass_over(lambda path=path: self._size(path))

    def _size(self, path) -> tuple[int, int]:
        """Height and width of the image that the transformer gets."""
        p = self.settings
        return (p.new_height, p.new_width) if p.new_height else image_size(p.root_folder + path)[::-1]
