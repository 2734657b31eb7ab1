"""adversarial-frcnn's layers beside the golden cases of ``asdn``: what ``corrected`` mends, gradients, and mistakes."""

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer
from ohem_caffe_port.mining import select_rois_by_ratio

DATA = "'count_drop': 5, 'permute_count': 9, 'count_drop_neg': 0, 'channels': 3, 'iter_size': 2, 'maintain_before': 1"
LOSS = "'num_classes': 4, 'score_thres': 0.1, 'iter_size': 2, 'maintain_before': 1"
ROWS = 6


@pytest.fixture
def python_layer():
    """``python_layer(kind, settings, bottoms, tops)``: the layer, set up."""

    def make(kind, settings, bottoms, tops=1, cfg=None, seed=0):
        names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms))) + "".join(f'top: "t{i}" ' for i in range(tops))
        settings = f"{{{settings}}}" if settings else ""
        module = f"module: 'roi_data_layer.layer' layer: '{kind}' param_str: \"{settings}\""
        param = prototxt.parse_net(f'layer {{ name: "it" type: "Python" {names} python_param {{ {module} }} }}')
        layer = create_layer(param.layer[0], Context("TRAIN", cfg or Config(), np.random.RandomState(seed)))
        meta = [b.to("meta") for b in bottoms]
        layer.setup(meta)
        assert len(layer.infer(meta)) == tops
        return layer

    return make


@pytest.fixture
def masks():
    """Predictions, masks, class probabilities before and after, labels: bottoms of the loss."""
    before = torch.eye(4).repeat(2, 1)[:ROWS] * 0.8 + 0.05
    after = before.roll(1, 1)  # every class but the background loses 0.8
    logits = torch.randn(ROWS, 1, 6, 6, requires_grad=True)
    return [logits, (torch.rand(ROWS, 1, 6, 6) < 0.3).float(), before, after, torch.tensor([0.0, 1, 2, 3, 0, 1])]


# ---- pretraining


def test_foreground_only(python_layer):
    bottoms = [torch.randn(5, 2, 3, 3), torch.tensor([0.0, 3, 0, 1, 2]), torch.randn(5, 5)]
    bottoms[0].requires_grad_()
    tops = python_layer("ASDNPretrainLabelLayer", "", bottoms, 3)(bottoms)
    for top, bottom in zip(tops, bottoms, strict=True):
        assert torch.equal(top, bottom[[1, 3, 4]])
        assert not top.requires_grad


@pytest.mark.parametrize(
    ("side", "size", "stride", "corrected", "starts"),
    [
        (7, 2, 2, False, [0, 2, 4, 5]),
        (7, 3, 2, False, [0, 2, 4, 5]),  # the last one is one cell short
        (7, 3, 2, True, [0, 2, 4, 4]),
        (6, 2, 2, False, [0, 2, 4]),
        (6, 4, 3, False, [0, 2]),
        (6, 6, 3, True, [0, 0]),
    ],
)
def test_windows(python_layer, side, size, stride, corrected, starts):
    features = torch.rand(3, 2, side, side) + 1
    settings = f"'drop_size': {size}, 'drop_stride': {stride}" + (", 'corrected': true" if corrected else "")
    dropped, windows = python_layer("ASDNPretrainDataLayer", settings, [features], 2)([features])
    pairs = [(y, x) for y in starts for x in starts]
    assert windows.shape == (len(pairs) * 3, 1, side, side)
    for w, (y, x) in enumerate(pairs):
        mask = torch.zeros(side, side)
        mask[y : y + size, x : x + size] = 1
        for n in range(3):
            assert torch.equal(windows[w * 3 + n, 0], mask)
            assert torch.equal(dropped[w * 3 + n], features[n] * (1 - mask))


