"""Writes the networks of this folder: ``python -m prototxt.zoo.generate``.

Every network is a backbone, a RoI head, and a way to choose RoIs:

* ``fast_rcnn``: the data layer samples foreground and background RoIs;
* ``ohem``: a read-only copy of the head sees all RoIs, a mining layer picks the hard ones for the trainable head;
* ``ohem_naive``: one head sees all RoIs, and a layer zeroes the losses of easy ones;
* ``sohem``: as ``ohem``, with a quota for each stratum of RoIs (shapes only);
* :func:`train_net` alone makes one head and a layer that weighs the losses by any method of
  ``ohem_caffe_port.mining.METHODS``.

Data layer, mining and losses are wired as in the released OHEM nets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from prototxt import parse_net, parse_solver, write_text

ZOO = Path(__file__).parent
METHODS = ("fast_rcnn", "ohem", "ohem_naive")  # of every family; one may have more
OURS = "ohem_caffe_port.python_layers"
TRAINED = ("lr_mult: 1 decay_mult: 1", "lr_mult: 2 decay_mult: 0")
FROZEN = ("lr_mult: 0 decay_mult: 0",) * 2
BOX_BLOBS = ("bbox_targets", "bbox_inside_weights", "bbox_outside_weights")


def layer(name: str, kind: str, bottoms=(), tops=(), body: str = "") -> str:
    names = "".join(f' bottom: "{b}"' for b in bottoms) + "".join(f' top: "{t}"' for t in tops)
    return f'layer {{ name: "{name}" type: "{kind}"{names} {body} }}\n'


def weighted(name: str, kind: str, bottom: str, body: str, params=TRAINED, suffix="", share=False, refuse=False) -> str:
    """A layer with weight and bias. ``share`` names the two after the layer; a ``suffix`` copy leaves the
    multipliers to the trainable one, and ``refuse`` cuts the gradient to its bottom."""
    text = ""
    for multipliers, letter in zip(params, "wb", strict=True):
        label = f'name: "{name}_{letter}" ' if share else ""
        text += f"param {{ {label}{'' if suffix else multipliers} }} "
    text += "propagate_down: false " if refuse else ""
    return layer(name + suffix, kind, [bottom + suffix], [name + suffix], text + body)


def relu(name: str, refuse=False) -> str:
    return layer(f"relu_{name}", "ReLU", [name], [name], "propagate_down: false" if refuse else "")


def filler(kind: str) -> str:
    return f'weight_filler {{ {kind} }} bias_filler {{ type: "constant" value: 0 }}'


def conv(name, bottom, outputs, kernel, stride=1, pad=0, params=TRAINED, init='type: "msra"') -> str:
    body = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} "
    text = weighted(name, "Convolution", bottom, body + filler(init) + " }", params)
    return text + relu(name)


def max_pool(name, bottom, kernel, stride) -> str:
    return layer(
        name, "Pooling", [bottom], [name], f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: {stride} }}"
    )


# ---- backbones: text, name of the feature blob, its stride


def shapes_backbone() -> tuple[str, str, int]:
    # pixels are some 60 grey levels from their mean: small weights bring that to 1, and a small rate suits them
    gentle = ("lr_mult: 0.1 decay_mult: 1", "lr_mult: 0.2 decay_mult: 0")
    text = conv("conv1", "data", 24, 5, stride=2, pad=2, params=gentle, init='type: "gaussian" std: 0.003')
    text += max_pool("pool1", "conv1", 3, 2)
    text += conv("conv2", "pool1", 48, 3, pad=1) + conv("conv3", "conv2", 64, 3, pad=1)
    return text, "conv3", 4


def squeezenet_backbone() -> tuple[str, str, int]:
    """SqueezeNet v1.1 to fire9, layer names as published so that its caffemodel loads; conv1 to fire3 stay as they
    are."""
    text, bottom = conv("conv1", "data", 64, 3, stride=2, params=FROZEN), "conv1"
    squeeze = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
    for n, width in squeeze.items():
        if n in (2, 4, 6):
            text += max_pool(f"pool{n - 1}", bottom, 3, 2)
            bottom = f"pool{n - 1}"
        params = FROZEN if n < 4 else TRAINED
        fire = f"fire{n}"
        text += conv(f"{fire}/squeeze1x1", bottom, width, 1, params=params)
        text += conv(f"{fire}/expand1x1", f"{fire}/squeeze1x1", 4 * width, 1, params=params)
        text += conv(f"{fire}/expand3x3", f"{fire}/squeeze1x1", 4 * width, 3, pad=1, params=params)
        bottom = f"{fire}/concat"
        text += layer(bottom, "Concat", [f"{fire}/expand1x1", f"{fire}/expand3x3"], [bottom])
    return text, bottom, 16


# ---- the RoI head


def head(features, stride, rois, classes, pooled, hidden, dropout, suffix="", share=False) -> str:
    """RoI pooling, hidden InnerProduct layers, and the two outputs ``cls_score`` and ``bbox_pred``."""
    refuse = bool(suffix)
    body = f"roi_pooling_param {{ pooled_h: {pooled} pooled_w: {pooled} spatial_scale: {1 / stride} }}"
    downs = "propagate_down: false propagate_down: false " if refuse else "propagate_down: true propagate_down: false "
    text = layer("roi_pool" + suffix, "ROIPooling", [features, rois], ["roi_pool" + suffix], downs + body)
    bottom = "roi_pool"
    for n, outputs in enumerate(hidden, start=6):
        name, init = f"fc{n}", filler('type: "xavier"')
        body = f"inner_product_param {{ num_output: {outputs} {init} }}"
        text += weighted(name, "InnerProduct", bottom, body, suffix=suffix, share=share, refuse=refuse)
        text += relu(name + suffix, refuse)
        if dropout:
            drop = ("propagate_down: false " if refuse else "") + f"dropout_param {{ dropout_ratio: {dropout} }}"
            text += layer(f"drop{n}{suffix}", "Dropout", [name + suffix], [name + suffix], drop)
        bottom = name
    for name, outputs, std in (("cls_score", classes, 0.01), ("bbox_pred", 4 * classes, 0.001)):
        gaussian = f'type: "gaussian" std: {std}'
        body = f"inner_product_param {{ num_output: {outputs} {filler(gaussian)} }}"
        text += weighted(name, "InnerProduct", bottom, body, suffix=suffix, share=share, refuse=refuse)
    return text


def softmax(suffix="", refuse=False) -> str:
    return layer(f"cls_prob{suffix}", "Softmax", [f"cls_score{suffix}"], [f"cls_prob{suffix}"],
                 "propagate_down: false" if refuse else "")  # fmt: skip


def python_param(module: str, kind: str, classes: int, **settings) -> str:
    text = json.dumps({"num_classes": classes, **settings}).replace('"', "'")  # flow style YAML
    text = text if settings else text.strip("{}")  # as the released nets say it
    return f"python_param {{ module: '{module}' layer: '{kind}' param_str: \"{text}\" }}"


def mining(kind: str, module: str, probability, prediction, tops, classes, **settings) -> str:
    bottoms = [probability, prediction, "rois", "labels", *BOX_BLOBS]
    body = "propagate_down: false " * len(bottoms)
    body += python_param(module, kind, classes, **settings)
    return layer("hard_roi_mining", "Python", bottoms, tops, body)


def losses(labels, boxes, param="") -> str:
    """``labels``: one blob, or labels and weights, whose losses are then sums. ``param`` is of the class loss."""
    labels = [labels] if isinstance(labels, str) else labels
    text = layer("loss_cls", "SoftmaxWithLoss", ["cls_score", *labels], ["loss_cls"],
                 "propagate_down: true " + "propagate_down: false " * len(labels) + "loss_weight: 1 "
                 + (f"loss_param {{ {param} }}" if param else ""))  # fmt: skip
    body = "loss_weight: 1 " + ("loss_param { normalization: NONE }" if len(labels) > 1 else "")
    return text + layer("loss_bbox", "SmoothL1Loss", ["bbox_pred", *boxes], ["loss_bbox"],
                        "propagate_down: true " + "propagate_down: false " * 3 + body)  # fmt: skip


def train_net(name, method, backbone: Callable, classes, mining_settings=None, **head_settings) -> str:
    """The text of a training net. ``mining_settings``: of the mining layer, beside the number of classes."""
    extra = mining_settings or {}
    body = python_param("roi_data_layer.layer", "RoIDataLayer", classes)
    text = f'name: "{name}"\n' + layer("data", "Python", [], ["data", "rois", "labels", *BOX_BLOBS], body)
    body, features, stride = backbone()
    text += body
    settings = {"features": features, "stride": stride, "classes": classes, **head_settings}
    if method == "fast_rcnn":
        return text + head(rois="rois", **settings) + losses("labels", BOX_BLOBS)
    if method in ("ohem", "sohem"):
        kind, module = ("OHEMDataLayer", "roi_data_layer.layer") if method == "ohem" else ("SOHEMDataLayer", OURS)
        hard = [f"{blob}_hard" for blob in ("rois", "labels", *BOX_BLOBS)]
        text += head(rois="rois", suffix="_readonly", share=True, **settings) + softmax("_readonly", refuse=True)
        text += mining(kind, module, "cls_prob_readonly", "bbox_pred_readonly", hard, classes, **extra)
        return text + head(rois="rois_hard", share=True, **settings) + losses(hard[1], hard[2:])
    text += head(rois="rois", **settings) + softmax()
    if method != "ohem_naive":
        tops = ["labels_mined", "label_weights", "bbox_outside_weights_mined"]
        text += mining("MiningWeightsLayer", OURS, "cls_prob", "bbox_pred", tops, classes, method=method, **extra)
        return text + losses(tops[:2], [*BOX_BLOBS[:2], tops[2]], "ignore_label: -1 normalization: NONE")
    masked = ["labels_masked", "bbox_inside_weights_masked", "bbox_outside_weights_masked"]
    text += mining("OHEMMaskLayer", OURS, "cls_prob", "bbox_pred", masked, classes)
    return text + losses(masked[0], ["bbox_targets", *masked[1:]], "ignore_label: -1")


def test_net(name, backbone: Callable, classes, **head_settings) -> str:
    text = f'name: "{name}"\n'
    for blob, dims in (("data", (1, 3, 224, 224)), ("rois", (1, 5))):
        shape = " ".join(f"dim: {d}" for d in dims)
        text += layer(blob, "Input", [], [blob], f"input_param {{ shape {{ {shape} }} }}")
    body, features, stride = backbone()
    settings = {"features": features, "stride": stride, "classes": classes, **head_settings}
    return text + body + head(rois="rois", **settings) + softmax()


# ---- what is shipped


FAMILIES = {
    "shapes": {
        "methods": (*METHODS, "sohem"),
        "backbone": shapes_backbone, "classes": 7, "pooled": 6, "hidden": (256,), "dropout": 0,
        "solver": "type: 'Adam' base_lr: 0.001 lr_policy: 'step' gamma: 0.1 stepsize: 1600 display: 100 "
                  "average_loss: 100 momentum: 0.9 momentum2: 0.999 iter_size: 2 weight_decay: 0.0005 max_iter: 2000",
        "cfg": "EXP_DIR: shapes_{method}\nTRAIN:\n  IMDB: shapes_train\n  SCALES: [200]\n  MAX_SIZE: 320\n"
               "TEST:\n  IMDB: shapes_test\n  SCALES: [200]\n  MAX_SIZE: 320\nDEDUP_BOXES: 0.25\n",
    },
    "squeezenet_v1.1": {
        "backbone": squeezenet_backbone, "classes": 21, "pooled": 6, "hidden": (512,), "dropout": 0.5,
        "solver": "base_lr: 0.002 lr_policy: 'step' gamma: 0.1 stepsize: 2100 display: 20 average_loss: 100 "
                  "momentum: 0.9 iter_size: 2 weight_decay: 0.0005 max_iter: 2800",
        "cfg": "EXP_DIR: squeezenet_v1.1_{method}\nPIXEL_MEANS: [104, 117, 123]\nTRAIN:\n  IMDB: voc_2007_trainval\n"
               "  SCALES: [480]\n  MAX_SIZE: 800\nTEST:\n  IMDB: voc_2007_test\n  SCALES: [480]\n  MAX_SIZE: 800\n",
    },
}  # fmt: skip
# one image to a pass and two passes to an iteration, so that RoIs are ranked within an image, as in the OHEM release
SAMPLING = {
    "fast_rcnn": "  IMS_PER_BATCH: 1\n  BATCH_SIZE: 64\n  ASPECT_GROUPING: False\n",
    "ohem": "  IMS_PER_BATCH: 1\n  BATCH_SIZE: 64\n  BG_THRESH_LO: 0.0\n  USE_OHEM: True\n  ASPECT_GROUPING: False\n",
}
SAMPLING["ohem_naive"] = SAMPLING["sohem"] = SAMPLING["ohem"]
# What came of it: one run with the seed of the file, on two CPU cores.
MEASURED = {
    ("shapes", "fast_rcnn"): "mAP 0.691 on shapes_test, 1.5 minutes",
    ("shapes", "ohem"): "mAP 0.727 on shapes_test, 2.3 minutes",
    ("shapes", "sohem"): "mAP 0.734 on shapes_test with RNG_SEED 0, where ohem has 0.758 (docs/comparison.md)",
    ("shapes", "ohem_naive"): "mAP 0.738 on shapes_test, 5.7 minutes on a busy machine",
    (
        "squeezenet_v1.1",
        "ohem",
    ): "mAP 0.145 on 280 images of voc_2007_val after training on 480 of voc_2007_train, 75 minutes",
}
COMMANDS = {
    "shapes": "make demo METHOD={method}",
    "squeezenet_v1.1": "python tools/train_from_prototxt.py prototxt/zoo/{family}/{method}/solver.prototxt "
    "--weights squeezenet_v1.1.caffemodel",
}


def generate(zoo: Path = ZOO) -> None:
    """Writes ``<family>/<method>/{solver,train,test}.prototxt`` and ``cfg.yml`` for all of them."""
    for family, settings in FAMILIES.items():
        settings = dict(settings)
        solver, cfg = settings.pop("solver"), settings.pop("cfg")
        for method in settings.pop("methods", METHODS):
            folder = zoo / family / method
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{family}_{method}"
            write_text(parse_net(train_net(name, method, **settings)), folder / "train.prototxt")
            write_text(parse_net(test_net(name, **settings)), folder / "test.prototxt")
            text = f"train_net: 'train.prototxt' {solver} snapshot: 0 snapshot_prefix: '{name}'"
            write_text(parse_solver(text), folder / "solver.prototxt")
            cfg_text = cfg.format(method=method).replace("TRAIN:\n", "TRAIN:\n" + SAMPLING[method], 1)
            command = COMMANDS[family].format(family=family, method=method)
            result = MEASURED.get((family, method), "not measured")
            (folder / "cfg.yml").write_text(f"# {command}\n# {result}\n{cfg_text}")
    from . import adversarial, single_shot  # they build on this module

    adversarial.generate(zoo)
    single_shot.generate(zoo)


if __name__ == "__main__":
    generate()
