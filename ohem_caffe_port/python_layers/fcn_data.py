"""The Python data layers of FCN (shelhamer/fcn.berkeleyvision.org): an image and a map of its classes at a time.

E. Shelhamer, J. Long, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", PAMI 2016.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import torch

from ..data.images import AS_STORED, read_image, read_indices
from ..data.mat_files import read_mat
from ..data.pascal_voc import read_image_set
from ..errors import PortError
from ..layers import register_python
from ..layers.batches import PrefetchLayer
from ..layers.python import PythonLayer


class FcnDataLayer(PrefetchLayer, PythonLayer):
    """Base of these layers. Tops are ``[1, C, H, W]``, images BGR without their mean, in the size of each file.

    ``param_str`` is a dict in Python's words (only literals are read): the data set's folders; ``split``, a list of
    images; ``randomize`` (default True) and ``seed``. In a split with "train" in its name images come at random, each
    draw from all of them, else in the order of the list. With a ``seed`` the order is that of Python 2's
    ``random.randint``, which the original was trained with; without one it comes from the net's stream.

    Class attributes:
        folders: names of the settings that are folders.
        optional: other settings of the data set.
        tops: what the tops are.
    """

    folders: tuple[str, ...]
    optional: tuple[str, ...] = ()
    tops: tuple[str, ...] = ("data", "label")
    source_field = "python_param.param_str"

    def read_settings(self, text):
        try:
            settings = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise self.error(f"expected a dict of Python literals, got {text!r}", field=self.source_field)
        for name in set(settings) - {*self.folders, *self.optional, "split", "randomize", "seed"}:
            self.warnings.append(f"layer '{self.name}': {self.source_field}: '{name}' is not read")
        return settings

    def open(self):
        self.check_tops()
        for name in self.folders:
            setattr(self, name, self.setting(name, str))
        split = self.setting("split", str)
        self.images = read_image_set(Path(self.list_file(split)))
        self.random = None
        if "train" in split and self.setting("randomize", bool, True):
            seed = self.settings.get("seed")
            seed = int(self.context.rng.randint(2**31)) if seed is None else self.setting("seed", int)
            self.random = random.Random(seed).random
        self._next = self._draw() if self.random else 0
        return [(1, *blob.shape) for blob in self.load(self.images[self._next])]

    def load_batch(self):
        image = self.images[self._next]
        with self.blaming(f"image '{image}'"):
            blobs = self.load(image)
        self._next = self._draw() if self.random else (self._next + 1) % len(self.images)
        return [torch.from_numpy(np.ascontiguousarray(blob[None], np.float32)) for blob in blobs]

    def _draw(self) -> int:
        return int(self.random() * len(self.images))

    def check_tops(self) -> None:
        if len(self.param.top) != len(self.tops):
            raise self.error(f"{len(self.param.top)} given; they are {', '.join(self.tops)}", field="top")

    def list_file(self, split: str) -> str:
        """The file with the names of a split's images."""
        raise NotImplementedError

    def load(self, image: str) -> list[np.ndarray]:
        """The blobs ``[C, H, W]`` of an image."""
        raise NotImplementedError


def _without_mean(image: np.ndarray, mean) -> np.ndarray:
    blob = image.astype(np.float32)
    blob -= np.asarray(mean)
    return blob.transpose(2, 0, 1)


def _from_zero(label: np.ndarray) -> np.ndarray:
    """Classes that began at 1 as ``[1, H, W]``, with 255 for what was 0 (no class)."""
    return (label.astype(np.uint8) - np.uint8(1))[None]


class _VocSettings(FcnDataLayer):
    optional = ("mean",)

    def open(self):
        mean = self.settings.get("mean")
        numbers = isinstance(mean, (tuple, list)) and all(isinstance(value, (int, float)) for value in mean)
        if not numbers or len(mean) != 3:
            raise PortError(f"'mean' must be three numbers, not {mean!r}", field=self.source_field)
        self.mean = np.array(mean, np.float64)
        return super().open()


@register_python("voc_layers", "VOCSegDataLayer")
class VOCSegDataLayer(_VocSettings):
    """FCN's images and classes of PASCAL VOC: ``voc_dir`` (a year's folder), ``split``, ``mean`` (BGR).

    The maps are the indices of the palette PNGs in ``SegmentationClass``; 255 is no class.
    """

    folders = ("voc_dir",)

    def list_file(self, split):
        return f"{self.voc_dir}/ImageSets/Segmentation/{split}.txt"

    def load(self, image):
        label = read_indices(f"{self.voc_dir}/SegmentationClass/{image}.png")
        return [_without_mean(read_image(f"{self.voc_dir}/JPEGImages/{image}.jpg"), self.mean), label[None]]


@register_python("voc_layers", "SBDDSegDataLayer")
class SBDDSegDataLayer(_VocSettings):
    """FCN's images and classes of SBD, more of PASCAL VOC's: ``sbdd_dir`` (its dataset folder), ``split``, ``mean``
    (BGR).

    B. Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011. The maps are in ``cls/<image>.mat``.
    """

    folders = ("sbdd_dir",)

    def list_file(self, split):
        return f"{self.sbdd_dir}/{split}.txt"

    def load(self, image):
        label = read_mat(f"{self.sbdd_dir}/cls/{image}.mat", "GTcls", "Segmentation").astype(np.uint8)
        return [_without_mean(read_image(f"{self.sbdd_dir}/img/{image}.jpg"), self.mean), label[None]]


