"""Images with boxes from an LMDB or LevelDB, cropped and distorted as SSD does."""

from __future__ import annotations

import numpy as np
import torch

from prototxt import caffe_pb2

from .. import distributed
from ..data import augment
from ..data.annotations import Annotations, check_sampler, extrapolated, jittered_window, sampled_windows
from ..data.transform import DECODING, PIXELS, SSD_BOXES, SSD_IMAGE
from ..errors import PortError
from .base import register
from .database_data import Data, DatabaseLayer

YOLO_BOXES = 300  # of an image


@register("AnnotatedData")
class AnnotatedData(DatabaseLayer):
    """``AnnotatedDataLayer`` of SSD: batches of images with boxes, ``AnnotatedDatum`` records of an LMDB or LevelDB.
    Tops: data ``[N, C, H, W]`` and, if a second one is named, label ``[1, 1, boxes, 8]``.

    A row of label is item of the batch, group_label, instance_id, xmin, ymin, xmax, ymax (in units of the image after
    all crops), difficult; a batch without boxes gives one row of -1. Records without a type (and no ``anno_type``) give
    labels ``[N]`` as Data does.

    Each image goes through ``distort_param``; ``expand_param``; a crop, one of those that ``batch_sampler`` found;
    then ``resize_param``, ``noise_param``, mirror, ``crop_size`` (:class:`ohem_caffe_port.data.transform.Transformer`).
    As in the fork, an image that came encoded is stored as JPEG after each of the first three. ``label_map_file`` is
    not needed to read. Images of raw bytes, for which the fork leaves out some of these steps and aborts in others, are
    treated as all others. With ``resize_mode: FIT_SMALL_SIZE`` the batch must be 1.

    Of several processes each augments its batches with random numbers of its own.

    MobileNet-YOLO's fork, told by its fields: without ``batch_sampler`` the crop is one that ``yolo_data_jitter``
    allows (0.3 unless given); one of several ``resize_param`` is drawn by ``prob`` for every ten batches; with
    ``yolo_data_type: 1`` label is ``[N, 1, 300, 5]``, for each image its boxes (class from 0, x, y, width, height; the
    difficult ones with ``train_diffcult`` only), zeros behind them. Its maps for segmentation are refused.
    """

    fields = {
        "data_param": Data.fields["data_param"],
        "transform_param": PIXELS | DECODING | SSD_IMAGE | SSD_BOXES,
        "annotated_data_param": {
            "batch_sampler", "label_map_file", "anno_type", "yolo_data_type", "yolo_data_jitter", "train_diffcult",
        },
    }  # fmt: skip
    message = caffe_pb2.AnnotatedDatum

    def open(self):
        transform, p = self.param.transform_param, self.param.annotated_data_param
        for i, sampler in enumerate(p.batch_sampler):
            check_sampler(sampler, f"annotated_data_param.batch_sampler[{i}]")
        if transform.HasField("distort_param"):
            augment.check_distortion(transform.distort_param)
        if transform.expand_param.max_expand_ratio < 1:
            raise PortError("must not be below 1", field="transform_param.expand_param.max_expand_ratio")
        fits = any(resize.resize_mode == resize.FIT_SMALL_SIZE for resize in transform.resize_param)
        if fits and self.batch_size > 1:
            raise PortError("must be 1 with resize_mode FIT_SMALL_SIZE", field="data_param.batch_size")
        if not 0 <= p.yolo_data_jitter < 1:
            raise PortError("must be 0 or more, and less than 1", field="annotated_data_param.yolo_data_jitter")
        is_yolo = any(p.HasField(name) for name in ("yolo_data_type", "yolo_data_jitter", "train_diffcult"))
        self.jitter = p.yolo_data_jitter if is_yolo and not p.batch_sampler else 0
        self.batches = 0
        shapes = super().open()
        if self.context.train and distributed.size() > 1:
            # to augment the others' images for their random numbers would cost what sharing them out saves
            mixed = np.random.SeedSequence([self.rng.randint(2**31), distributed.rank()]).generate_state(4)
            self.rng = self.transformer.rng = np.random.RandomState(mixed)
        return shapes

    def shapes_of(self, record):
        image = self.transformer.shape(self.image_of(record.datum))
        self.boxed = record.HasField("type") or self.param.annotated_data_param.HasField("anno_type")
        boxes = max(1, sum(len(group.annotation) for group in record.annotation_group))
        label = (1, 1, boxes, 8) if self.boxed else (self.batch_size,)
        if self.boxed and self._yolo_labels:
            label = (self.batch_size, 1, YOLO_BOXES, 5)
        return [(self.batch_size, *image), label][: len(self.param.top)]

    def load_batch(self):
        if self.batches % 10 == 0:
            self.transformer.draw_resize()
        self.batches += 1
        blobs, labels, items = [], [], []
        for i in range(self.batch_size):
            item, record = self.next_record()
            with self.blaming(item):
                blob, annotations = self._transformed(record)
                blobs.append(blob)
                if len(self.param.top) > 1:
                    labels.append(self._label(i, record, annotations))
            items.append(item)
        return [self.stack(blobs, items), self._joined(labels)][: len(self.param.top)]

    @property
    def _yolo_labels(self) -> bool:
        return self.param.annotated_data_param.yolo_data_type == 1

    def _label(self, item: int, record, annotations: Annotations) -> np.ndarray:
        if not self.boxed:
            return np.array([self.label_of(record.datum)], np.float32)
        if not self._yolo_labels:
            return annotations.label_rows(item)
        if not self.param.annotated_data_param.train_diffcult:
            annotations = annotations.without_difficult()
        return annotations.yolo_rows(YOLO_BOXES)[None, None]

    def _joined(self, labels: list[np.ndarray]) -> torch.Tensor:
        rows = np.concatenate(labels) if labels else np.zeros(0, np.float32)
        if self.boxed and not self._yolo_labels:
            rows = (rows if len(rows) else np.full((1, 8), -1, np.float32))[None, None]
        return torch.from_numpy(rows)

    def _transformed(self, record) -> tuple[np.ndarray, Annotations]:
        """The image's blob ``[C, h, w]``, and the boxes that are left in it."""
        transform, rng = self.param.transform_param, self.rng
        emit = transform.emit_constraint if transform.HasField("emit_constraint") else None
        stored = augment.recoded if record.datum.encoded else lambda image: image
        image, annotations = self.image_of(record.datum), Annotations.of(record)
        if transform.HasField("distort_param"):
            image = stored(augment.distort(image, transform.distort_param, rng))
        if transform.HasField("expand_param") and augment.uniform(rng, 0, 1) <= transform.expand_param.prob:
            greatest = transform.expand_param.max_expand_ratio
            if abs(greatest - 1) >= 1e-2:
                ratio = augment.uniform(rng, 1, greatest)
                image, window = augment.expanded(image, ratio, self._canvas_colour(image), rng)
                image, annotations = stored(image), annotations.seen_through(window, emit)
        windows = self._windows(annotations)
        if len(windows):
            window = windows[rng.randint(len(windows))].clip(0, 1)
            image, annotations = stored(augment.cropped(image, window)), annotations.seen_through(window, emit)
        blob, window = self.transformer.apply(image)
        resize = self.transformer.resize
        resized = None if resize is None else (resize, *image.shape[:2])
        annotations = annotations.seen_through(window.box, emit, resized)
        if window.mirrored:
            annotations = annotations.mirrored()
        if resized:
            annotations.boxes = extrapolated(annotations.boxes, *resized, window.box)
        return blob, annotations

    def _windows(self, annotations: Annotations) -> np.ndarray:
        """Crops ``[k, 4]`` to choose from; none leaves the image as it is."""
        resize = self.transformer.resize
        if self.jitter:
            keep_aspect = resize is not None and resize.resize_mode == resize.FIT_LARGE_SIZE_AND_PAD
            return jittered_window(self.jitter, keep_aspect, self.rng)
        return sampled_windows(self.param.annotated_data_param.batch_sampler, annotations.boxes, self.rng)

    def _canvas_colour(self, image) -> np.ndarray | float:
        if self.transformer.mean is not None:
            raise PortError("expand_param fills with mean_value", field="transform_param.mean_file")
        values = self.transformer.mean_for(image)
        return 0.0 if values is None else values[:, 0, 0]
