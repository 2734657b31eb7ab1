"""R-CNN's training data: windows of images, warped to one size."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..data.images import decode_image, read_image
from ..data.windows import read_windows, warped_window
from ..errors import PortError
from .base import register
from .batches import BatchLayer


@register("WindowData")
class WindowData(BatchLayer):
    """``WindowDataLayer`` of R-CNN: windows of images warped to ``crop_size x crop_size``. Tops: data
    ``[N, 3, crop_size, crop_size]``, label ``[N]`` (0 for background).

    Each batch holds ``N - int(N * fg_fraction)`` background windows, then foreground ones, all drawn at random; the
    window file is described at :func:`ohem_caffe_port.data.windows.read_windows`. ``mirror`` flips one in two, in both
    phases. A ``mean_file`` is taken from its middle. What ``context_pad`` or ``crop_mode: "square"`` takes from outside
    the image is 0 after subtracting the mean. As in Caffe, ``window_data_param.scale`` multiplies and
    ``transform_param.scale`` does not.
    """

    fields = {
        "window_data_param": {
            "source", "batch_size", "fg_threshold", "bg_threshold", "fg_fraction", "context_pad", "crop_mode",
            "cache_images", "root_folder", "scale",
        },
        "transform_param": {"mirror", "crop_size", "mean_file", "mean_value", "scale"},
    }  # fmt: skip
    own_fields = "window_data_param"

    def __init__(self, param, context):
        super().__init__(param, context)
        if param.transform_param.scale != 1:
            self.warnings.append(
                f"layer '{self.name}': transform_param.scale has no effect on WindowData, in Caffe neither"
            )

    def open(self):
        p, transform = self.settings, self.param.transform_param
        self.crop_size = transform.crop_size
        if not self.crop_size:
            raise PortError("must be given and positive", field="transform_param.crop_size")
        if 2 * p.context_pad >= self.crop_size:
            raise PortError(f"leaves nothing of a crop of {self.crop_size}", field="window_data_param.context_pad")
        if p.crop_mode not in ("warp", "square"):
            raise PortError(f'is "warp" or "square", not \'{p.crop_mode}\'', field="window_data_param.crop_mode")
        if not 0 <= p.fg_fraction <= 1:
            raise PortError(f"{p.fg_fraction} is no fraction", field="window_data_param.fg_fraction")
        self.mean = self._mean()
        self.windows = read_windows(p.source, p.fg_threshold, p.bg_threshold)
        for kind in ("foreground", "background"):
            if not len(getattr(self.windows, kind)):
                raise PortError(f"'{p.source}' has no {kind} windows")
        self._encoded = lru_cache(maxsize=None)(lambda path: Path(path).read_bytes())
        return [(self.batch_size, 3, self.crop_size, self.crop_size), (self.batch_size,)]

    def load_batch(self):
        num_fg = int(np.float32(self.batch_size) * np.float32(self.settings.fg_fraction))
        data = np.zeros((self.batch_size, 3, self.crop_size, self.crop_size), np.float32)
        labels = np.zeros(self.batch_size, np.float32)
        for i in range(self.batch_size):
            pool = self.windows.background if i < self.batch_size - num_fg else self.windows.foreground
            image, labels[i], *box = pool[self.rng.randint(len(pool))].tolist()
            mirror = bool(self.param.transform_param.mirror and self.rng.randint(2))
            path = self.settings.root_folder + self.windows.images[int(image)]
            with self.blaming(f"image '{path}'"):
                self._put(data[i], self._read(path), [int(x) for x in box], mirror)
        return [torch.from_numpy(data), torch.from_numpy(labels)]

    def _put(self, crop: np.ndarray, image: np.ndarray, box, mirror: bool) -> None:
        p = self.settings
        patch, y, x = warped_window(image, box, self.crop_size, p.context_pad, p.crop_mode == "square", mirror)
        place = np.s_[:, y : y + patch.shape[0], x : x + patch.shape[1]]
        crop[place] = patch.transpose(2, 0, 1)
        crop[place] -= np.broadcast_to(self.mean, crop.shape)[place]
        crop[place] *= np.float32(p.scale)

    def _read(self, path: str) -> np.ndarray:
        if not self.settings.cache_images:
            return read_image(path)
        try:
            image = decode_image(self._encoded(path))
        except (OSError, ValueError) as error:
            raise PortError(f"cannot read the image: {getattr(error, 'strerror', error)}") from None
        if image is None:
            raise PortError("not an image, or damaged")
        return image

    def _mean(self) -> np.ndarray:
        """``[3, crop_size, crop_size]``, ``[3, 1, 1]``, or 0."""
        mean = self.transformer.mean
        if mean is None:
            values = self.transformer.mean_for(np.empty((1, 1, 3), np.uint8))
            return np.zeros((3, 1, 1), np.float32) if values is None else values
        offset = (mean.shape[2] - self.crop_size) // 2
        middle = mean[:, offset : offset + self.crop_size, offset : offset + self.crop_size] if offset >= 0 else mean
        if middle.shape != (3, self.crop_size, self.crop_size):
            raise PortError(
                f"the mean is {mean.shape} (channels, height, width), too small for a crop of {self.crop_size}",
                field="transform_param.mean_file",
            )
        return middle
