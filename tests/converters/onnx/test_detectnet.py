import cv2
import numpy as np
import pytest

import prototxt
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

ROWS, COLUMNS, STRIDE = 6, 8, 16


def net(classes, settings, images=2, rows=ROWS):
    tops = " ".join(f'top: "list{c}"' for c in range(classes))
    return f"""
        layer {{ name: "c" type: "Input" top: "coverage"
                 input_param {{ shape {{ dim: {images} dim: {classes} dim: {rows} dim: {COLUMNS} }} }} }}
        layer {{ name: "b" type: "Input" top: "corners"
                 input_param {{ shape {{ dim: {images} dim: 4 dim: {rows} dim: {COLUMNS} }} }} }}
        layer {{ name: "it" type: "Python" bottom: "coverage" bottom: "corners" {tops}
                 python_param {{ module: "caffe.layers.detectnet.clustering" layer: "ClusterDetections"
                   param_str: "{COLUMNS * STRIDE},{ROWS * STRIDE},{STRIDE},{settings},{classes}" }} }}"""


def objects(shapes, rng):
    """Cells that see one of a few boxes, not quite the same; and some that see anything."""
    n, _, rows, columns = shapes["corners"]
    y, x = np.mgrid[:rows, :columns] * STRIDE
    truth = np.array([[10, 12, 60, 70], [12, 14, 59, 66], [70, 20, 120, 90], [75, 30, 100, 60]])
    seen = truth[rng.randint(len(truth), size=(n, rows, columns))] + rng.normal(0, 1.2, (n, rows, columns, 4))
    return {
        "coverage": rng.random_sample(shapes["coverage"]),
        "corners": seen.transpose(0, 3, 1, 2) - np.stack([x, y, x, y]),
    }


@pytest.mark.parametrize(
    ("classes", "settings"),
    [(1, "0.4,3,0.2,22"), (2, "0.2,1,0.05,1"), (1, "0.1,2,0.6,22"), (1, "0.5,0,0.2,45"), (1, "2,3,0.2,22")],
    ids=["usual", "two classes", "large clusters", "not grouped", "nothing there"],
)
def test_cluster_detections(check, classes, settings):
    check(net(classes, settings), objects)


def test_maps_larger_than_the_image(check):
    check(net(1, "0.4,2,0.2,22", rows=ROWS + 1), objects)


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 5 reads these graphs")
def test_opencv_takes_image_after_image():
    """It computes pairs wrongly when there are more of them than in the first run."""
    built = Net(prototxt.parse_net(net(1, "0.4,3,0.2,22", images=1)), "TEST")
    model = to_onnx(built, target="opencv").SerializeToString()
    runner = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    for seed, covered in enumerate((0.1, 1, 0.5)):
        rng = np.random.RandomState(seed)
        blobs = objects({"coverage": (1, 1, ROWS, COLUMNS), "corners": (1, 4, ROWS, COLUMNS)}, rng)
        blobs = {name: np.float32(blob) for name, blob in blobs.items()}
        blobs["coverage"] *= blobs["coverage"] < covered
        for name, blob in blobs.items():
            runner.setInput(blob, name)
        np.testing.assert_allclose(runner.forward().reshape(1, 50, 5), built(**blobs)["list0"], rtol=1e-5)
