"""Every method behind the one idea, against plain loops, the functions it is made of, and losses written down whole."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ohem_caffe_port.mining import (
    METHODS,
    Examples,
    ghmc_loss,
    select_hard_rois,
    select_stratified_rois,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from ohem_caffe_port.mining.methods import GHM, OHEM, RFCN, SOHEM, SSD, Everything, FastRCNN, Focal, Ratio

ROIS = 200


@pytest.fixture
def examples():
    """RoIs of images 0 and 2 (1 has none), a fifth of them foreground."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(ROIS) < 0.2, rng.integers(1, 4, ROIS), 0)
    corners = rng.integers(0, 60, (ROIS, 2))
    rois = np.hstack([rng.choice([0, 2], (ROIS, 1)), corners, corners + rng.integers(20, 50, (ROIS, 2))])
    overlaps = np.where(labels > 0, rng.uniform(0.5, 1, ROIS), rng.uniform(0, 0.5, ROIS))
    cls, loc = rng.exponential(1, ROIS), rng.exponential(1, ROIS) * (labels > 0)
    return Examples(*(torch.tensor(a) for a in (cls, labels, loc, rois.astype(float), overlaps)))


def chosen(weights):
    """Indices that count, all of them alike and adding up to 1, in both losses."""
    assert torch.equal(weights.cls, weights.loc)
    inds = weights.cls.nonzero()[:, 0]
    torch.testing.assert_close(weights.cls[inds], torch.full((len(inds),), 1 / len(inds), dtype=weights.cls.dtype))
    return inds


@pytest.mark.parametrize("name", METHODS)
def test_every_method(examples, name):
    method = METHODS[name]()
    weights = method(examples)
    assert [w.shape for w in weights] == [(ROIS,), (ROIS,)]
    assert all(w.isfinite().all() and (w >= 0).all() and not w.requires_grad for w in weights)
    assert weights.cls.sum() > 0
    settings = [f.name for f in fields(method) if f.init]
    assert repr(method) == f"{type(method).__name__}({', '.join(f'{s}={getattr(method, s)!r}' for s in settings)})"


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_one_image_and_no_boxes(name):
    settings = {"bg_thresh_lo": 0.0} if name == "fast_rcnn" else {}
    labels = torch.tensor([1.0, 0, 0, 2, 0, 0])
    cls_loss = torch.rand(6, requires_grad=True)
    weights = METHODS[name](**settings)(Examples(cls_loss, labels, torch.rand(6) * (labels > 0)))
    assert {w.dtype for w in weights} == {torch.float32}
    ((weights.cls * cls_loss).sum()).backward()
    assert cls_loss.grad.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_choose_from(name):
    empty = torch.zeros(0)
    weights = METHODS[name]()(Examples(empty, empty, empty, torch.zeros(0, 5), overlaps=empty))
    assert [len(w) for w in weights] == [0, 0]


@pytest.mark.parametrize("name", METHODS)
def test_background_alone(name):
    weights = METHODS[name]()(Examples(torch.rand(9), torch.zeros(9), overlaps=torch.full((9,), 0.2)))
    assert all(w.isfinite().all() for w in weights)
    assert (weights.loc * torch.zeros(9)).sum() == 0


def test_everything(examples):
    assert len(chosen(Everything()(examples))) == ROIS


def test_ohem(examples):
    e = examples
    expected = select_hard_rois(e.cls_loss + e.loc_loss, e.rois, e.labels, 30, nms_thresh=0.5)
    assert set(chosen(OHEM(30, 0.5)(e)).tolist()) == set(expected.tolist())


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_sohem(examples, progress):
    e = examples
    e.progress = progress
    method = SOHEM(batch_size=30, alpha=(1, 0.2))
    expected = select_stratified_rois(
        e.cls_loss, e.loc_loss, e.rois, e.labels, 30, progress=progress, strata=method, nms_thresh=0.7
    )
    assert set(chosen(method(e)).tolist()) == set(expected.tolist())


@pytest.mark.parametrize(("size", "fraction", "low"), [(16, 0.25, 0.1), (64, 0.5, 0.3), (400, 0.25, 0.0), (8, 0, 0.1)])
def test_fast_rcnn(examples, size, fraction, low):
    inds = set(chosen(FastRCNN(size, fraction, low)(examples)).tolist())
    for image in (0, 2):
        mine = {i for i in range(ROIS) if examples.rois[i, 0] == image}
        fg = {i for i in mine if examples.labels[i] > 0}
        bg = {i for i in mine - fg if examples.overlaps[i] >= low}
        expected_fg = min(round(fraction * size), len(fg))
        assert len(inds & fg) == expected_fg
        assert len(inds & mine - fg) == min(size - expected_fg, len(bg))
        assert inds & mine <= fg | bg


def test_fast_rcnn_draws_at_random(examples):
    first, second, again = FastRCNN(16, seed=1), FastRCNN(16, seed=2), FastRCNN(16, seed=1)
    a, b = chosen(first(examples)), chosen(first(examples))
    assert not torch.equal(a, b)
    assert not torch.equal(a, chosen(second(examples)))
    assert torch.equal(a, chosen(again(examples)))
    counts = sum(first(examples).cls > 0 for _ in range(300))
    background = (examples.labels == 0) & (examples.overlaps >= 0.1)
    assert counts[background].min() > 0
    assert counts[background].max() < 3 * counts[background].double().mean()


def test_fast_rcnn_needs_overlaps(examples):
    examples.overlaps = None
    with pytest.raises(ValueError, match="needs the overlaps"):
        FastRCNN()(examples)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2.5])
