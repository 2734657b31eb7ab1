"""Frames of a camera or of a video file, and clips of videos that are lists of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from .. import distributed
from ..data.augment import with_channels
from ..data.transform import PIXELS, SSD_IMAGE
from ..data.video_list import CUTS, CornerCutter, VideoList
from ..errors import PortError
from .base import register
from .batches import BatchLayer

_STREAM = {"video_type", "device_id", "video_file", "skip_frames"}
_LIST = {
    "source", "batch_size", "shuffle", "new_height", "new_width", "new_length", "num_segments", "modality",
    "name_pattern", "grayscale",
}  # fmt: skip


@register("VideoData")
class VideoData(BatchLayer):
    """Frames of videos, from a camera or a video file (SSD), or from lists of images (yjxiong).

    SSD's ``VideoDataLayer``: frames of a webcam (``device_id``) or of a ``video_file``, every ``skip_frames + 1``-th.
    Tops: data ``[N, C, H, W]`` and, if a second one is named, label ``[N]``, all 0. The batch size is
    ``data_param.batch_size``. The end of the video is an error, where the fork interrupts itself.

    yjxiong's, known by its ``source``: clips of the videos in a list, lines ``<folder> <number of frames> <label>``
    (:class:`~ohem_caffe_port.data.video_list.VideoList`), cut by
    :class:`~ohem_caffe_port.data.video_list.CornerCutter`. Tops: data ``[N, C, H, W]`` with the channels of all frames,
    label ``[N, 1, 1, 1]``. A frame that cannot be read is an error, where the fork hands out what was there before.
    """

    fields = {
        "video_data_param": _STREAM | _LIST,
        "data_param": {"batch_size"},
        "transform_param": PIXELS | SSD_IMAGE | CUTS,
    }
    num_tops = (1, 2)

    def setup(self, bottoms):
        self.listed = self.param.video_data_param.HasField("source")
        self.own_fields = "video_data_param" if self.listed else "data_param"
        foreign = {"video_data_param": _STREAM, "transform_param": SSD_IMAGE} if self.listed else {
            "video_data_param": _LIST, "transform_param": CUTS}  # fmt: skip
        for message, names in foreign.items():
            for descriptor, _ in getattr(self.param, message).ListFields():
                if descriptor.name in names:
                    what = "for a list of videos" if self.listed else "without video_data_param.source"
                    raise self.error(f"is not read {what}", field=f"{message}.{descriptor.name}")
        super().setup(bottoms)

    def open(self):
        return self._open_list() if self.listed else self._open_stream()

    def load_batch(self):
        return self._clips() if self.listed else self._frames()

    # ---- a list

    def _open_list(self):
        if len(self.param.top) != 2:
            raise PortError("two are needed: data, label", field="top")
        self.transformer = CornerCutter(self.param.transform_param, self.context.train, self.rng)
        self.videos = VideoList(self.settings, self.context.train, self.rng)
        first = self.videos.videos[0]
        with self.blaming(f"{self.settings.source}:{first.line}"):
            shape = self.transformer.shape(self.videos.read(first))
        return [(self.batch_size, *shape), (self.batch_size, 1, 1, 1)]

    def _clips(self):
        blobs, labels, items = [], [], []
        for _ in range(self.batch_size):
            video = self.videos.next()
            items.append(f"{self.settings.source}:{video.line}")
            with self.blaming(items[-1]):
                blobs.append(self.transformer(self.videos.read(video)))
            labels.append(video.label)
        return [self.stack(blobs, items), torch.tensor(labels, dtype=torch.float32).view(-1, 1, 1, 1)]

    # ---- a camera or a file

    def _open_stream(self):
        p = self.param.video_data_param
        self._webcam = p.video_type == p.WEBCAM
        if self._webcam:
            if self.context.train and distributed.size() > 1:
                raise PortError("a camera cannot be shared by several processes", field="video_data_param.video_type")
            source = p.device_id
        else:
            if not Path(p.video_file).is_file():
                raise PortError(f"there is no file '{p.video_file}'", field="video_data_param.video_file")
            source = p.video_file
        self._field = f"video_data_param.{'device_id' if self._webcam else 'video_file'}"
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise PortError(f"'{source}' cannot be opened as a video", field=self._field)
        shape = self.transformer.shape(self._frame())
        if not self._webcam:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        return [(self.batch_size, *shape), (self.batch_size,)][: len(self.param.top)]

    def _frames(self):
        blobs = []
        for _ in range(self.batch_size):
            for _ in range(self.param.video_data_param.skip_frames):
                self._frame()
            blobs.append(self.transformer(self._frame()))
        data = torch.from_numpy(np.stack(blobs))
        return [data, torch.zeros(self.batch_size)][: len(self.param.top)]

    def _frame(self) -> np.ndarray:
        read, frame = self._capture.read()
        if not read:
            what = "the camera gives no image" if self._webcam else "the video has no more frames"
            raise PortError(what, field=self._field)
        return with_channels(frame)
