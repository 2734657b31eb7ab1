"""A-Fast-RCNN's networks for the embedded data set: the released three stages in small, and what was never released.

* ``fast_rcnn_std``: stage 1, Fast R-CNN;
* ``asdn_pretrain``: stage 2, the mask network learns which window of a RoI's features hurts most; all else is frozen;
* ``asdn``: stage 3, both together: masked features train the detector, masks that did harm the mask network;
* ``astn``: in place of stages 2 and 3, a localisation network turns the features to harm the classification;
* ``asdn_astn``: stage 3 with both adversaries, the mask first;
* ``fast_rcnn_more``: stage 3 without an adversary, to compare the others with.

The first three are wired as adversarial-frcnn's; the next two follow sections 4.2 and 4.3 of the paper. The last four
start from weights that ``tools/copy_model.py`` puts together as ``init_weights.json`` beside them says.
"""

from __future__ import annotations

import json
from pathlib import Path

from prototxt import parse_net, parse_solver, write_text

from .backbones import shapes_backbone
from .detectors import BOX_BLOBS, losses, test_net
from .layers import FROZEN, TRAINED, filler, layer, python_param, relu, softmax, weighted

METHODS = ("fast_rcnn_std", "asdn_pretrain", "asdn", "astn", "asdn_astn", "fast_rcnn_more")
SETTINGS = {"backbone": shapes_backbone, "classes": 7, "pooled": 6, "hidden": (256, 256)}
MODULE = "roi_data_layer.layer"
MASKS = [f"conv{n}_mask" for n in range(6, 11)]
BLOCKS = 4  # of channels, each with its own angle
# of the localisation network: as fast as the detector it soon gives nothing but angles of 10 degrees
SLOW = ("lr_mult: 0.1 decay_mult: 1", "lr_mult: 0.2 decay_mult: 0")
CLASSIFIER = ("cls_score", 1, 0.01)  # layer, outputs for each class, standard deviation of its filler
BOXES = ("bbox_pred", 4, 0.001)


def python(name: str, kind: str, bottoms, tops, settings: str = "", body: str = "") -> str:
    text = f'python_param {{ module: "{MODULE}" layer: "{kind}" param_str: "{settings}" }} '
    return layer(name, "Python", bottoms, tops, text + body)


def refuse(count: int) -> str:
    return "propagate_down: false " * count


def inner_product(outputs: int, init: str = 'type: "xavier"') -> str:
    return f"inner_product_param {{ num_output: {outputs} {filler(init)} }}"


def pool(features, stride, pooled, suffix="") -> str:
    downs = refuse(2) if suffix else "propagate_down: true propagate_down: false "
    body = f"roi_pooling_param {{ pooled_h: {pooled} pooled_w: {pooled} spatial_scale: {1 / stride} }}"
    return layer("roi_pool" + suffix, "ROIPooling", [features, "rois"], ["roi_pool" + suffix], downs + body)


def hidden_layers(bottom, hidden, params=TRAINED, suffix="", share=True, refused=False) -> str:
    text = ""
    for n, outputs in enumerate(hidden, start=6):
        name, body = f"fc{n}", inner_product(outputs)
        text += weighted(name, "InnerProduct", bottom, body, params, suffix, share, refused)
        text += relu(name + suffix, refused)
        bottom = name
    return text


def branch(bottom, classes, hidden, outputs, params=TRAINED, suffix="", share=True, refused=False) -> str:
    """Hidden layers and some outputs; branches of one net share their parameters by name."""
    text, last = hidden_layers(bottom, hidden, params, suffix, share, refused), f"fc{5 + len(hidden)}"
    return text + "".join(output(kind, last, classes, params, suffix, share, refused) for kind in outputs)


def output(kind, bottom, classes, *how) -> str:
    name, per_class, std = kind
    body = inner_product(per_class * classes, f'type: "gaussian" std: {std}')
    return weighted(name, "InnerProduct", bottom, body, *how)


def mask_network(bottom, channels: int) -> str:
    """Five 3x3 convolutions, the last one with one output and no ReLU."""
    text = ""
    for name in MASKS:
        body = f"convolution_param {{ num_output: {1 if name == MASKS[-1] else channels} kernel_size: 3 pad: 1 "
        text += weighted(name, "Convolution", bottom, body + filler('type: "msra"') + " }")
        text += "" if name == MASKS[-1] else relu(name)
        bottom = name
    return text


def data(classes) -> str:
    tops = ["data", "rois", "labels", *BOX_BLOBS]
    return layer("data", "Python", [], tops, python_param(MODULE, "RoIDataLayer", classes))


