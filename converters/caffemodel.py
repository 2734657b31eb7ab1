"""``.caffemodel``: the weights of a net by layer name, in all three forms Caffe ever wrote.

A caffemodel is a NetParameter. Only names, types, bottoms, tops and blobs are read, straight from the wire format
(:mod:`converters.wire`), so that layers of any fork can be read and large files open at once.

| form | NetParameter field | layer fields |
|---|---|---|
| current | layer = 100 | name 1, type 2 (string), bottom 3, top 4, param 6 {name 1}, blobs 7 |
| V1 | layers = 2 | bottom 2, top 3, name 4, type 5 (enum), blobs 6, param 1001 (string) |
| V0 | layers = 2 | layer 1 {name 1, type 2 (string), blobs 50}, bottom 2, top 3 |

One setting of a layer decides how its weights lie: inner_product_param 117 {transpose 6} of the current form.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from prototxt.files import replacing

from .blob import decode_blob, encode_blob
from .dtypes import flat
from .errors import WeightsError
from .files import map_file
from .hdf5 import is_hdf5, read_hdf5_model, write_hdf5_model
from .wire import LEN, VARINT, expect, fields, len_field, text, varint_field

# V1LayerParameter.LayerType by number, in the spelling of the current `type`.
_V1_TYPES = (
    ["", "Accuracy", "BNLL", "Concat", "Convolution", "Data", "Dropout", "EuclideanLoss", "Flatten", "HDF5Data"]
    + ["HDF5Output", "Im2col", "ImageData", "InfogainLoss", "InnerProduct", "LRN", "MultinomialLogisticLoss"]
    + ["Pooling", "ReLU", "Sigmoid", "Softmax", "SoftmaxWithLoss", "Split", "TanH", "WindowData", "Eltwise", "Power"]
    + ["SigmoidCrossEntropyLoss", "HingeLoss", "MemoryData", "ArgMax", "Threshold", "DummyData", "Slice", "MVN"]
    + ["AbsVal", "Silence", "ContrastiveLoss", "Exp", "Deconvolution"]
)
# V0 types that differ from the current spelling by more than case and underscores.
_V0_TYPES = {"conv": "Convolution", "pool": "Pooling", "images": "ImageData", "softmax_loss": "SoftmaxWithLoss"}
_V0_TYPES |= {name.lower(): name for name in _V1_TYPES}
_PHASES = {"TRAIN": 0, "TEST": 1}
_MAX_BLOBS = 1 << 14  # of a file; the largest nets have a thousand. An array takes far more memory than an empty blob


@dataclass
class LayerWeights:
    """What a caffemodel says of one layer. ``blobs`` are float32 arrays (float64 where the file has doubles); None
    stands for one that an HDF5 file keeps under the layer that it is shared with.

    ``params`` are the names by which blobs are shared (``param { name }``), one for each blob from the first on, ""
    where there is none; blobs of one name are one tensor. ``transposed``: the weight of an InnerProduct layer lies
    ``[in, out]``.
    """

    name: str
    type: str
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    blobs: list[np.ndarray | None] = field(default_factory=list)
    params: list[str] = field(default_factory=list)
    transposed: bool = False


@dataclass
class CaffeModel:
    """A net's name and its layers in the file's order, layers without weights (data, Split, losses) included.

    ``shared_once``: a tensor of several layers stands under one of them only, as in HDF5 files. ``form`` is that of a
    binary file: "V2" (current), "V1" or "V0"; files are written in the current one.
    """

    name: str = ""
    layers: list[LayerWeights] = field(default_factory=list)
    shared_once: bool = False
    form: str = field(default="", compare=False)


def read_caffemodel(path: str | os.PathLike) -> CaffeModel:
    """Read a ``.caffemodel``: binary of the current, V1 or V0 form, or HDF5 (``.caffemodel.h5``).

    The blobs are read-only views on the memory-mapped file, in the shape that is stored (legacy shapes as four
    numbers); see :func:`converters.blob.decode_blob`. V1 and V0 types come in their current spelling, unknown ones as
    ``V1:<number>`` and ``V0:<name>``. HDF5 files know no types, and their blobs are arrays in memory.

    Raises :class:`WeightsError` for a file that is missing, cut short, damaged or of another format.
    """
    if is_hdf5(path):
        layers = [LayerWeights(name, "", blobs=blobs) for name, blobs in read_hdf5_model(path)]
        return CaffeModel(layers=layers, shared_once=True)
    data = map_file(path, "a .caffemodel")
    try:
        return _decode_net(data)
    except WeightsError as err:
        err.file = path
        raise


def write_caffemodel(path: str | os.PathLike, model: CaffeModel, *, phase: str | None = None) -> None:
    """Write a ``.caffemodel`` of the current form, as Caffe's ``Net::ToProto`` does, or HDF5 when ``path`` ends in
    ``.h5``.

    Blobs may be any array-likes; they are written as float32 (float64 arrays as ``double_data``), a layer at a time.
    ``phase`` ("TRAIN" or "TEST") is noted in every layer when given, as Caffe does; loading ignores it. The file
    appears whole or not at all. Files may exceed 2 GiB, but Caffe itself refuses to read such.

    Raises :class:`CaffePortError` when the file cannot be written, or a blob is not there (None), which only HDF5
    files can leave out.
    """
    if str(path).endswith(".h5"):
        write_hdf5_model(path, [(layer.name, layer.blobs) for layer in model.layers])
        return
    with replacing(path) as file:
        file.writelines(len_field(1, model.name.encode()))
        for layer in model.layers:
            file.writelines(flat(len_field(100, *_encode_layer(layer, phase))))


def _encode_layer(layer: LayerWeights, phase: str | None) -> list:
    parts = len_field(1, layer.name.encode()) + len_field(2, layer.type.encode())
    for number, names in ((3, layer.bottoms), (4, layer.tops)):
        for name in names:
            parts += len_field(number, name.encode())
    for name in layer.params:
        parts += len_field(6, *(len_field(1, name.encode()) if name else ()))
    for j, blob in enumerate(layer.blobs):
        if blob is None:
            raise WeightsError(
                "lies under another layer that shares it; only HDF5 files can say so",
                layer=layer.name,
                field=f"blobs[{j}]",
                hint="Give the prototxt, which tells what is shared.",
            )
        parts += len_field(7, *encode_blob(blob))
    if phase is not None:
        parts.append(varint_field(10, _PHASES[phase]))
    return [*parts, *len_field(117, varint_field(6, 1))] if layer.transposed else parts


def _decode_net(data: memoryview) -> CaffeModel:
    model, blobs = CaffeModel(), 0
    for number, wire, value in fields(data):
        if number == 1:
            if wire == VARINT:
                raise WeightsError(
                    "is not a .caffemodel: it begins with a number, not with a net's name",
                    hint="Is it a .solverstate, or a mean file (.binaryproto)?",
                )
            model.name = text(number, wire, value)
        elif number in (2, 100):
            expect(number, wire, LEN)
            model.layers.append(_decode_layer(value) if number == 100 else _decode_v1_layer(value))
            if (blobs := blobs + len(model.layers[-1].blobs)) > _MAX_BLOBS:
                raise _too_many_blobs()
            model.form = model.form or ("V2" if number == 100 else "V0" if _is_v0(value) else "V1")
    if not model.layers:
        raise WeightsError("holds no layers", hint="It is damaged, or not a .caffemodel.")
    return model


def _is_v0(message: memoryview) -> bool:
    return any(number == 1 for number, _, _ in fields(message))


def _decode_layer(message: memoryview) -> LayerWeights:
    layer = LayerWeights("", "")
    for number, wire, value in fields(message):
        if number == 1:
            layer.name = text(number, wire, value)
        elif number == 2:
            layer.type = text(number, wire, value)
        elif number == 3:
            layer.bottoms.append(text(number, wire, value))
        elif number == 4:
            layer.tops.append(text(number, wire, value))
        elif number == 6:
            expect(number, wire, LEN)
            layer.params.append(next((text(*spec) for spec in fields(value) if spec[0] == 1), ""))
        elif number == 7:
            _add_blob(layer, number, wire, value)
        elif number == 117 and wire == LEN:
            layer.transposed |= any(n == 6 and bool(v) for n, w, v in fields(value) if w == VARINT)
    layer.params = without_trailing(layer.params)
    return layer


def _decode_v1_layer(message: memoryview) -> LayerWeights:
    layer = LayerWeights("", "")
    for number, wire, value in fields(message):
        if number == 1:
            expect(number, wire, LEN)
            _decode_v0_layer(value, layer)
        elif number == 2:
            layer.bottoms.append(text(number, wire, value))
        elif number == 3:
            layer.tops.append(text(number, wire, value))
        elif number == 4:
            layer.name = text(number, wire, value)
        elif number == 5:
            expect(number, wire, VARINT)
            layer.type = _V1_TYPES[value] if value < len(_V1_TYPES) else f"V1:{value}"
        elif number == 6:
            _add_blob(layer, number, wire, value)
        elif number == 1001:
            layer.params.append(text(number, wire, value))
    layer.params = without_trailing(layer.params)
    return layer


def without_trailing(names: list[str]) -> list[str]:
    """``names`` of ``param`` messages up to the last one that is given: most only state learning rates."""
    return names[: max((i + 1 for i, name in enumerate(names) if name), default=0)]


def _decode_v0_layer(message: memoryview, layer: LayerWeights) -> None:
    for number, wire, value in fields(message):
        if number == 1:
            layer.name = text(number, wire, value)
        elif number == 2:
            name = text(number, wire, value)
            layer.type = _V0_TYPES.get(name, _V0_TYPES.get(name.replace("_", ""), f"V0:{name}"))
        elif number == 50:
            _add_blob(layer, number, wire, value)


def _add_blob(layer: LayerWeights, number: int, wire: int, value) -> None:
    expect(number, wire, LEN)
    if len(layer.blobs) == _MAX_BLOBS:
        raise _too_many_blobs()
    try:
        layer.blobs.append(decode_blob(value))
    except WeightsError as err:
        err.layer, err.field = layer.name, f"blobs[{len(layer.blobs)}]"
        raise


def _too_many_blobs() -> WeightsError:
    return WeightsError(f"holds more than {_MAX_BLOBS} arrays: this is not a Caffe file, or it is damaged")
