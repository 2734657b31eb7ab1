"""The one way exported graphs are tested: prototxt, our Net with random weights, ONNX, and every runtime's outputs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

HAS_OPENCV_5 = int(cv2.__version__.split(".")[0]) >= 5


@pytest.fixture
def check():
    """:func:`check_export`."""
    return check_export


@pytest.fixture
def run_onnx():
    """:func:`run_onnxruntime`."""
    return run_onnxruntime


@pytest.fixture
def runtimes():
    """``{target: run(model, inputs)}`` of the runtimes that are here."""
    return {"onnxruntime": run_onnxruntime} | ({"opencv": run_opencv} if HAS_OPENCV_5 else {})


@pytest.fixture
def compare():
    """``compare(got, wanted, tolerance, where, shapes=True)``: the arrays of two dicts differ by no more than
    ``tolerance`` of their largest magnitude, in shape too if asked."""
    return _compare


@pytest.fixture
def layer_net(inputs_of):
    """``layer_net("Concat", "concat_param { axis: 1 }", (2, 3), (2, 4), tops=1)``: the text of a net of Input layers of
    these shapes, x0, x1..., and one layer "it" that reads them and makes y0, y1..."""

    def make(kind, settings, *shapes, tops=1):
        names = [f'bottom: "x{i}"' for i in range(len(shapes))] + [f'top: "y{i}"' for i in range(tops)]
        inputs = inputs_of(**{f"x{i}": shape for i, shape in enumerate(shapes)})
        return f'{inputs}layer {{ name: "it" type: "{kind}" {" ".join(names)} {settings} }}'

    return make


@pytest.fixture
def check_layer(layer_net):
    """``check_layer(*arguments of layer_net, tops=1, **options of check_export)``."""

    def check(kind, settings, *shapes, tops=1, **options):
        return check_export(layer_net(kind, settings, *shapes, tops=tops), **options)

    return check


@pytest.fixture
def check_golden(golden_data):
    """``check_golden("layers/ROIPooling/ROIPooling__1x1_s1", **options)``: :func:`check_export` with the inputs of a
    case of real Caffe, whose outputs the models give in onnxruntime within the same tolerance."""

    def check(case, *, tolerance=1e-5, **options):
        arrays = np.load(golden_data / f"{case}.npz")
        inputs = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in/")}
        recorded = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out/")}
        net = Net(golden_data / f"{case}.prototxt", "TEST")
        models = check_export(net, inputs, tolerance=tolerance, **options)
        for model in models.values():
            got = run_onnxruntime(model, inputs)
            _compare(got, {name: recorded[name] for name in got}, tolerance, f"{case} of real Caffe", shapes=False)
        return models

    return check


def check_export(
    text,
    inputs=None,
    *,
    weights=None,
    phase="TEST",
    batch=None,
    static=False,
    targets=("onnxruntime", "opencv"),
    tolerance=1e-5,
    opencv_tolerance=None,
    opencv_deviates=None,
    repeats=False,
):
    """Exports a net and compares every output with the Net's; returns ``{target: onnx.ModelProto}``.

    For each target: the model passes onnx's checker (types and shapes inferred), uses the standard domain alone, and
    gives the Net's outputs in onnxruntime at the prototxt's sizes and at others of all open axes; that for OpenCV in
    ``cv2.dnn``, too (from version 5 on), where one net runs it all and other numbers, which may mean other detections.

    Args:
        text: prototxt of a net with ``Input`` layers, or a built :class:`Net`.
        inputs: ``{name: array}``, or a function ``(shapes, rng) -> {name: array}`` called with the shapes of all inputs
            for each size. Names left out get normally distributed numbers. Rows of an array repeat where the other size
            has more.
        weights: called with the built net, whose parameters are random already (:func:`randomize`).
        batch: the other size of the axis "batch" [the prototxt's and 2]; other open axes get 3 more.
        static: the net fixes its sizes: no input may be open. Else one must be.
        tolerance: largest difference allowed, relative to an output's largest magnitude (or 1 when that is below 1e-3).
        opencv_tolerance: the same for ``cv2.dnn``.
        opencv_deviates: why ``cv2.dnn``'s numbers are not compared, for what it is known to do differently.
        repeats: with the target "opencv" the first row of outputs may fill them up.
    """
    net = text if isinstance(text, Net) else Net(prototxt.parse_net(text), phase)
    if not isinstance(text, Net):
        randomize(net)
        if weights is not None:
            weights(net)
    models = {}
    for target in targets:
        model = models[target] = to_onnx(net, target=target)
        onnx.checker.check_model(model, full_check=True)
        assert {o.domain for o in model.opset_import} | {node.domain for node in model.graph.node} <= {""}
        declared = {v.name: _dims(v) for v in model.graph.input}
        assert set(declared) <= set(net.inputs)
        is_open = any(isinstance(size, str) for dims in declared.values() for size in dims)
        assert is_open != static, f"inputs {declared}"
        for shapes in _sizes(net, declared, batch):
            fed = _feed(inputs, shapes)
            wanted = run_net(net, fed)
            where = f"{target} in onnxruntime, inputs {shapes}"
            _compare(run_onnxruntime(model, fed), wanted, tolerance, where, repeats=target == "opencv" and repeats)
        if target == "opencv" and HAS_OPENCV_5 and not opencv_deviates:
            run, limit = opencv(model), opencv_tolerance or tolerance
            own, *others = _sizes(net, declared, batch)
            for number, (shapes, seed) in enumerate([(own, 1), (own, 2), (own, 1), *((other, 1) for other in others)]):
                fed = _feed(inputs, shapes, seed)
                _compare(run(fed), run_net(net, fed), limit, f"OpenCV, run {number}, inputs {shapes}", False, repeats)
    return models


def randomize(net, seed=0):
    """Gives all parameters values that make sense: outputs of about the inputs' size, variances above 0."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for param in net.learnable_params:
            shape = tuple(param.blob.shape)
            fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1
            values = rng.standard_normal(shape) / np.sqrt(fan_in)
            name, index = param.users[0]
            layer = net.layer_by_name[name]
            if layer.type == "BatchNorm":  # mean, variance, scale factor
                values = (values, 0.5 + rng.random_sample(shape), np.full(shape, 0.75))[min(index, 2)]
                if layer.blob_shapes[0] != shape and index > 2:  # forks keep scale and bias here, too
                    values = rng.standard_normal(shape)
            elif layer.type == "BN":
                values = 0.5 + rng.random_sample(shape)
            elif layer.type == "PReLU":
                values = 0.25 * values
            param.blob.copy_(torch.as_tensor(values, dtype=torch.float32))


def run_net(net, inputs):
    with torch.no_grad():
        return {name: blob.numpy() for name, blob in net(**inputs).items()}


def run_onnxruntime(model, inputs):
    """``{output: array}`` of a model (or of its serialized bytes, or a path) in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    fed = {i.name: np.ascontiguousarray(inputs[i.name], np.float32) for i in session.get_inputs()}
    return dict(zip(names, session.run(names, fed), strict=True))


def opencv(model):
    """``run(inputs) -> {output: array}`` of a model in ``cv2.dnn``, which keeps the net from run to run."""
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    names = [output.name for output in model.graph.output]

    def run(inputs):
        for value in model.graph.input:
            net.setInput(np.ascontiguousarray(inputs[value.name], np.float32), value.name)
        return dict(zip(names, (np.array(a) for a in net.forward(names)), strict=True))

    return run


def run_opencv(model, inputs):
    """The same, once."""
    return opencv(model)(inputs)


def _dims(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _sizes(net, declared, batch):
    """Shapes of the inputs: the net's own, and others of the open axes where there are any."""
    own = {net.values[v].name: net.shapes[v] for step, layer in zip(net.steps, net.layers, strict=True)
           if layer.type == "Input" for v in step.tops}  # fmt: skip
    others = {
        name: tuple(
            size if not isinstance(d, str) else batch or size + 2 if d == "batch" else size + 3
            for d, size in zip(declared.get(name, shape), shape, strict=True)
        )
        for name, shape in own.items()
    }
    return [own] if others == own else [own, others]


def _feed(inputs, shapes, seed=1):
    """All inputs; with another ``seed`` other numbers, maps are turned round."""
    rng = np.random.RandomState(seed)
    given = inputs(shapes, rng) if callable(inputs) else inputs or {}
    fed = {}
    for name, shape in shapes.items():
        array = np.asarray(given[name] if name in given else rng.standard_normal(shape), np.float32)
        if array.shape != shape:  # repeat or leave out along each axis
            for axis, size in enumerate(shape):
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        fed[name] = array[..., ::-1, ::-1].copy() if seed > 1 and array.ndim == 4 else array
    return fed


def _compare(got, wanted, tolerance, where, shapes=True, repeats=False):
    """``repeats``: more rows than the reference has must be its first again."""
    assert sorted(got) == sorted(wanted), where
    for name, reference in wanted.items():
        value = got[name]
        if repeats and value.size > reference.size:
            axis = int(np.argmax(np.not_equal(value.shape, reference.shape)))
            rows = np.arange(value.shape[axis])
            reference = np.take(reference, np.where(rows < reference.shape[axis], rows, 0), axis)
        if shapes:
            assert value.shape == reference.shape, f"{where}: output '{name}'"
        else:  # cv2.dnn adds or drops axes of length 1
            assert value.size == reference.size, f"{where}: output '{name}': {value.shape} for {reference.shape}"
            value = value.reshape(reference.shape)
        usual = np.abs(reference) < 1e30  # NaN, infinite and as good as infinite numbers must be the same
        np.testing.assert_array_equal(value[~usual], reference[~usual], f"{where}: output '{name}'")
        if not usual.any():
            continue
        scale = np.abs(reference[usual]).max()
        scale = scale if scale > 1e-3 else 1.0
        worst = np.abs(value[usual].astype(np.float64) - reference[usual]).max() / scale
        assert worst <= tolerance, f"{where}: output '{name}' differs by {worst:.2g} of its scale"