@register_python("nyud_layers", "NYUDSegDataLayer")
class NYUDSegDataLayer(FcnDataLayer):
    """FCN's images, depths and 40 classes of NYUDv2: ``nyud_dir``, ``split``, and ``tops``, some of color, depth, hha,
    label.

    depth is the logarithm of the stored depth, hha the encoding of S. Gupta et al. (ECCV 2014) in the order of its
    file, RGB; both, and color, without the data set's mean. Classes begin at 0; 255 is none.
    """

    folders, optional = ("nyud_dir",), ("tops",)
    means = {"color": (116.190, 97.203, 92.318), "hha": (132.431, 94.076, 118.477), "depth": (7.844,)}

    def check_tops(self):
        self.tops = tuple(self.setting("tops", list))
        unknown = [top for top in self.tops if top not in (*self.means, "label")]
        if unknown:
            raise PortError(f"tops: {unknown} is none of color, depth, hha, label", field=self.source_field)
        super().check_tops()

    def list_file(self, split):
        return f"{self.nyud_dir}/{split}.txt"

    def load(self, image):
        return [self.blob_of(top, image) for top in self.tops]

    def blob_of(self, top, image):
        """The blob ``[C, H, W]`` of one of :attr:`tops`."""
        if top == "label":
            return _from_zero(read_mat(f"{self.nyud_dir}/segmentation/img_{image}.mat", "segmentation"))
        mean = np.array(self.means[top], np.float32)
        if top == "color":
            return _without_mean(read_image(f"{self.nyud_dir}/data/images/img_{image}.png"), mean)
        if top == "hha":
            return _without_mean(read_image(f"{self.nyud_dir}/data/hha/img_{image}.png")[:, :, ::-1], mean)
        depth = read_image(f"{self.nyud_dir}/data/depth/img_{image}.png", AS_STORED)
        if depth.ndim != 2:
            raise PortError(f"the depth of image '{image}' has {depth.shape[2]} channels, not one")
        with np.errstate(divide="ignore"):
            return _without_mean(np.log(depth.astype(np.float32))[:, :, None], mean)


@register_python("siftflow_layers", "SIFTFlowSegDataLayer")
class SIFTFlowSegDataLayer(FcnDataLayer):
    """FCN's images, 33 semantic and 3 geometric classes of SIFT Flow: ``siftflow_dir``, ``split``.

    Classes begin at 0; 255 is none.
    """

    folders = ("siftflow_dir",)
    tops = ("data", "semantic label", "geometric label")
    mean = np.array((114.578, 115.294, 108.353), np.float32)
    scenes = "spatial_envelope_256x256_static_8outdoorcategories"

    def list_file(self, split):
        return f"{self.siftflow_dir}/{split}.txt"

    def load(self, image):
        pixels = read_image(f"{self.siftflow_dir}/Images/{self.scenes}/{image}.jpg")
        semantic, geometric = (
            read_mat(f"{self.siftflow_dir}/{kind}/{self.scenes}/{image}.mat", "S")
            for kind in ("SemanticLabels", "GeoLabels")
        )
        geometric = np.where(geometric == -1, 0, geometric)
        return [_without_mean(pixels, self.mean), _from_zero(semantic), _from_zero(geometric)]


@register_python("pascalcontext_layers", "PASCALContextSegDataLayer")
class PASCALContextSegDataLayer(FcnDataLayer):
    """FCN's images and 59 classes of PASCAL-Context: ``voc_dir`` (which holds VOC2010), ``context_dir``, ``split``.

    R. Mottaghi et al., CVPR 2014. Of the 400 classes in ``trainval/<image>.mat``, named in ``labels.txt``, those named
    in ``59_labels.txt`` become 1 to 59, all others 0.
    """

    folders = ("voc_dir", "context_dir")
    mean = np.array((104.007, 116.669, 122.679), np.float32)
    renamed = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}

    def open(self):
        folder = self.setting("context_dir", str)
        all_names, names = (_class_names(f"{folder}/{name}") for name in ("labels.txt", "59_labels.txt"))
        names = [self.renamed.get(name, name) for name in names]
        unknown = [name for name in names if name not in all_names]
        if unknown:
            raise PortError(
                f"not among the classes of labels.txt: {', '.join(unknown)}", file=f"{folder}/59_labels.txt"
            )
        self.class_of = np.zeros(len(all_names) + 1, np.uint8)
        for number, name in enumerate(names, 1):
            self.class_of[all_names.index(name) + 1] = number
        return super().open()

    def list_file(self, split):
        return f"{self.voc_dir}/VOC2010/ImageSets/Main/{split}.txt"

    def load(self, image):
        label = read_mat(f"{self.context_dir}/trainval/{image}.mat", "LabelMap").astype(int)
        label = self.class_of[np.where(label < len(self.class_of), label, 0)]
        return [_without_mean(read_image(f"{self.voc_dir}/VOC2010/JPEGImages/{image}.jpg"), self.mean), label[None]]


def _class_names(path: str) -> list[str]:
    """The names, without spaces, of a file with a line ``number: name`` for each class."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PortError(f"cannot be read: {getattr(error, 'strerror', error)}", file=path) from None
    return [line.partition(":")[2].replace(" ", "") for line in lines if line.strip()]
