import pytest

from converters import WeightsError
from ohem_caffe_port.export import describe, to_onnx
from ohem_caffe_port.net import Net

pytest.importorskip("onnx")


def layer(kind, bottoms, tops, settings="", name=None):
    lines = "".join(f' bottom: "{b}"' for b in bottoms.split()) + "".join(f' top: "{t}"' for t in tops.split())
    return f'layer {{ name: "{name or (tops or "quiet").split()[0]}" type: "{kind}"{lines} {settings} }}\n'


def product(bottom, top, outputs=4, settings=""):
    return layer("InnerProduct", bottom, top, f"inner_product_param {{ num_output: {outputs} }} {settings}")


CONVOLUTION = layer("Convolution", "data", "conv", "convolution_param { num_output: 4 kernel_size: 1 }")
LOSS = layer("SoftmaxWithLoss", "fc label", "loss")
ACCURACY = layer("Accuracy", "fc label", "accuracy")


@pytest.fixture
def described(build, inputs_of):
    """``described(text, data=(2, 3), ...)``: nodes, inputs, outputs and notes of a net with these inputs."""

    def make(text, **shapes):
        notes = []
        return *describe(build(inputs_of(**shapes) + text, "TEST"), notes), notes

    return make


# ---- names


def test_a_blob_has_its_name_where_the_graph_shows_it(described):
    """Its last value, and an input; earlier ones, which in-place layers overwrite, their makers' too."""
    text = product("data", "fc") + layer("ReLU", "fc", "fc", name="relu") + layer("Dropout", "fc", "fc", name="drop")
    nodes, inputs, outputs, _ = described(text, data=(2, 3))
    assert [value.name for node in nodes for value in node.tops] == ["fc/fc", "fc/relu", "fc"]
    assert ([v.name for v in inputs], [v.name for v in outputs]) == (["data"], ["fc"])
    _, inputs, outputs, _ = described(layer("ReLU", "data", "data", name="relu"), data=(2, 3))
    assert ([v.name for v in inputs], [v.name for v in outputs]) == (["data"], ["data/relu"])


def test_parameters_are_named_as_pytorch_would_and_once(described):
    shared = 'param { name: "w" }'
    text = product("data", "one", 3, shared) + product("one", "two", 3, shared)
    nodes, *_ = described(text + layer("BatchNorm", "two", "bn") + layer("PReLU", "bn", "act"), data=(2, 3))
    assert [node.blob_names for node in nodes] == [
        ["one.weight", "one.bias"],
        ["one.weight", "two.bias"],
        ["bn.running_mean", "bn.running_var", "bn.scale_factor"],
        ["act.weight"],
    ]


def test_two_layers_of_one_name(described):
    text = product("data", "one") + product("one", "two").replace('name: "two"', 'name: "one"')
    nodes, *_ = described(text, data=(2, 3))
    assert [node.blob_names for node in nodes] == [["one.weight", "one.bias"], ["one.weight_", "one.bias_"]]


# ---- sizes that stay open


def shapes_of(nodes):
    return {value.name: value.shape for node in nodes for value in node.tops}


def test_batch(described):
    nodes, inputs, _, notes = described(CONVOLUTION + product("conv", "fc"), data=(2, 3, 4, 5))
    assert inputs[0].shape == ("batch", 3, 4, 5)
    assert inputs[0].sample == (2, 3, 4, 5)
    assert shapes_of(nodes) == {"conv": ("batch", 4, 4, 5), "fc": ("batch", 4)}
    assert not notes


def test_what_follows_from_the_batch(described):
    text = layer("Reshape", "data", "r", "reshape_param { shape { dim: -1 dim: 5 } }")
    text += layer("Reshape", "data", "s", "reshape_param { shape { dim: 1 dim: -1 } }")
    text += layer("Flatten", "data", "f")
    nodes, *_ = described(text, data=(2, 3, 4, 5))
    assert shapes_of(nodes) == {"r": ("r_0", 5), "s": (1, "s_1"), "f": ("batch", 60)}


