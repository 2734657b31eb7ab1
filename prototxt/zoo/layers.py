"""The text of single layers, for the networks that this folder's generators write."""

from __future__ import annotations

import json

TRAINED = ("lr_mult: 1 decay_mult: 1", "lr_mult: 2 decay_mult: 0")
DECAYED = ("lr_mult: 1", "lr_mult: 2")  # biases decay, too: what most released nets say
FROZEN = ("lr_mult: 0 decay_mult: 0",) * 2


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


def filler(kind: str | None) -> str:
    """Of weights, and zeros for biases; none where the weights are always loaded (``None``)."""
    return f'weight_filler {{ {kind} }} bias_filler {{ type: "constant" value: 0 }}' if kind else ""


def relu(blob: str, refuse=False, name: str | None = None) -> str:
    """In place. Unless ``name`` says it: relu_conv1 of conv1, fire2/relu_expand1x1 of fire2/expand1x1."""
    group, slash, last = blob.rpartition("/")
    body = "propagate_down: false" if refuse else ""
    return layer(name or f"{group}{slash}relu_{last}", "ReLU", [blob], [blob], body)


def conv(name, bottom, outputs, kernel, stride=1, pad=0, params=TRAINED, init='type: "msra"', rectifier=None) -> str:
    """A convolution and its ReLU, whose name is ``rectifier`` where that is given."""
    body = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} "
    text = weighted(name, "Convolution", bottom, body + filler(init) + " }", params)
    return text + relu(name, name=rectifier)


def max_pool(name, bottom, kernel, stride, pad=0) -> str:
    padding = f" pad: {pad}" if pad else ""
    body = f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: {stride}{padding} }}"
    return layer(name, "Pooling", [bottom], [name], body)


def lrn(name, bottom, alpha, k=1) -> str:
    """Local response normalisation over five channels."""
    body = f"lrn_param {{ local_size: 5 alpha: {alpha} beta: 0.75 k: {k} }}"
    return layer(name, "LRN", [bottom], [name], body)


def softmax(suffix="", refuse=False) -> str:
    return layer(f"cls_prob{suffix}", "Softmax", [f"cls_score{suffix}"], [f"cls_prob{suffix}"],
                 "propagate_down: false" if refuse else "")  # fmt: skip


def python_param(module: str, kind: str, classes: int, **settings) -> str:
    text = json.dumps({"num_classes": classes, **settings}).replace('"', "'")  # flow style YAML
    text = text if settings else text.strip("{}")  # as the released nets say it
    return f"python_param {{ module: '{module}' layer: '{kind}' param_str: \"{text}\" }}"
