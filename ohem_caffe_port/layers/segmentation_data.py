"""Images from a list of files, with a map each that labels every pixel."""

from __future__ import annotations

import cv2
import numpy as np

from ..data.augment import per_channel, with_channels
from ..data.transform import PIXELS
from ..errors import PortError
from .base import register
from .image_data import LIST_FIELDS, ImageListLayer


def _two_words(line: str) -> tuple[str, str]:
    words = line.split()
    if len(words) != 2:
        raise PortError(f"'{line}' is not two words without spaces", hint="a line is  <image> <label>")
    return words[0], words[1]


@register("ImageLabelmapData")
class ImageLabelmapData(ImageListLayer):
    """``ImageLabelmapDataLayer`` of HED: images with a map of edges each. Tops: data ``[N, C, H, W]``, edges
    ``[N, 1, H, W]``: 1 where the map is above 127, else 0.

    A line of the list is ``<image> <map>``, both of one size, resized together. ``mirror`` and ``crop_size`` treat both
    alike; the crop is at a random place in both phases.
    """

    fields = {"image_data_param": LIST_FIELDS, "transform_param": PIXELS}

    def parse(self, line):
        return _two_words(line)

    def open(self):
        self.transformer.train = True  # for the place of the crop
        return super().open()

    def shapes_of(self, path, other):
        image, _ = self._pair(path, other)
        channels, height, width = self.transformer.shape(image)
        return [(self.batch_size, channels, height, width), (self.batch_size, 1, height, width)]

    def load_item(self, path, other):
        image, edges = self._pair(path, other)
        blob, window = self.transformer.apply(image)
        return [blob, (window.of(edges) > 127).transpose(2, 0, 1).astype(np.float32)]

    def _pair(self, path, other):
        image, edges = self.read(path, self.settings.is_color, False), self.read(other, False, False)
        if image.shape[:2] != edges.shape[:2]:
            raise PortError(f"the map is {edges.shape[:2]}, its image {image.shape[:2]} (height, width)")
        if self.settings.new_height:
            size = self.settings.new_width, self.settings.new_height
            image, edges = (with_channels(cv2.resize(x, size)) for x in (image, edges))
        return image, edges


@register("ImageSegData")
class ImageSegData(ImageListLayer):
    """``ImageSegDataLayer`` of PSPNet: images with a map of classes each. Tops: data ``[N, C, H, W]``, classes
    ``[N, 1, H, W]``, and, with a third, the image's height and width, cut to the blob's,
    ``[N, 1, 1, 2]``.

    A line of the list is ``<image> <map>`` with ``label_type: PIXEL``, ``<image> <label>`` with IMAGE (one class for
    all pixels), ``<image>`` with NONE (``ignore_label`` everywhere). One of ``scale_factors`` scales both; what is then
    smaller than the crop (``crop_size``, or ``crop_height`` and ``crop_width``) is padded at the right and bottom with
    the mean and ``ignore_label``; both are cut and mirrored alike.
    """

    fields = {
        "image_data_param": LIST_FIELDS | {"label_type", "ignore_label"},
        "transform_param": (PIXELS - {"mean_file"}) | {"crop_height", "crop_width", "scale_factors"},
    }
    num_tops = (2, 3)

    def open(self):
        p = self.param.transform_param
        if p.crop_size and p.crop_height:
            raise PortError("cannot be given together with crop_height", field="transform_param.crop_size")
        if p.scale_factors and not self.transformer.crop[0]:
            raise PortError("needs a crop: images of one size", field="transform_param.scale_factors")
        return super().open()

    def parse(self, line):
        p = self.settings
        if p.label_type == p.NONE:
            return line.split()[0], p.ignore_label
        path, label = _two_words(line)
        if p.label_type == p.PIXEL:
            return path, label
        if not label.isdecimal() or int(label) > 255:
            raise PortError(f"'{label}' is no class of 0 to 255", hint="label_type: PIXEL  takes paths of maps")
        return path, int(label)

    def shapes_of(self, path, label):
        image, _ = self._pair(path, label)
        height, width = (crop or size for crop, size in zip(self.transformer.crop, image.shape, strict=False))
        n = self.batch_size
        return [(n, image.shape[2], height, width), (n, 1, height, width), (n, 1, 1, 2)][: len(self.param.top)]

    def load_item(self, path, label):
        image, classes = self._pair(path, label)
        size = np.array(image.shape[:2], np.float32)
        factors = self.param.transform_param.scale_factors
        if factors:
            factor = np.float32(factors[self.rng.randint(len(factors))])
            scaled = tuple(int(np.float32(n) * factor) for n in (image.shape[1], image.shape[0]))
            image = with_channels(cv2.resize(image, scaled))
            classes = with_channels(cv2.resize(classes, scaled, interpolation=cv2.INTER_NEAREST))
        blob, window = self.transformer.apply(self._padded(image, self._mean(image)))
        classes = window.of(self._padded(classes, [self.settings.ignore_label]))
        size = np.minimum(size, blob.shape[1:]).astype(np.float32).reshape(1, 1, 2)
        return [blob, classes.transpose(2, 0, 1).astype(np.float32), size][: len(self.param.top)]

    def _pair(self, path, label):
        image = self.read(path, self.settings.is_color)
        if isinstance(label, str):
            classes = self.read(label, False)
        else:
            classes = np.full((*image.shape[:2], 1), label, np.uint8)
        if image.shape[:2] != classes.shape[:2]:
            raise PortError(f"the map is {classes.shape[:2]}, its image {image.shape[:2]} (height, width)")
        return image, classes

    def _mean(self, image):
        values = self.param.transform_param.mean_value
        return per_channel(values, image.shape[2], "transform_param.mean_value") if values else None

    def _padded(self, image, fill):
        height, width = (max(c - s, 0) for c, s in zip(self.transformer.crop, image.shape, strict=False))
        if not height and not width:
            return image
        if fill is None:
            raise PortError("is needed to pad images smaller than the crop", field="transform_param.mean_value")
        padded = np.empty((image.shape[0] + height, image.shape[1] + width, image.shape[2]), np.float32)
        padded[:] = fill
        padded[: image.shape[0], : image.shape[1]] = image
        return padded
