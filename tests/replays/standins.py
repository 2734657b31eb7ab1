"""Inputs in the place of data, and random weights, so that any net can run without either."""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.graph import connect, filter_layers
from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net
from prototxt import CaffePortError, caffe_pb2

SIDE = 256  # pixels of an image, where the net does not say
LARGE = 640  # where the anchors are larger than that
DIGIT = 28  # of an MNIST image, which some nets insist on
ROIS = 8
CLASS_LABELS = {"SoftmaxWithLoss", "Accuracy", "SegAccuracy", "HingeLoss", "MultinomialLogisticLoss"}
SAME_SHAPE = {"SmoothL1LossOHEM", "EuclideanLoss", "SigmoidCrossEntropyLoss", "SmoothL1Loss", "L1Loss", "Python"}
SELF_SUPPLIED = {"DummyData", "Parameter"}  # without bottoms, and in need of no file
LRCN_FRAMES = 384  # 24 clips of 16, as its nets reshape them
DETECTNET_LABEL = (1, 4, 16)  # up to 3 boxes of an image
# These compute a label for every cell of every field of view: they read a drawn picture. (message, difficult column)
WINDOW_DATA = {
    "ImageGtData": ("image_gt_data_param", False),
    "DetectionData": ("detection_data_param", True),
    "EvalData": ("eval_data_param", True),
}


class RunError(Exception):
    """A net that cannot be given inputs."""


def phases_of(net) -> list[str]:
    """The phases that a net is made for: those its rules name; else TRAIN where it has a loss, TEST where not. One in
    which a bottom is missing is none, unless that is so in all."""
    named = {("TRAIN", "TEST")[rule.phase] for layer in net.layer for rule in (*layer.include, *layer.exclude)
             if rule.HasField("phase")}  # fmt: skip
    if any(layer.type == "Python" and not layer.bottom and not layer.include for layer in net.layer):
        return ["TRAIN"]  # those data layers are for training
    if not named:
        has_loss = any(_is_loss(layer) for layer in net.layer)
        has_accuracy = any(layer.type == "Accuracy" for layer in net.layer)
        return ["TRAIN"] if has_loss and not has_accuracy else ["TEST"] if not has_loss else ["TRAIN", "TEST"]
    phases = [phase for phase in ("TRAIN", "TEST") if any(not x.bottom and x.top for x in filter_layers(net, phase))]
    return [phase for phase in phases if _connects(net, phase)] or phases


def _connects(net, phase: str) -> bool:
    try:
        connect(filter_layers(net, phase))
    except CaffePortError:
        return False
    return True


def _is_loss(layer) -> bool:
    return bool(layer.loss_weight) or getattr(LAYERS.get(layer.type), "is_loss", False) or layer.type.endswith("Loss")


def run_net(net_param, phase: str, path) -> dict:
    """Builds, fills and runs one net; says whether there was a backward pass.

    Raises:
        CaffePortError, RunError: it does not run.
    """
    layers = filter_layers(net_param, phase)
    kept = caffe_pb2.NetParameter(name=net_param.name, layer=layers, force_backward=net_param.force_backward)
    for layer in kept.layer:  # the rules have done their work
        layer.ClearField("include")
        layer.ClearField("exclude")
    cfg = config_for(kept, phase, path)
    try:
        net = forward(build_somehow(kept, phase, cfg))
    except CaffePortError as error:
        if "no anchor lies inside" not in str(error):
            raise
        net = forward(build(kept, phase, cfg, side=LARGE, channels=3))
    has_loss = bool(net.losses) and phase == "TRAIN"
    if has_loss:
        if not bool(torch.isfinite(net.loss)):
            raise RunError(f"the loss is {net.loss.item()}")
        net.backward()
    return {"ran": True, "backward": has_loss, "layers": len(net.layers)}


def forward(net: Net) -> Net:
    """Gives the net weights and inputs, and runs it."""
    randomize(net)
    net(**{name: value_of(name, shape, net) for name, shape in input_shapes(net).items()})
    return net