def test_ssd(examples, ratio, known):
    overlaps = examples.overlaps.tolist()
    if not known:
        examples.overlaps = None
    weights = SSD(ratio, neg_overlap=0.4)(examples)
    expected, positives = set(), 0
    for image in (0, 2):
        mine = [i for i in range(ROIS) if examples.rois[i, 0] == image]
        fg = [i for i in mine if examples.labels[i] > 0]
        bg = [i for i in mine if examples.labels[i] == 0 and (not known or overlaps[i] < 0.4)]
        hardest = sorted(bg, key=lambda i: -float(examples.cls_loss[i]))
        expected |= {*fg, *hardest[: int(ratio * len(fg))]}
        positives += len(fg)
    assert set(weights.cls.nonzero()[:, 0].tolist()) == expected
    torch.testing.assert_close(weights.cls[list(expected)], torch.full((len(expected),), 1 / positives).double())
    assert torch.equal(weights.cls, weights.loc)


def test_rfcn(examples):
    inds, loss = set(chosen(RFCN(10)(examples)).tolist()), examples.loss
    for image in (0, 2):
        mine = [i for i in range(ROIS) if examples.rois[i, 0] == image]
        assert inds & set(mine) == set(sorted(mine, key=lambda i: -float(loss[i]))[:10])


def test_ratio(examples):
    inds = chosen(Ratio(40, 0.25)(examples))
    assert (examples.labels[inds] > 0).sum() == 10
    hard = select_hard_rois(
        torch.where(examples.labels > 0, -torch.inf, examples.loss), examples.rois, examples.labels, 30
    )
    assert set(inds[examples.labels[inds] == 0].tolist()) == set(hard.tolist())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_has_the_gradient_of_the_sigmoid_form(gamma):
    logits = (4 * torch.randn(40, dtype=torch.float64)).requires_grad_()
    targets = (torch.rand(40) < 0.3).double()
    positives = targets.sum()
    whole = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=gamma).sum() / positives
    (expected,) = torch.autograd.grad(whole, logits)
    cls_loss = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = Focal(gamma)(Examples(cls_loss, targets))
    (found,) = torch.autograd.grad((weights.cls * cls_loss).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(weights.loc, targets / positives)


def test_focal_has_the_gradient_of_the_softmax_form():
    scores = (3 * torch.randn(30, 5, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 5, (30,))
    positives = (labels > 0).sum()
    (expected,) = torch.autograd.grad(softmax_focal_loss(scores, labels, alpha=1.0).sum() / positives, scores)
    cls_loss = cross_entropy(scores, labels, reduction="none")
    weights = Focal(alpha=-1)(Examples(cls_loss, labels))
    (found,) = torch.autograd.grad((weights.cls * cls_loss).sum(), scores)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_focal_of_certain_examples():
    weights = Focal()(Examples(torch.tensor([0.0, 1e-9, 200.0]), torch.tensor([1, 0, 1])))
    assert weights.cls.isfinite().all()
    assert weights.cls[:2].max() < 1e-9
    torch.testing.assert_close(weights.cls[2], torch.tensor(0.25 / 2))


@pytest.mark.parametrize("rule", ["code", "paper"])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_ghm_is_the_loss_written_down_whole(momentum, rule):
    method, acc_sum = GHM(10, momentum, rule), torch.zeros(10)
    for _ in range(3):  # the average goes on
        logits = 3 * torch.randn(50, dtype=torch.float64)
        targets = (torch.rand(50) < 0.3).double()
        average = acc_sum if momentum else None
        expected = ghmc_loss(logits, targets, bins=10, momentum=momentum, acc_sum=average, rule=rule)
        cls_loss = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        weights = method(Examples(cls_loss, targets))
        torch.testing.assert_close((weights.cls * cls_loss).sum(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (OHEM, {"batch_size": 0}, "'batch_size' must be positive"),
        (SOHEM, {"batch_size": -1}, "'batch_size' must be positive"),
        (SOHEM, {"alpha": ()}, "'alpha' must be a list"),
        (FastRCNN, {"rois_per_image": 0}, "'rois_per_image' must be positive"),
        (FastRCNN, {"fg_fraction": 1.5}, "'fg_fraction' must lie"),
        (SSD, {"neg_pos_ratio": -1}, "'neg_pos_ratio' must not be negative"),
        (RFCN, {"rois_per_image": 0}, "'rois_per_image' must be positive"),
        (Ratio, {"ratio": 2}, "'ratio' must lie"),
        (Focal, {"gamma": -1}, "'gamma' must not be negative"),
        (GHM, {"bins": 0}, "'bins' must be positive"),
        (GHM, {"momentum": 1}, "'momentum' must lie"),
        (GHM, {"rule": "x"}, "'rule' be 'code' or 'paper'"),
    ],
)
def test_errors(method, settings, words):
    with pytest.raises(ValueError, match=words):
        method(**settings)


def test_mining_is_taken_alone():
    """Nothing of the rest comes with it but ``ops`` and ``boxes``, and no library beside torch and numpy."""
    code = (
        "import sys, ohem_caffe_port.mining\n"
        "print(*(m for m in sys.modules if m.startswith(('ohem_caffe_port', 'converters', 'prototxt', 'google', 'cv2', "
        "'yaml', 'scipy', 'pycocotools'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = ("ohem_caffe_port.mining", "ohem_caffe_port.ops", "ohem_caffe_port.boxes")
    loaded = set(done.stdout.split()) - {"ohem_caffe_port"}
    assert "ohem_caffe_port.mining.methods" in loaded
    assert [name for name in loaded if not name.startswith(allowed)] == []
