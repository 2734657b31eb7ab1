"""Real Caffe's numbers for every setting are in tests/data/golden/layers_ssd; here, what these do not show."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.ops import decode_boxes, encode_boxes

PRIORS = torch.tensor(
    [[x, y, x + 0.25, y + 0.25] for y in (0, 0.25, 0.5, 0.75) for x in (0, 0.25, 0.5, 0.75)], dtype=torch.float32
)
VARIANCE = torch.tensor([0.1, 0.1, 0.2, 0.2])
P = len(PRIORS)
PRIOR_BLOB = torch.stack((PRIORS.flatten(), VARIANCE.repeat(P)))[None]
TRUTH = torch.tensor([[[[0, 2, 0, 0.02, 0.0, 0.27, 0.25, 0], [1, 1, 0, 0.5, 0.5, 0.75, 0.75, 0.0]]]])


def blobs(classes=3, batch=2, seed=0, places=1):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(batch, P * 4 * places, generator=generator) * 0.3
    return loc.requires_grad_(), torch.randn(batch, P * classes, generator=generator).requires_grad_()


def run(run_layer, text, loc, conf, *more, truth=TRUTH, loss=""):
    text = f"multibox_loss_param {{ code_type: CENTER_SIZE {text} }} {loss}"
    return run_layer("MultiBoxLoss", text, loc, conf, PRIOR_BLOB, truth, *more)[0]


def rows_with_gradient(blob):
    return [row.nonzero()[:, 0].tolist() for row in blob.grad.view(len(blob), P, -1).any(2)]


def test_by_hand(run_layer):
    """One match in each image (0 and 10), three negatives each: the sums over the rows that got a gradient."""
    loc, conf = blobs()
    loss = run(run_layer, "num_classes: 3 neg_overlap: 0.2", loc, conf)
    loss.backward()
    assert rows_with_gradient(loc) == [[0], [10]]
    scores, expected = conf.detach().view(2, P, 3), 0.0
    background = -torch.log_softmax(scores, 2)[..., 0]
    for image, (prior, label) in enumerate([(0, 2), (10, 1)]):
        free = [p for p in range(P) if p != prior]
        hardest = sorted(free, key=lambda p: -background[image, p])[:3]
        assert rows_with_gradient(conf)[image] == sorted([prior, *hardest])
        expected += background[image, hardest].sum() - torch.log_softmax(scores[image, prior], 0)[label]
        target = encode_boxes(PRIORS[prior], TRUTH[0, 0, image, 3:7], "CENTER_SIZE", VARIANCE)
        predicted = loc.detach()[image].view(P, 4)[prior]
        expected += torch.nn.functional.smooth_l1_loss(predicted, target, reduction="sum")
    torch.testing.assert_close(loss, expected / 2)


@pytest.mark.parametrize(
    "text",
    ["mining_type: NONE", "mining_type: HARD_EXAMPLE sample_size: 5", "conf_loss_type: LOGISTIC", "loc_weight: 3"],
)
def test_gradient_is_the_derivative(run_layer, text):
    loc, conf = blobs(seed=3)
    loss = run(run_layer, f"num_classes: 3 {text}", loc, conf)
    loss.backward()
    for blob in (loc, conf):
        for i in blob.grad.abs().flatten().topk(4).indices.tolist():
            ends = []
            for step in (1e-2, -1e-2):
                moved = blob.detach().clone()
                moved.view(-1)[i] += step
                pair = (moved, conf) if blob is loc else (loc, moved)
                ends.append(run(run_layer, f"num_classes: 3 {text}", *pair).item())
            assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(blob.grad.view(-1)[i].item(), rel=0.02, abs=2e-3)


def test_propagate_down_takes_a_loss_away(run_layer):
    loc, conf = blobs()
    both = run(run_layer, "num_classes: 3", loc, conf)
    only = [
        run(run_layer, "num_classes: 3", loc, conf, loss="".join(f"propagate_down: {d} " for d in down))
        for down in ((1, 0, 0, 0), (0, 1, 0, 0))
    ]
    torch.testing.assert_close(sum(only), both)
    assert all(0 < part < both for part in only)


def test_refined_priors(run_layer):
    """RefineDet: its first stage's boxes move the priors, and what it takes for background is no negative."""
    loc, conf = blobs()
    arm_loc, objects = blobs(seed=7)[0].detach(), torch.rand(2, P, 2, generator=torch.Generator().manual_seed(1))
    objects[:, ::2, 1] = 0.001
    loss = run(run_layer, "num_classes: 3 objectness_score: 0.01", loc, conf, objects.flatten(1), arm_loc)
    loss.backward()
    refined = decode_boxes(PRIORS, arm_loc.view(2, P, 4), "CENTER_SIZE", VARIANCE)
    for image, rows in enumerate(rows_with_gradient(conf)):
        (matched,) = rows_with_gradient(loc)[image]
        assert all(p % 2 == 1 for p in rows if p != matched)
        assert len(rows) == 4
        target = encode_boxes(refined[image, matched], TRUTH[0, 0, image, 3:7], "CENTER_SIZE", VARIANCE)
        slope = (loc.detach()[image].view(P, 4)[matched] - target).clamp(-1, 1) / 2
        torch.testing.assert_close(loc.grad[image].view(P, 4)[matched], slope)


