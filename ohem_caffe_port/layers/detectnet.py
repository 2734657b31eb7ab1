"""DetectNet's data layer: augments images together with their boxes, and makes its labels."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ..data.detectnet import Augmentation, LabelGrid
from ..data.transform import read_mean
from ..errors import PortError
from .base import Layer, own_stream, register

_LABEL = 16  # values of a box: x, y, width, height, angle, class, and ten that are not used


@register("DetectNetTransformation")
class DetectNetTransformation(Layer):
    """NVIDIA's ``DetectNetTransformationLayer``: images and boxes made fit for DetectNet, at random in TRAIN.

    Bottoms: images ``[N, 3, H, W]``; boxes ``[N, 1, 1 + B, 16]``, where the first row begins with the number of boxes
    and 16, and each following one is ``x y width height angle class ...``. Tops: images ``[N, 3, image_size_y,
    image_size_x]`` without the mean; labels ``[N, 8 + classes, rows, columns]``
    (:class:`~ohem_caffe_port.data.detectnet.LabelGrid`).

    TEST scales to ``image_size_x`` and ``image_size_y``; TRAIN does what ``detectnet_augmentation_param`` says, by
    default with probabilities of a third, and cuts or pads with 0 to that size. The mean is ``mean_file``, resized to
    the image, else ``mean_value``, one or three. It runs on the CPU, whose results differ from those of the fork's GPU
    kernel (which interpolates otherwise); random numbers come from a stream that torch's generator seeds.
    """

    fields = {
        "detectnet_groundtruth_param": {
            "stride", "scale_cvg", "gridbox_type", "max_cvg_len", "min_cvg_len", "coverage_type", "image_size_x",
            "image_size_y", "obj_norm", "crop_bboxes", "object_class",
        },
        "detectnet_augmentation_param": {
            "crop_prob", "shift_x", "shift_y", "scale_prob", "scale_min", "scale_max", "flip_prob", "rotation_prob",
            "max_rotate_degree", "hue_rotation_prob", "hue_rotation", "desaturation_prob", "desaturation_max",
        },
        "transform_param": {"mean_file", "mean_value"},
    }  # fmt: skip
    num_bottoms, num_tops = (2, 2), (2, 2)
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p, t = self.param.detectnet_groundtruth_param, self.param.transform_param
        for name in ("stride", "image_size_x", "image_size_y"):
            if getattr(p, name) < 1:
                raise self.error("must be positive", field=f"detectnet_groundtruth_param.{name}")
        self.grid = LabelGrid(p)
        if not all(self.grid.shape):
            raise self.error(
                "is so large that the image has no cell",
                field="detectnet_groundtruth_param.stride",
            )
        if len(t.mean_value) not in (0, 1, 3):
            raise self.error(f"{len(t.mean_value)} given; one or three", field="transform_param.mean_value")
        self.out = p.image_size_x, p.image_size_y
        self.mean = np.array(t.mean_value, np.float32) if t.mean_value else None
        if t.HasField("mean_file"):
            try:
                self.mean = read_mean(t.mean_file).transpose(1, 2, 0)
            except PortError as error:
                raise self.error(error.message, field=error.field, hint=error.hint) from None
            if self.mean.shape[2] != 3:
                raise self.error(f"has {self.mean.shape[2]} channels, not 3", field="transform_param.mean_file")
        self.rng = own_stream()

    def infer(self, bottoms):
        images, labels = bottoms
        if images.dim() != 4 or images.shape[1] != 3:
            raise self.error(f"needs images [N, 3, H, W], not {tuple(images.shape)}", field="bottom[0]")
        if labels.dim() != 4 or len(labels) != len(images):
            raise self.error(
                f"needs the boxes of {len(images)} images [N, 1, 1 + B, {_LABEL}], not {tuple(labels.shape)}",
                field="bottom[1]",
            )
        shapes = (3, *self.out[::-1]), self.grid.shape
        return [torch.empty((len(images), *shape), device="meta") for shape in shapes]

    @torch.no_grad()
    def forward(self, bottoms):
        self.infer(bottoms)
        images, labels = (bottom.cpu().numpy() for bottom in bottoms)
        pairs = [self._one(*pair) for pair in zip(images.transpose(0, 2, 3, 1), labels, strict=True)]
        return [torch.from_numpy(np.stack(blobs)).to(bottoms[0].device) for blobs in zip(*pairs, strict=True)]

    def _one(self, image, label):
        image = np.ascontiguousarray(image)
        size = image.shape[1], image.shape[0]
        rows = self._boxes(label)
        augmentation = Augmentation(scale=self.out)
        if self.context.train:
            augmentation = Augmentation.draw(self.param.detectnet_augmentation_param, size, self.out, self.rng)
            if min(augmentation.scale) < 1:
                raise self.error(
                    f"leaves nothing of an image of {size[1]} x {size[0]}",
                    field="detectnet_augmentation_param.scale_min",
                )
        mean = self.mean
        if mean is not None and mean.ndim == 3:
            mean = cv2.resize(mean, size, interpolation=cv2.INTER_CUBIC)
        blob = augmentation.of_image(image, mean, self.out)
        return blob.transpose(2, 0, 1), self.grid.label(augmentation.of_boxes(rows[:, :4], size), rows[:, 5])

    def _boxes(self, label) -> np.ndarray:
        """``[B, 16]`` of one image."""
        values = label.ravel()
        count, length = (int(v) for v in values[:2]) if values.size >= _LABEL else (0, 0)
        if length != _LABEL or count < 0:
            begin = f"a label begins with the number of boxes and {_LABEL}"
            raise self.error(f"{begin}; this one with {values[:2].tolist()}", field="bottom[1]")
        if values.size < _LABEL * (count + 1):
            raise self.error(
                f"announces {count} boxes, but has room for {values.size // _LABEL - 1}", field="bottom[1]"
            )
        return values[_LABEL : _LABEL * (count + 1)].reshape(-1, _LABEL)
