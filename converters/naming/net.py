"""What a prototxt adds to weights: what is shared, transposed, of which type; and where tensors without Caffe's
metadata belong."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from ..caffemodel import CaffeModel, LayerWeights, without_trailing
from .layer_types import known_names
from .recipes import layer_record

# The message that says with bias_term whether there is a bias.
_BIAS_TERM = dict.fromkeys(("Convolution", "Deconvolution", "DepthwiseConvolution"), "convolution_param")
_BIAS_TERM |= {"ConvolutionDepthwise": "convolution_param", "InnerProduct": "inner_product_param"}
_BIAS_TERM |= {"Embed": "embed_param", "Local": "local_param", "Scale": "scale_param"}
# When a layer of a type with parameters has none.
_WITHOUT = {
    "Bias": lambda spec: len(spec.bottom) > 1,
    "InnerDistance": lambda spec: len(spec.bottom) > 1,
    "Normalize": lambda spec: spec.HasField("normalize_param") or len(spec.top) > 1,
    "ChannelScale": lambda spec: not spec.channel_scale_param.global_scale,
}


def complete(model: CaffeModel, net) -> CaffeModel:
    """``model`` with what ``net`` (a ``NetParameter``) knows of its layers: names of sharing (those of the file where
    the net has none), transposed weights, and the type, bottoms and tops that the file lacks. The layers of an HDF5
    file come in the net's order, and each with all of its blobs."""
    by_name: dict = {}
    for spec in net.layer:
        by_name.setdefault(spec.name, spec)
    layers = [_completed(layer, by_name.get(layer.name), model.shared_once) for layer in model.layers]
    if model.shared_once:
        order = {name: i for i, name in enumerate(by_name)}
        layers.sort(key=lambda layer: order.get(layer.name, len(order)))
        named = [(name, blob) for layer in layers for name, blob in zip(layer.params, layer.blobs, strict=False)]
        tensors = {name: blob for name, blob in reversed(named) if name and blob is not None}
        for layer in layers:
            names = layer.params + [""] * len(layer.blobs)
            layer.blobs = [
                tensors.get(name) if blob is None else blob for name, blob in zip(names, layer.blobs, strict=False)
            ]
    return replace(model, name=model.name or net.name, layers=layers)


def _completed(layer: LayerWeights, spec, shared_once: bool) -> LayerWeights:
    if spec is None:
        return replace(layer)
    params = without_trailing([p.name for p in spec.param]) or layer.params
    return replace(
        layer,
        type=layer.type or spec.type,
        bottoms=layer.bottoms or list(spec.bottom),
        tops=layer.tops or list(spec.top),
        blobs=layer.blobs + [None] * (len(params) - len(layer.blobs)) * shared_once,
        params=params,
        transposed=layer.transposed or (spec.type == "InnerProduct" and spec.inner_product_param.transpose),
    )


def records_of_net(net, arrays) -> tuple[list[dict], list[str], list[str]]:
    """``(records, missing, extra)``: how the net's layers are made of the tensors ``arrays``, as the metadata would
    tell it; names of tensors that are not there; of those that have no place.

    A layer's tensors are found under its name by PyTorch's names (:mod:`converters.naming.layer_types`), or by Caffe's
    numbers. One that is shared may stand under its first layer only. A BatchNorm layer takes ``running_mean`` and
    ``running_var``; its ``weight`` and ``bias``, which PyTorch has in the same module, go to the Scale layer that
    reads its top, unless that has its own, and are its own fourth and fifth blob where there is no such layer. The
    two biases of torch.nn.LSTM are added. Counters ``num_batches_tracked`` mean nothing to Caffe.
    """
    records, missing, used, done = [], [], set(), set()
    shared: dict[str, dict] = {}
    affine = _affine_in_batch_norm(net, arrays)
    for spec in net.layer:
        if spec.name in done:  # one of several phases
            continue
        done.add(spec.name)
        base, recipes = affine.get(spec.name, spec.name), []
        for j, suffix in enumerate(_blob_names(spec, arrays, spec.name in affine.values())):
            tensor, param = f"{base}.{suffix}", spec.param[j].name if j < len(spec.param) else ""
            if tensor in arrays or suffix == "scale_factor":
                recipe = _recipe(spec, tensor, suffix, arrays)
            elif param in shared:
                recipe = shared[param]
            else:
                missing.append(tensor)
                break
            if param:
                shared.setdefault(param, recipe)
            recipes.append(recipe)
            used |= {recipe["tensor"], recipe.get("plus")}
        params = without_trailing([p.name for p in spec.param])
        transposed = spec.type == "InnerProduct" and spec.inner_product_param.transpose
        layer = LayerWeights(spec.name, spec.type, list(spec.bottom), list(spec.top), [], params, transposed)
        records.append(layer_record(layer, recipes))
    return records, missing, [name for name in arrays if name not in used and not is_counter(name)]


def _affine_in_batch_norm(net, arrays) -> dict[str, str]:
    """``{Scale layer: BatchNorm layer}`` where the first one's weight and bias stand under the second's name."""
    found, makers = {}, {}
    for spec in net.layer:
        below = makers.get(spec.bottom[0]) if len(spec.bottom) == 1 else None
        if spec.type == "Scale" and below is not None and below.type == "BatchNorm":
            own = (f"{spec.name}.weight", f"{spec.name}.0")
            if f"{below.name}.weight" in arrays and not any(name in arrays for name in own):
                found[spec.name] = below.name
        makers |= dict.fromkeys(spec.top, spec)
    return found


def _blob_names(spec, arrays, affine_elsewhere: bool) -> list[str]:
    """The names of the tensors that a layer needs, so far as one can tell without building the net."""

    def present(*names):
        return all(f"{spec.name}.{name}" in arrays for name in names)

    if present("0"):
        return list(takewhile(present, map(str, range(len(arrays)))))
    if spec.type in _BIAS_TERM:
        factor = not (spec.type == "Scale" and len(spec.bottom) > 1)
        return ["weight"] * factor + ["bias"] * getattr(spec, _BIAS_TERM[spec.type]).bias_term
    if spec.type in _WITHOUT and _WITHOUT[spec.type](spec):
        return []
    known = known_names(spec.type)
    if spec.type == "BatchNorm":
        return [*known[0], *(n for n in ("weight", "bias") if present(n) and not affine_elsewhere)]
    fitting = [names for names in known or (("weight", "bias"), ("weight",)) if present(*names)]
    return list(max(fitting, key=len) if fitting else min(known, key=len, default=()))


def _recipe(spec, tensor: str, suffix: str, arrays) -> dict:
    recipe: dict = {"tensor": tensor}
    if suffix.isdigit():
        return recipe
    if spec.type == "InnerProduct" and suffix == "weight" and spec.inner_product_param.transpose:
        recipe["form"] = "transposed"
    elif spec.type == "LSTM":
        recipe["form"] = "gates"
    elif spec.type == "BN":
        recipe["shape"] = [1, arrays[tensor].size, 1, 1]
    elif (spec.type == "PReLU" and spec.prelu_param.channel_shared) or (
        spec.type == "Normalize" and spec.norm_param.channel_shared
    ):
        recipe["shape"] = []
    if spec.type in ("LSTM", "RNN") and suffix == "bias_ih_l0":
        recipe["plus"] = tensor.replace("bias_ih", "bias_hh")
    return recipe


def is_counter(name: str) -> bool:
    """Whether a tensor is PyTorch's count of the batches that a batch normalisation has seen."""
    return name.endswith(".num_batches_tracked")


def short_list(names: list[str], most: int = 20) -> str:
    """The names, or the first of very many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
