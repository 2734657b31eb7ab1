"""Bring nets and solvers of older Caffes to the current form, in place, as Caffe's own readers do.

Three generations of nets exist: ``layers { layer { ... } }`` (V0), ``layers { type: CONVOLUTION ... }`` (V1) and
``layer { type: "Convolution" ... }``. Afterwards a net has only ``layer`` entries.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from prototxt import caffe_pb2
from prototxt.errors import PrototxtError

# V1 layer type -> today's type. A type that is not here has no equivalent.
V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}

# V0 layer type -> V1 layer type, where upper case is not enough.
_V0_TYPES = {"conv": "CONVOLUTION", "images": "IMAGE_DATA", "innerproduct": "INNER_PRODUCT", "pool": "POOLING"}
_V0_KNOWN = {
    *("accuracy", "bnll", "concat", "conv", "data", "dropout", "euclidean_loss", "flatten", "hdf5_data"),
    *("hdf5_output", "im2col", "images", "infogain_loss", "innerproduct", "lrn", "multinomial_logistic_loss"),
    "inner_product",  # SPP_net
    *("pool", "relu", "sigmoid", "softmax", "softmax_loss", "split", "tanh", "window_data"),
}

# V0 field -> {V0 layer type: where it goes}; "" stands for any type.
_CONV, _IP, _POOL = "convolution_param", "inner_product_param", "pooling_param"
_DATA, _HDF5, _IMAGES, _WINDOW = "data_param", "hdf5_data_param", "image_data_param", "window_data_param"
_V0_FIELDS = {
    "num_output": {"conv": f"{_CONV}.num_output", "innerproduct": f"{_IP}.num_output"},
    "biasterm": {"conv": f"{_CONV}.bias_term", "innerproduct": f"{_IP}.bias_term"},
    "weight_filler": {"conv": f"{_CONV}.weight_filler", "innerproduct": f"{_IP}.weight_filler"},
    "bias_filler": {"conv": f"{_CONV}.bias_filler", "innerproduct": f"{_IP}.bias_filler"},
    "pad": {"conv": f"{_CONV}.pad", "pool": f"{_POOL}.pad"},
    "kernelsize": {"conv": f"{_CONV}.kernel_size", "pool": f"{_POOL}.kernel_size"},
    "group": {"conv": f"{_CONV}.group"},
    "stride": {"conv": f"{_CONV}.stride", "pool": f"{_POOL}.stride"},
    "pool": {"pool": f"{_POOL}.pool"},
    "dropout_ratio": {"dropout": "dropout_param.dropout_ratio"},
    "local_size": {"lrn": "lrn_param.local_size"},
    "alpha": {"lrn": "lrn_param.alpha"},
    "beta": {"lrn": "lrn_param.beta"},
    "k": {"lrn": "lrn_param.k"},
    "source": {
        "data": f"{_DATA}.source",
        "hdf5_data": f"{_HDF5}.source",
        "images": f"{_IMAGES}.source",
        "window_data": f"{_WINDOW}.source",
        "infogain_loss": "infogain_loss_param.source",
    },
    "batchsize": {
        "data": f"{_DATA}.batch_size",
        "hdf5_data": f"{_HDF5}.batch_size",
        "images": f"{_IMAGES}.batch_size",
        "window_data": f"{_WINDOW}.batch_size",
    },
    "scale": {"": "transform_param.scale"},
    "meanfile": {"": "transform_param.mean_file"},
    "cropsize": {"": "transform_param.crop_size"},
    "mirror": {"": "transform_param.mirror"},
    "rand_skip": {"data": f"{_DATA}.rand_skip", "images": f"{_IMAGES}.rand_skip"},
    "shuffle_images": {"images": f"{_IMAGES}.shuffle"},
    "new_height": {"images": f"{_IMAGES}.new_height"},
    "new_width": {"images": f"{_IMAGES}.new_width"},
    "concat_dim": {"concat": "concat_param.concat_dim"},
    "det_fg_threshold": {"window_data": f"{_WINDOW}.fg_threshold"},
    "det_bg_threshold": {"window_data": f"{_WINDOW}.bg_threshold"},
    "det_fg_fraction": {"window_data": f"{_WINDOW}.fg_fraction"},
    "det_context_pad": {"window_data": f"{_WINDOW}.context_pad"},
    "det_crop_mode": {"window_data": f"{_WINDOW}.crop_mode"},
    "hdf5_output_param": {"hdf5_output": "hdf5_output_param"},
    # SPP_net has today's messages in V0 layers
    "conv_param": {"": _CONV},
    "inner_product_param": {"": _IP},
    "pool_param": {"": _POOL},
    "lrn_param": {"": "lrn_param"},
    "dropout_param": {"": "dropout_param"},
    "concat_param": {"": "concat_param"},
}

# V1 list, one item a blob -> field of ParamSpec.
_PARAM_FIELDS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}

_SOLVER_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}


def upgrade_net(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """``net`` itself, with only ``layer`` entries and no deprecated field. Raises PrototxtError (layer, field)."""
    if net.layers and net.layer:
        message = "'layer' and the older 'layers' in one net"
        raise PrototxtError(message, field="layers", hint="write all of them as 'layer'")
    if any(layer.HasField("layer") for layer in net.layers):
        _v0_to_v1(net)
    for layer in net.layers:
        _move_transformation(layer)
    for layer in net.layers:
        _v1_to_current(layer, net.layer.add())
    net.ClearField("layers")
    _inputs_to_layer(net)
    for layer in net.layer:
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            for param in layer.param:  # statistics, not weights: older nets had to say so
                param.lr_mult = param.decay_mult = 0
    return net


def upgrade_solver(solver: caffe_pb2.SolverParameter, path=None) -> caffe_pb2.SolverParameter:
    """``solver`` itself, with ``type`` in place of ``solver_type`` and its inline nets upgraded.

    With the ``path`` of its file, an absent ``snapshot_prefix`` becomes that path without suffix, and one that is a
    directory gets the file's stem appended.
    """
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            message = "'type' and the older 'solver_type' in one solver"
            raise PrototxtError(message, field="solver_type", hint="keep 'type'")
        old = solver.SolverType.Name(solver.solver_type)
        if old not in _SOLVER_TYPES:
            raise PrototxtError(f"solver_type {old} has no solver of today", field="solver_type")
        solver.type = _SOLVER_TYPES[old]
        solver.ClearField("solver_type")
    for name in ("net_param", "train_net_param"):
        if solver.HasField(name):
            upgrade_net(getattr(solver, name))
    for net in solver.test_net_param:
        upgrade_net(net)
    if path is not None:
        if not solver.HasField("snapshot_prefix"):
            solver.snapshot_prefix = str(Path(path).with_suffix(""))
        elif Path(solver.snapshot_prefix).is_dir():
            solver.snapshot_prefix = str(Path(solver.snapshot_prefix) / Path(path).stem)
    return solver


def _v0_to_v1(net):
    upgraded = caffe_pb2.NetParameter()
    for layer in _fold_padding(net):
        _v0_layer(layer, upgraded.layers.add())
    net.ClearField("layers")
    net.layers.extend(upgraded.layers)


def _fold_padding(net) -> list:
    """The layers without 'padding' ones; the layer after such a one takes its ``pad`` and its bottom."""
    producer: dict[str, caffe_pb2.V1LayerParameter | None] = dict.fromkeys(net.input)
    kept = []
    for layer in net.layers:
        name, kind = layer.layer.name, layer.layer.type
        current = caffe_pb2.V1LayerParameter()
        current.CopyFrom(layer)
        for i, bottom in enumerate(layer.bottom):
            if bottom not in producer:
                raise PrototxtError(f"unknown bottom '{bottom}'", layer=name, field="bottom")
            source = producer[bottom]
            if source is None or source.layer.type != "padding":
                continue
            if kind not in ("conv", "pool") or len(layer.bottom) != 1:
                message = f"a padding layer can only feed a conv or pool layer with one bottom, not '{kind}'"
                raise PrototxtError(message, layer=name)
            if len(source.bottom) != 1 or len(source.top) != 1:
                raise PrototxtError("a padding layer has one bottom and one top", layer=source.layer.name)
            current.layer.pad = source.layer.pad
            current.bottom[i] = source.bottom[0]
        producer.update(dict.fromkeys(layer.top, layer))
        if kind != "padding":
            kept.append(current)
    return kept


def _v0_layer(outer, layer):
    old = outer.layer
    layer.bottom.extend(outer.bottom)
    layer.top.extend(outer.top)
    if old.HasField("name"):
        layer.name = old.name
    if old.HasField("type"):
        name = _V0_TYPES.get(old.type, old.type.upper()) if old.type in _V0_KNOWN else "NONE"
        layer.type = layer.LayerType.Value(name)
    for field, value in old.ListFields():
        if field.name in ("name", "type"):
            continue
        if field.name in ("blobs", "blobs_lr", "weight_decay"):
            getattr(layer, field.name).extend(value)
            continue
        homes = _V0_FIELDS.get(field.name, {})
        home = homes.get(old.type) or homes.get("")
        if home is None:  # Caffe reports it and goes on
            warnings.warn(
                f"layer '{old.name}': {field.name} means nothing in a {old.type} layer; ignored", stacklevel=2
            )
            continue
        _put(layer, home, value)


def _put(message, path, value):
    """Set the field at a dotted path; a single value for a repeated field is appended."""
    *outer, name = path.split(".")
    for step in outer:
        message = getattr(message, step)
    target = getattr(message, name)
    if hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    elif hasattr(target, "append"):
        target.append(value)
    else:
        setattr(message, name, value)


def _move_transformation(layer):
    """``scale``, ``mean_file``, ``crop_size`` and ``mirror`` of a data layer go to its ``transform_param``."""
    homes = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
    home = homes.get(layer.LayerType.Name(layer.type))
    if home is None or not layer.HasField(home):
        return
    param = getattr(layer, home)
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if param.HasField(name):
            setattr(layer.transform_param, name, getattr(param, name))
            param.ClearField(name)


def _v1_to_current(old, layer):
    if old.HasField("type"):
        layer.type = V1_TYPES.get(old.LayerType.Name(old.type), "")
    known = layer.DESCRIPTOR.fields_by_name
    for field, value in old.ListFields():
        name = field.name
        if name == "type":
            continue
        if name in _PARAM_FIELDS:
            for i, item in enumerate(value):
                while len(layer.param) <= i:
                    layer.param.add()
                setattr(layer.param[i], _PARAM_FIELDS[name], item)
        elif name not in known:
            warnings.warn(f"layer '{old.name}': {name} has no place in a layer of today; ignored", stacklevel=2)
        elif isinstance(value, str):
            setattr(layer, name, value)
        elif hasattr(value, "extend"):
            getattr(layer, name).extend(value)
        else:
            getattr(layer, name).CopyFrom(value)


def _inputs_to_layer(net):
    """``input`` with ``input_shape`` or ``input_dim`` becomes one Input layer named 'input', first in the net.

    Without shapes the inputs are dropped: such nets are only carriers of weights.
    """
    shapes = [list(shape.dim) for shape in net.input_shape]
    field = "input_shape"
    if not shapes and net.input_dim:
        field = "input_dim"
        shapes = [list(net.input_dim[i : i + 4]) for i in range(0, len(net.input_dim), 4)]
    if net.input and shapes:
        if len(shapes) < len(net.input) or (field == "input_dim" and len(net.input_dim) % 4):
            each = "four input_dim" if field == "input_dim" else "one input_shape"
            count = len(getattr(net, field))
            raise PrototxtError(f"{len(net.input)} inputs need {each} each; there are {count}", field=field)
        layers = list(net.layer)
        net.ClearField("layer")
        first = net.layer.add(name="input", type="Input", top=net.input)
        for shape in shapes[: len(net.input)]:
            first.input_param.shape.add(dim=shape)
        net.layer.extend(layers)
    for name in ("input", "input_shape", "input_dim"):
        net.ClearField(name)
