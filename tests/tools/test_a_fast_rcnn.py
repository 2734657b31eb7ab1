"""A-Fast-RCNN's stages by the tools, on a tiny net of the same structure: train, pretrain, copy, train, test."""

import json

import numpy as np
import pytest

import prototxt
from converters import read_caffemodel
from prototxt.zoo import adversarial, layers

SOLVER = """\
train_net: "train.prototxt"
base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 iter_size: 2 display: 1
snapshot_prefix: "%s"
"""
CFG = """\
TRAIN: {IMS_PER_BATCH: 1, BATCH_SIZE: 16, BG_THRESH_LO: 0.0, IMDB: shapes_train, SCALES: [96], MAX_SIZE: 128}
TEST: {IMDB: shapes_test, SCALES: [96], MAX_SIZE: 128}
"""


def backbone():
    return layers.conv("conv1", "data", 8, 8, stride=8, init='type: "gaussian" std: 0.01'), "conv1", 8


@pytest.fixture
def stages(workspace):
    """``stages(method, weights)``: two iterations of a stage; ``stages.copy(method)``: the weights of the last ones."""
    tiny = {"backbone": backbone, "classes": 7, "pooled": 6, "hidden": (16, 16)}

    def snapshot(method):
        return f"out/{method}_iter_2.caffemodel"

    def run(method, *options):
        net = prototxt.parse_net(adversarial.train_net(method, method, **tiny, channels=4))
        net = adversarial.frozen(net) if method == "asdn_pretrain" else net
        folder = workspace.folder / f"model_{method}"
        folder.mkdir()
        prototxt.write_text(net, folder / "train.prototxt")
        (folder / "solver.prototxt").write_text(SOLVER % method)
        (folder / "cfg.yml").write_text(CFG)
        common = ("--gpu", "-1", "--data", "data", "--output", "out", "--iters", "2")
        done = workspace.run(workspace.tools.train_from_prototxt, [folder / "solver.prototxt", *common, *options])
        assert (done.code, done.err) == (0, "")
        assert snapshot(method) in done.new
        return done

    def copy(method):
        lists = adversarial.copies(method, ["conv1"])
        sources = [snapshot(entry["model"].split("/")[-1].split("_iter")[0]) for entry in lists]
        workspace.write("list.json", json.dumps(lists))
        net = prototxt.parse_net(adversarial.train_net(method, method, **tiny, channels=4))
        prototxt.write_text(net, workspace.folder / "net.prototxt")
        files = ("--out_net_def", "net.prototxt", "--net_surgery_json", "list.json", "--out_net_file", f"{method}.init")
        done = workspace.run(workspace.tools.copy_model, [*files, "--model", *sources])
        assert (done.code, done.err) == (0, "")
        return f"{method}.init"

    run.copy, run.snapshot = copy, snapshot
    workspace.write("test.prototxt", adversarial.test_net("tiny", dropout=0, **tiny))
    workspace.write("cfg.yml", CFG)
    return run


def weights(path):
    return {layer.name: layer.blobs for layer in read_caffemodel(path).layers if layer.blobs}


@pytest.mark.parametrize("method", ["asdn", "astn", "asdn_astn"])
def test_all_stages(stages, workspace, method):
    stages("fast_rcnn_std")
    first = weights(stages.snapshot("fast_rcnn_std"))
    if method.startswith("asdn"):
        done = stages("asdn_pretrain", "--weights", stages.snapshot("fast_rcnn_std"))
        assert "iteration 2: loss" in done.out
        pretrained = weights(stages.snapshot("asdn_pretrain"))
        for name in ("conv1", "fc6", "fc7", "cls_score"):
            assert np.array_equal(pretrained[name][0], first[name][0]), name
    start = stages.copy(method)
    copied = weights(start)
    sources = {**first, **({} if method == "astn" else {name: pretrained[name] for name in adversarial.MASKS})}
    for name, blobs in copied.items():
        assert np.array_equal(blobs[0], sources[name.removesuffix("_loc")][0]), name
    stages(method, "--weights", start)
    trained = weights(stages.snapshot(method))
    moving = {"conv1", "fc6", "fc7", "cls_score", *(("fc6_loc", "fc7_loc") if method.endswith("astn") else ())}
    for name in moving:
        assert not np.array_equal(trained[name][0], copied[name][0]), name
    net = ("--def", "test.prototxt", "--net", stages.snapshot(method), "--cfg", "cfg.yml")
    data = ("--gpu", "-1", "--data", "data", "--output", "tested")
    done = workspace.run(workspace.tools.test_from_prototxt, [*net, *data])
    assert done.code == 0
    assert "mAP" in done.out
