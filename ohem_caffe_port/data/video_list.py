"""yjxiong's lists of videos whose frames are image files, and how its fork cuts them (``VideoData``, TSN).

L. Wang, Y. Xiong et al., "Towards Good Practices for Very Deep Two-Stream ConvNets", 2015, section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import PortError
from .augment import with_channels
from .images import COLOR, GRAY, read_image
from .transform import Transformer, Window

# Fields of TransformationParameter that only this fork knows.
CUTS = {"fix_crop", "more_fix_crop", "multi_scale", "scale_ratios", "max_distort", "is_flow"}
_RATIOS = (1.0, 0.875, 0.75, 0.66)


class Video(NamedTuple):
    """A line of the list: the folder with its frames, their number and the video's label; ``line`` is its number."""

    line: int
    folder: str
    length: int
    label: int


class VideoList:
    """Videos one after the other, over and over, in a new order each time with ``shuffle``.

    ``num_segments`` clips of ``new_length`` frames are read of each, one of every equal part: at random in TRAIN, from
    the middle in TEST, and from the start of the video where a part is shorter than a clip. FLOW frames are two grey
    images, RGB frames one of three channels or, with ``grayscale``, one. Files are called by ``name_pattern``, by
    default ``image_%04d.jpg`` or ``flow_%c_%04d.jpg`` (x and y), and counted from 1.

    Args:
        param: a ``VideoDataParameter``.
        train: whether the phase is TRAIN.
        rng: the layer's stream.

    Raises:
        PortError: settings that make no sense, or a list that cannot be read or is empty.
    """

    def __init__(self, param, train: bool, rng: np.random.RandomState):
        self.param, self.train, self.rng = param, train, rng
        for name in ("new_length", "num_segments"):
            if getattr(param, name) < 1:
                raise PortError("must be positive", field=f"video_data_param.{name}")
        if bool(param.new_height) != bool(param.new_width):
            raise PortError("new_height and new_width go together", field="video_data_param.new_height")
        self.flow = param.modality == param.FLOW
        self.pattern = param.name_pattern or ("flow_%c_%04d.jpg" if self.flow else "image_%04d.jpg")
        self.videos, self._next = _read_list(param.source), 0
        if param.shuffle:
            self._shuffle()

    def next(self) -> Video:
        video = self.videos[self._next]
        self._next += 1
        if self._next == len(self.videos):
            self._next = 0
            if self.param.shuffle:
                self._shuffle()
        return video

    def read(self, video: Video) -> np.ndarray:
        """Its frames as ``[H, W, C]`` uint8, the channels of one frame after those of the other.

        Raises:
            PortError: a frame is missing or broken, or of another size than the first.
        """
        part, length = video.length // self.param.num_segments, self.param.new_length
        frames = []
        for i in range(self.param.num_segments):
            start = 0
            if part >= length:
                free = part - length + 1
                start = i * part + (int(self.rng.randint(free)) if self.train else free // 2)
            frames += [self._frame(video.folder, number) for number in range(start + 1, start + length + 1)]
        sizes = {frame.shape[:2] for frame in frames}
        if len(sizes) > 1:
            raise PortError(
                f"frames of several sizes: {sorted(sizes)}", hint="new_height and new_width make them alike"
            )
        return np.concatenate(frames, axis=2)

    def _frame(self, folder, number) -> np.ndarray:
        if self.flow:
            return np.concatenate([self._image(folder, (axis, number), GRAY) for axis in "xy"], axis=2)
        return self._image(folder, (number,), GRAY if self.param.grayscale else COLOR)

    def _image(self, folder, values, flags) -> np.ndarray:
        try:
            name = self.pattern % values
        except (TypeError, ValueError) as error:
            raise PortError(f"'{self.pattern}': {error}", field="video_data_param.name_pattern") from None
        image = read_image(f"{folder}/{name}", flags)
        if self.param.new_height:
            image = cv2.resize(image, (self.param.new_width, self.param.new_height))
        return with_channels(image)

    def _shuffle(self) -> None:
        self.videos = [self.videos[i] for i in self.rng.permutation(len(self.videos))]


def _read_list(source: str) -> list[Video]:
    try:
        text = Path(source).read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise PortError(f"the list '{source}' cannot be read: {getattr(error, 'strerror', error)}") from None
    videos = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            folder, length, label = line.split()
            videos.append(Video(number, folder, int(length), int(label)))
        except ValueError:
            hint = "a line is  <folder> <number of frames> <label>"
            raise PortError(f"'{line}' is no video", file=source, line=number, hint=hint) from None
    if not videos:
        raise PortError(f"the list '{source}' is empty")
    return videos


class CornerCutter(Transformer):
    """A :class:`Transformer` with yjxiong's cuts, for images ``[H, W, C]`` of any number of channels.

    In TRAIN ``fix_crop`` takes one of the four corners or the middle instead of any place (with ``more_fix_crop`` also
    the middles of the edges and of the quarters); ``multi_scale`` cuts another size, which is then resized to
    ``crop_size``: both sides are one of ``scale_ratios`` of the shorter side of the image, at most ``max_distort``
    places apart in that list, and ``crop_size`` where they are within 2 pixels of it. With ``multi_scale`` the mean
    image is cut at its top left corner. ``is_flow`` takes the even channels from 255 where the image is mirrored.
    ``mean_value`` may be any number of values that divides the channels; they repeat.
    """

    def __init__(self, param, train, rng):
        super().__init__(param, train, rng)
        if param.multi_scale and not param.crop_size:
            raise PortError("is needed for multi_scale", field="transform_param.crop_size")

    def apply(self, image):
        p = self.param
        window = self._window(*image.shape[:2], bool(p.mirror and self.rng.randint(2)))
        part = image[window.y : window.y + window.height, window.x : window.x + window.width]
        if self.crop[0] and part.shape[:2] != self.crop:
            planes = np.ascontiguousarray(part.transpose(2, 0, 1))
            part = np.stack([cv2.resize(plane, self.crop[::-1]) for plane in planes], axis=2)
        blob = part.transpose(2, 0, 1).astype(np.float32)
        if p.is_flow and window.mirrored:
            blob[::2] = 255 - blob[::2]
        mean = self.mean_for(image)
        if mean is not None:
            if self.mean is not None:
                y, x = (0, 0) if p.multi_scale else (window.y, window.x)
                mean = mean[:, y : y + blob.shape[1], x : x + blob.shape[2]]
            blob -= mean
        return (blob[:, :, ::-1] if window.mirrored else blob) * np.float32(p.scale), window

    def mean_for(self, image):
        values, channels = self.param.mean_value, image.shape[2]
        if self.mean is not None or not values:
            return super().mean_for(image)
        if channels % len(values):
            raise PortError(f"{len(values)} values for {channels} channels", field="transform_param.mean_value")
        return np.resize(np.array(values, np.float32), channels)[:, None, None]

    def _window(self, height, width, mirrored):
        p = self.param
        if not (self.train and self.crop[0] and (p.multi_scale or p.fix_crop)):
            return super()._window(height, width, mirrored)
        self._check_crop(height, width)
        crop_height, crop_width = self._sizes(height, width) if p.multi_scale else self.crop
        if crop_height > height or crop_width > width:
            raise PortError(
                f"a cut of {crop_height} x {crop_width} from an image of {height} x {width} (height x width)",
                field="transform_param.scale_ratios",
            )
        free = height - crop_height, width - crop_width
        if p.fix_crop:
            places = _PLACES if p.more_fix_crop else _PLACES[:5]
            place = places[self.rng.randint(len(places))]
            y, x = (n // 4 * quarters for n, quarters in zip(free, place, strict=True))
        else:
            y, x = (int(self.rng.randint(n + 1)) for n in free)
        return Window(y, x, crop_height, crop_width, height, width, mirrored)

    def _sizes(self, height, width) -> tuple[int, int]:
        ratios = list(self.param.scale_ratios) or _RATIOS
        sides = [int(np.float32(min(height, width)) * np.float32(ratio)) for ratio in ratios]
        sizes = [
            tuple(want if abs(side - want) < 3 else side for side, want in zip((h, w), self.crop, strict=True))
            for i, h in enumerate(sides)
            for j, w in enumerate(sides)
            if abs(i - j) <= self.param.max_distort
        ]
        return sizes[self.rng.randint(len(sizes))]


# In quarters of the free space, down and right: corners and middle; middles of the edges and of the quarters.
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2),
           (0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3))  # fmt: skip
