"""Detectors of the zoo on images and RoIs that are made up, for the benchmarks that time whole iterations."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.sparse import csr_matrix

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.ops import bbox_overlaps
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import Trainer
from prototxt import parse_net
from prototxt.zoo.detectors import train_net
from prototxt.zoo.generate import FAMILIES, ZOO, Family
from prototxt.zoo.recipes import Recipe

OBJECTS = 3  # in an image, as in VOC


def synthetic_roidb(images: int, rois: int, classes: int, height: int, width: int, seed: int = 0) -> list[dict]:
    """A prepared roidb: JPEG files of ``height`` x ``width`` pixels in a temporary folder, each with ``rois`` RoIs.

    The first :data:`OBJECTS` RoIs are the objects; a quarter of the others crowd around them and the rest lie anywhere,
    in sizes from a sixteenth of a side to all of it, as proposals do.
    """
    rng = np.random.default_rng(seed)
    return [_entry(rng, rois, classes, height, width) for _ in range(images)]


def build(
    recipe: str = "vgg_cnn_m_1024/ohem", *, images: int = 1, rois: int = 2000, batch_size: int = 64, height: int = 600,
    width: int = 800, classes: int = 21, iter_size: int = 1, device="cpu", dropout: float | None = None,
    precision="fp32", settings=(), seed: int = 0,
) -> Solver:  # fmt: skip
    """The solver of a recipe, ready for ``step()``: its net is filled, its data layer has a synthetic roidb.

    Args:
        recipe: ``<family>/<recipe>`` of ``prototxt/zoo``.
        images: of a minibatch; the roidb has one more, so that minibatches differ.
        rois: of each image, objects included; without mining ``batch_size`` of all images are sampled from them.
        batch_size: RoIs that are trained on, of all images (``TRAIN.BATCH_SIZE``).
        height, width: of the images in pixels; they are not scaled.
        dropout: ratio after each hidden layer; 0 leaves the layers out, None keeps the family's.
        precision: how exactly the net computes, see ``Net``.
        settings: more keys and values, as behind ``--set``.

    Blobs that no layer needs any more are let go (``keep_blobs``), as in training.

    Raises:
        PortError: no such recipe, or settings that do not fit together.
    """
    family, found = find(recipe)
    torch.manual_seed(seed)
    cfg = Config()
    cfg.merge_file(ZOO / recipe / "cfg.yml")
    cfg.merge_list([
        "TRAIN.IMS_PER_BATCH", str(images), "TRAIN.BATCH_SIZE", str(batch_size),
        "TRAIN.SCALES", f"[{min(height, width)}]", "TRAIN.MAX_SIZE", str(max(height, width)),
        "TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED", "True",  # one class in a thousand has no statistics
        *settings,
    ])  # fmt: skip
    shape = {**family.net(found), "classes": classes, **({} if dropout is None else {"dropout": dropout})}
    net = Net(parse_net(train_net(recipe, found.method, **shape)), cfg=cfg, device=device, precision=precision)
    net.keep_blobs = False
    fill(net)
    solver = Solver(ZOO / recipe / "solver.prototxt", net)
    solver.param.iter_size = iter_size
    Trainer(solver, synthetic_roidb(images + 1, rois, classes, height, width, seed), cfg, "unused")
    return solver


def find(recipe: str) -> tuple[Family, Recipe]:
    """The family and the recipe of ``<family>/<recipe>``.

    Raises:
        PortError: the zoo has none of these names.
    """
    family_name, _, name = recipe.partition("/")
    family = FAMILIES.get(family_name)
    known = family.recipes if family else FAMILIES
    if family is None or name not in known:
        raise PortError(f"no recipe '{recipe}' in the zoo", hint=f"known: {', '.join(known)}")
    return family, known[name]


@torch.no_grad()
def fill(net: Net) -> None:
    """Weights for layers that a caffemodel would fill: normal, so wide that activations neither fade nor grow (He et
    al., 2015), and the first layer's 64 times narrower, for pixels come in hundreds."""
    empty = [p.blob for p in net.learnable_params if p.blob.dim() > 1 and not p.blob.any()]
    for blob in empty:
        blob.normal_(0, (2 / blob[0].numel()) ** 0.5)
    if empty and empty[0] is net.learnable_params[0].blob:
        empty[0].div_(64)


class Repeated:
    """In the place of a data layer's ``loader``: the same minibatch again and again, so that nothing but the net is
    timed, and several nets see the same."""

    def __init__(self, blobs: dict[str, np.ndarray]):
        self.blobs = blobs

    def next_minibatch(self) -> dict[str, np.ndarray]:
        return self.blobs


def data_layer(net: Net):
    """The layer whose ``loader`` gives minibatches."""
    return next(layer for layer in net.layers if hasattr(layer, "set_roidb"))


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Where images lie; it is removed when Python ends."""
    return tempfile.TemporaryDirectory()


def _entry(rng, rois: int, classes: int, height: int, width: int) -> dict:
    """One image and its entry of the roidb; see :func:`synthetic_roidb`."""
    if rois < OBJECTS or classes < 2:
        raise PortError(f"{rois} RoIs of {classes} classes: at least {OBJECTS} and 2 are needed")
    limits = np.array([width, height])
    boxes = _boxes(rng, rois, limits)
    near = OBJECTS + (rois - OBJECTS) // 4
    object_of = rng.integers(0, OBJECTS, near - OBJECTS)
    sides = np.tile(boxes[:OBJECTS, 2:] - boxes[:OBJECTS, :2], 2)
    jittered = boxes[object_of] + rng.normal(0, 0.15, (len(object_of), 4)) * sides[object_of]
    corners = np.sort(jittered.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    boxes[OBJECTS:near] = np.clip(corners, 0, np.tile(limits - 1, 2))
    boxes = boxes.round().astype(np.uint16)
    objects = rng.integers(1, classes, OBJECTS)
    overlaps = bbox_overlaps(boxes.astype(float), boxes[:OBJECTS].astype(float))
    best, which = overlaps.max(1), overlaps.argmax(1)
    max_classes = np.where(best > 0, objects[which], 0)
    file = Path(_folder().name) / f"{len(list(Path(_folder().name).iterdir()))}.jpg"
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    cv2.imwrite(str(file), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return {
        "boxes": boxes,
        "gt_classes": np.append(objects, np.zeros(rois - OBJECTS, int)),
        "gt_overlaps": csr_matrix((best, (np.arange(rois), max_classes)), (rois, classes), np.float32),
        "max_overlaps": best.astype(np.float32),
        "max_classes": max_classes,
        "flipped": False,
        "image": str(file),
        "image_id": file.stem,
        "width": width,
        "height": height,
    }


def _boxes(rng, count: int, limits) -> np.ndarray:
    """``[count, 4]`` corners within an image of ``limits`` (width, height)."""
    sides = limits * np.exp(rng.uniform(np.log(1 / 16), 0, (count, 2)))
    corners = rng.random((count, 2)) * (limits - sides)
    return np.hstack([corners, np.maximum(corners + sides - 1, corners)])
