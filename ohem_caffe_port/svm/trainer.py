"""An SVM for each class on the features of a net, mined from a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict

import numpy as np
import torch

from ..config import Config
from ..data.minibatch import read_image
from ..errors import PortError
from ..layers import Layer
from ..net import Net
from ..pyramid import FeaturePyramid, project_rois
from .one_class import ClassSvm, SvmSettings

SCORES = "cls_score"  # the blob that testing reads with TEST.SVM


def each_image(images: Iterable[int], what: str) -> Iterable[int]:
    """How :class:`SvmTrainer` goes over images unless told otherwise: without a word."""
    return images


class SvmTrainer:
    """Replaces the rows of a net's ``cls_score`` by SVMs (``train_svms.py``'s ``SVMTrainer``).

    Images pass three times: ``norm_images`` of them, drawn with ``RNG_SEED``, for the scale of the features; those with
    objects for the positives, which are the ground-truth boxes; all for the hard negatives. RoIs are scored at
    ``TEST.SCALES``, each at one of them, and every RoI counts: ``DEDUP_BOXES`` is not used.

    Args:
        net: a test net with inputs ``data`` and ``rois`` and an InnerProduct layer that makes ``cls_score``; its
            weights there are replaced.
        imdb: images, objects and proposals; flipped images too where they were appended.
        feature: the blob of features; by default what that layer reads.
        track: called with the numbers of images and what is done with them, gives them back one by one: for progress.

    Attributes:
        svms: a :class:`ClassSvm` for each class but the background, after :meth:`run`.
        scale: of the features; ``seconds``: spent in the net.

    Raises:
        PortError: a net of another form, other classes than the data set's, a blob that does not fit.
    """

    def __init__(self, net: Net, imdb, cfg: Config, settings=SvmSettings(), *, feature=None, track=each_image):  # noqa: B008
        self.net, self.imdb, self.cfg, self.settings = net, imdb, cfg, settings
        self.layer = _score_layer(net, imdb)
        self.feature = feature or self.layer.param.bottom[0]
        self.dim = _columns(net, self.layer, self.feature)
        self.track: Callable[[Iterable[int], str], Iterable[int]] = track
        self.svms: list[ClassSvm] = []
        self.scale, self.seconds = 1.0, 0.0

    def run(self) -> list[ClassSvm]:
        """Mines and trains; the net has the SVMs then. Returns them."""
        self.scale = self._feature_scale()
        positives = self._positives()
        if not any(map(len, positives)):
            raise PortError(f"{self.imdb.name} has no objects to learn from", field="imdb")
        self.svms = [
            ClassSvm(name, features, self.scale, self.settings, self.cfg.RNG_SEED)
            for name, features in zip(self.imdb.classes[1:], positives, strict=True)
        ]
        for parameter in self.layer.blobs:
            parameter.detach().zero_()
        self._install(*range(len(self.svms)))
        for i in self.track(range(self.imdb.num_images), "hard negatives"):
            self._mine(i)
        for k, svm in enumerate(self.svms):
            if len(svm.positives):
                svm.train()
                self._install(k)
        return self.svms

    def report(self) -> dict:
        """The measurements as plain values for JSON: settings, scale, seconds, and each class's rounds."""
        classes = {
            svm.name: {"positives": len(svm.positives), "mined": svm.mined, "rounds": [asdict(r) for r in svm.rounds]}
            for svm in self.svms
        }
        return {
            "imdb": self.imdb.name, "images": self.imdb.num_images, "feature": self.feature, "scale": self.scale,
            "settings": asdict(self.settings), "net_seconds": self.seconds, "classes": classes,
        }  # fmt: skip

    @torch.no_grad()
    def _forward(self, i: int, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores ``[R, C]`` and features ``[R, D]`` of boxes of image ``i``."""
        start = time.perf_counter()
        image = read_image(self.imdb.image_path_at(i))
        if self.imdb.roidb[i]["flipped"]:
            image = np.ascontiguousarray(image[:, ::-1])
        pyramid = FeaturePyramid(self.net, image, self.cfg, self.cfg.TEST.SCALES, (SCORES, self.feature))
        scores, features = pyramid.score_rois(project_rois(boxes, pyramid.scales))
        self.seconds += time.perf_counter() - start
        return scores, features

    def _feature_scale(self) -> float:
        count = min(self.settings.norm_images, self.imdb.num_images)
        chosen = np.random.RandomState(self.cfg.RNG_SEED).choice(self.imdb.num_images, count, replace=False)
        total, rois = 0.0, 0
        for i in self.track(chosen.tolist(), "feature norm"):
            boxes = self.imdb.roidb[i]["boxes"]
            if len(boxes):
                norms = np.linalg.norm(self._forward(i, boxes)[1], axis=1)
                total, rois = total + float(norms.sum(dtype=np.float64)), rois + len(norms)
        if not 0 < total < np.inf:
            raise PortError(
                f"blob '{self.feature}' has the mean norm {total / max(rois, 1)} over {rois} RoIs",
                file=self.net.source,
                hint="are these the weights of a trained net, and are there proposals?",
            )
        return self.settings.norm * rois / total

    def _positives(self) -> list[np.ndarray]:
        """Features of the ground-truth boxes, ``[P, D]`` for each class but the background."""
        found = [[np.zeros((0, self.dim), np.float32)] for _ in self.imdb.classes]
        with_objects = [i for i, entry in enumerate(self.imdb.roidb) if (entry["gt_classes"] > 0).any()]
        for i in self.track(with_objects, "positives"):
            classes = self.imdb.roidb[i]["gt_classes"]
            features = self._forward(i, self.imdb.roidb[i]["boxes"][classes > 0])[1]
            classes = classes[classes > 0]
            for cls in np.unique(classes):
                found[cls].append(features[classes == cls])
        return [np.concatenate(features) for features in found[1:]]

    def _mine(self, i: int) -> None:
        """All classes look at image ``i``, scored by the SVMs as they were before it."""
        entry = self.imdb.roidb[i]
        if not len(entry["boxes"]):
            return
        scores, features = self._forward(i, entry["boxes"])
        overlaps = entry["gt_overlaps"].toarray()
        for k, svm in enumerate(self.svms):
            hard = svm.hard(scores[:, k + 1], overlaps[:, k + 1])
            if len(hard) and svm.add(features[hard]):
                self._install(k)

    @torch.no_grad()
    def _install(self, *which: int) -> None:
        """Writes SVMs into their rows of the score layer."""
        weight, bias = self.layer.blobs
        rows = weight.t() if self.layer.param.inner_product_param.transpose else weight
        for k in which:
            rows[k + 1] = torch.from_numpy(self.svms[k].weights).to(rows)
            bias[k + 1] = self.svms[k].bias


def _score_layer(net: Net, imdb) -> Layer:
    """The InnerProduct layer that makes the scores."""
    makers = [net.layers[value.producer] for value in net.values if value.name == SCORES]
    if set(net.inputs) != {"data", "rois"} or not makers:
        raise PortError(
            f"SVMs need inputs data and rois and a blob {SCORES}; this net has inputs {net.inputs} and outputs "
            f"{net.outputs}",
            file=net.source,
            hint="give the test.prototxt of a Fast R-CNN net",
        )
    layer = makers[0]
    if layer.type != "InnerProduct" or len(layer.blobs) != 2:
        what = "has no bias" if layer.type == "InnerProduct" else f"is a {layer.type} layer"
        raise net.located(layer.error(f"{what}; SVMs go into an InnerProduct layer with a bias"))
    classes = layer.param.inner_product_param.num_output
    if classes != imdb.num_classes:
        raise PortError(
            f"the net scores {classes} classes, {imdb.name} has {imdb.num_classes} (background included)",
            file=net.source,
            hint="give the data set that the net was trained for",
        )
    return layer


def _columns(net: Net, layer: Layer, feature: str) -> int:
    """Length of the features, which the score layer must take."""
    columns = {v.name: int(np.prod(shape[1:])) for v, shape in zip(net.values, net.shapes, strict=True)}
    wanted = columns[layer.param.bottom[0]]
    if columns.get(feature) != wanted:
        has = f"has {columns[feature]} values for a RoI" if feature in columns else "is not in the net"
        raise PortError(
            f"blob '{feature}' {has}; layer '{layer.name}', which the SVMs go into, reads {wanted} of "
            f"'{layer.param.bottom[0]}'",
            file=net.source,
            field="feature",
        )
    return wanted
