"""Base of the layers that read their data batch by batch, ahead of use."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.transform import Transformer
from ..errors import PortError
from .base import Layer


class BatchLayer(Layer):
    """``BasePrefetchingDataLayer``: a thread of its own prepares up to ``ahead`` batches while the net computes.

    A subclass opens its source in :meth:`open`, tells the shapes of its tops from the first item, and makes a batch in
    :meth:`load_batch`. Only that thread calls ``load_batch``, one batch after the other, and every random number comes
    from ``rng``, a stream of the layer's own that torch's generator seeds at set-up (as Caffe's seeds its layers'): the
    order of the data depends on nothing but the seed. The thread ends with the layer.

    Class attributes:
        own_fields: name of the message with ``source`` and ``batch_size``.
        ahead: batches prepared before they are asked for.
    """

    num_bottoms, num_tops = (0, 0), (2, 2)
    own_fields: str
    ahead = 4

    def setup(self, bottoms):
        self.rng = np.random.RandomState(int(torch.randint(2**31, ())))
        self._pool: ThreadPoolExecutor | None = None
        self._batches: deque[Future] = deque()
        self.settings = getattr(self.param, self.own_fields)
        self.batch_size = self.settings.batch_size
        if self.batch_size < 1:
            raise self.error("must be positive", field=f"{self.own_fields}.batch_size")
        with self.blaming():
            self.transformer = Transformer(self.param.transform_param, self.context.train, self.rng)
            self.shapes = self.open()

    def open(self) -> list[tuple[int, ...]]:
        """Opens the source; returns the shapes of the tops, as the first item has them.

        Raises:
            PortError: it cannot be read, or is empty.
        """
        raise NotImplementedError

    def load_batch(self) -> list[Tensor]:
        """The next batch: one tensor for each top."""
        raise NotImplementedError

    def infer(self, bottoms):
        return [torch.empty(shape, device="meta") for shape in self.shapes]

    def forward(self, bottoms):
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"data layer {self.name}")
        while len(self._batches) <= self.ahead:
            self._batches.append(self._pool.submit(self._load))
        return self._batches.popleft().result()

    def _load(self) -> list[Tensor]:
        with self.blaming():
            return self.load_batch()

    def close(self) -> None:
        """Ends the thread; what it had prepared is lost. Another forward starts it again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._batches.clear()

    @contextmanager
    def blaming(self, item: str | None = None, field: str | None = None):
        """Errors of readers and of OpenCV become the layer's, with the item that they are about.

        ``field`` is the one to name where the reader does not know; by default the layer's ``source``.
        """
        field = field or f"{self.own_fields}.source"
        prefix = f"{item}: " if item else ""
        try:
            yield
        except PortError as error:
            if error.layer is not None:
                raise
            where = f"{error.file}:{error.line}: " if error.line else f"{error.file}: " if error.file else ""
            raise self.error(prefix + where + error.message, field=error.field or field, hint=error.hint) from None
        except cv2.error as error:
            raise self.error(f"{prefix}OpenCV: {error.err or error}", field=field) from None

    def stack(self, blobs: list[np.ndarray], items: list[str]) -> Tensor:
        """The blobs of a batch as one tensor ``[N, ...]``.

        Raises:
            PortError: their shapes differ.
        """
        for blob, item in zip(blobs, items, strict=True):
            if blob.shape != blobs[0].shape:
                raise PortError(
                    f"{item} has shape {blob.shape}, the first of its batch ({items[0]}) {blobs[0].shape}",
                    hint="crop_size or resizing makes them alike; with batch_size 1 shapes may differ",
                )
        return torch.from_numpy(np.stack(blobs))