def pretraining(features, stride, classes, pooled, hidden, channels) -> str:
    text = pool(features, stride, pooled, "_readonly")
    found, windows = ["conv_feat_pos", "labels_pos", "rois_pos"], ["conv_feat_rep", "conv_feat_mask"]
    bottoms = ["roi_pool_readonly", "labels", "rois"]
    text += python("asdn_pretrain_selectlabels", "ASDNPretrainLabelLayer", bottoms, found, body=refuse(3))
    settings = "{'drop_size': 2, 'drop_stride': 2}"
    text += python("asdn_pretrain_data", "ASDNPretrainDataLayer", found[:1], windows, settings, refuse(1))
    text += mask_network("conv_feat_pos", channels)
    text += branch("conv_feat_rep", classes, hidden, [CLASSIFIER], FROZEN, share=False, refused=True) + softmax()
    bottoms = [MASKS[-1], "conv_feat_mask", "cls_prob", *found[1:], "data"]
    settings = f"{{'num_classes': {classes}, 'drop_neg': True}}"
    text += python("asdn_pretrain_loss", "ASDNPretrainLossLayer", bottoms, ["loss"], settings, "loss_weight: 1")
    return text + layer("silence", "Silence", BOX_BLOBS)


def masking(features, stride, classes, pooled, hidden, channels, feature_channels) -> str:
    """Class probabilities before masking, the mask network, and the masked features ``masked``."""
    text = pool(features, stride, pooled, "_readonly")
    text += branch("roi_pool", classes, hidden, [CLASSIFIER], suffix="_readonly", refused=True)
    text += layer("cls_prob_before", "Softmax", ["cls_score_readonly"], ["cls_prob_before"], refuse(1))
    text += mask_network("roi_pool_readonly", channels) + layer("sigmoid", "Sigmoid", MASKS[-1:], ["mask_pred"])
    cells = pooled * pooled  # the release drops 15 of the best 20 of 49 cells
    settings = f"{{'count_drop': {cells * 15 // 49}, 'permute_count': {cells * 20 // 49}, 'count_drop_neg': 0, "
    settings += f"'channels': {feature_channels}, 'iter_size': 2, 'maintain_before': 1}}"
    tops = ["mask_thres", "mask_thres_block"]
    text += python("asdn_data", "ASDNDataLayer", ["mask_pred", "labels"], tops, settings, refuse(2))
    return text + layer("mask_conv", "Eltwise", ["roi_pool", tops[1]], ["masked"], "eltwise_param { operation: PROD }")


def mask_loss(classes) -> str:
    text = layer("cls_prob_after", "Softmax", ["cls_score"], ["cls_prob_after"], refuse(1))
    bottoms = [MASKS[-1], "mask_thres", "cls_prob_before", "cls_prob_after", "labels", "rois", "data"]
    settings = f"{{'num_classes': {classes}, 'score_thres': 0.1, 'iter_size': 2, 'maintain_before': 1}}"
    return text + python("loss_asdn", "ASDNLossLayer", bottoms, ["loss_asdn"], settings, "loss_weight: 0.0025")


def turning(bottom, hidden) -> str:
    """The localisation network, and the features turned by it: ``turned`` for the classification, whose gradient comes
    back to it reversed, and the same as ``turned_box`` for the boxes, whose gradient does not."""
    text = weighted("fc6_loc", "InnerProduct", bottom, inner_product(hidden[0]) + refuse(1), SLOW) + relu("fc6_loc")
    text += weighted("fc7_loc", "InnerProduct", "fc6_loc", inner_product(hidden[1]), SLOW) + relu("fc7_loc")
    text += weighted("angles", "InnerProduct", "fc7_loc", inner_product(BLOCKS, 'type: "gaussian" std: 0.01'), SLOW)
    text += layer("reversal", "GradientReversal", ["angles"], ["angles_reversed"])
    limit = "block_rotation_param { max_angle: 10 }"
    text += layer("rotation", "BlockRotation", [bottom, "angles_reversed", "labels"], ["turned"], limit)
    downs = "propagate_down: true " + refuse(2)
    return text + layer("rotation_box", "BlockRotation", [bottom, "angles", "labels"], ["turned_box"], downs + limit)


def train_net(name, method, backbone, classes, pooled, hidden, channels=32) -> str:
    """The text of a method's training net. ``channels``: width of the mask network; ``hidden``: two numbers."""
    body, features, stride = backbone()
    text = f'name: "{name}"\n' + data(classes) + body
    if method == "asdn_pretrain":
        return text + pretraining(features, stride, classes, pooled, hidden, channels)
    text, bottom = text + pool(features, stride, pooled), "roi_pool"
    if method.startswith("asdn"):
        width = parse_net(body).layer[-2].convolution_param.num_output  # the last layer is a ReLU
        text += masking(features, stride, classes, pooled, hidden, channels, width)
        bottom = "masked"
    if method.endswith("astn"):
        text += turning(bottom, hidden)
        text += branch("turned", classes, hidden, [CLASSIFIER])
        text += hidden_layers("turned", hidden, suffix="_box") + output(BOXES, f"fc{5 + len(hidden)}_box", classes)
    else:
        text += branch(bottom, classes, hidden, [CLASSIFIER, BOXES], share=method == "asdn")
    text += losses("labels", BOX_BLOBS)
    return text + (mask_loss(classes) if method.startswith("asdn") else "")


