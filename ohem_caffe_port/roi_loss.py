"""The mean loss over all RoIs during training, whatever RoIs a method trains on (the OHEM paper's Figure 2).

It is the loss that ranks RoIs for mining: ``-log p[label]`` plus, for foreground, the smooth L1 loss of the box
(:func:`ohem_caffe_port.mining.ohem.ohem_roi_loss`); its mean over every RoI of some training images, with the current
weights and without dropout. So runs that sample in different ways are measured alike.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from prototxt.caffe_pb2 import NetParameter
from prototxt.files import replacing

from . import distributed
from .data.minibatch import load_minibatch, plan_minibatch
from .errors import PortError
from .mining import ohem_roi_loss
from .net import Net
from .python_layers.ohem import OHEMDataLayer
from .test_nets import share_layers
from .train import normalized_layers
from .weights import copy_from


class RoiLoss:
    """Mean loss over all RoIs of some images, with the weights that ``net`` has when this is called.

    Neither building nor calling it changes the net or a random stream: training goes on as if it were not there.

    Args:
        net: a training net whose data layer gives the RoIs; sampled, mined or weighed in any way.
        roidb: of the training set (:func:`ohem_caffe_port.data.roidb.get_training_roidb`), with the box targets that a
            :class:`~ohem_caffe_port.train.Trainer` adds, and with the images that its settings leave out.
        images: how many, at equal distances over those that are not mirrored; all when None or 0.

    Attributes:
        images, rois: how many there are.

    Raises:
        PortError: a net that proposes RoIs itself, or whose class scores cannot be told.
    """

    def __init__(self, net: Net, roidb: list[dict], images: int | None = None):
        self.scoring = scoring_net(net)
        self.cfg = copy.deepcopy(net.cfg)
        self.cfg.TRAIN.USE_OHEM = True  # all RoIs
        entries = [entry for entry in roidb if not entry["flipped"] and len(entry["boxes"])]
        if not entries:
            raise PortError("no image of the training set has RoIs")
        places = np.linspace(0, len(entries) - 1, min(images or len(entries), len(entries))).astype(int)
        rng = np.random.RandomState(0)  # of the scales, where there are several
        self.roidb = [entries[i] if "bbox_targets" in entries[i] else self._without_targets(entries[i]) for i in places]
        self.plans = [plan_minibatch(self.roidb, [i], self.cfg, rng) for i in range(len(self.roidb))]
        self.images, self.rois = len(self.plans), sum(len(plan.keep[0]) for plan in self.plans)

    def _without_targets(self, entry: dict) -> dict:
        """An image without foreground, which its trainer left out before box targets were added: its are zero."""
        train = self.cfg.TRAIN
        if train.BBOX_REG and (entry["max_overlaps"] >= train.FG_THRESH).any():
            raise ValueError("the roidb has no box targets yet: give it to a Trainer first")
        return entry | {"bbox_targets": np.zeros((len(entry["boxes"]), 5), np.float32)}

    @torch.no_grad()
    def __call__(self) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.scoring.net.device)
        for i in distributed.shard(len(self.plans)):
            plan = self.plans[i]
            total += self.losses(load_minibatch(self.roidb, plan, self.scoring.classes, self.cfg)).sum()
        return float(distributed.total(total)) / self.rois

    @torch.no_grad()
    def losses(self, blobs: dict[str, np.ndarray]) -> torch.Tensor:
        """The loss of each RoI of a minibatch, ``[R]`` float64; ``blobs`` are those of the data layer."""
        net, inputs, scores, boxes, _ = self.scoring
        given = {name: torch.from_numpy(blob).to(net.device) for name, blob in blobs.items()}
        found = net(**{top: given[name] for top, name in inputs.items()})
        prob = torch.softmax(found[scores].flatten(1), dim=1)
        if boxes is None:
            return ohem_roi_loss(prob, given["labels"])
        targets = (given[f"bbox_{name}"] for name in ("targets", "inside_weights", "outside_weights"))
        return ohem_roi_loss(prob, given["labels"], found[boxes].flatten(1), *targets)


class Scoring(NamedTuple):
    """A net that scores all RoIs of an image, and the names of its blobs."""

    net: Net
    inputs: dict[str, str]  # its input -> the data layer's blob of that name in minibatches
    scores: str
    boxes: str | None
    classes: int


def scoring_net(net: Net) -> Scoring:
    """The part of a training net that the first bottoms of its losses depend on, in the test phase, with the same
    parameters. What takes hard RoIs from a mining layer gets all RoIs there.

    Raises:
        PortError: see :class:`RoiLoss`.
    """
    place = next((i for i, layer in enumerate(net.layers) if hasattr(layer, "set_roidb")), None)
    names = () if place is None else getattr(net.layers[place], "names", ())
    if "rois" not in names:
        raise PortError(
            "the loss over all RoIs is of nets whose data layer gives the RoIs; this one has no such layer, or makes "
            "its own proposals",
            file=net.source,
        )
    classes, train = net.layers[place].num_classes, net.cfg.TRAIN
    scores = _bottom_of_loss(net, "SoftmaxWithLoss", classes)
    if scores is None:
        raise PortError(f"no SoftmaxWithLoss layer takes the scores of {classes} classes", file=net.source)
    boxes = _bottom_of_loss(net, "SmoothL1Loss", 4 * (2 if train.AGNOSTIC else classes)) if train.BBOX_REG else None
    same = {}  # what a mining layer picks -> what it picks from
    for step, layer in zip(net.steps, net.layers, strict=True):
        if isinstance(layer, OHEMDataLayer):
            same |= dict(zip(step.tops, step.bottoms[2:], strict=False))
    wanted, kept = {scores} if boxes is None else {scores, boxes}, []
    for i in reversed(range(len(net.layers))):
        if i != place and wanted & set(net.steps[i].tops):
            kept.append(i)
            wanted |= {same.get(v, v) for v in net.steps[i].bottoms}
    param, inputs = NetParameter(name=f"{net.name}, all RoIs"), {}
    for name, v in zip(names, net.steps[place].tops, strict=True):
        if v in wanted:
            inputs[net.values[v].name] = name
            shape = {"shape": [{"dim": net.shapes[v]}]}
            param.layer.add(name=name, type="Input", top=[net.values[v].name], input_param=shape)
    for i in reversed(kept):
        part = param.layer.add()
        part.CopyFrom(net.layers[i].param)
        part.bottom[:] = [net.values[same.get(v, v)].name for v in net.steps[i].bottoms]
        for name in ("include", "exclude", "phase", "propagate_down", "loss_weight"):
            part.ClearField(name)
    options = {"cfg": net.cfg, "device": net.device, "precision": net.precision}
    scoring = Net(param, "TEST", path=net.source, initialize=False, **options)
    share_layers(scoring, net)
    scoring.keep_blobs = False
    return Scoring(scoring, inputs, net.values[scores].name, None if boxes is None else net.values[boxes].name, classes)


def _bottom_of_loss(net: Net, kind: str, columns: int) -> int | None:
    """The value with so many columns that the first layer of this type takes first."""
    found = (step.bottoms[0] for step, layer in zip(net.steps, net.layers, strict=True) if layer.type == kind)
    return next((v for v in found if net.shapes[v][1] == columns), None)


def load_unnormalized(net: Net, path, means: np.ndarray, stds: np.ndarray) -> None:
    """Loads a snapshot for testing (:func:`ohem_caffe_port.train.save_unnormalized`) as the net was in training:
    ``W / std`` and ``(b - mean) / std`` of its box predictions; 0 for classes without foreground, whose std is 0.

    Args:
        means, stds: ``[4 * num_classes]`` of the box targets.
    """
    missing = [layer for layer, _, verdict in copy_from(net, path).rows if verdict == "not in the file"]
    if missing:
        raise PortError(f"it is no snapshot of this net: layer {missing[0]} is not in it", file=path)
    for name, (mean, std) in normalized_layers(net, means, stds, net.cfg).items():
        inverse = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
        weight, bias = (p.detach().cpu().numpy().astype(np.float64) for p in net.params[name])
        scaled = weight * inverse.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * inverse
        with torch.no_grad():
            for p, value in zip(net.params[name], scaled, strict=True):
                p.copy_(torch.from_numpy(value))


def snapshots(folder, prefix: str) -> dict[int, Path]:
    """``{iteration: path}`` of the files ``<prefix>_iter_<iteration>.caffemodel`` (or ``.h5``) in a folder."""
    pattern = re.compile(re.escape(prefix) + r"_iter_(\d+)\.caffemodel(\.h5)?")
    found = {int(m[1]): path for path in Path(folder).iterdir() if (m := pattern.fullmatch(path.name))}
    return dict(sorted(found.items()))


class Curve:
    """The loss over all RoIs at some iterations, kept in a JSON file.

    Attributes:
        about: what it is of, ``{"net", "imdb", "images", "rois"}``.
        points: ``{iteration: loss}``.
    """

    ENDING = "_roi_loss.json"

    def __init__(self, path, about: dict, points=()):
        self.path, self.about, self.points = Path(path), about, dict(points)

    @classmethod
    def read(cls, path) -> Curve:
        """Raises: PortError: it is no such file."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            points = {int(iteration): float(loss) for iteration, loss in content.pop("points")}
            if not points:
                raise ValueError("no points")
            return cls(path, {key: content[key] for key in ("net", "imdb", "images", "rois")}, points)
        except OSError as error:
            raise PortError(f"cannot be read: {error.strerror}", file=path) from None
        except (ValueError, TypeError, LookupError, AttributeError):
            raise PortError(
                "holds no losses over all RoIs", file=path, hint="train_from_prototxt.py --roi_loss writes such files"
            ) from None

    def follow(self, path, iteration: int) -> None:
        """Takes over the points of an earlier file up to ``iteration``, where it exists.

        Raises:
            PortError: they are of another set of images.
        """
        if not Path(path).is_file():
            return
        earlier = Curve.read(path)
        if earlier.about != self.about:
            differing = [key for key, value in self.about.items() if earlier.about[key] != value][0]
            raise PortError(
                f"its losses are of {differing} {earlier.about[differing]}, not {self.about[differing]}",
                file=path,
                hint="measure as before, or remove the file",
            )
        self.points = {i: loss for i, loss in earlier.points.items() if i <= iteration} | self.points

    def add(self, iteration: int, loss: float) -> None:
        """Adds a point, and writes the file."""
        self.points[iteration] = loss
        if not distributed.is_root():
            return
        with replacing(self.path, "w", encoding="utf-8") as file:
            json.dump(self.about | {"points": sorted(self.points.items())}, file)
