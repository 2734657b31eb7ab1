"""tools/compress_net.py: the files it writes, what it says, and that every mistake ends in one message."""

import re
from pathlib import Path

import numpy as np
import pytest

from converters import read_caffemodel
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from

NET, SNAPSHOT = "model/test.prototxt", "snapshots/tiny_iter_2.caffemodel"
STEM = "snapshots/tiny_iter_2_svd_fc6_4"
BOTH = {f"{STEM}.caffemodel", f"{STEM}.prototxt"}


@pytest.fixture
def squeeze(workspace):
    """``squeeze(*options)`` runs the tool on the workspace's net."""

    def run(*options):
        return workspace.run(workspace.tools.compress_net, ["--def", NET, "--net", SNAPSHOT, *options])

    return run


def blobs(path, name):
    return next(layer.blobs for layer in read_caffemodel(path).layers if layer.name == name)


def test_generating_the_net(squeeze):
    done = squeeze("--ranks", "fc6=4")
    assert (done.code, done.err, done.new) == (0, "", BOTH)
    assert re.search(r"fc6 +│ +16 x 72 │ +4 │ +0\.306 ", done.out), "4 (16 + 72) of 16 x 72 weights"
    weight, bias = blobs(SNAPSHOT, "fc6")
    upper, same = blobs(f"{STEM}.caffemodel", "fc6_U")
    (lower,) = blobs(f"{STEM}.caffemodel", "fc6_L")
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(upper @ lower, (u[:, :4] * s[:4]) @ v[:4], atol=1e-6)
    np.testing.assert_array_equal(same, bias)
    report = copy_from(Net(f"{STEM}.prototxt", "TEST"), f"{STEM}.caffemodel")
    assert {verdict for _, _, verdict in report.rows} == {"loaded"}


def test_full_rank_detects_the_same(squeeze, workspace):
    """Through the files: nothing is lost but rounding."""
    assert squeeze("--ranks", "fc6=16", "--output", "full").code == 0
    stem = "full/tiny_iter_2_svd_fc6_16"
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    rois = np.float32([[0, 3, 4, 40, 60], [0, 0, 0, 20, 20]])
    outputs = []
    for prototxt, weights in ((NET, SNAPSHOT), (f"{stem}.prototxt", f"{stem}.caffemodel")):
        net = Net(prototxt, "TEST")
        copy_from(net, weights)
        outputs.append({name: blob.detach().numpy() for name, blob in net(data=x, rois=rois).items()})
    for name, expected in outputs[0].items():
        np.testing.assert_allclose(outputs[1][name], expected, atol=2e-6 * max(1, np.abs(expected).max()))


def test_a_prototxt_of_the_compressed_net(squeeze):
    """The net that was generated serves as --def-svd, and gives the same file."""
    assert squeeze("--ranks", "fc6=4").code == 0
    done = squeeze("--def-svd", f"{STEM}.prototxt", "--output", "again")
    assert (done.code, done.new) == (0, {"again/tiny_iter_2_svd_fc6_4.caffemodel"})
    again = Path("again/tiny_iter_2_svd_fc6_4.caffemodel").read_bytes()
    assert again == Path(f"{STEM}.caffemodel").read_bytes()


def test_what_it_costs(squeeze):
    done = squeeze("--ranks", "fc6=8", "cls_score=7", "--test", "--data", "data", "--gpu", "-1", "--output", "new")
    assert done.code == 0
    assert "on shapes_test" in done.out
    for row in (r"as it was +│ +0\.\d{4} │", r"compressed +│ +0\.\d{4} │", r"difference +│ +[+-]0\.\d{4} │.* times"):
        assert re.search(row, done.out)
    assert "these layers do not get smaller at this rank: cls_score" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give either --ranks LAYER=RANK"),
        (("--ranks", "fc6=4", "--def-svd", NET), "give either --ranks LAYER=RANK"),
        (("--ranks", "fc6"), "expected LAYER=RANK"),
        (("--ranks", "fc6=x"), "expected LAYER=RANK"),
        (("--ranks", "fc6=-1"), "expected LAYER=RANK"),
        (("--ranks", "fc6=4", "fc6=5"), "names a layer twice"),
        (("--ranks", "fc6=0"), "rank 0 of a weight of 16 x 72"),
        (("--ranks", "fc6=17"), "rank 17 of a weight of 16 x 72"),
        (("--ranks", "fc7=4"), "the net has no layer 'fc7'"),
        (("--ranks", "conv1=4"), "is a Convolution layer"),
        (("--def-svd", NET), "no layer of model/test.prototxt is in two there"),
        (("--def-svd", "none.prototxt"), "none.prototxt"),
        (("--ranks", "fc6=4", "--net", "none.caffemodel"), "none.caffemodel"),
        (("--ranks", "fc6=4", "--net", "other.caffemodel"), "'fc6' is not in the file: there is nothing to compress"),
        (("--ranks", "fc6=4", "--output", NET), "results cannot be written there"),
        (("--ranks", "fc6=4", "--test", "--imdb", "shapes_tset"), "Did you mean 'shapes_test'"),
        (("--ranks", "fc6=4", "--test", "--data", "data", "--imdb", "shapes_test+shapes_train"), "several data sets"),
    ],
)
def test_mistakes(squeeze, workspace, options, words):
    workspace.write_weights("other.caffemodel", bbox_pred=[(28, 16), (28,)])
    done = squeeze(*options)
    assert (done.code, done.new) == (2, set())
    assert done.err.startswith("error: ")
    assert words in done.err