# ---- what is shipped

OUTPUT = "output/a_fast_rcnn/shapes_train"
SCHEDULES = {  # method: iterations, base_lr, step
    "fast_rcnn_std": (2000, 0.001, 1600),
    "asdn_pretrain": (500, 0.001, 400),
    "asdn": (1000, 0.0005, 800),
    "astn": (1000, 0.0005, 800),
    "asdn_astn": (1000, 0.0005, 800),
    "fast_rcnn_more": (1000, 0.0005, 800),
}
SOLVER = (
    "type: 'Adam' lr_policy: 'step' gamma: 0.1 display: 100 average_loss: 100 momentum: 0.9 momentum2: 0.999 "
    "iter_size: 2 weight_decay: 0.0005 snapshot: 0"
)
CFG = """\
EXP_DIR: a_fast_rcnn
TRAIN:
  IMS_PER_BATCH: 1
  BATCH_SIZE: 64
  BG_THRESH_LO: 0.0
  ASPECT_GROUPING: False
{extra}  IMDB: shapes_train
  SCALES: [200]
  MAX_SIZE: 320
TEST:
  IMDB: shapes_test
  SCALES: [200]
  MAX_SIZE: 320
DEDUP_BOXES: 0.25
"""
MEASURED = {  # one run with the seed of the file, mAP on shapes_test
    "fast_rcnn_std": 0.719, "fast_rcnn_more": 0.762, "asdn": 0.758, "astn": 0.749, "asdn_astn": 0.761,
}  # fmt: skip


def snapshot_of(method: str) -> str:
    return f"{OUTPUT}/{method}_iter_{SCHEDULES[method][0]}.caffemodel"


def copies(method: str, backbone: list[str]) -> list[dict]:
    """What a method starts from, in the form of the original's ``init_weights2.json``: as there all of stage 1 but
    ``bbox_pred``, which its snapshot holds un-normalised."""
    detector = [*backbone, "fc6", "fc7", "cls_score"]
    pairs = {"fast_rcnn_std": [(name, name) for name in detector]}
    if method.startswith("asdn"):
        pairs["asdn_pretrain"] = [(name, name) for name in MASKS]
    if method.endswith("astn"):
        pairs["fast_rcnn_std"] += [("fc6", "fc6_loc"), ("fc7", "fc7_loc")]
    return [
        {
            "model": snapshot_of(source),
            "copy_ops": {
                "source": [a for a, _ in names], "dest": [b for _, b in names], "reshape": [0] * len(names),
            },
        }
        for source, names in pairs.items()
    ]  # fmt: skip


def frozen(net):
    """The net, with nothing learning but the mask network: its solver would still decay weights without a gradient."""
    for part in net.layer:
        for spec in part.param if part.name not in MASKS else ():
            spec.lr_mult = spec.decay_mult = 0
    return net


def command(method: str, folder: str) -> str:
    weights = {"fast_rcnn_std": "", "asdn_pretrain": f" --weights {snapshot_of('fast_rcnn_std')}"}
    start = weights.get(method, f" --weights {OUTPUT}/{method}_init.caffemodel")
    train = f"# python tools/train_from_prototxt.py {folder}/solver.prototxt --data build{start}\n"
    if method in weights:
        return train
    return (
        f"# python tools/copy_model.py --out_net_def {folder}/train.prototxt --net_surgery_json "
        f"{folder}/init_weights.json --out_net_file {OUTPUT}/{method}_init.caffemodel\n{train}"
    )


def generate(zoo: Path) -> None:
    """Writes ``a_fast_rcnn/<method>/{solver,train,test}.prototxt``, ``cfg.yml`` and ``init_weights.json``."""
    for method in METHODS:
        folder = zoo / "a_fast_rcnn" / method
        folder.mkdir(parents=True, exist_ok=True)
        net = parse_net(train_net(method, method, **SETTINGS))
        write_text(frozen(net) if method == "asdn_pretrain" else net, folder / "train.prototxt")
        write_text(parse_net(test_net(method, dropout=0, **SETTINGS)), folder / "test.prototxt")
        iterations, rate, step = SCHEDULES[method]
        text = f"{SOLVER} base_lr: {rate} stepsize: {step} max_iter: {iterations} snapshot_prefix: '{method}'"
        write_text(parse_solver(f"train_net: 'train.prototxt' {text}"), folder / "solver.prototxt")
        extra = "  FG_FRACTION: 0.75\n" if method == "asdn_pretrain" else ""
        head = command(method, f"prototxt/zoo/a_fast_rcnn/{method}")
        result = f"# mAP {MEASURED[method]} on shapes_test\n" if method in MEASURED else ""
        (folder / "cfg.yml").write_text(head + result + CFG.format(extra=extra))
        if method not in ("fast_rcnn_std", "asdn_pretrain"):
            backbone = [part.name for part in net.layer if part.type == "Convolution" and part.name not in MASKS]
            (folder / "init_weights.json").write_text(json.dumps(copies(method, backbone), indent=1) + "\n")
