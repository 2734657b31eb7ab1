"""Base of the layers that read their data batch by batch, ahead of use."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock

import cv2
import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..data.loader import pinned
from ..data.transform import Transformer
from ..errors import PortError
from .base import Layer, own_stream

READY_BYTES = 1 << 30  # batches that wait to be used take no more, but one may always wait


class PrefetchLayer(Layer):
    """``BasePrefetchingDataLayer``: a thread of its own prepares up to ``ahead`` batches while the net computes.

    A subclass opens its source in :meth:`open`, tells the shapes of its tops from the first item, and makes a batch in
    :meth:`load_batch`. Only that thread calls ``load_batch``, one batch after the other; what is random there must come
    from a stream of the layer's own, so that the order of the data depends on nothing but the seed. The thread ends
    with the layer; a program that ends waits for the batch in the making and for no other.

    Class attributes:
        source_field: the field to name when the source cannot be read.
        ahead: batches prepared before they are asked for; fewer where they are large (:data:`READY_BYTES`).
    """

    num_bottoms = (0, 0)
    source_field: str
    ahead = 4

    def setup(self, bottoms):
        self._pool: ThreadPoolExecutor | None = None
        self._batches: deque[Future] = deque()
        self._ordering = Lock()
        self._idle = False  # the thread waits for a batch to be used
        with self.blaming():
            self.shapes = self.open()
        size = 4 * sum(math.prod(shape) for shape in self.shapes)
        self.ahead = min(self.ahead, max(1, READY_BYTES // max(1, size)))

    def open(self) -> list[tuple[int, ...]]:
        """Opens the source; returns the shapes of the tops, as the first item has them.

        Raises:
            PortError: it cannot be read, or is empty.
        """
        raise NotImplementedError

    def load_batch(self) -> list[Tensor]:
        """The next batch: one tensor for each top."""
        raise NotImplementedError

    def skip_batch(self) -> None:
        """Goes past a batch that another process loads, drawing its random numbers: the data are then those of one
        process. What saves loading it, a subclass knows."""
        self.load_batch()

    def infer(self, bottoms):
        return [torch.empty(shape, device="meta") for shape in self.shapes]

    def forward(self, bottoms):
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"data layer {self.name}")
        with self._ordering:
            if not self._batches:
                self._order(self._pool)
            batch = self._batches.popleft()
            if self._idle:
                self._order(self._pool)
        return batch.result()

    def _order(self, pool: ThreadPoolExecutor) -> None:
        self._idle = False
        self._batches.append(pool.submit(self._load, pool))

    def _load(self, pool: ThreadPoolExecutor) -> list[Tensor]:
        """Makes a batch and orders the next; were all ordered at once, a program could not end before they are done."""
        with self.blaming():
            batch = distributed.in_turn(self.load_batch, self.skip_batch) if self.context.train else self.load_batch()
        if self.context.device.type == "cuda":  # from pinned memory it is copied while the device computes
            batch = [pinned(top.numpy()) for top in batch]
        with self._ordering, suppress(RuntimeError):  # the pool, or the program, may be shutting down
            self._idle = len(self._batches) >= self.ahead
            if not self._idle:
                self._order(pool)
        return batch

    def close(self) -> None:
        """Ends the thread; what it had prepared is lost. Another forward starts it again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._batches.clear()
            self._idle = False

    @contextmanager
    def blaming(self, item: str | None = None, field: str | None = None):
        """Errors of readers and of OpenCV become the layer's, with the item that they are about.

        ``field`` is the one to name where the reader does not know; by default :attr:`source_field`.
        """
        field = field or self.source_field
        prefix = f"{item}: " if item else ""
        try:
            yield
        except PortError as error:
            if error.layer is not None:
                raise
            where = f"{error.file}:{error.line}: " if error.line else f"{error.file}: " if error.file else ""
            raise self.error(prefix + where + error.message, field=error.field or field, hint=error.hint) from None
        except cv2.error as error:
            words = " ".join((error.err or str(error)).split())
            raise self.error(f"{prefix}OpenCV: {words}", field=field) from None
        except OSError as error:
            raise self.error(f"{prefix}cannot be read: {error.strerror or error}", field=field) from None


class BatchLayer(PrefetchLayer):
    """A :class:`PrefetchLayer` that transforms images, with ``source`` and ``batch_size`` (1 where there is no such
    field) in a message of its own. Every random number comes from ``rng``, a stream that torch's generator seeds at
    set-up (as Caffe's seeds its layers').

    Class attributes:
        own_fields: name of that message.
    """

    num_tops = (2, 2)
    own_fields: str

    def setup(self, bottoms):
        self.rng = own_stream()
        self.settings = getattr(self.param, self.own_fields)
        self.batch_size = getattr(self.settings, "batch_size", 1)
        if self.batch_size < 1:
            raise self.error("must be positive", field=f"{self.own_fields}.batch_size")
        with self.blaming():
            self.transformer = Transformer(self.param.transform_param, self.context.train, self.rng)
        super().setup(bottoms)

    @property
    def source_field(self):
        return f"{self.own_fields}.source"

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
