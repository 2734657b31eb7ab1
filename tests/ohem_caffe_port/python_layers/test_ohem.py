import pytest
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer
from ohem_caffe_port.mining import METHODS, easy_rois_zeroed, ohem_roi_loss, select_hard_rois

CLASSES, ROIS = 4, 50
MODULES = {
    "OHEMDataLayer": ("roi_data_layer.layer", 5), "OHEMMaskLayer": ("ohem_caffe_port.python_layers", 3),
    "SOHEMDataLayer": ("ohem_caffe_port.python_layers", 5), "MiningWeightsLayer": ("ohem_caffe_port.python_layers", 3),
}  # fmt: skip


def config(**train):
    cfg = Config()
    cfg.merge({"TRAIN": {"BATCH_SIZE": 8, "USE_OHEM": True, **train}}, source="test")
    return cfg


def make_layer(kind, cfg, bottoms, tops=None, num_classes=CLASSES, more=""):
    module, count = MODULES[kind]
    tops = count if tops is None else tops
    names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms))) + "".join(f'top: "t{i}" ' for i in range(tops))
    python = (
        f"python_param {{ module: '{module}' layer: '{kind}' param_str: \"{{'num_classes': {num_classes}{more}}}\" }}"
    )
    param = prototxt.parse_net(f'layer {{ name: "mining" type: "Python" {names} {python} }}').layer[0]
    layer = create_layer(param, Context("TRAIN", cfg))
    layer.setup(bottoms)
    return layer


@pytest.mark.parametrize(("use_nms", "thresh"), [(True, 0.7), (True, 0.3), (False, 0.7)])
def test_data_layer_gathers_the_hard_ones(bottoms, use_nms, thresh):
    layer = make_layer("OHEMDataLayer", config(OHEM_USE_NMS=use_nms, OHEM_NMS_THRESH=thresh), bottoms)
    prob, pred, rois, labels, *boxes = bottoms
    loss = ohem_roi_loss(prob, labels, pred, *boxes)
    hard = select_hard_rois(loss, rois, labels, 8, nms_thresh=thresh if use_nms else None)
    for top, bottom in zip(layer(bottoms), bottoms[2:], strict=True):
        assert torch.equal(top, bottom[hard])
    assert torch.equal(layer.hard_inds, hard)
    assert torch.equal(layer.roi_loss, loss)
    assert (loss[hard].diff() <= 0).all()


def test_all_rois_are_no_number_to_choose(bottoms):
    """py-R-FCN's BATCH_SIZE -1 is for nets without these layers."""
    with pytest.raises(PortError, match="BATCH_SIZE is -1; it says how many hard RoIs are chosen"):
        make_layer("OHEMDataLayer", config(BATCH_SIZE=-1), bottoms)


def test_without_box_regression(bottoms):
    layer = make_layer("OHEMDataLayer", config(BBOX_REG=False), bottoms[:4], tops=2)
    rois, labels = layer(bottoms[:4])
    assert (rois.shape, labels.shape) == ((8, 5), (8,))
    assert torch.equal(layer.roi_loss, ohem_roi_loss(bottoms[0], bottoms[3]))


def test_blobs_with_more_axes(bottoms):
    flat = make_layer("OHEMDataLayer", config(), bottoms)(bottoms)
    tall = [b[..., None, None] if b.dim() > 1 else b for b in bottoms]
    for a, b in zip(flat, make_layer("OHEMDataLayer", config(), tall)(tall), strict=True):
        assert torch.equal(a.flatten(), b.flatten())


def test_fewer_rois_than_a_batch(bottoms):
    few = [b[:3] for b in bottoms]
    assert len(make_layer("OHEMDataLayer", config(OHEM_USE_NMS=False), few)(few)[0]) == 3


def test_mask_layer(bottoms):
    layer = make_layer("OHEMMaskLayer", config(), bottoms)
    tops = layer(bottoms)
    expected = easy_rois_zeroed(layer.hard_inds, bottoms[3], bottoms[5], bottoms[6])
    assert all(torch.equal(a, b) for a, b in zip(tops, expected, strict=True))
    assert (tops[0] >= 0).sum() == len(layer.hard_inds) == 8
    assert [t.shape for t in layer.infer(bottoms)] == [t.shape for t in tops]


def losses(scores, boxes, tops):
    """A trainable branch's two losses, and their gradients by scores and boxes."""
    rois, labels, targets, inside, outside = tops
    layers = """
        layer { name: "cls" type: "SoftmaxWithLoss" bottom: "a" bottom: "b" top: "c"
                loss_param { ignore_label: -1 } }
        layer { name: "box" type: "SmoothL1Loss" bottom: "a" bottom: "b" bottom: "c" bottom: "d" top: "e" }"""
    found = []
    for param, blobs in zip(
        prototxt.parse_net(layers).layer, ([scores, labels], [boxes, targets, inside, outside]), strict=True
    ):
        layer = create_layer(param, Context("TRAIN", config()))
        layer.setup(blobs)
        found.append(layer(blobs)[0])
    return [loss.item() for loss in found], torch.autograd.grad(sum(found), (scores, boxes))


