"""tools/copy_model.py: what it copies, and that every mistake ends in one message."""

import json

import numpy as np
import pytest

from converters import CaffeModel, LayerWeights, read_caffemodel, write_caffemodel

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 4 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "v" }
        inner_product_param { num_output: 4 } }
layer { name: "c" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } param { name: "v" }
        inner_product_param { num_output: 4 } }
layer { name: "d" type: "InnerProduct" bottom: "c" top: "d" inner_product_param { num_output: 2 } }
"""


def entry(model, source, dest, reshape=None):
    operations = {"source": source, "dest": dest, "reshape": reshape or [0] * len(source)}
    return {"prototxt": "is/not/read.prototxt", "model": model, "copy_ops": operations}


@pytest.fixture
def copy(workspace):
    """``copy(list, *options)`` runs the tool; ``copy.weights`` are in ``one.caffemodel`` and ``two.caffemodel``."""
    rng = np.random.default_rng(0)
    shapes = {"one": {"a": [(4, 6), (4,)], "flat": [(1, 1, 2, 12), (4,)]}, "two": {"p": [(4, 4), (4,)], "q": [(4,)]}}
    weights = {}
    for file, layers in shapes.items():
        blobs = {name: [rng.standard_normal(s).astype(np.float32) for s in sizes] for name, sizes in layers.items()}
        model = CaffeModel(file, [LayerWeights(name, "InnerProduct", [], [], b) for name, b in blobs.items()])
        write_caffemodel(workspace.folder / f"{file}.caffemodel", model)
        weights |= blobs
    workspace.write("net.prototxt", NET)

    def run(operations, *options):
        workspace.write("list.json", operations if isinstance(operations, (str, bytes)) else json.dumps(operations))
        files = ("--out_net_def", "net.prototxt", "--net_surgery_json", "list.json", "--out_net_file", "new.caffemodel")
        return workspace.run(workspace.tools.copy_model, [*files, *options])

    run.weights = weights
    return run


def written():
    return {layer.name: layer.blobs for layer in read_caffemodel("new.caffemodel").layers}


def test_layers_of_two_models(copy):
    done = copy([entry("one.caffemodel", ["a"], ["a"]), entry("two.caffemodel", ["p"], ["b"])])
    assert (done.code, done.err, done.new) == (0, "", {"new.caffemodel"})
    assert "new.caffemodel: 2 layers; the net's others start anew: d" in done.out, "c shares the parameters of b"
    assert set(written()) == {"a", "b"}
    for name, source in (("a", "a"), ("b", "p")):
        for blob, original in zip(written()[name], copy.weights[source], strict=True):
            assert np.array_equal(blob, original)


def test_another_shape(copy):
    """24 numbers, stored as another matrix."""
    assert copy([entry("one.caffemodel", ["flat"], ["a"], [1])]).code == 0
    assert np.array_equal(written()["a"][0], copy.weights["flat"][0].reshape(4, 6))


def test_other_files(copy):
    done = copy([entry("not/here", ["p"], ["b"])], "--model", "two.caffemodel")
    assert done.code == 0
    assert np.array_equal(written()["b"][0], copy.weights["p"][0])


def test_given_twice(copy):
    done = copy([entry("one.caffemodel", ["a", "a"], ["a", "a"])])
    assert "note: layer 'a' is given twice; the later one counts" in done.out
    assert len(written()) == 1


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        ("[", ("list.json", "not JSON")),
        (b"\xff\xfe", ("list.json", "not JSON")),
        ("{}", ("list.json", "must be a list of objects")),
        ("[3]", ("list.json", "must be a list of objects")),
        ([{"model": "one.caffemodel"}], ("entry 1", "needs 'model' and 'copy_ops'")),
        ([entry(3, ["a"], ["a"])], ("entry 1", "needs 'model' and 'copy_ops'")),
        ([entry("one.caffemodel", ["a"], ["a", "b"])], ("entry 1", "have [1, 2, 1] entries")),
        ([entry("one.caffemodel", [1], ["a"])], ("entry 1", "names of layers")),
        ([entry("none.caffemodel", ["a"], ["a"])], ("none.caffemodel",)),
        ([entry("list.json", ["a"], ["a"])], ("list.json",)),
        ([entry("one.caffemodel", ["z"], ["a"])], ("one.caffemodel", "layer 'z'", "has no weights in this file")),
        ([entry("one.caffemodel", ["a"], ["z"])], ("list.json", "layer 'z'", "not in the net", "net.prototxt")),
        ([entry("one.caffemodel", ["a"], ["b"])], ("layer 'b'", "(4, 6)", "(4, 4)")),
        ([entry("one.caffemodel", ["a"], ["b"], [1])], ("layer 'b'", "(4, 6)", "(4, 4)")),
        ([entry("two.caffemodel", ["q"], ["b"])], ("layer 'b'", "1 parameters in the file and 2 in the net")),
    ],
)
def test_mistakes(copy, operations, words):
    copy(operations).ended_in_one_message(words)


def test_number_of_models(copy):
    copy([entry("one.caffemodel", ["a"], ["a"])], "--model", "a", "b").ended_in_one_message(
        ["names 1 models; --model names 2"]
    )


@pytest.mark.parametrize("option", ["--out_net_def", "--net_surgery_json", "--out_net_file"])
def test_files_that_cannot_be(copy, option):
    copy([entry("one.caffemodel", ["a"], ["a"])], option, "nowhere/file").ended_in_one_message(["nowhere/file"])
