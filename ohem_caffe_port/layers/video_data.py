"""Frames of a camera or of a video file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from ..data.augment import with_channels
from ..data.transform import PIXELS, SSD_IMAGE
from ..errors import PortError
from .base import register
from .batches import BatchLayer


@register("VideoData")
class VideoData(BatchLayer):
    """``VideoDataLayer`` of SSD: frames of a webcam (``device_id``) or of a video file, every ``skip_frames + 1``-th.
    Tops: data ``[N, C, H, W]`` and, if a second one is named, label ``[N]``, all 0.

    The batch size is ``data_param.batch_size``. The end of the video is an error, where the fork interrupts itself.
    yjxiong's layer of this name, which reads lists of videos as images, is not this one: its fields are refused.
    """

    fields = {
        "video_data_param": {"video_type", "device_id", "video_file", "skip_frames"},
        "data_param": {"batch_size"},
        "transform_param": PIXELS | SSD_IMAGE,
    }
    num_tops = (1, 2)
    own_fields = "data_param"

    def open(self):
        p = self.param.video_data_param
        self._webcam = p.video_type == p.WEBCAM
        if self._webcam:
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

    def load_batch(self):
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
