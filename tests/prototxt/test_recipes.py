"""The recipes are the paper's rows, line by line, and their nets the released ones, layer by layer."""

from pathlib import Path

import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from prototxt import read_solver
from prototxt.zoo.generate import FAMILIES, ZOO

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
VOC07, VOC12 = "voc_2007_trainval", "voc_2012_trainval"
PP = "voc_2007_trainval+voc_2007_test+voc_2012_trainval"
TEST07, TEST12, MINIVAL = "voc_2007_test", "voc_2012_test", "coco_2014_minival"
TRAIN_M, TEST_M, ONE = (480, 576, 688, 864, 900), (480, 576, 688, 864, 1000), (600,)

# recipe: N, B, bg_lo, mining, its NMS, training set, test set, iterations, step, +M, +B; what is not verified
HALF = "iterations, stepsize"
M_UNVERIFIED, B_UNVERIFIED = ["MAX_SIZE", "TEST.SCALE_USE"], ["TEST.BBOX_VOTE_THRESH", "TEST.BBOX_ITER_THRESH"]
COCO = [HALF, "no dropout", "TEST.IMDB"]
TABLE1 = {
    "fast_rcnn": (2, 128, 0.1, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "fast_rcnn_bg0": (2, 128, 0.0, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "fast_rcnn_n1": (1, 128, 0.1, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "fast_rcnn_n1_bg0": (1, 128, 0.0, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "fast_rcnn_b2048": (2, 2048, 0.0, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "fast_rcnn_n1_b2048": (1, 2048, 0.0, None, VOC07, TEST07, 80000, 30000, False, False, []),
    "ohem": (2, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, False, False, []),
    "ohem_n1": (1, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, False, False, []),
    "ohem_no_nms": (2, 128, 0.0, False, VOC07, TEST07, 80000, 30000, False, False, []),
    "ohem_naive": (2, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, False, False, []),
}
MORE = {
    "fast_rcnn_m_b": (2, 128, 0.1, None, VOC07, TEST07, 80000, 30000, True, True, M_UNVERIFIED + B_UNVERIFIED),
    "ohem_m_b": (2, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, True, True, M_UNVERIFIED + B_UNVERIFIED),
    "ohem_m": (2, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, True, False, M_UNVERIFIED),
    "ohem_b": (2, 128, 0.0, 0.7, VOC07, TEST07, 80000, 30000, False, True, B_UNVERIFIED),
    "fast_rcnn_0712": (2, 128, 0.1, None, f"{VOC07}+{VOC12}", TEST07, 60000, 30000, False, False, ["iterations"]),
    "ohem_0712": (2, 128, 0.0, 0.7, f"{VOC07}+{VOC12}", TEST07, 200000, 40000, False, False, [HALF]),
    "ohem_m_b_0712": (
        2, 128, 0.0, 0.7, f"{VOC07}+{VOC12}", TEST07, 200000, 40000, True, True, [*M_UNVERIFIED, *B_UNVERIFIED, HALF],
    ),
    "fast_rcnn_12": (2, 128, 0.1, None, VOC12, TEST12, 80000, 30000, False, False, [HALF]),
    "ohem_12": (2, 128, 0.0, 0.7, VOC12, TEST12, 80000, 30000, False, False, [HALF]),
    "ohem_m_b_12": (
        2, 128, 0.0, 0.7, VOC12, TEST12, 80000, 30000, True, True, [*M_UNVERIFIED, *B_UNVERIFIED, HALF],
    ),
    "fast_rcnn_07pp12": (2, 128, 0.1, None, PP, TEST12, 100000, 40000, False, False, [HALF]),
    "ohem_07pp12": (2, 128, 0.0, 0.7, PP, TEST12, 200000, 40000, False, False, [HALF]),
    "ohem_m_b_07pp12": (
        2, 128, 0.0, 0.7, PP, TEST12, 200000, 40000, True, True, [*M_UNVERIFIED, *B_UNVERIFIED, HALF],
    ),
    "fast_rcnn_coco": (2, 128, 0.1, None, "coco_2014_train", MINIVAL, 240000, 160000, False, False, COCO),
    "ohem_coco": (2, 128, 0.0, 0.7, "coco_2014_train", MINIVAL, 240000, 160000, False, False, COCO),
    "ohem_m_coco": (
        2, 128, 0.0, 0.7, "coco_2014_train", MINIVAL, 240000, 160000, True, False, [*M_UNVERIFIED, *COCO],
    ),
}  # fmt: skip
HIGH_RATE = {"vgg16": 0.003, "vgg_cnn_m_1024": 0.004}
PAPER = {("vgg16", name): row for name, row in (TABLE1 | MORE).items()}
PAPER |= {("vgg_cnn_m_1024", name): row for name, row in TABLE1.items()}


def test_all_are_here():
    found = {(family, name) for family in HIGH_RATE for name in FAMILIES[family].recipes}
    assert found == set(PAPER)


@pytest.mark.parametrize(("family", "name"), PAPER)
def test_settings(family, name):
    images, rois, bg_lo, nms, train_imdb, test_imdb, iterations, step, multi_scale, iterated, unverified = PAPER[
        family, name
    ]
    folder, cfg = ZOO / family / name, Config()
    cfg.merge_file(folder / "cfg.yml")
    solver, train, test = read_solver(folder / "solver.prototxt"), cfg.TRAIN, cfg.TEST
    # the batch
    assert solver.iter_size * train.IMS_PER_BATCH == images
    assert solver.iter_size * train.BATCH_SIZE == rois
    assert (0.5, 0.5, bg_lo) == (train.FG_THRESH, train.BG_THRESH_HI, train.BG_THRESH_LO)
    assert train.FG_FRACTION == 0.25
    assert (nms is not None) == train.USE_OHEM
    if train.USE_OHEM:
        assert (train.IMS_PER_BATCH, solver.iter_size) == (1, images)  # a pass for each image
        assert (train.OHEM_NMS_THRESH if train.OHEM_USE_NMS else False) == nms
    else:
        assert solver.iter_size == 1
    assert not train.ASPECT_GROUPING
    assert (train_imdb, test_imdb) == (train.IMDB, test.IMDB)
    assert train.PROPOSAL_METHOD == test.PROPOSAL_METHOD == "selective_search"
    # the solver
    assert solver.base_lr == pytest.approx(HIGH_RATE[family] if rois == 2048 else 0.001)
    assert (solver.lr_policy, solver.gamma, solver.stepsize) == ("step", pytest.approx(0.1), step)
    assert (solver.max_iter, solver.momentum, solver.weight_decay) == (
        iterations,
        pytest.approx(0.9),
        pytest.approx(5e-4),
    )
    assert (solver.type, solver.average_loss, solver.snapshot) == ("SGD", 100, 0)
    # sizes, and what testing adds
    assert ((TRAIN_M, TEST_M) if multi_scale else (ONE, ONE)) == (train.SCALES, test.SCALES)
    assert train.MAX_SIZE == test.MAX_SIZE == (2000 if multi_scale else 1000)
    if multi_scale:
        assert test.SCALE_USE == "all"
    assert test.NMS == 0.3
    assert ((2, True, 0.5) if iterated else (1, False, 0.5)) == (test.BBOX_ITERS, test.BBOX_VOTE, test.BBOX_VOTE_THRESH)
    assert (0.05 if iterated else 0) == test.BBOX_ITER_THRESH
    # everything else is the original's default
    default = Config()
    assert (cfg.PIXEL_MEANS, cfg.RNG_SEED, cfg.DEDUP_BOXES) == (default.PIXEL_MEANS, 3, 1 / 16)
    assert train.USE_FLIPPED
    assert train.BBOX_NORMALIZE_TARGETS
    assert not train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED
    # what no source gives is marked
    text = (folder / "cfg.yml").read_text()
    marked = [line.removeprefix("# not verified: ") for line in text.splitlines() if "not verified" in line]
    assert sorted(line.partition(":")[0] for line in marked) == sorted(unverified)


def test_the_page_has_them():
    """The table of docs/recipes.md says what the recipes are."""
    sets = {VOC07: "07", VOC12: "12", f"{VOC07}+{VOC12}": "07+12", PP: "07++12", "coco_2014_train": "COCO"}
    rows = {}
    for name, (images, rois, bg_lo, _, train_imdb, _, iterations, step, *_, unverified) in (TABLE1 | MORE).items():
        rate = "0.003 / 0.004" if rois == 2048 else "0.001"
        star = r" \*" if any(what.startswith("iterations") for what in unverified) else ""
        rows[f"`{name}`"] = [
            sets[train_imdb],
            f"{images}",
            f"{rois}",
            rate,
            f"{bg_lo:g}",
            f"{iterations}, {step}{star}",
        ]
    found = {}
    for line in (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0].startswith("`"):
            found[cells[0]] = cells[1:-1]
    assert found == rows


@pytest.mark.parametrize(
    ("solver", "released"),
    [("ohem", "fast_rcnn_ohem"), ("fast_rcnn", "fast_rcnn")],
)
@pytest.mark.parametrize(("family", "folder"), [("vgg16", "VGG16"), ("vgg_cnn_m_1024", "VGG_CNN_M_1024")])
def test_solvers_are_the_released_ones(family, folder, solver, released):
    """But for the iterations, which the released scripts gave on the command line, and names."""
    original = CORPUS / "abhi2610__ohem/models/pascal_voc" / folder / released / "solver.prototxt"
    if not original.is_file():
        pytest.skip(f"{original} is not here")
    ours, theirs = read_solver(ZOO / family / solver / "solver.prototxt"), read_solver(original)
    for param in (ours, theirs):
        for name in ("train_net", "snapshot_prefix", "max_iter"):
            param.ClearField(name)
    assert ours == theirs


NETS = [
    ("vgg16/ohem/train", "abhi2610__ohem/models/pascal_voc/VGG16/fast_rcnn_ohem/train"),
    ("vgg16/fast_rcnn/train", "abhi2610__ohem/models/pascal_voc/VGG16/fast_rcnn/train"),
    ("vgg16/ohem/test", "abhi2610__ohem/models/pascal_voc/VGG16/fast_rcnn/test"),
    ("vgg_cnn_m_1024/ohem/train", "abhi2610__ohem/models/pascal_voc/VGG_CNN_M_1024/fast_rcnn_ohem/train"),
    ("vgg_cnn_m_1024/fast_rcnn/train", "abhi2610__ohem/models/pascal_voc/VGG_CNN_M_1024/fast_rcnn/train"),
    ("vgg_cnn_m_1024/fast_rcnn/test", "abhi2610__ohem/models/pascal_voc/VGG_CNN_M_1024/fast_rcnn/test"),
    ("vgg16/fast_rcnn_coco/train", "rbgirshick__py-faster-rcnn/models/coco/VGG16/fast_rcnn/train"),
    ("vgg16/fast_rcnn_coco/test", "rbgirshick__py-faster-rcnn/models/coco/VGG16/fast_rcnn/test"),
]


def described(net) -> list:
    """Everything of a net that can change a number, layer by layer."""
    found = []
    for layer, step in zip(net.layers, net.steps, strict=True):
        part = type(layer.param)()
        part.CopyFrom(layer.param)
        for name in ("propagate_down", "param", "input_param"):  # shown as their effect below, or free
            part.ClearField(name)
        if part.type == "Convolution":  # stated or not
            for name, default in (("stride", 1), ("pad", 0)):
                if not getattr(part.convolution_param, name):
                    getattr(part.convolution_param, name).append(default)
        found.append((part, step.runs_backward, step.runs_backward and list(step.propagate)))
    return found


def learned(net) -> list:
    return [(p.owner, p.name, p.lr_mult, p.decay_mult, tuple(p.blob.shape), p.users) for p in net.learnable_params]


@pytest.mark.parametrize(("ours", "original"), NETS)
def test_nets_are_the_released_ones(ours, original):
    path, phase = CORPUS / f"{original}.prototxt", "TEST" if ours.endswith("test") else "TRAIN"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    cfg = Config()
    cfg.merge_file((ZOO / ours).parent / "cfg.yml")
    mine, theirs = (Net(p, phase, cfg=cfg, initialize=False) for p in (ZOO / f"{ours}.prototxt", path))
    a, b = ([part for part in described(net) if part[0].type != "Input"] for net in (mine, theirs))
    assert [part[0].name for part in a] == [part[0].name for part in b]
    for one, other in zip(a, b, strict=True):
        assert one == other
    assert mine.inputs == theirs.inputs
    if phase == "TRAIN":
        assert learned(mine) == learned(theirs)
        assert mine.loss_weights == theirs.loss_weights
    else:  # nothing learns
        assert {n: [p.shape for p in ps] for n, ps in mine.params.items()} == {
            n: [p.shape for p in ps] for n, ps in theirs.params.items()
        }
