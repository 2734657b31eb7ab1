"""SSD's operations on whole images: ``resize_param``, ``noise_param``, ``distort_param`` and ``expand_param``.

Images are ``[H, W, C]`` uint8 BGR; ``rng`` is a numpy ``RandomState``. From ``im_transforms.cpp`` and
``data_transformer.cpp`` of weiliu89/caffe, branch ssd: random numbers are drawn in its order, computed in single
precision, and what it leaves unread is unread here (``resize_param.prob``, ``noise_param.prob``).
"""

from __future__ import annotations

import cv2
import numpy as np

from prototxt import caffe_pb2

from ..errors import PortError

_INTERPOLATION = {
    "LINEAR": cv2.INTER_LINEAR, "AREA": cv2.INTER_AREA, "NEAREST": cv2.INTER_NEAREST,
    "CUBIC": cv2.INTER_CUBIC, "LANCZOS4": cv2.INTER_LANCZOS4,
}  # fmt: skip
_BORDER = {
    "CONSTANT": cv2.BORDER_CONSTANT, "MIRRORED": cv2.BORDER_REFLECT_101, "REPEAT_NEAREST": cv2.BORDER_REPLICATE,
}  # fmt: skip


def uniform(rng: np.random.RandomState, low: float, high: float) -> np.float32:
    """One number of ``[low, high)`` in single precision."""
    return np.float32(rng.uniform(low, high))


def with_channels(image: np.ndarray) -> np.ndarray:
    """OpenCV drops the axis of a single channel; this puts it back."""
    return image[:, :, None] if image.ndim == 2 else image


def per_channel(values, channels: int, field: str) -> list[float]:
    """One value for each channel: as many as there are, or a single one for all.

    Raises:
        PortError: another number of values.
    """
    if len(values) not in (1, channels):
        raise PortError(f"{len(values)} values for {channels} channels: give one, or one for each", field=field)
    return list(values) * channels if len(values) == 1 else list(values)


def _needs_colour(image: np.ndarray, field: str) -> None:
    if image.shape[2] != 3 or image.dtype != np.uint8:
        raise PortError(
            f"needs colour images of bytes; this one has {image.shape[2]} channels of {image.dtype}",
            field=field,
            hint="force_color: true  decodes grey images to colour",
        )


# ---- resize_param


def resized_shape(param, height: int, width: int) -> tuple[int, int]:
    """``(height, width)`` that ``resize_param`` gives an image of ``height x width`` (``InferNewSize``).

    FIT_SMALL_SIZE keeps the aspect and makes the sides at least ``height`` and ``width``; the others give these sizes.
    """
    if param.resize_mode != param.FIT_SMALL_SIZE:
        return param.height, param.width
    aspect = np.float32(width) / np.float32(height)
    if aspect < np.float32(param.width) / np.float32(param.height):
        return int(np.float32(param.width) / aspect), param.width
    return param.height, int(aspect * np.float32(param.height))


def resize(image: np.ndarray, param, rng) -> np.ndarray:
    """``ApplyResize``: WARP, FIT_SMALL_SIZE, or FIT_LARGE_SIZE_AND_PAD; one of the ``interp_mode`` at random."""
    flags = cv2.INTER_LINEAR
    if param.interp_mode:
        mode = param.interp_mode[rng.randint(len(param.interp_mode))]
        flags = _INTERPOLATION[caffe_pb2.ResizeParameter.Interp_mode.Name(mode)]
    height, width = resized_shape(param, *image.shape[:2])
    if param.resize_mode != param.FIT_LARGE_SIZE_AND_PAD:
        return with_channels(cv2.resize(image, (width, height), interpolation=flags))
    aspect = np.float32(image.shape[1]) / np.float32(image.shape[0])
    inner_height, inner_width = height, width
    if aspect > np.float32(width) / np.float32(height):
        inner_height = max(1, int(np.float32(width) / aspect))
    else:
        inner_width = max(1, int(aspect * np.float32(height)))
    inner = cv2.resize(image, (inner_width, inner_height), interpolation=flags)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    border = _BORDER[caffe_pb2.ResizeParameter.Pad_mode.Name(param.pad_mode)]
    value = per_channel(param.pad_value, image.shape[2], "resize_param.pad_value") if param.pad_value else [0]
    padding = (top, height - inner_height - top, left, width - inner_width - left)
    return with_channels(cv2.copyMakeBorder(inner, *padding, border, value=value))


# ---- noise_param


def noise(image: np.ndarray, param, rng) -> np.ndarray:
    """``ApplyNoise``: what the flags ask for, in the fork's order, on every image.

    ``convert_to_lab`` gives float32 (the fork reads those floats as bytes, which makes no sense of them).
    """
    for flag in ("decolorize", "convert_to_hsv", "convert_to_lab"):
        if getattr(param, flag):
            _needs_colour(image, f"noise_param.{flag}")
    if param.decolorize:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if param.gauss_blur:
        image = cv2.GaussianBlur(image, (7, 7), 1.5)
    if param.hist_eq:
        image = _on_luminance(image, cv2.equalizeHist)
    if param.clahe:
        image = _on_luminance(image, cv2.createCLAHE(clipLimit=4).apply)
    if param.jpeg > 0:
        image = recoded(image, quality=int(param.jpeg))
    if param.erode:
        image = cv2.erode(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3), (1, 1)))
    if param.posterize:
        image = cv2.LUT(image, (np.arange(256) // 64 * 64 + 32).astype(np.uint8))
    if param.inverse:
        image = cv2.bitwise_not(image)
    image = with_channels(image)
    if param.saltpepper:
        image = _saltpepper(image, param.saltpepper_param, rng)
    if param.convert_to_hsv:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if param.convert_to_lab:
        image = cv2.cvtColor(image.astype(np.float32) * np.float32(1 / 255), cv2.COLOR_BGR2Lab)
    return image


def _on_luminance(image: np.ndarray, change) -> np.ndarray:
    if image.ndim == 2 or image.shape[2] == 1:
        return change(image)
    _needs_colour(image, "noise_param")
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)))
    planes[0] = change(planes[0])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2BGR)