def test_a_first_stage_knows_objects_only(run_layer):
    loc, conf = blobs(classes=2)
    one = TRUTH.clone()
    one[..., 1] = 1
    assert run(run_layer, "num_classes: 2", loc, conf) == run(run_layer, "num_classes: 2", loc, conf, truth=one)


def test_predictions_of_every_class(run_layer):
    """Without share_location a match trains the boxes of its own class alone."""
    for matching in ("true", "false"):
        loc, conf = blobs(places=3)
        text = f"num_classes: 3 share_location: false mining_type: NONE use_prior_for_matching: {matching}"
        run(run_layer, text, loc, conf).backward()
        places = loc.grad.view(2, P, 3, 4).any(3).any(1)
        assert places.tolist() == [[False, False, True], [False, True, False]]


@pytest.mark.parametrize("truth", [np.full((1, 1, 1, 8), -1.0), TRUTH[:, :, :1]])
def test_images_without_ground_truth_give_nothing(run_layer, truth):
    loc, conf = blobs()
    loss = run(run_layer, "num_classes: 3", loc, conf, truth=torch.as_tensor(truth, dtype=torch.float32))
    loss.backward()
    assert not loc.grad[1].any()
    assert not conf.grad[1].any()
    assert (loss > 0) == (len(rows_with_gradient(loc)[0]) > 0)


@pytest.mark.parametrize(
    ("text", "message", "field"),
    [
        ("", "must be given", "num_classes"),
        ("num_classes: 3 background_label_id: 3", "3 is no class", "background_label_id"),
        ("num_classes: 3 do_neg_mining: true mining_type: NONE", "contradicts mining_type", "do_neg_mining"),
        ("num_classes: 3 do_neg_mining: false", "contradicts mining_type", "do_neg_mining"),
        ("num_classes: 3 share_location: false", "mining needs share_location", "share_location"),
        ("num_classes: 3 mining_type: HARD_EXAMPLE sample_size: 0", "must be positive", "sample_size"),
        ("num_classes: 3 map_object_to_agnostic: true", "needs 2 classes", "map_object_to_agnostic"),
    ],
)
def test_bad_settings(run_layer, text, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run(run_layer, text, *blobs())
    assert (caught.value.layer, caught.value.field) == ("it", f"multibox_loss_param.{field}")


def test_bad_bottoms(run_layer):
    loc, conf = blobs()
    with pytest.raises(PortError, match=r"must be \[2, 4 \* 16 priors\]"):
        run(run_layer, "num_classes: 3", loc[:, 4:], conf)
    with pytest.raises(PortError, match=r"must be \[2, 4 \* 16 priors\]"):
        run(run_layer, "num_classes: 4", loc, conf)
    with pytest.raises(PortError, match="rows of 8"):
        run(run_layer, "num_classes: 3", loc, conf, truth=torch.zeros(1, 1, 1, 7))
    with pytest.raises(PortError, match=r"priors must be of shape \[1, 2, 4P\]"):
        run_layer("MultiBoxLoss", "multibox_loss_param { num_classes: 3 }", loc, conf, PRIOR_BLOB[0], TRUTH)
    for label in (0, 3, -2):
        wrong = TRUTH.clone()
        wrong[0, 0, 1, 1] = label
        with pytest.raises(PortError, match=f"label {label} in a net of 3 classes") as caught:
            run(run_layer, "num_classes: 3", loc, conf, truth=wrong)
        assert caught.value.field == "bottom[3]"
    flat = PRIOR_BLOB.clone()
    flat[0, 0, 2] = 0
    with pytest.raises(PortError, match="prior 0 has no extent"):
        run_layer(
            "MultiBoxLoss", "multibox_loss_param { num_classes: 3 code_type: CENTER_SIZE }", loc, conf, flat, TRUTH
        )
