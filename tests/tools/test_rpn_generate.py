"""Faster R-CNN with the tools: training, proposals for a Fast R-CNN, testing."""

import numpy as np
import pytest

SMALL = "TRAIN: {IMDB: shapes_train, SCALES: [96], MAX_SIZE: 128, RPN_MIN_SIZE: 4, RPN_POST_NMS_TOP_N: 50%s}\n"
CFG = SMALL + "TEST: {IMDB: shapes_test, SCALES: [96], MAX_SIZE: 128, RPN_MIN_SIZE: 4}\nEXP_DIR: tiny\n"
PROPOSALS = "data/rpn_data/shapes_train.npz"


@pytest.fixture
def rpn_workspace(workspace, faster_rcnn):
    """A workspace with model/train, test and rpn.prototxt of a tiny Faster R-CNN, trained for one iteration."""
    for name in ("train", "test", "rpn"):
        workspace.write(f"model/{name}.prototxt", getattr(faster_rcnn, name))
    workspace.write("model/cfg.yml", CFG % "")
    done = workspace.train("--iters", "1", "--output", "rpn")
    assert done.code == 0, done.err
    assert "where none are stated: TRAIN.HAS_RPN True" in done.out
    return workspace


def generate(workspace, *options):
    arguments = ("--def", "model/rpn.prototxt", "--net", "rpn/tiny_iter_1.caffemodel", "--imdb", "shapes_train")
    return workspace.run(workspace.tools.rpn_generate, [*arguments, "--gpu", "-1", "--data", "data", *options])


def test_testing(rpn_workspace):
    """No proposals are read: the data set's are not even there."""
    (rpn_workspace.folder / "data/shapes/selective_search_data/voc_2007_test.npz").unlink()
    done = rpn_workspace.test("--net", "rpn/tiny_iter_1.caffemodel")
    assert done.code == 0, done.err
    assert "new/detections.npz" in done.new
    assert "mAP" in done.out


def test_proposals_for_a_fast_rcnn(rpn_workspace):
    done = generate(rpn_workspace, "--set", "TEST.RPN_POST_NMS_TOP_N", "30")
    assert (done.code, done.new) == (0, {PROPOSALS}), done.err
    with np.load(PROPOSALS) as arrays:
        counts = np.diff(arrays["offsets"])
        assert len(counts) == len(arrays["images"]) == 8
        assert 0 < counts.min() <= counts.max() <= 30
        assert arrays["boxes"].shape == (counts.sum(), 4)
    rpn_workspace.write_net()
    rpn_workspace.write("model/cfg.yml", CFG % ", BATCH_SIZE: 16, BBOX_NORMALIZE_TARGETS_PRECOMPUTED: true")
    trained = rpn_workspace.train("--proposals", PROPOSALS, "--iters", "1")
    assert trained.code == 0, trained.err
    again = generate(rpn_workspace)
    again.ended_in_one_message(["exists already", "--force"])
    assert generate(rpn_workspace, "--force").code == 0


def test_all_anchors_take_part_unless_stated(rpn_workspace):
    assert generate(rpn_workspace, "--out", "few.npz", "--set", "TEST.RPN_PRE_NMS_TOP_N", "5").code == 0
    assert generate(rpn_workspace, "--out", "all.npz").code == 0
    counts = [np.diff(np.load(name)["offsets"]).max() for name in ("few.npz", "all.npz")]
    assert counts[0] <= 5 < counts[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--def", "model/missing.pt"), ["model/missing.pt"]),
        (("--def", "model/train.prototxt"), ["proposals need inputs data and im_info"]),
        (("--imdb", "shapes_nothing"), ["unknown imdb"]),
        (("--out", "proposals.mat"), ["must end in .npz"]),
        (("--set", "TEST.SCALES", "[96,64]"), ["tested at one scale"]),
    ],
)
def test_a_mistake_ends_in_one_message(rpn_workspace, options, words):
    generate(rpn_workspace, *options).ended_in_one_message(words)