def build_somehow(net_param, phase: str, cfg) -> Net:
    """The net with small inputs, else with digits, else with inputs as large as it says.

    Raises:
        CaffePortError: the first of these attempts fails, and so do the others.
    """
    try:
        return build(net_param, phase, cfg, side=SIDE, channels=3)
    except CaffePortError as error:
        first = error
    for settings in ({"side": DIGIT, "channels": 1}, {"side": SIDE, "channels": 3, "shrink": False}):
        try:
            return build(net_param, phase, cfg, **settings)
        except CaffePortError:
            continue
    raise first


def build(net_param, phase: str, cfg, side: int, channels: int, shrink: bool = True) -> Net:
    """The net on images of this size, where it does not state another; larger ones are made small with ``shrink``."""
    copy = caffe_pb2.NetParameter()
    copy.CopyFrom(net_param)
    forget_files(copy)
    replace_sources(copy, phase, cfg, side, channels, shrink)
    return Net(copy, phase, cfg=cfg)


def config_for(net, phase: str, path) -> Config:
    """Settings that the net's own project would give: with or without a region proposal network."""
    cfg = Config()
    tops = {top for layer in net.layer for top in layer.top}
    bottoms = {bottom for layer in net.layer for bottom in layer.bottom}
    has_rpn = "gt_boxes" in tops or ("im_info" in tops | bottoms)
    cfg.merge({"TRAIN": {"HAS_RPN": has_rpn}, "TEST": {"HAS_RPN": has_rpn}}, source=str(path))
    return cfg


# ---- shapes


