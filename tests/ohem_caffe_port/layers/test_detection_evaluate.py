"""Real Caffe's numbers for SSD's form are in tests/data/golden/layers_ssd; here, what these do not show."""

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer

RNG = np.random.default_rng(0)


def layer_of(settings, *bottoms):
    names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms)))
    text = (
        f'layer {{ name: "it" type: "DetectionEvaluate" {names} top: "t" detection_evaluate_param {{ {settings} }} }}'
    )
    layer = create_layer(prototxt.parse_net(text).layer[0], Context("TEST"))
    layer.setup([b.to("meta") for b in bottoms])
    return layer


def evaluate(settings, *bottoms):
    bottoms = [torch.tensor(np.array(b, np.float32)) for b in bottoms]
    return layer_of(settings, *bottoms)(bottoms)[0]


def slow_overlap(a, b, pixel=0):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w < 0 or h < 0:
        return 0.0
    inter = (w + pixel) * (h + pixel)
    areas = ((c[2] - c[0] + pixel) * (c[3] - c[1] + pixel) for c in (a, b))
    return inter / (sum(areas) - inter)


def slow(found, truth, classes, threshold, easy_only, pixel=0):
    """One detection at a time, by VOC's rule; rows (image, label, score, box) and (image, label, difficult, box)."""
    rows = [[-1, c, sum(t[1] == c and not (easy_only and t[2]) for t in truth), -1, -1] for c in range(1, classes)]
    for image, label in sorted({(d[0], d[1]) for d in found}):
        mine = [d for d in found if (d[0], d[1]) == (image, label)]
        theirs = [t for t in truth if (t[0], t[1]) == (image, label)]
        seen = set()
        for d in sorted(mine, key=lambda d: -d[2]) if theirs else mine:
            overlaps = [slow_overlap(d[3], t[3], pixel) for t in theirs]
            best = int(np.argmax(overlaps)) if overlaps else -1
            if not overlaps or overlaps[best] < threshold:
                verdict = [0, 1]
            elif easy_only and theirs[best][2]:
                verdict = [0, 0]
            else:
                verdict = [0, 1] if best in seen else [1, 0]
                seen.add(best)
            rows.append([image, label, d[2], *verdict])
    return np.array(rows, np.float64)


def scene(detections=60, truths=12, scale=1.0):
    def box():
        corner = RNG.uniform(0, 0.6, 2)
        return [*(corner * scale), *((corner + RNG.uniform(0.1, 0.4, 2)) * scale)]

    truth = [(int(RNG.integers(0, 3)), int(RNG.integers(1, 4)), int(RNG.random() < 0.3), box()) for _ in range(truths)]
    found = []
    for _ in range(detections):
        image, label, _, near = truth[RNG.integers(len(truth))]
        moved = [v + RNG.normal(0, 0.04 * scale) for v in near]
        found.append((image if RNG.random() < 0.8 else 3, label, float(np.float32(RNG.random())), moved))
    return found, truth


@pytest.mark.parametrize("easy_only", [True, False])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_ssd(easy_only, threshold):
    found, truth = scene()
    truth.sort(key=lambda t: t[0])
    settings = f"num_classes: 4 overlap_threshold: {threshold} evaluate_difficult_gt: {str(not easy_only).lower()}"
    rows = [[d[0], d[1], d[2], *d[3]] for d in found] + [[2, -1, 0, 0, 0, 0, 0]]
    gt = [[t[0], t[1], 0, *t[3], t[2]] for t in truth] + [[-1.0] * 8, [0, 1, 0, 0, 0, 1, 1, 0]]  # nothing after a -1
    top = evaluate(settings, [[rows]], [[gt]])
    np.testing.assert_allclose(top[0, 0], slow(found, truth, 4, threshold, easy_only), atol=1e-6)


def sizes_file(tmp_path, *sizes):
    (tmp_path / "sizes.txt").write_text("".join(f"image{i} {h} {w}\n" for i, (h, w) in enumerate(sizes)))
    return f'name_size_file: "{tmp_path}/sizes.txt"'


