"""Images and labels from an LMDB or LevelDB."""

from __future__ import annotations

import numpy as np
import torch

from prototxt import caffe_pb2

from .. import distributed
from ..data.databases import datum_image, datum_size, endless_records, open_database, parse_record, peeked
from ..data.transform import DECODING, PIXELS, SSD_IMAGE
from .base import register
from .batches import BatchLayer, PrefetchLayer


class DatabaseLayer(BatchLayer):
    """Base of the layers that read records of :attr:`message` with ``data_param``, endlessly, in the order of keys."""

    own_fields = "data_param"
    num_tops = (1, 2)
    message: type

    def open(self):
        p = self.settings
        if not p.source:
            raise self.error("names no database", field="data_param.source")
        if p.backend == p.LEVELDB and self.context.train and distributed.size() > 1:
            raise self.error(
                f"one process at a time can read a LevelDB, and there are {distributed.size()}",
                field="data_param.backend",
                hint="make an LMDB of it",
            )
        self.ahead = max(p.prefetch, 1)
        database = open_database(p.source, caffe_pb2.DataParameter.DB.Name(p.backend))
        self._records = endless_records(database, self.rng if p.shuffle else None)
        if p.rand_skip:
            for _ in range(self.rng.randint(p.rand_skip) % max(1, len(database))):
                next(self._records)
        (key, value), self._records = peeked(self._records)
        with self.blaming(_item(key)):
            return self.shapes_of(parse_record(self.message, value))

    def shapes_of(self, record) -> list[tuple[int, ...]]:
        """Shapes of the tops, if all records are like this one."""
        raise NotImplementedError

    def skip_batch(self):
        for _ in range(self.batch_size):
            next(self._records)

    def next_record(self):
        """``(item, record)``: how to name it in a message, and the message."""
        key, value = next(self._records)
        with self.blaming(_item(key)):
            return _item(key), parse_record(self.message, value)

    def image_of(self, datum) -> np.ndarray:
        """``[H, W, C]``; encoded ones decoded as ``force_color``, ``force_gray`` or ``force_encoded_color`` say."""
        transform = self.param.transform_param
        color = transform.force_color or self.settings.force_encoded_color
        return datum_image(datum, color=color, gray=transform.force_gray)

    def label_of(self, datum) -> int:
        if not datum.HasField("label"):
            raise self.error("has no label", field="top", hint="name one top only to read images without labels")
        return datum.label


def _item(key: bytes) -> str:
    return f"record '{key.decode('utf-8', 'backslashreplace')}'"


@register("Data")
class Data(DatabaseLayer):
    """``DataLayer``: batches of ``Datum`` records of an LMDB or LevelDB. Tops: data ``[N, C, H, W]`` and, if a second
    one is named, label ``[N]``.

    After the last record comes the first again. ``rand_skip`` leaves out fewer than so many at the start, at random;
    with ``shuffle`` (yjxiong's and NVIDIA's forks) every pass but the first is in random order. Records may differ in
    shape from batch to batch, not within one. A record without a label is refused where Caffe would take 0.
    """

    fields = {
        "data_param": {
            "source", "batch_size", "rand_skip", "backend", "force_encoded_color", "prefetch", "shuffle",
        },
        "transform_param": PIXELS | DECODING | SSD_IMAGE,
    }  # fmt: skip
    message = caffe_pb2.Datum

    def shapes_of(self, record):
        image = self.transformer.shape(self.image_of(record))
        return [(self.batch_size, *image), (self.batch_size,)][: len(self.param.top)]

    def load_batch(self):
        blobs, labels, items = [], [], []
        for _ in range(self.batch_size):
            item, datum = self.next_record()
            with self.blaming(item):
                blobs.append(self.transformer(self.image_of(datum)))
                if len(self.param.top) > 1:
                    labels.append(self.label_of(datum))
            items.append(item)
        data = self.stack(blobs, items)
        return [data, torch.tensor(labels, dtype=torch.float32)][: len(self.param.top)]

    def skip_batch(self):
        if self.transformer.needs_pixels:
            PrefetchLayer.skip_batch(self)
            return
        for _ in range(self.batch_size):
            key, value = next(self._records)
            with self.blaming(_item(key)):
                self.transformer.pass_over(lambda value=value: datum_size(parse_record(self.message, value)))
