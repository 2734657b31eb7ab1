"""Arrays that a program hands to the net."""

from __future__ import annotations

import numpy as np
import torch

from ..data.augment import with_channels
from ..data.databases import datum_image
from ..data.transform import DECODING, PIXELS, SSD_IMAGE, Transformer
from ..errors import PortError
from .base import Layer, own_stream, register


@register("MemoryData")
class MemoryData(Layer):
    """``MemoryDataLayer``: batches of an array that :meth:`reset` or :meth:`add` gave. Tops: data
    ``[batch_size, channels, height, width]`` and label ``[batch_size, 1, 1, 1]``.

    ``net.layer_by_name["data"].reset(data, labels)``; each forward hands out the next ``batch_size`` rows, and after
    the last come the first again.
    """

    fields = {
        "memory_data_param": {"batch_size", "channels", "height", "width"},
        "transform_param": PIXELS | DECODING | SSD_IMAGE,
    }
    num_bottoms, num_tops = (0, 0), (2, 2)

    def setup(self, bottoms):
        p = self.param.memory_data_param
        self.batch_size, self.row_shape = p.batch_size, (p.channels, p.height, p.width)
        if min(self.batch_size, *self.row_shape) < 1:
            raise self.error(
                "batch_size, channels, height and width must all be given and positive", field="memory_data_param"
            )
        self.data: torch.Tensor | None = None
        self.labels: torch.Tensor | None = None
        self._next, self._unread = 0, False
        try:
            self.transformer = Transformer(self.param.transform_param, self.context.train, own_stream())
        except PortError as error:
            raise self.error(error.message, field=error.field, hint=error.hint) from None

    def infer(self, bottoms):
        # set-up makes label [N], as Caffe's does; the first forward gives it four axes
        return [torch.empty((self.batch_size, *self.row_shape), device="meta"),
                torch.empty((self.batch_size,), device="meta")]  # fmt: skip

    def reset(self, data, labels) -> None:
        """The rows to hand out from now on, first row first; no ``transform_param`` is applied (``Reset``).

        Args:
            data: array or tensor ``[n, channels, height, width]``, ``n`` a multiple of ``batch_size``. A float32
                tensor or C-contiguous array is not copied: later changes of it are seen, as in Caffe.
            labels: ``n`` numbers.

        Raises:
            PortError: another shape or number of rows.
        """
        try:
            data = torch.as_tensor(data, dtype=torch.float32)
            labels = torch.as_tensor(labels, dtype=torch.float32).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self.error(f"data and labels must be arrays of numbers: {error}") from None
        if data.dim() != 4 or tuple(data.shape[1:]) != self.row_shape:
            raise self.error(f"data has shape {tuple(data.shape)}, not [n, {', '.join(map(str, self.row_shape))}]")
        if len(labels) != len(data):
            raise self.error(f"{len(data)} rows of data and {len(labels)} labels")
        if not len(data) or len(data) % self.batch_size:
            raise self.error(
                f"{len(data)} rows are no multiple of {self.batch_size}",
                field="memory_data_param.batch_size",
                hint="give more or fewer rows, or call set_batch_size(n) first",
            )
        self.data, self.labels, self._next, self._unread = data, labels, 0, False

    def add(self, images, labels=None) -> None:
        """Images to hand out from now on, through ``transform_param`` (``AddMatVector``, ``AddDatumVector``).

        Args:
            images: as many as a multiple of ``batch_size``, each ``[H, W, C]`` or ``[H, W]`` uint8, BGR, or a
                ``Datum``.
            labels: one number for each; left out, the Datums' own.

        Raises:
            PortError: images added before were not all handed out yet, or these do not fit.
        """
        if self._unread:
            raise self.error("images added before are not all handed out yet", hint="run the net first, or call reset")
        images = list(images)
        if labels is None:
            if not all(hasattr(image, "label") for image in images):
                raise self.error("images without labels; only Datums bring their own")
            labels = [image.label for image in images]
        blobs = [self._transformed(i, image) for i, image in enumerate(images)]
        self.reset(np.stack(blobs) if blobs else np.empty((0, *self.row_shape)), labels)
        self._unread = True

    def set_batch_size(self, batch_size: int) -> None:
        """Rows of the batches to come, from the first row on; data that is no multiple of it must be given again.

        Raises:
            PortError: it is not positive, or added images are not all handed out yet.
        """
        if batch_size < 1:
            raise self.error(f"a batch of {batch_size}", field="memory_data_param.batch_size")
        if self._unread:
            raise self.error("images added before are not all handed out yet", hint="run the net first, or call reset")
        self.batch_size, self._next = batch_size, 0
        if self.data is not None and len(self.data) % batch_size:
            self.data = None

    def forward(self, bottoms):
        if self.data is None:
            raise self.error("no data was given to it", hint="call reset(data, labels) or add(images, labels) first")
        rows = slice(self._next, self._next + self.batch_size)
        self._next = rows.stop % len(self.data)
        if self._next == 0:
            self._unread = False
        return [self.data[rows], self.labels[rows].view(-1, 1, 1, 1)]

    def _transformed(self, i: int, image) -> np.ndarray:
        transform = self.param.transform_param
        try:
            if hasattr(image, "encoded"):
                image = datum_image(image, color=transform.force_color, gray=transform.force_gray)
            image = with_channels(np.asarray(image))
            if image.ndim != 3 or image.dtype not in (np.uint8, np.float32):
                raise PortError(f"shape {image.shape} of {image.dtype}; an image is [H, W, C] or [H, W] of uint8")
            blob = self.transformer(image)
        except PortError as error:
            raise self.error(f"image {i}: {error.message}", field=error.field, hint=error.hint) from None
        if blob.shape != self.row_shape:
            raise self.error(f"image {i} becomes {blob.shape}, not {self.row_shape}", field="memory_data_param")
        return blob
