"""The Python data layers of LRCN's activity recognition (``sequence_input_layer.py`` of LisaAnne/lisa-caffe-public).

J. Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and Description", CVPR 2015.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ..data.images import read_image
from ..errors import PortError
from ..layers import register_python
from ..layers.batches import PrefetchLayer
from ..layers.python import PythonLayer

LENGTH = 16  # frames of a clip
SIDE = 227  # pixels of a frame in the blob
LEAST = 240, 320  # height and width that a frame is brought to where one of its sides is smaller


class _Video(NamedTuple):
    frames: str  # path of a frame but for its number
    length: int
    label: int


class VideoReadLayer(PrefetchLayer, PythonLayer):
    """Base of these layers: clips of 16 frames, of one video after the other in the order of the list.

    Tops: data ``[16 V, 3, 227, 227]`` (BGR without the mean), label ``[16 V]`` and clip_markers ``[16 V]``, 0 for the
    first frame of a clip, else 1; the first frames of all V clips come first. A clip begins at a random frame but the
    first; one clip in two is mirrored, and only those are cut to 227 x 227 at a random place: all others are squeezed
    to it whole, as in the original. Its random numbers are the original's (Python 2, seed 10), in every run the same.

    A line of the list is ``<class>/<video> <label>``, the frames of which are ``<frames><video>/<name>.0001.jpg`` and
    so on. ``param_str`` may say ``video_list`` and ``frames``, which are constants to be edited in the original: by
    default ``ucf101_split1_trainVideos.txt`` (or test) and ``frames/`` (or ``flow_images/``).

    Class attributes:
        clips: V.
        video_list, frames: the defaults.
        mean: one number for each channel.
        flow: the first channel of the file (red) is a motion to the right, and changes its sign in a mirrored frame.
    """

    num_tops = (3, 3)
    source_field = "python_param.param_str"
    ahead = 1
    clips: int
    video_list: str
    frames = "frames/"
    mean = (103.939, 116.779, 128.68)
    flow = False

    def open(self):
        unknown = set(self.settings) - {"video_list", "frames"}
        if unknown:
            raise PortError(f"{sorted(unknown)} is not known", hint="it may say video_list and frames")
        folder = self.setting("frames", str, self.frames)
        self.videos = _read_list(self.setting("video_list", str, self.video_list), folder)
        self._next, self._random = 0, random.Random(10).random
        rows = self.clips * LENGTH
        return [(rows, 3, SIDE, SIDE), (rows,), (rows,)]

    def load_batch(self):
        videos = [self.videos[(self._next + i) % len(self.videos)] for i in range(self.clips)]
        self._next = (self._next + self.clips) % len(self.videos)
        clips = [(video, *self._draw(video)) for video in videos]
        jobs = [(f"{video.frames}.{start + i:04d}.jpg", place, mirrored)
                for i in range(LENGTH) for video, place, mirrored, start in clips]  # fmt: skip
        with ThreadPoolExecutor() as pool:
            frames = list(pool.map(lambda job: self._frame(*job), jobs))
        markers = torch.ones(LENGTH, self.clips)
        markers[0] = 0
        labels = torch.tensor([video.label for video in videos], dtype=torch.float32).repeat(LENGTH)
        return [torch.from_numpy(np.stack(frames)), labels, markers.flatten()]

    def _draw(self, video) -> tuple[tuple[int, int], bool, int]:
        """Where a clip is cut (y, x), whether it is mirrored, and the number of its first frame."""
        place = int(self._random() * (LEAST[0] - SIDE)), int(self._random() * (LEAST[1] - SIDE))
        mirrored = bool(int(self._random() * 2))
        return place, mirrored, int(self._random() * (video.length - LENGTH) + 2)

    def _frame(self, path, place, mirrored) -> np.ndarray:
        image = read_image(path).astype(np.float32)
        if image.shape[0] < LEAST[0] or image.shape[1] < LEAST[1]:
            image = cv2.resize(image, LEAST[::-1])
        if mirrored:
            image = image[:, ::-1]
            if self.flow:
                image = np.concatenate([image[..., :2], 255 - image[..., 2:]], 2)
            y, x = place
            image = image[y : y + SIDE, x : x + SIDE]
        if image.shape[:2] != (SIDE, SIDE):
            image = cv2.resize(image, (SIDE, SIDE))
        return (image - np.array(self.mean, np.float32)).transpose(2, 0, 1)


def _read_list(path: str, folder: str) -> list[_Video]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PortError(f"the list '{path}' cannot be read: {getattr(error, 'strerror', error)}") from None
    videos = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            (_, name), label = line.split()[0].split("/"), int(line.split()[1])
        except (ValueError, IndexError):
            raise PortError(f"'{line}' is not '<class>/<video> <label>'", file=path, line=number) from None
        frames = sorted(Path(folder + name).glob("*.jpg"))
        if len(frames) <= LENGTH:
            message = f"{len(frames)} frames in '{folder}{name}'; a clip needs {LENGTH + 1}"
            raise PortError(message, file=path, line=number)
        first = frames[0]
        videos.append(_Video(str(first.with_name(first.name.split(".")[0])), len(frames), label))
    if not videos:
        raise PortError(f"the list '{path}' is empty")
    return videos


@register_python("sequence_input_layer", "videoReadTrain_RGB")
class VideoReadTrainRGB(VideoReadLayer):
    """LRCN's training data: 24 clips of 16 images."""

    clips, video_list = 24, "ucf101_split1_trainVideos.txt"


@register_python("sequence_input_layer", "videoReadTest_RGB")
class VideoReadTestRGB(VideoReadLayer):
    """LRCN's test data: 3 clips of 16 images."""

    clips, video_list = 3, "ucf101_split1_testVideos.txt"


class _Flow(VideoReadLayer):
    frames, mean, flow = "flow_images/", (128, 128, 128), True


@register_python("sequence_input_layer", "videoReadTrain_flow")
class VideoReadTrainFlow(_Flow):
    """LRCN's training data of optical flow: 24 clips of 16 images."""

    clips, video_list = VideoReadTrainRGB.clips, VideoReadTrainRGB.video_list


@register_python("sequence_input_layer", "videoReadTest_flow")
class VideoReadTestFlow(_Flow):
    """LRCN's test data of optical flow: 3 clips of 16 images."""

    clips, video_list = VideoReadTestRGB.clips, VideoReadTestRGB.video_list
