from types import SimpleNamespace

import numpy as np
import pytest

import prototxt
from converters import WeightsError
from converters.onnx import GraphBuilder, Node, Value, export_graph, exporter, has_exporter, write_onnx
from converters.onnx.graph import EXPORTERS
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net
from prototxt import CaffePortError

X = Value("x", ("batch", 3), (2, 3))


@pytest.fixture
def kind():
    """``kind(function)``: a layer type that this function writes."""
    names = []

    def add(function, name="Test"):
        exporter(name)(function)
        names.append(name)
        return name

    yield add
    for name in names:
        del EXPORTERS[name]


def node(kind="Test", bottoms=(X,), tops=("y",), name="l", blobs=(), blob_names=()):
    param = prototxt.parse_net(f'layer {{ name: "{name}" type: "{kind}" }}').layer[0]
    layer = SimpleNamespace(name=name, type=kind, param=param)
    tops = [Value(top, ("batch", 3), (2, 3)) for top in tops]
    return Node(layer, list(bottoms), tops, list(blobs), list(blob_names))


def graph(nodes, outputs=("y",), **options):
    model = export_graph("n", nodes, [X], [Value(name, ("batch", 3), (2, 3)) for name in outputs], **options)
    return model, model.graph


# ---- the builder


def test_equal_constants_are_stored_once():
    g = GraphBuilder()
    assert g.ints(1, 2) == g.constant([1, 2], np.int64) != g.constant([1, 2])
    assert g.constant(0.0) != g.constant(-0.0)
    assert len(g.initializers) == 4


def test_a_parameter_keeps_its_name_and_what_is_made_of_it_gets_another():
    g, n = GraphBuilder(), node(blobs=[np.ones((2, 3), np.float32)], blob_names=["l.weight"])
    assert g.weight(n, 0) == g.weight(n, 0) == "l.weight"
    assert g.weight(n, 0, n.blobs[0].T) == g.weight(n, 0, n.blobs[0].T) == "l.weight_2"
    assert g.weight(n, 0, 2 * n.blobs[0].T) == "l.weight_3"


def test_sizes_that_are_open_are_read_in_the_graph():
    g = GraphBuilder()
    assert g.sizes(X, 1) == g.ints(3)
    assert g.vector(1, -1) == g.ints(1, -1)
    assert not g.nodes
    assert g.vector(g.sizes(X, 0, -1), 1)
    assert [n.op_type for n in g.nodes] == ["Shape", "Gather", "Concat"]


def test_attributes_that_are_none_are_left_out():
    g = GraphBuilder()
    assert g.op("Split", "x", outputs=2, axis=None) == ["/Split", "/Split_1"]
    assert not g.nodes[0].attribute


# ---- the graph


def test_what_no_output_needs_is_left_out(kind):
    def write(g, node):
        g.op("Add", node.bottoms[0].name, g.constant(5.0))
        return [g.op("Mul", node.bottoms[0].name, g.constant(2.0))]

    kind(write)
    _, made = graph([node()])
    assert [(n.op_type, list(n.output)) for n in made.node] == [("Mul", ["y"])]
    assert len(made.initializer) == 1


def test_what_the_body_of_a_loop_reads_is_kept(kind):
    def write(g, node):
        from onnx import TensorProto, helper

        outside = g.op("Neg", node.bottoms[0].name)
        body = helper.make_graph([helper.make_node("Identity", [outside], ["inner"])], "then", [],
                                 [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)])  # fmt: skip
        return [g.op("If", g.constant(True, np.bool_), then_branch=body, else_branch=body)]

    kind(write)
    assert [n.op_type for n in graph([node()])[1].node] == ["Neg", "If"]


