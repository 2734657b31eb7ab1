"""Images from a list of files, with a map each that labels every pixel."""

from __future__ import annotations

import cv2
import numpy as np

from ..data.augment import per_channel, with_channels
from ..data.images import GRAY, read_image
from ..data.transform import PIXELS, Window
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


@register("SegData")
class SegData(ImageListLayer):
    """``SegDataLayer`` of yjxiong: an image at a time with a map of classes, scaled and cut at random. Tops: data
    ``[1, 3, H, W]``, classes ``[1, 1, H, W]``.

    A line of the list is ``<image> <map>``, both of one size; ``root_dir`` is put before them as it is. Both are scaled
    by a random factor between the two ``scale_ratios`` (in steps of a thousandth), cut at a random place to whole
    multiples of ``stride``, at most ``upper_size`` (or ``upper_height`` and ``upper_width``, which need not be such
    multiples), and mirrored alike, in both phases. With ``balance``, up to ten times, a cut of which one class has more
    than four fifths is replaced by another. ``shuffle`` gives the same order in every run, as in the fork.
    """

    fields = {
        "seg_data_param": {"source", "root_dir", "shuffle", "balance"},
        "transform_param": {
            "scale", "mirror", "mean_value", "scale_ratios", "stride", "upper_size", "upper_height", "upper_width",
        },
    }  # fmt: skip
    own_fields = "seg_data_param"

    def open(self):
        p = self.param.transform_param
        if len(p.scale_ratios) not in (0, 2) or list(p.scale_ratios) != sorted(p.scale_ratios):
            raise PortError("two are needed, the smaller one first", field="transform_param.scale_ratios")
        if p.stride < 1:
            raise PortError("must be positive", field="transform_param.stride")
        if p.HasField("upper_height") != p.HasField("upper_width"):
            raise PortError("upper_height and upper_width go together", field="transform_param.upper_height")
        upper = (p.upper_height, p.upper_width) if p.HasField("upper_height") else (1 << 30, 1 << 30)
        self._upper = (p.upper_size, p.upper_size) if p.HasField("upper_size") else upper
        self._orders = np.random.RandomState(17)
        self._lines, self._next = self._read_list(self.settings.source), 0
        if self.settings.shuffle:
            self._shuffle()
        number, *entry = self._lines[0]
        with self.blaming(f"{self.settings.source}:{number}"):
            height, width = self._crop(*self._pair(*entry)[0].shape[:2])
        return [(1, 3, height, width), (1, 1, height, width)]

    def parse(self, line):
        return _two_words(line)

    def load_item(self, path, other):
        image, classes = self._pair(path, other)
        for attempt in range(11):
            blobs = self._one(image, classes)
            counts = np.unique(blobs[1], return_counts=True)[1]
            if not self.settings.balance or attempt == 10 or counts.max() <= 0.8 * blobs[1].size:
                break
        return blobs

    def _one(self, image, classes):
        p = self.param.transform_param
        mirrored = bool(p.mirror and self.rng.randint(2))
        factor = np.float32(1)
        if p.scale_ratios:
            lower, upper = (np.float32(ratio) for ratio in p.scale_ratios)
            factor = np.float32(self.rng.randint(int(float(upper - lower) * 1000) + 1) / 1000 + float(lower))
        height, width = (int(float(np.float32(size) * factor) + 0.5) for size in image.shape[:2])
        crop = self._crop(height, width)
        y, x = (int(self.rng.randint(n - c + 1)) for n, c in zip((height, width), crop, strict=True))
        window = Window(y, x, *crop, height, width, mirrored)
        blob = window.of(with_channels(cv2.resize(image, (width, height)))).transpose(2, 0, 1).astype(np.float32)
        mean = self.transformer.mean_for(image)
        if mean is not None:
            blob -= mean
        classes = cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)
        return [blob * np.float32(p.scale), window.of(classes)[None].astype(np.float32)]

    def _crop(self, height, width) -> tuple[int, int]:
        stride = self.param.transform_param.stride
        crop = tuple(min(n // stride * stride, most) for n, most in zip((height, width), self._upper, strict=True))
        if min(crop) < 1:
            raise PortError(f"an image of {height} x {width} is smaller than it", field="transform_param.stride")
        return crop

    def _pair(self, path, other):
        image, classes = read_image(self.settings.root_dir + path), read_image(self.settings.root_dir + other, GRAY)
        if image.shape[:2] != classes.shape:
            raise PortError(f"the map is {classes.shape}, its image {image.shape[:2]} (height, width)")
        return image, classes

    def _shuffle(self):
        self._lines = [self._lines[i] for i in self._orders.permutation(len(self._lines))]