def scratch_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ohem_caffe_port_standins_{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return folder


def forget_files(net) -> None:
    """Layers other than data layers do without the files that they name, or get one of our own."""
    for layer in net.layer:
        for message, field in (
            ("detection_output_param", "save_output_param"),
            ("frcnn_output_param", "save_output_param"),
            ("detection_evaluate_param", "name_size_file"),
        ):
            if layer.HasField(message):
                getattr(layer, message).ClearField(field)
        for message in ("yolo_detection_output_param", "yolov3_detection_output_param"):
            if layer.HasField(message):  # with random weights hundreds of thousands of boxes pass the usual thresholds
                getattr(layer, message).confidence_threshold = 0.9
        if layer.type == "DetectionEvaluate" and len(layer.bottom) == 3:
            sizes = scratch_folder() / "name_size.txt"
            sizes.write_text("picture 640 640\n" * 8)
            layer.detection_evaluate_param.name_size_file = str(sizes)


def replace_sources(net, phase: str, cfg, side: int, channels: int, shrink: bool) -> None:
    """Every layer that would read files becomes an ``Input`` layer; images become small."""
    four_axes = any(layer.type == "BoxAnnotatorOHEM" for layer in net.layer)  # as R-FCN's data layer gives them
    for layer in list(net.layer):
        if layer.type in WINDOW_DATA:
            draw_windows(layer, shrink)
            continue
        if layer.type == "DummyData" and shrink:
            dummy = layer.dummy_data_param
            for shape in dummy.shape:
                shape.dim[:1] = [min(d, 2) for d in shape.dim[:1]]
            dummy.num[:] = [min(n, 2) for n in dummy.num]
        if layer.bottom or not layer.top or layer.type in SELF_SUPPLIED:
            continue
        if layer.type == "Input":
            shapes = {top: tuple(_declared(layer, i)) for i, top in enumerate(layer.top)}
            if shrink:
                shapes = {top: smaller(shape) for top, shape in shapes.items()}
        else:
            shapes = shapes_of_source(layer, side, channels)
            if four_axes and "rois" in shapes:
                shapes = {top: (*shape, *[1] * (4 - len(shape))) for top, shape in shapes.items()}
        reshape_inputs(net, shapes)
    settle_labels(net, phase, cfg)


def _declared(layer, i):
    shapes = layer.input_param.shape
    return shapes[i if len(shapes) > 1 else 0].dim if shapes else (1, 3, SIDE, SIDE)


def smaller(shape):
    """At most two images, or one volume; large ones that no layer could insist on stay as they are up to 512 pixels."""
    if len(shape) == 5:
        return (1, *shape[1:])
    if len(shape) != 4 or not all(shape):
        return shape
    n, c, h, w = shape
    return (min(n, 2), c, h, w) if h * w <= 640 * 640 else (min(n, 2), c, 320, 320 * w // h // 32 * 32 or 320)


def draw_windows(layer, shrink: bool) -> None:
    """Gives the layer a window file with one picture and objects of many sizes in it; scaled less with ``shrink``."""
    name, difficult = WINDOW_DATA[layer.type]
    folder = scratch_folder()
    image, windows = folder / "picture.png", folder / f"{name}.txt"
    width, height = 640, 640
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    sizes = [(20 * k, 16 * k) for k in range(1, 24)]
    rows = [f"1 0 {'0 ' if difficult else ''}{k} {k} {k + w} {k + h}" for k, (w, h) in enumerate(sizes)]
    windows.write_text("\n".join(["# 0", image.name, "3", str(height), str(width), str(len(rows)), *rows, "0"]) + "\n")
    settings = getattr(layer, name)
    settings.root_folder, settings.source, settings.batch_size = f"{folder}/", str(windows), 1
    if shrink and name != "image_gt_data_param":
        settings.short_size, settings.long_size = 224, 320


def shapes_of_source(layer, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Plausible shapes of a data layer's tops, by the names that the projects use."""
    crop = layer.transform_param.crop_size
    resize = next(iter(layer.transform_param.resize_param), None)
    height = crop or (resize.height if resize else 0) or layer.image_data_param.new_height or side
    width = crop or (resize.width if resize else 0) or layer.image_data_param.new_width or side
    one = any(top in ("rois", "im_info", "gt_boxes") for top in layer.top) or layer.type == "Python"
    batch = LRCN_FRAMES if "clip_markers" in layer.top else 1 if one else 2
    memory = layer.memory_data_param
    channels = memory.channels or (2 if layer.top[0] == "pair_data" else channels)
    if memory.height:
        height, width = memory.height, memory.width
    classes = re.search(r"num_classes'?: *(\d+)", layer.python_param.param_str)
    shapes = {}
    for top in layer.top:
        if top == "rois":
            shapes[top] = (ROIS, 5)
        elif top.startswith("bbox_") and "rois" in layer.top:
            shapes[top] = (ROIS, 4 * int(classes[1]) if classes else 84)
        elif top == "gt_boxes":
            shapes[top] = (3, 5)
        elif top == "im_info":
            shapes[top] = (1, 3)
        elif top == "gt_masks":
            shapes[top] = (3, height, width)
        elif top == "masks":
            shapes[top] = (ROIS, 1, 14, 14)
        elif top == "mask_targets":
            shapes[top] = (ROIS, 1, 21, 21)
        elif top == "mask_info":
            shapes[top] = (3, 2)
        elif top == layer.top[0] or top in ("hha", "depth"):
            shapes[top] = (batch, channels, height, width)
        elif layer.type == "AnnotatedData":
            shapes[top] = (1, 1, 3, 8)
        else:
            shapes[top] = (ROIS,) if "rois" in layer.top else (batch,)
    return shapes


def settle_labels(net, phase: str, cfg) -> None:
    """Gives each input that is compared with something the shape that fits it."""
    inputs = {top: layer for layer in net.layer if layer.type == "Input" for top in layer.top}
    makers = {}
    for i, layer in enumerate(net.layer):
        if layer.type == "DetectNetTransformation" and layer.bottom[1] in inputs:
            reshape_inputs(net, {layer.bottom[1]: (2, *DETECTNET_LABEL)})
        for b, bottom in enumerate(layer.bottom):
            compared = b and (_is_loss(layer) or layer.type in ("Accuracy", "SegAccuracy"))
            compared = compared and not (layer.type == "Python" and len(layer.bottom) > 2)  # it may read rois, too
            if bottom in inputs and compared and bottom not in makers and layer.type != "MultiBoxLoss":
                makers[bottom] = (i, layer.bottom[0], layer.type, layer)
    for top, (i, prediction, kind, reader) in makers.items():
        shape = shape_before(net, i, prediction, phase, cfg)
        if shape is None:
            continue
        if kind in CLASS_LABELS:
            axis = reader.softmax_param.axis if kind == "SoftmaxWithLoss" else 1
            wanted = tuple(shape[:axis]) + ((1,) if len(shape) == 4 and axis == 1 else ()) + tuple(shape[axis + 1 :])
            wanted = wanted or (1,)
        elif kind in SAME_SHAPE:
            wanted = tuple(shape)
        else:
            continue
        tops = list(inputs[top].top)
        declared = [tuple(s.dim) for s in inputs[top].input_param.shape]
        if math.prod(declared[tops.index(top)]) != math.prod(wanted):
            declared[tops.index(top)] = wanted
            reshape_inputs(net, dict(zip(tops, declared, strict=True)))


def shape_before(net, index: int, blob: str, phase: str, cfg):
    """The shape of ``blob`` in the net up to (not with) layer ``index``; None when that part cannot be built."""
    part = caffe_pb2.NetParameter(layer=net.layer[:index])
    try:
        built = Net(part, phase, cfg=cfg, initialize=False)
    except CaffePortError:
        return None
    return next((s for v, s in zip(built.values[::-1], built.shapes[::-1], strict=True) if v.name == blob), None)


def input_shapes(net) -> dict[str, tuple[int, ...]]:
    return {net.values[v].name: net.shapes[v] for step, layer in zip(net.steps, net.layers, strict=True)
            if layer.type == "Input" for v in step.tops}  # fmt: skip


# ---- values


def value_of(name: str, shape, net) -> torch.Tensor:
    """Numbers that such a blob could hold."""
    height, width = image_size(net)
    if "rois" in name and len(shape) >= 2 and shape[1] == 5:
        return torch.cat([torch.zeros(shape[0], 1), boxes(shape[0], height, width)], 1).view(shape)
    if name == "gt_boxes":
        return torch.cat([boxes(shape[0], height, width, seed=0), torch.ones(shape[0], 1)], 1).view(shape)
    if name == "mask_info":  # heights and widths of the boxes' masks
        found = boxes(shape[0], height, width, seed=0)
        return (found[:, 2:] - found[:, :2] + 1).flip(1)
    if name == "im_info":
        info = torch.ones(shape)  # and scales
        info[..., :2] = torch.tensor([height, width])
        return info
    if tuple(shape[-1:]) == (8,) and len(shape) == 4 and "label" in name:
        rows = torch.zeros(shape)
        rows[..., 1] = 1
        rows[..., 3:7] = torch.tensor([0.2, 0.2, 0.7, 0.8])
        return rows
    if tuple(shape[1:]) == DETECTNET_LABEL:
        rows = torch.zeros(shape)
        rows[..., 0, :2] = torch.tensor([3, 16])
        rows[..., 1:, :6] = torch.tensor([40, 60, 80, 100, 0, 1])
        return rows
    if name in ("clip_markers", "cont"):
        return torch.ones(shape)
    if is_label(name, net):
        return torch.randint(0, 2, shape).float()
    return torch.randn(shape)


def is_label(name: str, net) -> bool:
    readers = [(net.layers[s], b) for v in net.values if v.name == name for s, b in v.readers]
    return any(b and (layer.is_loss or layer.type in ("Accuracy", "SegAccuracy")) for layer, b in readers) or any(
        word in name for word in ("label", "sim", "weights", "targets", "mask")
    )


def image_size(net) -> tuple[int, int]:
    shapes = [s for s in input_shapes(net).values() if len(s) == 4 and s[1] == 3]
    return tuple(shapes[0][2:]) if shapes else (SIDE, SIDE)


def boxes(count: int, height: int, width: int, seed: int | None = None) -> torch.Tensor:
    """``[count, 4]`` of a fifth of the image and more, inside it; the same for the same seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 0.5
    size = 0.2 + torch.rand(count, 2, generator=generator) * 0.3
    scale = torch.tensor([width - 1.0, height - 1.0])
    return torch.cat([corner * scale, (corner + size) * scale], 1).floor()


def randomize(net) -> None:
    """Weights that keep the size of what passes through them; statistics of mean 0 and variance 1."""
    with torch.no_grad():
        for layer in net.layers:
            if layer.type in ("BatchNorm", "BN") and len(layer.blobs) >= 2:
                for j, blob in enumerate(layer.blobs):
                    blob.fill_(0.0 if j == (0 if layer.type == "BatchNorm" else 1) else 1.0)
                continue
            for blob in layer.blobs:
                if blob.dim() >= 2 and blob.numel() > 1:
                    bound = math.sqrt(3.0 / max(1, math.prod(blob.shape[1:])))
                    if "bbox" in layer.name:  # boxes that stay boxes
                        bound /= 100
                    blob.uniform_(-bound, bound)