def test_rois(described):
    text = CONVOLUTION + layer("ROIPooling", "conv rois", "pool", "roi_pooling_param { pooled_h: 2 pooled_w: 3 }")
    nodes, inputs, _, _ = described(text + product("pool", "fc"), data=(1, 3, 9, 9), rois=(7, 5))
    assert [value.shape for value in inputs] == [("batch", 3, 9, 9), ("num_rois", 5)]
    assert shapes_of(nodes)["fc"] == ("num_rois", 4)


def test_a_batch_that_a_layer_fixes(described):
    text = layer("Reshape", "data", "r", "reshape_param { shape { dim: 2 dim: 60 } }")
    _, inputs, _, notes = described(text, data=(2, 3, 4, 5))
    assert inputs[0].shape == (2, 3, 4, 5)
    assert len(notes) == 1
    assert notes[0].startswith("the size of 'data' is fixed, batch cannot vary: layer 'r': ")


def test_inputs_that_cannot_grow_with_the_first(described):
    """A table that all images share."""
    text = product("data", "fc") + product("table", "row", 4, "").replace("num_output: 4", "num_output: 4 axis: 0")
    _, inputs, _, _ = described(text, data=(2, 3), table=(5, 6))
    assert [value.shape for value in inputs] == [("batch", 3), (5, 6)]


def test_rows_that_are_found_in_the_data(described, faster_rcnn):
    nodes, inputs, _, notes = described(faster_rcnn.test.split("\n", 3)[-1], data=(1, 3, 96, 128), im_info=(1, 3))
    assert [value.shape for value in inputs] == [(1, 3, 96, 128), (1, 3)]
    shapes = shapes_of(nodes)
    assert shapes["rois"] == ("rois_0", 5)
    assert shapes["scores"] == ("rois_0", 1)
    assert shapes["cls_prob"] == ("rois_0", 7)
    assert "batch cannot vary: layer 'proposal'" in notes[0]


def test_rows_of_detections(described):
    settings = "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.5 } keep_top_k: 9 }"
    nodes, inputs, _, _ = described(
        layer("DetectionOutput", "loc conf prior", "found", settings), loc=(2, 8), conf=(2, 6), prior=(1, 2, 8)
    )
    assert [value.shape for value in inputs] == [("batch", 8), ("batch", 6), (1, 2, 8)]
    assert shapes_of(nodes)["found"] == (1, 1, "found_2", 7)


def test_time_steps_are_fixed_and_streams_are_the_batch(described):
    text = layer("LSTM", "data cont", "y", "recurrent_param { num_output: 3 }") + product("y", "fc", "4 axis: 2")
    nodes, inputs, _, _ = described(text, data=(5, 2, 4), cont=(5, 2))
    assert [value.shape for value in inputs] == [(5, "batch", 4), (5, "batch")]
    assert shapes_of(nodes)["y"] == (5, "batch", 3)


# ---- what is left out


def test_losses_are_left_out_and_what_they_judge_is_an_output(described):
    text = product("data", "fc") + LOSS + ACCURACY + layer("Silence", "label", "")
    nodes, inputs, outputs, notes = described(text, data=(2, 3), label=(2,))
    assert [node.name for node in nodes] == ["fc"]
    assert ([v.name for v in inputs], [v.name for v in outputs]) == (["data"], ["fc"])
    assert notes == [
        "left out, for no output needs them: layers 'loss' (SoftmaxWithLoss), 'accuracy' (Accuracy), 'quiet' (Silence)",
        "outputs are what the layers left out judged: fc",
        "input 'label' is left out with the layers that read it",
    ]


def test_what_only_a_loss_needs_is_left_out_with_it(described):
    text = product("data", "fc") + layer("Softmax", "fc", "prob") + layer("Power", "target", "half")
    text += layer("EuclideanLoss", "fc half", "loss") + product("fc", "unused") + layer("Silence", "unused", "")
    nodes, _, outputs, _ = described(text, data=(2, 3), target=(2, 4))
    assert [node.name for node in nodes] == ["fc", "prob"]
    assert [value.name for value in outputs] == ["prob"]


