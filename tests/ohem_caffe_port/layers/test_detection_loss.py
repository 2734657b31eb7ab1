"""DetectionLoss and DetectionGroupLoss against loops written from the forks' formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

MEANS, STDS = (0.125, 0.375, 0, 0.25), (0.125, 0.25, 0.25, 0.375)  # exact in the prototxt's single precision
NORM = "".join(f"bbox_mean: {m} bbox_std: {s} " for m, s in zip(MEANS, STDS, strict=True))
XYR, WHR = 2.0, 3.0
BOUNDS = f"field_xyr: {XYR} field_whr: {WHR} "


def truth_maps(rng, maps, classes, shape, labelled=0.2):
    """label, centre, size and IoU; some cells without label have an IoU that leaves them out."""
    truth = rng.rand(maps, 6, *shape)
    truth[:, 0] = np.where(rng.rand(maps, *shape) < labelled, rng.randint(1, classes, (maps, *shape)), 0)
    truth[:, 1:3], truth[:, 3:5] = truth[:, 1:3] * 60, truth[:, 3:5] * 50 + 1
    return truth


def slow_loss(scores, deltas, truth, kept, weights, fields, stride, *, smooth=True, factor=1.0, bounds=True, one=False):
    """Class plus box loss, the box loss, and the gradients that the forks give; only what is kept counts."""
    grads = np.zeros_like(scores), np.zeros_like(deltas)
    class_loss = box_loss = 0.0
    positive = kept & (truth[:, 0] != 0)
    counts = max(kept.sum(), 1), max(4 * positive.sum(), 1)
    mean = (MEANS[0] + MEANS[1]) / 2, (MEANS[2] + MEANS[3]) / 2
    std = math.sqrt(STDS[0] * STDS[1]), math.sqrt(STDS[2] * STDS[3])
    for n, h, w in zip(*kept.nonzero(), strict=True):
        label = int(truth[n, 0, h, w])
        label = min(label, 1) if one else label
        prob = np.exp(scores[n, :, h, w]) / np.exp(scores[n, :, h, w]).sum()
        class_loss -= math.log(prob[label]) * weights[n, h, w] / counts[0]
        grads[0][n, :, h, w] = (prob - np.eye(len(prob))[label]) * weights[n, h, w] / counts[0]
        if not label:
            continue
        fw, fh = fields[n % len(fields)]
        x, y, bw, bh = truth[n, 1:5, h, w]
        target = (
            (x - (w + 0.5) * stride) / fw,
            (y - (h + 0.5) * stride) / fh,
            math.log(max(bw, 2) / fw),
            math.log(max(bh, 2) / fh),
        )
        for k in range(4):
            bound = (1 / XYR, math.log(WHR))[k // 2]
            low, high = ((v - mean[k // 2]) / std[k // 2] for v in (-bound, bound))
            t = deltas[n, k, h, w]
            t = min(max(t, low), high) if bounds else t
            d = t - (target[k] - MEANS[k]) / STDS[k]
            quadratic = not smooth or abs(d) < 1
            box_loss += factor * (d * d / 2 if quadratic else abs(d) - 0.5) / counts[1]
            grads[1][n, k, h, w] = factor * (d if quadratic else math.copysign(1, d)) / counts[1]
    return np.array([class_loss + box_loss, box_loss]), grads


def run(run_layer, kind, settings, arrays, seed=0, ignore=""):
    """The top ``[2]`` and the gradients of the loss."""
    bottoms = [torch.tensor(a, requires_grad=i < len(arrays) - 1) for i, a in enumerate(arrays)]
    (top,) = run_layer(kind, f"{settings} bbox_reg_param {{ {NORM} }} {ignore}", *bottoms, seed=seed)
    assert top.shape == (1, 1, 1, 2)
    top.sum().backward()  # the second has no gradient of its own
    return top.detach().flatten().numpy(), [b.grad.numpy() for b in bottoms[:-1]]


# ---- DetectionLoss


def mscnn(rng, **options):
    arrays = [rng.randn(2, 3 + 4, 4, 5) * 3, truth_maps(rng, 2, 3, (4, 5), **options)]
    return arrays, (arrays[0][:, :3], arrays[0][:, 3:], arrays[1])


def detection_loss(settings):
    field = "cls_num: 3 field_w: 40 field_h: 30 downsample_rate: 16 bg_threshold: 0.6 bg_multiple: 2 "
    return f"detection_loss_param {{ {field} {BOUNDS} {settings} }}"


def free_cells(truth):
    return (truth[:, 0] == 0) & (truth[:, 5] < 0.6)


def check(found, wanted, split=None):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-10)
    grads = np.concatenate(wanted[1], 1) if split else wanted[1]
    for mine, theirs in zip(found[1], [grads] if split else grads, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("smooth", [True, False])
def test_all_cells(run_layer, smooth):
    arrays, maps = mscnn(np.random.RandomState(0))
    kept = free_cells(maps[2]) | (maps[2][:, 0] != 0)
    wanted = slow_loss(*maps, kept, np.ones_like(maps[2][:, 5]), [(40, 30)], 16, smooth=smooth, factor=0.5)
    settings = detection_loss(f'sample_mode: "all" lambda: 0.5 bb_smooth: {str(smooth).lower()}')
    check(run(run_layer, "DetectionLoss", settings, arrays), wanted, split=True)


def hardest(maps):
    """Of each image and class, twice as many as there are objects (at least 4) with the highest scores."""
    scores, _, truth = maps
    kept = truth[:, 0] != 0
    for n in range(len(truth)):
        for k in (1, 2):
            count = max(4, 2 * int((truth[n, 0] == k).sum()))
            cells = sorted(zip(*free_cells(truth)[n].nonzero(), strict=True), key=lambda c: -scores[n, k, c[0], c[1]])
            for h, w in cells[:count]:
                kept[n, h, w] = True
    return kept


@pytest.mark.parametrize("iou_weighted", [True, False])
def test_bootstrap_with_weights(run_layer, iou_weighted):
    """A third of the weight is foreground's, two thirds background's."""
    arrays, maps = mscnn(np.random.RandomState(1))
    kept, positive = hardest(maps), maps[2][:, 0] != 0
    weights = np.where(positive & iou_weighted, maps[2][:, 5], 1)
    weights[positive] *= kept.sum() / 3 / weights[positive].sum()
    weights[~positive] *= 2 * kept.sum() / 3 / (kept & ~positive).sum()
    wanted = slow_loss(*maps, kept, weights, [(40, 30)], 16)
    flags = f'pos_neg_weighted: true iou_weighted: {str(iou_weighted).lower()} sample_mode: "bootstrap"'
    check(run(run_layer, "DetectionLoss", detection_loss(flags), arrays), wanted, split=True)


def test_no_foreground(run_layer):
    """No box loss, and background gets the weight of its share (as on the fork's GPU)."""
    arrays, maps = mscnn(np.random.RandomState(2), labelled=0)
    kept = hardest(maps)
    wanted = slow_loss(*maps, kept, np.full_like(maps[2][:, 5], 2 / 3), [(40, 30)], 16)
    found = run(run_layer, "DetectionLoss", detection_loss('pos_neg_weighted: true sample_mode: "bootstrap"'), arrays)
    check(found, wanted, split=True)
    assert found[0][1] == 0


@pytest.mark.parametrize("mode", ["random", "mixture"])
def test_random_cells(run_layer, mode):
    arrays, maps = mscnn(np.random.RandomState(3))
    labelled, free, hard = maps[2][:, 0] != 0, free_cells(maps[2]), hardest(maps)
    most = np.maximum(2 * labelled.sum((1, 2)), 8) if mode == "random" else None
    seen = set()
    for seed in range(8):
        loss, (grad,) = run(run_layer, "DetectionLoss", detection_loss(f'sample_mode: "{mode}"'), arrays, seed)
        kept = (grad[:, :3] != 0).any(1)
        assert (kept & ~labelled <= free).all() and (labelled <= kept).all()
        if mode == "random":
            assert ((kept & ~labelled).sum((1, 2)) <= most).all()
        else:
            assert (kept & hard & ~labelled).any() and (kept & ~hard).any()
        wanted = slow_loss(*maps, kept, np.ones_like(maps[2][:, 5]), [(40, 30)], 16)
        check((loss, [grad]), wanted, split=True)
        again, _ = run(run_layer, "DetectionLoss", detection_loss(f'sample_mode: "{mode}"'), arrays, seed)
        np.testing.assert_array_equal(again, loss)
        seen.add(kept.tobytes())
    assert len(seen) > 4


def test_ignore_label(run_layer):
    arrays, maps = mscnn(np.random.RandomState(4))
    kept = (free_cells(maps[2]) | (maps[2][:, 0] != 0)) & (maps[2][:, 0] != 2)
    wanted = slow_loss(*maps, kept, np.ones_like(maps[2][:, 5]), [(40, 30)], 16)
    found = run(
        run_layer,
        "DetectionLoss",
        detection_loss('sample_mode: "all"'),
        arrays,
        ignore="loss_param { ignore_label: 2 }",
    )
    check(found, wanted, split=True)


def test_objectness(run_layer):
    rng = np.random.RandomState(5)
    arrays = [rng.randn(2, 6, 4, 5), truth_maps(rng, 2, 4, (4, 5))]
    kept = free_cells(arrays[1]) | (arrays[1][:, 0] != 0)
    maps = arrays[0][:, :2], arrays[0][:, 2:], arrays[1]
    wanted = slow_loss(*maps, kept, np.ones_like(arrays[1][:, 5]), [(40, 30)], 16, one=True)
    settings = detection_loss('sample_mode: "all" objectness: true').replace("cls_num: 3", "cls_num: 2")
    check(run(run_layer, "DetectionLoss", settings, arrays), wanted, split=True)


def test_gradient_within_the_bounds(run_layer):
    """Where nothing is bounded it is the true one."""
    rng = np.random.RandomState(6)
    arrays = [torch.from_numpy(rng.randn(1, 7, 3, 3) * 0.3), torch.from_numpy(truth_maps(rng, 1, 3, (3, 3)))]
    settings = detection_loss('sample_mode: "all"') + f"bbox_reg_param {{ {NORM} }}"
    loss = lambda blob: run_layer("DetectionLoss", settings, blob, arrays[1])[0][..., 0]  # noqa: E731
    assert torch.autograd.gradcheck(loss, arrays[0].requires_grad_())


# ---- DetectionGroupLoss

FIELDS = [(40, 30), (20, 60)]


def cascade(rng, labelled=0.2):
    return [rng.randn(4, 3, 4, 5) * 2, rng.randn(4, 4, 4, 5) * 3, truth_maps(rng, 4, 3, (4, 5), labelled)]


def group_loss(settings, bounds=BOUNDS):
    fields = "".join(f"field_w: {w} field_h: {h} " for w, h in FIELDS)
    head = f"cls_num: 3 {fields} stride: 16 bg_threshold: 0.6"
    return f"detection_group_loss_param {{ {head} {bounds} {settings} }}"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("", {}),
        ('lambda: 3 bbox_loss_type: "Euclidean_L2"', {"factor": 3.0, "smooth": False}),
    ],
)
@pytest.mark.parametrize("bounds", [True, False])
def test_group_with_everything(run_layer, settings, options, bounds):
    arrays = cascade(np.random.RandomState(0))
    kept = free_cells(arrays[2]) | (arrays[2][:, 0] != 0)
    wanted = slow_loss(*arrays, kept, np.ones(kept.shape), FIELDS, 16, bounds=bounds, **options)
    text = group_loss(f"{settings} bg_multiple: 99", BOUNDS if bounds else "field_xyr: 2")
    check(run(run_layer, "DetectionGroupLoss", text, arrays), wanted)