def test_tops_that_are_the_bottom_or_each_other(kind):
    """Only outputs cost an operator."""
    kind(lambda g, node: [node.bottoms[0].name] * 2, "Same")
    kind(lambda g, node: [g.op("Neg", node.bottoms[0].name)] * 2, "Twice")
    kind(lambda g, node: [g.constant(np.zeros((2, 3)))], "Constant")
    nodes = [node("Same", tops=("a", "b"), name="s"), node("Twice", (Value("a", ()),), ("c", "d"), "t")]
    made = graph([*nodes, node("Constant", tops=("e",), name="u")], ("b", "c", "d", "e"))[1]
    assert [(n.op_type, list(n.input), list(n.output)) for n in made.node] == [
        ("Neg", ["x"], ["c"]),
        ("Identity", ["x"], ["b"]),
        ("Identity", ["c"], ["d"]),
        ("Identity", ["u/const"], ["e"]),
    ]


def test_every_layer_without_a_form_is_named(kind):
    def write(g, node):
        raise node.error("no such setting", hint="another one")

    kind(write)
    nodes = [node(name="one"), node("Unheard", name="two"), node(name="three")]
    with pytest.raises(WeightsError) as error:
        graph(nodes)
    assert str(error.value).splitlines() == [
        "3 layers cannot be expressed in ONNX:",
        "  layer 'one': Test: no such setting",
        "  another one",
        "  layer 'two': Unheard: has no form in ONNX here",
        "  layer 'three': Test: no such setting",
        "  another one",
    ]
    with pytest.raises(WeightsError, match="^layer 'two': Unheard: has no form in ONNX here$"):
        graph([nodes[1]])
    assert has_exporter(nodes[0])
    assert not has_exporter(nodes[1])


def test_wrong_use(kind):
    kind(lambda g, node: [])
    with pytest.raises(WeightsError, match="0 results were written for 1 tops"):
        graph([node()])
    with pytest.raises(ValueError, match="ReLU has two exporters"):
        kind(lambda g, node: [], "ReLU")
    with pytest.raises(WeightsError, match="no such target: tensorrt"):
        graph([], (), target="tensorrt")


def test_python_layers_go_by_their_class():
    n = node("Python")
    n.layer.param.python_param.module, n.layer.param.python_param.layer = "rpn.proposal_layer", "ProposalLayer"
    assert n.type == "rpn.proposal_layer.ProposalLayer"


# ---- files


def model():
    text = """name: "tiny" input: "x" input_shape { dim: 2 dim: 3 }
              layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4
                      weight_filler { type: "gaussian" } } }"""
    return to_onnx(Net(prototxt.parse_net(text), "TEST"), metadata={"weights": "tiny.caffemodel"})


def test_a_file(tmp_path, run_onnx):
    import onnx

    assert write_onnx(tmp_path / "m.onnx", model()) == [tmp_path / "m.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert run_onnx(str(tmp_path / "m.onnx"), {"x": np.ones((5, 3))})["y"].shape == (5, 4)
    read = onnx.load(tmp_path / "m.onnx")
    assert {p.key: p.value for p in read.metadata_props} == {"target": "onnxruntime", "weights": "tiny.caffemodel"}
    assert (read.graph.name, read.producer_name, read.opset_import[0].version) == ("tiny", "ohem_caffe_port", 17)


def test_parameters_too_large_for_protobuf_lie_beside_the_graph(tmp_path, run_onnx):
    x = {"x": np.ones((5, 3))}
    wanted = run_onnx(made := model(), x)["y"]
    files = write_onnx(tmp_path / "m.onnx", made, limit=10)
    assert sorted(tmp_path.iterdir()) == files == [tmp_path / "m.onnx", tmp_path / "m.onnx.data"]
    np.testing.assert_array_equal(run_onnx(str(tmp_path / "m.onnx"), x)["y"], wanted)


@pytest.mark.parametrize("limit", [10, 1000])
def test_a_folder_that_is_not_there(tmp_path, limit):
    with pytest.raises(CaffePortError, match="cannot be written"):
        write_onnx(tmp_path / "no" / "m.onnx", model(), limit=limit)
    assert not list(tmp_path.iterdir())
