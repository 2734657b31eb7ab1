"""Single-shot detectors for the embedded data set: one net in the manner of RetinaNet, four ways to weigh its anchors.

* ``ssd``: MultiBoxLoss, softmax classes, three mined negatives to a match;
* ``ssd_focal``: MultiBoxFocalLoss of softmax classes over all anchors, as in the forks of SSD;
* ``retinanet``: focal loss of sigmoid classes, their bias at the prior, normalised by matches;
* ``ghm``: GHM-C and GHM-R, the same biases.

A small backbone, a feature pyramid of strides 8, 16 and 32 with 9 anchors to a cell, heads that the levels share (Lin
et al., ICCV 2017). :func:`prototxt.zoo.generate.generate` writes them.
"""

from __future__ import annotations

import math
from pathlib import Path

from prototxt import parse_net, parse_solver, write_text

from . import layers as base

METHODS = ("ssd", "ssd_focal", "retinanet", "ghm")
LEVELS = {"p3": ("c3", 32), "p4": ("c4", 64), "p5": ("c5", 128)}  # the feature each is made of, least size of an anchor
WIDTH, CLASSES, ANCHORS = 64, 7, 9
PRIOR = 0.01  # at which the sigmoids start: the paper's pi
PRIOR_BIAS = round(-math.log((1 - PRIOR) / PRIOR), 5)
STEP = {"p3": 8, "p4": 16, "p5": 32}

MULTIBOX = (
    "loc_loss_type: SMOOTH_L1 num_classes: {classes} share_location: true match_type: PER_PREDICTION "
    "overlap_threshold: 0.5 background_label_id: 0 code_type: CENTER_SIZE "
)
LOSSES = {  # type, the rest of multibox_loss_param, other messages
    "ssd": ("MultiBoxLoss", "conf_loss_type: SOFTMAX mining_type: MAX_NEGATIVE neg_pos_ratio: 3 neg_overlap: 0.5", ""),
    "ssd_focal": (
        "MultiBoxFocalLoss", "conf_loss_type: SOFTMAX mining_type: NONE", "focal_loss_param { alpha: 0.25 gamma: 2 }",
    ),
    "retinanet": (
        "MultiBoxFocalLoss", "conf_loss_type: LOGISTIC mining_type: NONE neg_overlap: 0.4",
        "focal_loss_param { activate: SIGMOID alpha: 0.25 gamma: 2 }",
    ),
    "ghm": (
        "MultiBoxGHMLoss", "conf_loss_type: LOGISTIC mining_type: NONE neg_overlap: 0.4 loc_weight: 4",
        # a mu for which the first errors of boxes, in variances, fill all bins; the paper's starts too slowly
        "ghmc_loss_param { bins: 30 momentum: 0.75 } ghmr_loss_param { bins: 10 momentum: 0.7 mu: 1 }",
    ),
}  # fmt: skip


def shared_conv(name, bottom, top, outputs, kernel=3, bias=0.0, params=None, std=None) -> str:
    """A convolution that keeps the size; layers with the same ``params`` share their weights."""
    init = 'type: "msra"' if std is None else f'type: "gaussian" std: {std}'
    specs = ""
    for letter, multipliers in zip("wb", base.TRAINED, strict=True):
        shared = f'name: "{params}_{letter}" ' if params else ""
        specs += f"param {{ {shared}{multipliers} }} "
    return base.layer(name, "Convolution", [bottom], [top], specs + (
        f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} "
        f'weight_filler {{ {init} }} bias_filler {{ type: "constant" value: {bias} }} }}'
    ))  # fmt: skip


def pyramid() -> str:
    """Blobs p3, p4 and p5 of strides 8, 16 and 32, from data."""
    gentle = ("lr_mult: 0.1 decay_mult: 1", "lr_mult: 0.2 decay_mult: 0")  # as in the other nets of the family
    text = base.conv("conv1", "data", 24, 5, stride=2, pad=2, params=gentle, init='type: "gaussian" std: 0.003')
    text += base.max_pool("pool1", "conv1", 3, 2) + base.conv("conv2", "pool1", 48, 3, pad=1)
    text += base.max_pool("pool2", "conv2", 3, 2) + base.conv("c3", "pool2", 64, 3, pad=1)
    text += base.conv("c4", "c3", 96, 3, stride=2, pad=1) + base.conv("c5", "c4", 96, 3, stride=2, pad=1)
    text += shared_conv("p5", "c5", "p5", WIDTH, 1)
    for level, above, feature in (("p4", "p5", "c4"), ("p3", "p4", "c3")):
        text += shared_conv(f"lateral_{feature}", feature, f"lateral_{feature}", WIDTH, 1)
        body = f"num_output: {WIDTH} group: {WIDTH} kernel_size: 4 stride: 2 pad: 1 bias_term: false "
        body = f'param {{ lr_mult: 0 }} convolution_param {{ {body} weight_filler {{ type: "bilinear" }} }}'
        text += base.layer(f"up_{above}", "Deconvolution", [above], [f"up_{above}"], body)
        cut = f"cut_{above}"
        text += base.layer(cut, "Crop", [f"up_{above}", f"lateral_{feature}"], [cut], "crop_param { axis: 2 }")
        text += base.layer(level, "Eltwise", [f"lateral_{feature}", cut], [level], "eltwise_param { operation: SUM }")
    return text