def test_in_pixels_of_the_next_images(tmp_path):
    """With sizes, boxes are clipped, scaled and counted with both ends; every image with detections takes a line."""
    settings = f"num_classes: 2 overlap_threshold: 0.5 {sizes_file(tmp_path, (4, 4), (100, 100))}"
    found = torch.tensor([[[[0, 1, 0.9, 0.0, 0, 0.5, 1]]]])
    truth = torch.tensor([[[[0, 1, 0, 0.0, 0, 1, 1.1, 0]]]])
    layer = layer_of(settings, found, truth)
    # of 4 x 4 pixels: 3 * 5 / 25; of 100 x 100: 51 * 101 / 101^2 = 0.505; both count, half of the unit square would not
    assert [layer([found, truth])[0][0, 0, 1, 3].item() for _ in range(3)] == [1, 1, 1]
    strict = layer_of(settings.replace("0.5", "0.55", 1), found, truth)
    assert [strict([found, truth])[0][0, 0, 1, 3].item() for _ in range(3)] == [1, 0, 1]


@pytest.mark.parametrize("easy_only", [True, False])
def test_cascade_rcnn(tmp_path, easy_only):
    """Its rows and boxes in pixels of the net's input, scaled to the image's size."""
    found, truth = scene(scale=100.0)
    sizes = sizes_file(tmp_path, (200, 300), (300, 200), (100, 100), (50, 50))
    settings = f"num_classes: 4 overlap_threshold: 0.5 evaluate_difficult_gt: {str(not easy_only).lower()} {sizes}"
    top = evaluate(
        settings,
        [[d[0], *d[3], d[1], d[2]] for d in found],
        [[t[0], *t[3], t[1], 0, t[2]] for t in truth] + [[-1] * 8],
        [[100, 100]] * 4,
    )
    ratio = {0: (3, 2), 1: (2, 3), 2: (1, 1), 3: (0.5, 0.5)}
    grown = [
        [
            (image, label, value, [v * r for v, r in zip(box, ratio[image] * 2, strict=True)])
            for image, label, value, box in rows
        ]
        for rows in (found, truth)
    ]
    assert top.shape[1:] == (5, 1, 1)
    np.testing.assert_allclose(top[..., 0, 0], slow(*grown, 4, 0.5, easy_only, pixel=1), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message", "field"),
    [
        ("", "must be given", "num_classes"),
        ("num_classes: 2 overlap_threshold: 0", "must be positive", "overlap_threshold"),
    ],
)
def test_bad_settings(settings, message, field):
    with pytest.raises(PortError, match=message) as caught:
        evaluate(settings, np.zeros((1, 1, 1, 7)), np.zeros((1, 1, 1, 8)))
    assert (caught.value.layer, caught.value.field) == ("it", f"detection_evaluate_param.{field}")


def test_bad_bottoms(tmp_path):
    found, truth = np.ones((1, 1, 1, 7)), np.ones((1, 1, 1, 8))
    with pytest.raises(PortError, match="rows have 7 values"):
        layer_of("num_classes: 2", torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 1, 8)).infer(
            [torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 1, 8)]
        )
    with pytest.raises(PortError, match="background's label, 0"):
        evaluate("num_classes: 2", np.zeros_like(found), truth)
    with pytest.raises(PortError, match="must be given where the third bottom"):
        evaluate("num_classes: 2", found[0, 0], truth[0, 0], np.ones((1, 2)))
    with pytest.raises(PortError, match="cannot be read"):
        evaluate(f'num_classes: 2 name_size_file: "{tmp_path}/missing"', found, truth)
    with pytest.raises(PortError, match="no size for image 1"):
        evaluate(f"num_classes: 2 {sizes_file(tmp_path, (9, 9))}", found[0, 0], truth[0, 0], np.ones((1, 2)))