def _saltpepper(image: np.ndarray, param, rng) -> np.ndarray:
    if not param.value:
        raise PortError("is needed by saltpepper", field="noise_param.saltpepper_param.value")
    height, width, channels = image.shape
    value = np.array(per_channel(param.value, channels, "noise_param.saltpepper_param.value")).astype(np.uint8)
    points = rng.randint((width, height), size=(int(np.float32(param.fraction) * width * height), 2))
    image = image.copy()
    image[points[:, 1], points[:, 0]] = value
    return image


def recoded(image: np.ndarray, quality: int = 95) -> np.ndarray:
    """The image after a JPEG round trip: the fork stores the image as JPEG between two operations."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return with_channels(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))


# ---- distort_param


def check_distortion(param) -> None:
    """What the fork checks of a ``DistortionParameter`` when it comes to use it.

    Raises:
        PortError: a negative delta or bound, or a lower bound above the upper, of something with a ``prob``.
    """
    for name in ("brightness", "hue"):
        if getattr(param, f"{name}_prob") > 0 and getattr(param, f"{name}_delta") < 0:
            raise PortError("must not be negative", field=f"transform_param.distort_param.{name}_delta")
    for name in ("contrast", "saturation"):
        lower, upper = getattr(param, f"{name}_lower"), getattr(param, f"{name}_upper")
        if getattr(param, f"{name}_prob") > 0 and not 0 <= lower <= upper:
            raise PortError(f"{lower} to {upper} is no range", field=f"transform_param.distort_param.{name}_lower")


def distort(image: np.ndarray, param, rng) -> np.ndarray:
    """``ApplyDistort``: random brightness, contrast, saturation, hue and order of channels, each with its ``*_prob``;
    contrast before or, half of the times, after saturation and hue."""
    _needs_colour(image, "transform_param.distort_param")
    contrast_first = uniform(rng, 0, 1) > 0.5
    image = _brightness(image, param, rng)
    if contrast_first:
        image = _contrast(image, param, rng)
    image = _saturation(image, param, rng)
    image = _hue(image, param, rng)
    if not contrast_first:
        image = _contrast(image, param, rng)
    if uniform(rng, 0, 1) < param.random_order_prob:
        image = image[:, :, rng.permutation(3)]
    return np.ascontiguousarray(image)


def _brightness(image, param, rng):
    if uniform(rng, 0, 1) >= param.brightness_prob:
        return image
    return _scaled(image, 1, uniform(rng, -param.brightness_delta, param.brightness_delta))


def _contrast(image, param, rng):
    if uniform(rng, 0, 1) >= param.contrast_prob:
        return image
    factor = uniform(rng, param.contrast_lower, param.contrast_upper)
    return _scaled(image, factor, 0) if abs(factor - np.float32(1)) > 1e-3 else image


def _saturation(image, param, rng):
    if uniform(rng, 0, 1) >= param.saturation_prob:
        return image
    factor = uniform(rng, param.saturation_lower, param.saturation_upper)
    return _in_hsv(image, 1, lambda plane: _scaled(plane, factor, 0))


def _hue(image, param, rng):
    if uniform(rng, 0, 1) >= param.hue_prob:
        return image
    delta = uniform(rng, -param.hue_delta, param.hue_delta)
    return _in_hsv(image, 0, lambda plane: _scaled(plane, 1, delta)) if delta else image


def _scaled(image: np.ndarray, factor, offset) -> np.ndarray:
    """``image * factor + offset`` as OpenCV's ``convertTo`` does it: rounded to even, cut to 0..255."""
    table = np.rint(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset))
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8))


def _in_hsv(image: np.ndarray, channel: int, change) -> np.ndarray:
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)))
    planes[channel] = change(planes[channel])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2BGR)


# ---- expand_param and batch_sampler


def cropped(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """``CropImage``: what a window ``(xmin, ymin, xmax, ymax)`` in units of the image shows, at least one pixel."""
    height, width = image.shape[:2]
    scaled = window * np.array([width, height, width, height], np.float32)
    x, y = min(int(scaled[0]), width - 1), min(int(scaled[1]), height - 1)
    w, h = max(1, int(scaled[2] - scaled[0])), max(1, int(scaled[3] - scaled[1]))
    return np.ascontiguousarray(image[y : y + h, x : x + w])


def expanded(image: np.ndarray, ratio: np.float32, fill, rng) -> tuple[np.ndarray, np.ndarray]:
    """``ExpandImage``: the image somewhere on a canvas ``ratio`` times its size.

    Args:
        fill: the canvas's colour, one value for each channel.

    Returns:
        the canvas, and its box ``(xmin, ymin, xmax, ymax)`` in units of the image, float32.
    """
    height, width = image.shape[:2]
    full_height, full_width = int(np.float32(height) * ratio), int(np.float32(width) * ratio)
    y, x = (int(uniform(rng, 0, full - size)) for full, size in ((full_height, height), (full_width, width)))
    canvas = np.empty((full_height, full_width, image.shape[2]), image.dtype)
    canvas[:] = np.rint(fill).clip(0, 255)
    canvas[y : y + height, x : x + width] = image
    edges = np.array([-x, -y, full_width - x, full_height - y], np.float32)
    return canvas, edges / np.array([width, height, width, height], np.float32)