def heads(bias: float) -> str:
    """Blobs loc, conf and priors of all anchors, level by level; ``bias`` is that of the class scores."""
    text, joined = "", {"loc": [], "conf": [], "priors": []}
    for level, (_, size) in LEVELS.items():
        for kind, outputs, first in (("loc", 4, 0.0), ("conf", CLASSES, bias)):
            name = f"{level}_{kind}"
            text += shared_conv(f"{name}_hidden", level, f"{name}_hidden", WIDTH, params=f"{kind}_hidden")
            text += base.relu(f"{name}_hidden")
            text += shared_conv(name, f"{name}_hidden", name, ANCHORS * outputs, bias=first, params=kind, std=0.01)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            text += base.layer(f"{name}_perm", "Permute", [name], [f"{name}_perm"], order)
            text += base.layer(f"{name}_flat", "Flatten", [f"{name}_perm"], [f"{name}_flat"])
            joined[kind].append(f"{name}_flat")
        scales = " ".join(f"min_size: {size * 2 ** (n / 3):.0f}" for n in range(3))
        body = f"{scales} aspect_ratio: 2 flip: true variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 "
        body = f"prior_box_param {{ {body} step: {STEP[level]} offset: 0.5 }}"
        text += base.layer(f"{level}_priors", "PriorBox", [level, "data"], [f"{level}_priors"], body)
        joined["priors"].append(f"{level}_priors")
    for name, bottoms in joined.items():
        axis = 2 if name == "priors" else 1
        text += base.layer(name, "Concat", bottoms, [name], f"concat_param {{ axis: {axis} }}")
    return text


def net(method: str) -> str:
    """What training and testing have in common."""
    return pyramid() + heads(PRIOR_BIAS if method in ("retinanet", "ghm") else 0.0)


def train_net(name: str, method: str) -> str:
    kind, settings, more = LOSSES[method]
    body = base.python_param("ohem_caffe_port.python_layers", "GtBoxDataLayer", CLASSES)
    text = f'name: "{name}"\n' + base.layer("data", "Python", [], ["data", "label"], body) + net(method)
    normalized = "" if method == "ghm" else "loss_param { normalization: VALID } "
    body = f"multibox_loss_param {{ {MULTIBOX.format(classes=CLASSES)}{settings} }} {more}"
    downs = "propagate_down: true propagate_down: true propagate_down: false propagate_down: false "
    return text + base.layer("loss", kind, ["loc", "conf", "priors", "label"], ["loss"],
                             "loss_weight: 1 " + downs + normalized + body)  # fmt: skip


def test_net(name: str, method: str) -> str:
    sigmoid = method in ("retinanet", "ghm")
    text = f'name: "{name}"\n'
    text += base.layer("data", "Input", [], ["data"], "input_param { shape { dim: 1 dim: 3 dim: 200 dim: 250 } }")
    text += net(method)
    if sigmoid:
        text += base.layer("prob", "Sigmoid", ["conf"], ["prob"])
    else:
        body = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}"
        text += base.layer("conf_rows", "Reshape", ["conf"], ["conf_rows"], body)
        text += base.layer("prob_rows", "Softmax", ["conf_rows"], ["prob_rows"], "softmax_param { axis: 2 }")
        text += base.layer("prob", "Flatten", ["prob_rows"], ["prob"])
    body = f"num_classes: {CLASSES} share_location: true background_label_id: 0 code_type: CENTER_SIZE "
    body += "nms_param { nms_threshold: 0.45 top_k: 400 } keep_top_k: 100 confidence_threshold: 0.01"
    return text + base.layer("detection_out", "DetectionOutput", ["loc", "prob", "priors"], ["detection_out"],
                             f"detection_output_param {{ {body} }}")  # fmt: skip


SOLVER = (
    "type: 'Adam' base_lr: 0.001 lr_policy: 'step' gamma: 0.1 stepsize: {step} display: 100 average_loss: 100 "
    "momentum: 0.9 momentum2: 0.999 weight_decay: 0.0005 max_iter: {iterations} snapshot: 0"
)
ITERATIONS = dict.fromkeys(METHODS, 1500) | {"ghm": 3000}  # it learns more slowly: docs/focal-ghm.md
CFG = """# python tools/train_from_prototxt.py prototxt/zoo/shapes/{method}/solver.prototxt --data build
# {measured}
EXP_DIR: shapes_{method}
TRAIN:
  IMS_PER_BATCH: 4
  PROPOSAL_METHOD: gt
  BBOX_REG: False
  BG_THRESH_LO: 0.0
  ASPECT_GROUPING: False
  IMDB: shapes_train
  SCALES: [200]
  MAX_SIZE: 320
TEST:
  IMDB: shapes_test
  SCALES: [200]
  MAX_SIZE: 320
"""
# What came of it: one run with the seed of the file, on one busy CPU core.
MEASURED = {
    "ssd": "mAP 0.519 on shapes_test, 20 minutes",
    "ssd_focal": "mAP 0.374 on shapes_test, 26 minutes",
    "retinanet": "mAP 0.474 on shapes_test, 19 minutes",
    "ghm": "mAP 0.343 on shapes_test, 23 minutes",
}


def generate(zoo: Path) -> None:
    """Writes ``shapes/<method>/{solver,train,test}.prototxt`` and ``cfg.yml`` for every method."""
    for method in METHODS:
        folder, name = zoo / "shapes" / method, f"shapes_{method}"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(parse_net(train_net(name, method)), folder / "train.prototxt")
        write_text(parse_net(test_net(name, method)), folder / "test.prototxt")
        schedule = SOLVER.format(iterations=ITERATIONS[method], step=ITERATIONS[method] * 4 // 5)
        text = f"train_net: 'train.prototxt' {schedule} snapshot_prefix: '{name}'"
        write_text(parse_solver(text), folder / "solver.prototxt")
        text = CFG.format(method=method, measured=MEASURED[method])
        (folder / "cfg.yml").write_text(text)