@pytest.mark.parametrize("batch_size", [4, 40, 80])
@pytest.mark.parametrize("tall", [False, True])
def test_padded_rows_change_no_loss(bottoms, batch_size, tall):
    """Of 50 RoIs far fewer than 40 survive at this threshold."""
    bottoms = [b[..., None, None] if tall and b.dim() > 1 else b for b in bottoms]
    cfg = config(BATCH_SIZE=batch_size, OHEM_NMS_THRESH=0.1)
    plain = make_layer("OHEMDataLayer", cfg, bottoms)
    padded = make_layer("OHEMDataLayer", cfg, bottoms, more=", 'padded': True")
    scores, boxes = torch.randn(50, CLASSES), torch.randn(bottoms[1].shape)
    expected, found = plain(bottoms), padded(bottoms)
    assert torch.equal(plain.hard_inds, padded.hard_inds)
    count, rows = len(plain.hard_inds), min(batch_size, 50)
    assert (count < rows) == (batch_size > 4)
    assert [t.shape for t in found] == [t.shape for t in padded.infer(bottoms)] == [(rows, *t.shape[1:]) for t in found]
    assert all(torch.equal(a, b[:count]) for a, b in zip(expected[:4], found, strict=False))
    assert (found[1][count:] == -1).all()
    inds = torch.cat((plain.hard_inds, torch.full((rows - count,), 49)))
    values, grads = losses(scores[inds[:count]].requires_grad_(), boxes[inds[:count]].requires_grad_(), expected)
    padded_values, padded_grads = losses(scores[inds].requires_grad_(), boxes[inds].requires_grad_(), found)
    assert padded_values == pytest.approx(values, rel=1e-6)
    for a, b in zip(grads, padded_grads, strict=True):
        torch.testing.assert_close(b[:count], a)
        assert not b[count:].any()
    if count == rows:
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_padded_without_box_regression(bottoms):
    cfg = config(BBOX_REG=False, OHEM_NMS_THRESH=0.0, BATCH_SIZE=50)
    layer = make_layer("OHEMDataLayer", cfg, bottoms[:4], tops=2, more=", 'padded': True")
    rois, labels = layer(bottoms[:4])
    assert (rois.shape, labels.shape) == ((50, 5), (50,))
    assert (labels >= 0).sum() == len(layer.hard_inds) < 50


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("OHEMDataLayer", ", padded: True"), ("OHEMMaskLayer", ""), ("SOHEMDataLayer", ", padded: True, iterations: 9"),
        *(("MiningWeightsLayer", f", method: {name}, iterations: 9") for name in METHODS),
    ],
)  # fmt: skip
def test_a_gpu_s_host_need_not_wait(bottoms, kind, more, monkeypatch):
    """They run on tensors that have no values."""
    monkeypatch.setattr("ohem_caffe_port.mining.methods._Drawing.generator", lambda *_: torch.Generator())
    layer = make_layer(kind, config(), bottoms, more=more)
    blank = [b.to("meta") for b in bottoms]
    assert [t.shape for t in layer(blank)] == [t.shape for t in layer.infer(bottoms)]


@pytest.mark.parametrize("train", [{"OHEM_RATIO": 0.25}, {"USE_ASDN": True}])
def test_padded_is_not_for_adversarial_frcnn(bottoms, train):
    with pytest.raises(PortError, match="'padded' is not for TRAIN.USE_ASDN or OHEM_RATIO"):
        make_layer("OHEMDataLayer", config(**train), bottoms, 6 if "USE_ASDN" in train else 5, more=", 'padded': True")


@pytest.mark.parametrize(
    ("kind", "train", "bottoms_used", "tops", "classes", "message"),
    [
        ("OHEMDataLayer", {}, 6, 5, CLASSES, "takes 7 bottoms and makes 5 tops"),
        ("OHEMDataLayer", {}, 7, 2, CLASSES, "takes 7 bottoms and makes 5 tops"),
        ("OHEMDataLayer", {"BBOX_REG": False}, 7, 5, CLASSES, "takes 4 bottoms and makes 2 tops"),
        ("OHEMDataLayer", {}, 7, 5, 21, "num_classes is 21, but 'b0' has 4 columns"),
        ("OHEMDataLayer", {}, 7, 5, "x", "must be of type int"),
        ("OHEMMaskLayer", {"BBOX_REG": False}, 7, 3, CLASSES, "needs TRAIN.BBOX_REG"),
    ],
)
def test_errors(bottoms, kind, train, bottoms_used, tops, classes, message):
    with pytest.raises(PortError, match=message) as caught:
        make_layer(kind, config(**train), bottoms[:bottoms_used], tops, classes)
    assert caught.value.layer == "mining"