def test_what_is_left_out_fixes_no_size(described):
    text = layer("Reshape", "label", "column", "reshape_param { shape { dim: 3 dim: 4 } }")
    text += product("data", "fc") + layer("EuclideanLoss", "fc column", "loss")
    _, inputs, outputs, _ = described(text, data=(3, 3), label=(12,))
    assert [value.shape for value in (*inputs, *outputs)] == [("batch", 3), ("batch", 4)]


def test_whatever_has_a_loss_weight_is_a_loss(described):
    text = product("data", "fc") + layer("Reduction", "fc", "sum", "loss_weight: 0.1") + layer("Softmax", "fc", "prob")
    assert [value.name for value in described(text, data=(2, 3))[2]] == ["prob"]


def test_what_says_what_to_learn_is_left_out(described, faster_rcnn):
    """The first stage of a Faster R-CNN being trained: scores and deltas remain, and no targets."""
    text = faster_rcnn.train[: faster_rcnn.train.index('layer { name: "roi-data"')].split("layer {", 2)[2]
    shapes = {"data": (1, 3, 96, 128), "im_info": (1, 3), "gt_boxes": (2, 5)}
    nodes, inputs, outputs, _ = described("layer {" + text, **shapes)
    assert [value.name for value in outputs] == ["rpn_rois", "scores"]
    assert [value.name for value in inputs] == ["data", "im_info"]
    assert "rpn-data" not in {node.name for node in nodes}


def test_a_loss_that_a_layer_reads_is_needed(build, inputs_of):
    text = inputs_of(data=(2, 3), label=(2,)) + product("data", "fc") + LOSS + layer("Power", "loss", "twice")
    with pytest.raises(WeightsError, match="^layer 'loss': SoftmaxWithLoss: has no form in ONNX here$"):
        to_onnx(build(text, "TEST"))


def test_nothing_but_losses(build, inputs_of):
    text = 'name: "n"\n' + inputs_of(fc=(2, 3), label=(2,)) + LOSS
    with pytest.raises(WeightsError, match="nothing is left of net 'n' without its losses"):
        to_onnx(build(text, "TEST"))


def test_data_layers_become_inputs_first(build, feed):
    text = feed(data=[[[1.0, 2.0]]], label=[[1.0]]) + product("data", "fc") + LOSS
    with pytest.raises(WeightsError, match="layer 'data': Python: reads data from files") as error:
        to_onnx(build(text, "TEST"))
    assert error.value.hint == "Make it an input: --shape data=1,2 label=1"


def test_a_training_net_is_refused(build, inputs_of):
    with pytest.raises(WeightsError, match="TRAIN phase"):
        to_onnx(build(inputs_of(data=(2, 3)) + product("data", "fc"), "TRAIN"))


def test_a_file_says_where_it_comes_from(tmp_path, inputs_of):
    path = tmp_path / "deploy.prototxt"
    path.write_text('name: "small"\n' + inputs_of(data=(2, 3)) + product("data", "fc"))
    model = to_onnx(Net(str(path), "TEST"), metadata={"weights": "a.caffemodel"})
    assert model.graph.name == "small"
    assert {p.key: p.value for p in model.metadata_props} == {
        "target": "onnxruntime",
        "prototxt": "deploy.prototxt",
        "weights": "a.caffemodel",
    }


def test_an_error_says_where(tmp_path, inputs_of):
    path = tmp_path / "deploy.prototxt"
    path.write_text(inputs_of(data=(2, 3), label=(2,)) + product("data", "fc") + LOSS + layer("Power", "loss", "twice"))
    with pytest.raises(WeightsError) as error:
        to_onnx(Net(str(path), "TEST"))
    assert str(error.value) == f"{path}:4: layer 'loss': SoftmaxWithLoss: has no form in ONNX here"


def test_a_net_of_constants(described):
    text = layer("DummyData", "", "data", "dummy_data_param { shape { dim: 2 dim: 3 } }") + product("data", "fc")
    _, inputs, outputs, notes = described(text)
    assert (inputs, [value.name for value in outputs]) == ([], ["fc"])
    assert "no input is left" in notes[-1]