@pytest.mark.parametrize("ranking", ["conf_loss", "conf_prob"])
def test_group_bootstrap(run_layer, ranking):
    """Both fields of an image together: twice as many of the least likely background cells as of labelled ones."""
    arrays = cascade(np.random.RandomState(1), labelled=0.1)
    kept = (arrays[2][:, 0] != 0).reshape(2, -1)
    prob = (np.exp(arrays[0][:, 0]) / np.exp(arrays[0]).sum(1)).reshape(2, -1)
    for image in range(2):
        free = free_cells(arrays[2]).reshape(2, -1)[image].nonzero()[0]
        best = free[prob[image, free].argsort()[: max(2 * kept[image].sum(), 17)]]
        assert len(best) < len(free)
        kept[image, best] = True
    kept = kept.reshape(4, 4, 5)
    positive = arrays[2][:, 0] != 0
    weights = np.where(positive, kept.sum() / 3 / positive.sum(), 2 * kept.sum() / 3 / (kept & ~positive).sum())
    wanted = slow_loss(*arrays, kept, weights, FIELDS, 16)
    mining = f'neg_mining_type: "bootstrap" neg_ranking_type: "{ranking}"'
    text = group_loss(f"bg_multiple: 2 min_num_neg: 17 pos_neg_weighted: true {mining}")
    check(run(run_layer, "DetectionGroupLoss", text, arrays), wanted)


