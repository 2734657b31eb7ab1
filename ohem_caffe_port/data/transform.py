"""``transform_param``: what Caffe's data layers do to an image on its way into a blob (``DataTransformer``)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from converters.binaryproto import read_binaryproto
from prototxt import CaffePortError

from ..errors import PortError
from . import augment

# Fields of TransformationParameter, by what a layer does with them.
PIXELS = {"scale", "mirror", "crop_size", "mean_file", "mean_value"}
DECODING = {"force_color", "force_gray"}
SSD_IMAGE = {"crop_h", "crop_w", "resize_param", "noise_param"}
SSD_BOXES = {"distort_param", "expand_param", "emit_constraint"}


class Window(NamedTuple):
    """The part of an image (after its resize) that went into a blob, in pixels, and whether it was mirrored."""

    y: int
    x: int
    height: int
    width: int
    of_height: int
    of_width: int
    mirrored: bool

    def of(self, image: np.ndarray) -> np.ndarray:
        """The same part ``[height, width, C]`` of another image of the same size."""
        part = image[self.y : self.y + self.height, self.x : self.x + self.width]
        return part[:, ::-1] if self.mirrored else part

    @property
    def box(self) -> np.ndarray:
        """``(xmin, ymin, xmax, ymax)`` float32 in units of the image."""
        corners = np.array([self.x, self.y, self.x + self.width, self.y + self.height], np.float32)
        return corners / np.array([self.of_width, self.of_height] * 2, np.float32)


class Transformer:
    """Turns images into blobs: resize, noise, mirror, crop, ``(pixel - mean) * scale``, in single precision.

    ``mirror`` flips one image in two, at random, in both phases. ``crop_size`` (``crop_h``, ``crop_w`` in SSD,
    ``crop_height``, ``crop_width`` in PSPNet) cuts at a random place in TRAIN and in the middle in TEST. ``mean_file``
    must have the size of the image before it is cut; the mean is cut, and mirrored, with the image. With one of SSD's
    fields the mean is not mirrored, as there. Random numbers are drawn in Caffe's order: mirror, interp_mode and noise,
    row, column.

    Args:
        param: the layer's ``TransformationParameter``.
        train: whether the phase is TRAIN.
        rng: the layer's stream.

    Attributes:
        mean: the mean image ``[C, H, W]`` or None.
        resize: the ``ResizeParameter`` in use or None; of several (MobileNet-YOLO), the first until
            :meth:`draw_resize`.

    Raises:
        PortError: fields that exclude each other, or a mean that cannot be read.
    """

    def __init__(self, param, train: bool, rng: np.random.RandomState):
        self.param, self.train, self.rng = param, train, rng
        self.mean: np.ndarray | None = None
        if param.HasField("mean_file"):
            if param.mean_value:
                raise PortError("cannot be given together with mean_value", field="transform_param.mean_file")
            self.mean = read_mean(param.mean_file)
        for name, values in (("scale", [param.scale]), ("mean_value", param.mean_value)):
            if not np.isfinite(values).all():
                raise PortError("must be a finite number", field=f"transform_param.{name}")
        if param.force_color and param.force_gray:
            raise PortError("cannot be set together with force_gray", field="transform_param.force_color")
        self.crop = (
            param.crop_size or param.crop_h or param.crop_height,
            param.crop_size or param.crop_w or param.crop_width,
        )
        if bool(self.crop[0]) != bool(self.crop[1]):
            raise PortError("the crop has a height or a width, not both", field="transform_param")
        if not all(resize.height and resize.width for resize in param.resize_param):
            raise PortError("height and width must be positive", field="transform_param.resize_param")
        total = sum(resize.prob for resize in param.resize_param)
        if len(param.resize_param) > 1 and abs(total - 1) > 0.01:
            raise PortError(f"the prob of all add up to {total:g}, not to 1", field="transform_param.resize_param")
        self.resize = param.resize_param[0] if param.resize_param else None
        self._ssd = any(field.name in SSD_IMAGE | SSD_BOXES for field, _ in param.ListFields())

    def shape(self, image: np.ndarray) -> tuple[int, int, int]:
        """``(C, H, W)`` that an image ``[H, W, C]`` gets.

        Raises:
            PortError: the crop is larger than the image.
        """
        height, width, channels = image.shape
        if self.resize is not None:
            height, width = augment.resized_shape(self.resize, height, width)
        self._check_crop(height, width)
        return channels, self.crop[0] or height, self.crop[1] or width

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An image ``[H, W, C]``, uint8 or float32, as ``[C, h, w]`` float32.

        Raises:
            PortError: the crop is larger than the image, or the mean does not fit it.
        """
        return self.apply(image)[0]

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, Window]:
        """As calling it; also which part of the image the blob shows."""
        p = self.param
        mirrored = bool(p.mirror and self.rng.randint(2))
        if self.resize is not None:
            image = augment.resize(image, self.resize, self.rng)
        if p.HasField("noise_param"):
            image = augment.noise(image, p.noise_param, self.rng)
        window = self._window(*image.shape[:2], mirrored)
        blob = window.of(image).transpose(2, 0, 1).astype(np.float32)
        mean = self.mean_for(image)
        if self.mean is not None:
            cut = window._replace(mirrored=mirrored and not self._ssd)
            mean = cut.of(mean.transpose(1, 2, 0)).transpose(2, 0, 1)
        if mean is not None:
            blob -= mean
        if p.scale != 1:
            blob *= np.float32(p.scale)
        return blob, window

    @property
    def needs_pixels(self) -> bool:
        """Whether the random numbers of an image depend on more than its size."""
        return self.resize is not None or self.param.HasField("noise_param")

    def pass_over(self, size) -> None:
        """Draws the random numbers that :meth:`apply` draws for an image, and does nothing else.

        Args:
            size: ``size()`` gives its height and width; called only where they count, and :attr:`needs_pixels` is
                False.
        """
        if self.param.mirror:
            self.rng.randint(2)
        if self.train and self.crop[0]:
            self._window(*size(), False)

    def draw_resize(self) -> None:
        """Chooses one of several ``resize_param``, by their ``prob``, for the images to come."""
        if len(self.param.resize_param) > 1:
            ends = np.cumsum([resize.prob for resize in self.param.resize_param])
            self.resize = self.param.resize_param[int(np.searchsorted(ends, self.rng.uniform(0, ends[-1])))]

    def mean_for(self, image: np.ndarray) -> np.ndarray | None:
        """What to subtract from an image ``[H, W, C]`` before it is cut: the mean image ``[C, H, W]``, one value for
        each channel ``[C, 1, 1]``, or None.

        Raises:
            PortError: the mean does not fit the image.
        """
        height, width, channels = image.shape
        if self.mean is not None:
            if self.mean.shape != (channels, height, width):
                raise PortError(
                    f"the mean is {self.mean.shape} (channels, height, width), the image {(channels, height, width)}",
                    field="transform_param.mean_file",
                    hint="the images must have the size of those that the mean was computed from",
                )
            return self.mean
        if not self.param.mean_value:
            return None
        values = augment.per_channel(self.param.mean_value, channels, "transform_param.mean_value")
        return np.array(values, np.float32)[:, None, None]

    def _check_crop(self, height: int, width: int) -> None:
        if height < self.crop[0] or width < self.crop[1]:
            raise PortError(
                f"a crop of {self.crop[0]} x {self.crop[1]} from an image of {height} x {width} (height x width)",
                field="transform_param.crop_size" if self.param.crop_size else "transform_param",
            )

    def _window(self, height: int, width: int, mirrored: bool) -> Window:
        self._check_crop(height, width)
        if not self.crop[0]:
            return Window(0, 0, height, width, height, width, mirrored)
        free = height - self.crop[0], width - self.crop[1]
        y, x = (int(self.rng.randint(n + 1)) for n in free) if self.train else (n // 2 for n in free)
        return Window(y, x, *self.crop, height, width, mirrored)


def read_mean(path: str) -> np.ndarray:
    """A mean image ``[C, H, W]`` float32 of a ``.binaryproto``.

    Raises:
        PortError: it cannot be read, or has another number of axes.
    """
    try:
        mean = read_binaryproto(path)
    except CaffePortError as error:
        raise PortError(f"{path}: {error.message}", field="transform_param.mean_file", hint=error.hint) from None
    if mean.ndim not in (3, 4):
        raise PortError(f"{path} has {mean.ndim} axes, a mean image 4", field="transform_param.mean_file")
    return np.asarray(mean if mean.ndim == 3 else mean[0], np.float32)