@pytest.fixture
def pretraining():
    """Bottoms of the pretraining loss: 3 RoIs, 9 windows of a map of 6 x 6."""
    windows = torch.zeros(9, 6, 6)
    for w in range(9):
        windows[w, w // 3 * 2 : w // 3 * 2 + 2, w % 3 * 2 : w % 3 * 2 + 2] = 1
    windows = windows[:, None].repeat_interleave(3, 0)
    logits = torch.randn(3, 1, 6, 6, requires_grad=True)
    return [logits, windows, torch.rand(27, 4), torch.tensor([1.0, 3, 2]), torch.zeros(3, 5), torch.zeros(1, 3, 9, 9)]


def cross_entropy(logits, target):
    z = 1 / (1 + np.exp(-logits))
    return -(target * np.log(z) + (1 - target) * np.log(1 - z)), z - target


@pytest.mark.parametrize(
    ("drop_neg", "corrected"), [("false", "false"), ("true", "false"), ("true", "true"), ("false", "true")]
)
def test_pretraining_loss(python_layer, pretraining, drop_neg, corrected):
    settings = f"'num_classes': 4, 'drop_neg': {drop_neg}, 'corrected': {corrected}"
    layer = python_layer("ASDNPretrainLossLayer", settings, pretraining, seed=5)
    (loss,) = layer(pretraining)
    loss.backward()
    logits, windows, prob, labels = (b.detach().double().numpy() for b in pretraining[:4])
    hardest = [min(range(9), key=lambda w: prob[w * 3 + n, int(labels[n])]) for n in range(3)]
    target = np.stack([windows[w * 3 + n] for n, w in enumerate(hardest)])
    values, slope = cross_entropy(logits, target)
    draws = np.random.RandomState(5)
    if drop_neg == "true":
        spared = (target == 0) & (draws.random_sample(target.shape) >= 0.4)
        assert spared.any()
        slope = np.where(spared & (corrected == "true"), 0, slope)
    np.testing.assert_allclose(loss.item(), values.mean(), rtol=1e-6)
    np.testing.assert_allclose(pretraining[0].grad, slope / slope.size, atol=1e-8)
    assert layer.context.rng.randint(1 << 30) == draws.randint(1 << 30)


def test_pretraining_without_foreground(python_layer, pretraining):
    empty = [b[:0] for b in pretraining[:5]]
    layer = python_layer("ASDNPretrainLossLayer", "'num_classes': 4, 'drop_neg': true", pretraining)
    (loss,) = layer([*empty, pretraining[5]])
    assert loss.item() == 0
    loss.backward()


# ---- both together


def test_masks_alternate(python_layer):
    predicted, labels = torch.rand(ROWS, 1, 6, 6), torch.tensor([0.0, 1, 2, 0, 3, 1])
    layer = python_layer("ASDNDataLayer", DATA, [predicted, labels], 2)
    for k in range(1, 5):
        masks, block = layer([predicted, labels])
        assert block.shape == (ROWS, 3, 6, 6)
        assert torch.equal(block, (1 - masks).expand_as(block))
        assert masks.flatten(1).sum(1).tolist() == [5 * (label > 0) * (k % 2) for label in labels]
        best = predicted.flatten(1).sort(descending=True).values[:, 8:9]
        assert (predicted.flatten(1)[masks.flatten(1) == 1] >= best.expand(-1, 36)[masks.flatten(1) == 1]).all()


def test_background_can_be_dropped(python_layer):
    bottoms = [torch.rand(ROWS, 1, 6, 6), torch.tensor([0.0, 1, 2, 0, 3, 1])]
    layer = python_layer("ASDNDataLayer", DATA.replace("_neg': 0", "_neg': 7"), bottoms, 2)
    masks, _ = layer(bottoms)
    assert masks.flatten(1).sum(1).tolist() == [7, 5, 5, 7, 5, 5]


@pytest.mark.parametrize("corrected", [False, True])
def test_clean_passes(python_layer, masks, corrected):
    layer = python_layer("ASDNLossLayer", LOSS + (", 'corrected': true" if corrected else ""), masks)
    values, slope = cross_entropy(masks[0].detach().double().numpy(), masks[1].double().numpy())
    harmed = (masks[4] > 0).numpy()[:, None, None, None]
    for _ in range(2):
        (loss,) = layer(masks)
        np.testing.assert_allclose(loss.item(), (values * harmed).mean(), rtol=1e-6)
        (gradient,) = torch.autograd.grad(loss, masks[0])
        np.testing.assert_allclose(gradient, slope * harmed / slope.size, atol=1e-8)
        (clean,) = layer(masks)
        assert clean.item() == (0 if corrected else loss.item())
        assert not clean.requires_grad


def test_first_pass_clean(python_layer, masks):
    layer = python_layer("ASDNLossLayer", LOSS.replace("before': 1", "before': 2"), masks)
    assert layer(masks)[0].item() == 0


def test_harmless_masks(python_layer, masks):
    layer = python_layer("ASDNLossLayer", LOSS.replace("0.1", "1"), masks)
    assert layer(masks)[0].item() == 0


# ---- OHEMDataLayer with the project's keys


def ohem_bottoms():
    corners = torch.randint(0, 60, (40, 2)).float()
    rois = torch.cat((torch.zeros(40, 1), corners, corners + 30), 1)
    labels = torch.randint(0, 3, (40,)).float()
    return [torch.rand(40, 4).softmax(1), torch.randn(40, 16), rois, labels, *torch.zeros(3, 40, 16)]


def ratio_config(**train):
    cfg = Config()
    cfg.merge({"TRAIN": {"BATCH_SIZE": 8, "USE_OHEM": True, "OHEM_RATIO": 0.5, **train}}, source="test")
    return cfg


def test_ratio_of_hard_rois(python_layer):
    bottoms = ohem_bottoms()
    settings = "'num_classes': 4, 'iter_size': 2, 'maintain_before': 1"
    layer = python_layer("OHEMDataLayer", settings, bottoms, 6, ratio_config(USE_ASDN=True))
    tops = layer(bottoms)
    expected = select_rois_by_ratio(layer.roi_loss, *bottoms[2:4], 8, ratio=0.5, rng=np.random.RandomState(0))
    assert torch.equal(layer.hard_inds, expected)
    assert torch.equal(tops[5], bottoms[0][expected])
    assert (tops[1] > 0).sum() == 4
    layer(bottoms)
    assert (layer.roi_loss[layer.hard_inds].diff() <= 0).all(), "the second pass is a plain one"


def test_small_ratios_are_none(python_layer):
    bottoms = ohem_bottoms()
    layer = python_layer("OHEMDataLayer", "'num_classes': 4", bottoms, 5, ratio_config(OHEM_RATIO=0.09))
    layer(bottoms)
    assert (layer.roi_loss[layer.hard_inds].diff() <= 0).all()


@pytest.mark.parametrize(("kind", "settings"), [("ASDNDataLayer", DATA), ("ASDNLossLayer", LOSS)])
def test_passes_are_remembered(python_layer, kind, settings):
    """Also where a training stops between a masked pass and a clean one."""
    rows = (ROWS, 1, 6, 6)
    bottoms = [torch.rand(rows), torch.tensor([1.0, 0, 2, 3, 1, 0])]
    if kind == "ASDNLossLayer":
        before = torch.rand(ROWS, 4).softmax(1)
        bottoms = [torch.randn(rows), (torch.rand(rows) < 0.3).float(), before, before / 9, bottoms[1]]
    first, second = (
        python_layer(kind, settings, bottoms, len(bottoms) if kind == "ASDNDataLayer" else 1) for _ in "12"
    )
    (shown, *_) = first(bottoms)
    second.remember(first.remembered())
    for layer in (first, second):
        (top, *_) = layer(bottoms)
        if kind == "ASDNDataLayer":
            assert not top.any(), "the second pass is a clean one"
        else:
            assert shown > 0
            assert top == shown, "the loss keeps its last value"


def test_the_ratios_passes_are_remembered(python_layer):
    settings, cfg = "'num_classes': 4, 'iter_size': 2, 'maintain_before': 1", ratio_config()
    first, second = (python_layer("OHEMDataLayer", settings, ohem_bottoms(), 5, cfg) for _ in "12")
    first(ohem_bottoms())
    second.remember(first.remembered())
    second(ohem_bottoms())
    assert (second.roi_loss[second.hard_inds].diff() <= 0).all(), "the second pass is a plain one"


def test_a_setting_that_nobody_reads(python_layer):
    layer = python_layer("ASDNDataLayer", DATA + ", 'correct': true", zeros(MASK, (ROWS,)), 2)
    assert layer.warnings == ["layer 'it': param_str: 'correct' has no effect; did you mean 'corrected'?"]
    assert not python_layer("ASDNDataLayer", DATA, zeros(MASK, (ROWS,)), 2).warnings


# ---- mistakes


def zeros(*shapes):
    return [torch.zeros(shape) for shape in shapes]


MASK, TWO = (ROWS, 1, 6, 6), (2, 1, 6, 6)
PRETRAIN = "'num_classes': 4, 'drop_neg': true"


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "tops", "message"),
    [
        ("ASDNPretrainDataLayer", "'drop_size': 0, 'drop_stride': 2", zeros(MASK), 2, "'drop_size' must be at least 1"),
        ("ASDNPretrainDataLayer", "'drop_size': 2", zeros(MASK), 2, "'drop_stride' is missing"),
        ("ASDNPretrainDataLayer", "'drop_size': 7, 'drop_stride': 2", zeros(MASK), 2,
         "'drop_size' is 7, but the maps have a side of 6"),
        ("ASDNPretrainDataLayer", "'drop_size': 2, 'drop_stride': 2", zeros((2, 3, 6, 5)), 2, "must be maps"),
        ("ASDNPretrainLabelLayer", "", zeros(MASK, (5,), (ROWS, 5)), 3, "'b0' has 6, 'b1' has 5"),
        ("ASDNDataLayer", DATA.replace("9", "40"), zeros(MASK, (ROWS,)), 2, "'permute_count' is 40, .* 36 cells"),
        ("ASDNDataLayer", DATA.replace("size': 2", "size': 0"), zeros(MASK, (ROWS,)), 2,
         "'iter_size' must be at least 1"),
        ("OHEMDataLayer", "'num_classes': 4, 'iter_size': 0", [], 5, "'iter_size' must be at least 1, not 0"),
        ("OHEMDataLayer", "'num_classes': 4, 'maintain_before': -1", [], 5, "'maintain_before' must be at least 0"),
        ("ASDNDataLayer", DATA, zeros((ROWS, 2, 6, 6), (ROWS,)), 2, "must have one channel, not 2"),
        ("ASDNDataLayer", DATA, zeros(MASK, (5,)), 2, "'b0' has 6, 'b1' has 5"),
        ("ASDNLossLayer", LOSS, zeros(MASK, MASK, (ROWS, 5), (ROWS, 4), (ROWS,)), 1, r"num_classes is 4, but 'b2' is"),
        ("ASDNLossLayer", LOSS, zeros(MASK, (ROWS, 1, 5, 5), *[(ROWS, 4)] * 2, (ROWS,)), 1, "do not fit predictions"),
        ("ASDNLossLayer", LOSS.replace("0.1", "'x'"), zeros(MASK), 1, "'score_thres' must be of type float, not 'x'"),
        ("ASDNPretrainLossLayer", PRETRAIN, zeros(TWO, (5, 1, 6, 6), (5, 4), (2,)), 1, "do not fit predictions"),
        ("ASDNPretrainLossLayer", PRETRAIN, zeros(TWO, (4, 1, 6, 6), (5, 4), (2,)), 1, "'b1' has 4, 'b2' has 5"),
        ("ASDNPretrainLossLayer", "'num_classes': 4", zeros(MASK), 1, "'drop_neg' is missing"),
    ],
)  # fmt: skip
def test_mistakes(python_layer, kind, settings, bottoms, tops, message):
    bottoms = bottoms or ohem_bottoms()
    with pytest.raises(PortError, match=f"layer 'it': .*{message}"):
        python_layer(kind, settings, bottoms, tops)(bottoms)


def test_tops_of_the_keys(python_layer):
    with pytest.raises(PortError, match="makes 6 tops .*USE_ASDN True.*; it has 7 and 5"):
        python_layer("OHEMDataLayer", "'num_classes': 4", ohem_bottoms(), 5, ratio_config(USE_ASDN=True))
