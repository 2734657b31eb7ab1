"""Detectors on RoIs: a backbone, a RoI head, and a way to choose RoIs.

* ``fast_rcnn``: the data layer samples foreground and background RoIs;
* ``ohem``: a read-only copy of the head sees all RoIs, a mining layer picks the hard ones for the trainable head;
* ``ohem_naive``: one head sees all RoIs, and a layer zeroes the losses of easy ones;
* ``sohem``: as ``ohem``, with a quota for each stratum of RoIs;
* any other of ``ohem_caffe_port.mining.METHODS``: one head, and a layer that weighs the losses by that method.

Data layer, mining and losses are wired as in the released OHEM nets.
"""

from __future__ import annotations

from collections.abc import Callable

from .layers import TRAINED, filler, layer, python_param, relu, softmax, weighted

OURS = "ohem_caffe_port.python_layers"
BOX_BLOBS = ("bbox_targets", "bbox_inside_weights", "bbox_outside_weights")


def head(
    features, stride, rois, classes, pooled, hidden, dropout=0, pool=("roi_pool", "roi_pool"),
    init='type: "xavier"', params=TRAINED, suffix="", share=False,
) -> str:  # fmt: skip
    """RoI pooling, hidden InnerProduct layers, and the two outputs ``cls_score`` and ``bbox_pred``.

    Args:
        features, stride: of the backbone.
        pooled: cells along a side.
        hidden: outputs of each hidden layer, from ``fc6`` on.
        dropout: after each of them; 0 leaves it out.
        pool: name of the pooling layer, and of its blob.
        init: filler of the hidden layers; None for those whose weights are always loaded.
        params: multipliers of weights and biases.
        suffix, share: see :func:`~prototxt.zoo.layers.weighted`; a copy with a suffix passes no gradient down.
    """
    refuse = bool(suffix)
    name, bottom = pool
    body = f"roi_pooling_param {{ pooled_h: {pooled} pooled_w: {pooled} spatial_scale: {1 / stride} }}"
    downs = "propagate_down: false propagate_down: false " if refuse else "propagate_down: true propagate_down: false "
    text = layer(name + suffix, "ROIPooling", [features, rois], [bottom + suffix], downs + body)
    for n, outputs in enumerate(hidden, start=6):
        name = f"fc{n}"
        body = f"inner_product_param {{ num_output: {outputs} {filler(init)} }}"
        text += weighted(name, "InnerProduct", bottom, body, params, suffix, share, refuse)
        text += relu(name + suffix, refuse, f"relu{n}{suffix}")
        if dropout:
            drop = ("propagate_down: false " if refuse else "") + f"dropout_param {{ dropout_ratio: {dropout} }}"
            text += layer(f"drop{n}{suffix}", "Dropout", [name + suffix], [name + suffix], drop)
        bottom = name
    for name, outputs, std in (("cls_score", classes, 0.01), ("bbox_pred", 4 * classes, 0.001)):
        gaussian = f'type: "gaussian" std: {std}'
        body = f"inner_product_param {{ num_output: {outputs} {filler(gaussian)} }}"
        text += weighted(name, "InnerProduct", bottom, body, params, suffix, share, refuse)
    return text


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