@pytest.mark.parametrize("mining", ["random", "mixture"])
def test_group_batch_size(run_layer, mining):
    """12 cells an image: 3 labelled ones (of more), 9 of the others, of "mixture" the 5 hardest among them."""
    arrays = cascade(np.random.RandomState(2))
    labelled, free = arrays[2][:, 0] != 0, free_cells(arrays[2])
    prob = (np.exp(arrays[0][:, 0]) / np.exp(arrays[0]).sum(1)).reshape(2, -1)
    seen = set()
    for seed in range(5):
        text = group_loss(f'batch_size: 12 bg_multiple: 3 neg_mining_type: "{mining}"')
        loss, grads = run(run_layer, "DetectionGroupLoss", text, arrays, seed)
        kept = (grads[0] != 0).any(1)
        assert (kept & labelled).reshape(2, -1).sum(1).tolist() == [3, 3]
        assert (kept & free).reshape(2, -1).sum(1).tolist() == [9, 9] and kept.sum() == 24
        if mining == "mixture":
            for image in range(2):
                cells = free.reshape(2, -1)[image].nonzero()[0]
                assert kept.reshape(2, -1)[image, cells[prob[image, cells].argsort()[:5]]].all()
        check((loss, grads), slow_loss(*arrays, kept, np.ones(kept.shape), FIELDS, 16))
        seen.add(kept.tobytes())
    assert len(seen) > 2


