"""A detector's rows for other classes."""

import numpy as np
import pytest

from converters import CaffeModel, LayerWeights, WeightsError
from ohem_caffe_port.class_map import class_indices, map_classes, normalize_boxes
from ohem_caffe_port.data.coco import COCO_CLASSES
from ohem_caffe_port.data.pascal_voc import VOC_CLASSES

SOURCE, TARGET = ("__background__", "cat", "dog", "cow"), ("__background__", "cow", "cat")
INDICES = class_indices(SOURCE, TARGET)


def layer(name, *shapes, params=(), kind="InnerProduct", transposed=False):
    rng = np.random.default_rng(sum(map(ord, name)))
    blobs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return LayerWeights(name, kind, [], [], blobs, list(params), transposed)


def by_name(model):
    return {entry.name: entry for entry in model.layers}


def test_voc_from_coco():
    indices = class_indices(COCO_CLASSES, VOC_CLASSES)
    pairs = dict(zip(VOC_CLASSES, (COCO_CLASSES[i] for i in indices), strict=True))
    differ = {voc: coco for voc, coco in pairs.items() if voc != coco}
    assert differ == {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert indices[0] == 0 and len(set(indices)) == 21


def test_each_class_keeps_its_rows():
    layers = [layer("conv1", (4, 3, 3, 3), (4,)), layer("cls_score", (4, 6), (4,)), layer("bbox_pred", (16, 6), (16,))]
    model = CaffeModel("net", [*layers, LayerWeights("loss", "SoftmaxWithLoss")])
    mapped, counts = map_classes(model, INDICES, 4)
    assert counts == {"cls_score": (4, 3), "bbox_pred": (16, 12)}
    before, after = by_name(model), by_name(mapped)
    assert list(after) == list(before)
    assert after["conv1"] is before["conv1"]
    for t, name in enumerate(TARGET):
        s = SOURCE.index(name)
        for j in range(2):
            assert (after["cls_score"].blobs[j][t] == before["cls_score"].blobs[j][s]).all()
            for side in range(4):
                assert (after["bbox_pred"].blobs[j][4 * t + side] == before["bbox_pred"].blobs[j][4 * s + side]).all()
    assert before["cls_score"].blobs[0].shape == (4, 6), "the old model stays as it was"


def test_copies_and_sharers_follow():
    names = {"cls_score_readonly": (4, 6), "cls_score": (4, 6), "other": (4, 6), "alone": (4, 6)}
    params = {"other": ("", "s"), "cls_score": ("w", "s")}
    model = CaffeModel("net", [layer(n, shape, shape[:1], params=params.get(n, ())) for n, shape in names.items()])
    mapped, counts = map_classes(model, INDICES, 4)
    assert list(counts) == ["cls_score_readonly", "cls_score", "other"]
    assert [len(entry.blobs[0]) for entry in mapped.layers] == [3, 3, 3, 4]


def test_a_grid_of_cells():
    model = CaffeModel("net", [layer("rfcn_cls", (4 * 9, 5, 1, 1), (4 * 9,), kind="Convolution"),
                               layer("rfcn_bbox", (8 * 9, 5, 1, 1), (8 * 9,), kind="Convolution")])  # fmt: skip
    mapped, counts = map_classes(model, np.array([0, 3, 1, 2]), 4)
    assert counts["rfcn_cls"] == (36, 36)
    before, after = by_name(model), by_name(mapped)
    np.testing.assert_array_equal(after["rfcn_cls"].blobs[0][9:18], before["rfcn_cls"].blobs[0][27:36])


def test_one_box_for_all_classes_stays():
    model = CaffeModel("net", [layer("cls_score", (5, 6), (5,)), layer("bbox_pred", (8, 6), (8,))])
    mapped, counts = map_classes(model, np.array([0, 1]), 5)
    assert counts == {"cls_score": (5, 2), "bbox_pred": (8, 8)}
    assert mapped.layers[1] is model.layers[1]


def test_shapes_of_other_forms():
    plain = layer("cls_score", (4, 6), (4,))
    legacy = LayerWeights(
        "cls_score", "InnerProduct", [], [], [plain.blobs[0][None, None], plain.blobs[1][None, None, None]]
    )
    turned = LayerWeights("cls_score", "InnerProduct", [], [], [plain.blobs[0].T, plain.blobs[1]], [], True)
    expected = map_classes(CaffeModel("", [plain]), INDICES, 4)[0].layers[0]
    for other in (legacy, turned):
        found = map_classes(CaffeModel("", [other]), INDICES, 4)[0].layers[0]
        assert not found.transposed
        for blob, wanted in zip(found.blobs, expected.blobs, strict=True):
            np.testing.assert_array_equal(blob, wanted)


def test_normalized_boxes():
    model = CaffeModel("net", [layer("bbox_pred", (12, 6), (12,)), layer("cls_score", (3, 6), (3,))])
    rng = np.random.default_rng(1)
    means, stds = rng.standard_normal(12), rng.uniform(0.1, 1, 12)
    stds[4:8] = 0
    normal = normalize_boxes(model, means, stds)
    x = rng.standard_normal(6)
    weight, bias = model.layers[0].blobs
    deltas = weight @ x + bias
    weight, bias = normal.layers[0].blobs
    assert weight.dtype == bias.dtype == np.float32
    expected = np.where(stds > 0, (deltas - means) / np.where(stds > 0, stds, 1), 0)
    np.testing.assert_allclose(weight @ x + bias, expected, rtol=1e-5, atol=1e-6)
    assert not weight[4:8].any() and not bias[4:8].any()
    assert normal.layers[1] is model.layers[1]


def test_what_does_not_fit():
    with pytest.raises(WeightsError, match="no rows for these classes: pig"):
        class_indices(SOURCE, (*TARGET, "pig"))
    with pytest.raises(WeightsError, match="has no layer with weights for each class"):
        map_classes(CaffeModel("net", [layer("fc6", (4, 6), (4,))]), INDICES, 4)
    with pytest.raises(WeightsError, match="'cls_score': has 21 outputs, which 4 classes do not divide"):
        map_classes(CaffeModel("net", [layer("cls_score", (21, 6), (21,))]), INDICES, 4)
    with pytest.raises(WeightsError, match="'bbox_pred': has 84 outputs, which 81"):
        map_classes(CaffeModel("net", [layer("bbox_pred", (84, 6), (84,))]), INDICES, 81)
    with pytest.raises(WeightsError, match="'bbox_pred': has 12 outputs for 16 box targets"):
        normalize_boxes(CaffeModel("net", [layer("bbox_pred", (12, 6), (12,))]), np.zeros(16), np.ones(16))
