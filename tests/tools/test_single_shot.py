"""A single-shot net, from its solver to its average precision, by the tools: trained, resumed, tested."""

import numpy as np
import pytest

from converters import read_caffemodel
from ohem_caffe_port.evaluate import load_detections
from prototxt.zoo.generate import ZOO

FOLDER = ZOO / "shapes"


@pytest.mark.parametrize("method", ["ssd", "ghm"])
def test_train_and_test(workspace, method):
    solver, name = FOLDER / method / "solver.prototxt", f"shapes_{method}"
    small = ["--set", "TRAIN.SCALES", "[64]", "TRAIN.IMS_PER_BATCH", "2", "TEST.SCALES", "[64]"]
    common = [solver, "--gpu", "-1", "--data", "data", "--output", "new", *small]
    done = workspace.run(workspace.tools.train_from_prototxt, [*common, "--iters", "2"])
    assert (done.code, done.err) == (0, "")
    assert f"new/{name}_iter_2.caffemodel" in done.new
    state = f"new/{name}_iter_2.solverstate"
    resumed = workspace.run(workspace.tools.train_from_prototxt, [*common, "--iters", "3", "--resume", state])
    assert (resumed.code, resumed.err) == (0, "")
    if method == "ghm":  # the averages of the bins are in the snapshot
        layers = {layer.name: layer.blobs for layer in read_caffemodel(f"new/{name}_iter_3.caffemodel").layers}
        assert [blob.shape for blob in layers["loss"]] == [(30,), (10,)]
        assert all(np.any(blob) for blob in layers["loss"])
    model = ["--def", FOLDER / method / "test.prototxt", "--net", f"new/{name}_iter_3.caffemodel"]
    tested = workspace.test(*model, "--det_thresh", "0.005", *small)
    assert (tested.code, tested.err) == (0, "")
    assert "average precision on shapes_test" in tested.out
    all_boxes, index, _ = load_detections("new/detections.npz")
    boxes = np.concatenate([dets for of_class in all_boxes[1:] for dets in of_class])
    assert len(index) == 4
    assert len(boxes)
    assert boxes[:, :4].min() >= 0
    assert (boxes[:, :4] <= [249, 199, 249, 199]).all()


def test_another_number_of_classes(workspace):
    """SSD of 3 classes on 7: said before the first image."""
    text = (FOLDER / "ssd/test.prototxt").read_text().replace("num_classes: 7", "num_classes: 3")
    text = text.replace("num_output: 63", "num_output: 27").replace("dim: 7\n", "dim: 3\n")
    workspace.write("model/test.prototxt", text)
    workspace.write_weights("weights.caffemodel", conv1=[(24, 3, 5, 5), (24,)])
    tested = workspace.test("--net", "weights.caffemodel")
    tested.ended_in_one_message(["the net scores 3 classes, shapes_test has 7"])