HEAD = "cls_num: 3 field_w: 9 field_h: 9"
MSCNN_SHAPES, CASCADE_SHAPES = [(1, 7, 2, 2), (1, 6, 2, 2)], [(1, 3, 2, 2), (1, 4, 2, 2), (1, 6, 2, 2)]


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("DetectionLoss", f"{HEAD} downsample_rate: 8 coord_num: 5", MSCNN_SHAPES, "4 coordinates"),
        ("DetectionLoss", HEAD, MSCNN_SHAPES, "must be positive"),
        ("DetectionLoss", f"{HEAD} downsample_rate: 8 objectness: true", MSCNN_SHAPES, "2 with objectness"),
        ("DetectionLoss", f"{HEAD} downsample_rate: 8", [(1, 6, 2, 2), (1, 6, 2, 2)], r"\[N, 3 \+ 4, H, W\]"),
        ("DetectionGroupLoss", f"{HEAD} stride: 8 field_w: 3", CASCADE_SHAPES, "give as many of each"),
        ("DetectionGroupLoss", f"{HEAD} stride: 8 field_w: 3 field_h: 3", CASCADE_SHAPES, r"\[2 N, 3 or 4 or 6"),
        ("DetectionGroupLoss", f'{HEAD} stride: 8 neg_mining_type: "x"', CASCADE_SHAPES, "'x' is none of"),
        ("DetectionGroupLoss", f"{HEAD} stride: 8 batch_size: 0", CASCADE_SHAPES, "must be positive, or -1"),
    ],
)
def test_bad_settings(run_layer, kind, settings, shapes, message):
    name = {"DetectionLoss": "detection_loss_param", "DetectionGroupLoss": "detection_group_loss_param"}[kind]
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, f"{name} {{ {settings} }}", *map(np.zeros, shapes))
    assert caught.value.layer == "it"


def test_label_out_of_range(run_layer):
    with pytest.raises(PortError, match="label 3 in a head of 3 classes"):
        run_layer("DetectionLoss", detection_loss(""), np.zeros((1, 7, 2, 2)), np.full((1, 6, 2, 2), 3.0))
