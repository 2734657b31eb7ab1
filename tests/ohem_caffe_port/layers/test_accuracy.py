import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer

RNG = np.random.default_rng(5)


def slow_accuracy(scores, labels, k, ignore, smallest=False, weights=None):
    """The share of hits, and that of each class, with classes on axis 1."""
    hits, there = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for index in np.ndindex(*labels.shape):
        label = int(labels[index])
        if label == ignore or (weights is not None and weights[index] == 0):
            continue
        row = scores[(index[0], slice(None), *index[1:])]
        if smallest:
            hit = label in sorted(range(len(row)), key=lambda i: (row[i], i))[:k]
        else:
            hit = (row >= row[label]).sum() - 1 < k
        hits[label] += hit
        there[label] += 1
    return hits.sum() / max(1, there.sum()), hits / np.maximum(1, there)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shape", [(20, 4), (2, 4, 3, 5)])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy(run_layer, k, shape, smallest, weighted):
    scores = RNG.integers(0, 4, shape).astype(np.float32)  # with ties
    labels = RNG.integers(0, 3, (shape[0], *shape[2:])) * 1.0  # class 3 never occurs
    labels.flat[0] = -1
    weights = RNG.integers(0, 2, labels.shape) * 0.5 if weighted else None
    settings = f"top_k: {k} ignore_label: -1 min_is_better: {str(smallest).lower()}"
    bottoms = (labels,) if weights is None else (labels, weights)
    share, each = run_layer("Accuracy", f"accuracy_param {{ {settings} }}", scores, *bottoms, tops=2)
    expected = slow_accuracy(scores, labels, k, -1, smallest, weights)
    assert share.item() == pytest.approx(expected[0])
    np.testing.assert_allclose(each, expected[1], rtol=1e-6)


def test_accuracy_along_another_axis(run_layer):
    scores, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 4, (2, 3)) * 1.0
    (share,) = run_layer("Accuracy", "accuracy_param { axis: -1 }", scores, labels)
    assert share.item() == pytest.approx(slow_accuracy(scores.transpose(0, 2, 1), labels, 1, None)[0])


def test_accuracy_of_nothing(run_layer):
    share, each = run_layer("Accuracy", "accuracy_param { ignore_label: 1 }", np.zeros((2, 3)), [1, 1], tops=2)
    assert share.item() == 0
    assert each.tolist() == [0, 0, 0]


def slow_segmentation(matrix):
    hit, actual = np.diag(matrix), matrix.sum(1)
    union = actual + matrix.sum(0) - hit
    iou = [h / u if u else 1 for h, u in zip(hit, union, strict=True)]
    occurs = actual > 0
    recall = (hit[occurs] / actual[occurs]).mean() if occurs.any() else 0
    return [hit.sum() / max(1, matrix.sum()), recall, np.mean(iou)]


@pytest.mark.parametrize("reset", [True, False])
def test_seg_accuracy(reset):
    """The second forward of a layer adds to the first one's counts unless it is reset."""
    settings = f"ignore_label: 255 ignore_label: 0 reset: {str(reset).lower()}"
    text = f'type: "SegAccuracy" bottom: "a" bottom: "b" top: "t" seg_accuracy_param {{ {settings} }}'
    layer = create_layer(prototxt.parse_net(f'layer {{ name: "it" {text} }}').layer[0], Context("TEST"))
    layer.setup([])
    matrix = np.zeros((6, 6))
    for _ in range(2):
        scores = RNG.integers(0, 4, (2, 6, 5, 4)).astype(np.float32)
        scores[:, 4] = -1  # class 4 is not predicted and does not occur
        labels = RNG.choice([0, 1, 2, 3, 255], (2, 1, 5, 4))
        matrix *= not reset
        for n, h, w in np.ndindex(2, 5, 4):
            if labels[n, 0, h, w] not in (0, 255):
                predicted = max((v, c) for c, v in enumerate(scores[n, :, h, w]))[1]
                matrix[labels[n, 0, h, w], predicted] += 1
        (out,) = layer([torch.tensor(scores), torch.tensor(labels * 1.0)])
        assert out.shape == (1, 1, 1, 3)
        assert out.flatten().tolist() == pytest.approx(slow_segmentation(matrix), rel=1e-6)


def test_seg_accuracy_of_nothing(run_layer):
    (out,) = run_layer(
        "SegAccuracy", "seg_accuracy_param { ignore_label: 0 }", np.zeros((1, 2, 2, 2)), np.zeros((1, 1, 2, 2))
    )
    assert out.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "message"),
    [
        ("Accuracy", "", [(2, 3), (3,)], "3 labels for 2 predictions"),
        ("Accuracy", "", [(2, 3), (2,), (3,)], "3 weights for 2 labels"),
        ("Accuracy", "accuracy_param { top_k: 4 }", [(2, 3), (2,)], "the 4 best of 3 classes"),
        ("SegAccuracy", "", [(2, 3, 4, 4), (2, 4, 4)], r"labels \[N, 1, H, W\]"),
        ("SegAccuracy", "", [(2, 3, 4, 4), (2, 1, 4, 3)], r"labels \[N, 1, H, W\]"),
    ],
)
def test_what_does_not_fit(run_layer, kind, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in bottoms))


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class(run_layer, label):
    with pytest.raises(PortError, match=f"label {label} in a net of 3 classes"):
        run_layer("Accuracy", "", np.zeros((1, 3)), [label])
    with pytest.raises(PortError, match=f"label {label} in a net of 3 classes"):
        run_layer("SegAccuracy", "", np.zeros((1, 3, 1, 1)), np.full((1, 1, 1, 1), label))
