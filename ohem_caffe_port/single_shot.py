"""From an image to scored boxes by a net that ends in DetectionOutput: SSD, RetinaNet and their kin."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from .config import Config
from .data.minibatch import images_to_blob, prep_image
from .errors import PortError
from .net import Net


def detection_layer(net: Net):
    """The DetectionOutput layer of a net that takes images alone (its only input is data); None of other nets."""
    layers = [layer for layer in net.layers if layer.type == "DetectionOutput"]
    return layers[-1] if layers and list(net.inputs) == ["data"] else None


@torch.no_grad()
def im_detect_rows(net: Net, image: np.ndarray, cfg: Config) -> np.ndarray:
    """The net's rows for one image, ``[N, 6]`` float32: class, score, and x1, y1, x2, y2 in pixels, inclusive, clipped
    to the image.

    The image is scaled by ``TEST.SCALES`` and ``MAX_SIZE``; where the configuration does not state ``TEST.SCALES``, it
    is stretched to the size that the net's input has in the prototxt, as SSD does.

    Args:
        net: with a :func:`detection_layer`.
        image: ``[H, W, 3]`` uint8 BGR.

    Raises:
        PortError: more than one ``TEST.SCALES``.
    """
    if "TEST.SCALES" in cfg.explicit:
        if len(cfg.TEST.SCALES) > 1:
            raise PortError("a single-shot net is tested at one scale", field="TEST.SCALES")
        data = images_to_blob([prep_image(image, cfg, cfg.TEST.SCALES[0], cfg.TEST)[0]])
    else:
        shapes = {value.name: shape for value, shape in zip(net.values, net.shapes, strict=True)}
        centred = (image.astype(np.float32) - np.asarray(cfg.PIXEL_MEANS)) / np.asarray(cfg.PIXEL_STDS)
        data = images_to_blob([cv2.resize(centred.astype(np.float32), shapes["data"][:1:-1])])
    net(data=data)
    rows = net.blobs[detection_layer(net).param.top[0]].reshape(-1, 7).cpu().numpy()
    rows = rows[rows[:, 1] >= 0]  # one of -1 stands for no detections
    height, width = image.shape[:2]
    boxes = rows[:, 3:].clip(0, 1) * np.float32([width, height, width, height]) - np.float32([0, 0, 1, 1])
    return np.hstack([rows[:, 1:3], boxes.clip(min=0)]).astype(np.float32)


def rows_by_class(rows: np.ndarray, classes: int, *, thresh: float = 0.05, max_per_image: int = 100) -> list:
    """For every class ``[N, 5]`` float32 ``(x1, y1, x2, y2, score)``, best first, as
    :func:`~ohem_caffe_port.detect.detections_by_class` gives them: scores above ``thresh``, the ``max_per_image`` best
    of all classes together (0: all).

    Args:
        rows: of :func:`im_detect_rows`; suppression is done.
        classes: background, class 0, included; it stays empty.
    """
    rows = rows[rows[:, 1] > thresh]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    if max_per_image > 0:
        rows = rows[:max_per_image]
    labels = np.where(rows[:, 0] > 0, rows[:, 0], -1)
    return [rows[labels == cls][:, [2, 3, 4, 5, 1]] for cls in range(classes)]
