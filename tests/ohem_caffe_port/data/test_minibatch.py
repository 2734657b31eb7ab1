import cv2
import numpy as np
import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.minibatch import (
    MinibatchPlan,
    entry_image,
    expand_bbox_targets,
    images_to_blob,
    load_minibatch,
    plan_minibatch,
    prep_image,
    read_image,
    sample_rois,
)
from ohem_caffe_port.errors import PortError


def config(**train):
    cfg = Config()
    cfg.merge({"TRAIN": {"BATCH_SIZE": 32, "SCALES": [20], "MAX_SIZE": 1000, **train}}, source="test")
    return cfg


def entry(overlaps, **more):
    number = len(overlaps)
    boxes = np.arange(4 * number).reshape(number, 4).astype(np.uint16)
    classes = np.arange(number) % 3 + 1
    targets = np.hstack([classes[:, None], np.full((number, 4), 0.5)]).astype(np.float32)
    base = {"max_overlaps": np.array(overlaps, np.float32), "boxes": boxes, "max_classes": classes}
    return base | {"bbox_targets": targets, "flipped": False} | more


OVERLAPS = [1.0, 0.5, 0.49, 0.3, 0.1, 0.09, 0.0]


@pytest.mark.parametrize(("lo", "background"), [(0.0, [2, 3, 4, 5, 6]), (0.1, [2, 3, 4, 5, 6])])
def test_all_rois_with_ohem(lo, background):
    """Foreground first; every RoI below BG_THRESH_HI is background, whatever BG_THRESH_LO says."""
    cfg = config(USE_OHEM=True, BG_THRESH_LO=lo)
    plan = plan_minibatch([entry(OVERLAPS)], [0], cfg, np.random.RandomState(0))
    assert plan.keep[0].tolist() == [0, 1, *background]
    assert plan.num_fg == [2]
    assert plan.scales == [20]


def test_a_gap_between_the_thresholds():
    cfg = config(USE_OHEM=True, FG_THRESH=0.9, BG_THRESH_HI=0.2)
    plan = plan_minibatch([entry(OVERLAPS)], [0], cfg, np.random.RandomState(0))
    assert plan.keep[0].tolist() == [0, 4, 5, 6]


@pytest.mark.parametrize(
    ("fg", "bg", "expected"),
    [(100, 100, (8, 24)), (3, 100, (3, 29)), (100, 5, (8, 5)), (0, 100, (0, 32)), (100, 0, (8, 0)), (2, 2, (2, 2))],
)
def test_counts_of_sampled_rois(fg, bg, expected):
    overlaps = [0.8] * fg + [0.3] * bg + [0.05] * 10
    plan = plan_minibatch([entry(overlaps)], [0], config(), np.random.RandomState(0))
    keep, num_fg = plan.keep[0], plan.num_fg[0]
    assert (num_fg, len(keep) - num_fg) == expected
    assert (keep[:num_fg] < fg).all()
    assert ((keep[num_fg:] >= fg) & (keep[num_fg:] < fg + bg)).all(), "below BG_THRESH_LO nothing is sampled"
    assert len(set(keep.tolist())) == len(keep), "without replacement"


def test_all_rois_between_the_thresholds():
    """py-R-FCN's BATCH_SIZE -1: all there are, in an order that is drawn."""
    overlaps = np.array([0.8] * 20 + [0.3] * 40 + [0.05] * 10)
    keep, num_fg = sample_rois(overlaps, 2, config(BATCH_SIZE=-1), np.random.RandomState(4))
    rng = np.random.RandomState(4)
    expected = [rng.choice(np.arange(a, b), b - a, replace=False) for a, b in ((0, 20), (20, 60))]
    assert num_fg == 20
    assert keep.tolist() == np.concatenate(expected).tolist()


def test_rois_are_sampled_evenly():
    roidb, rng = [entry([0.8] * 20 + [0.3] * 40)], np.random.RandomState(0)
    counts = np.zeros(60)
    for _ in range(500):
        counts[plan_minibatch(roidb, [0], config(), rng).keep[0]] += 1
    np.testing.assert_allclose(counts[:20] / 500, 8 / 20, atol=0.09)
    np.testing.assert_allclose(counts[20:] / 500, 24 / 40, atol=0.09)


def test_the_random_stream():
    """Scales of all images first; then for each image foreground and background, as the original draws from numpy."""
    roidb = [entry([0.8] * 20 + [0.3] * 40), entry([0.3] * 40)]
    plan = plan_minibatch(roidb, [0, 1], config(SCALES=[20, 30, 40]), np.random.RandomState(5))
    rng = np.random.RandomState(5)
    scales = rng.randint(0, high=3, size=2)
    expected = [
        np.append(rng.choice(np.arange(20), 4, replace=False), rng.choice(np.arange(20, 60), 12, replace=False)),
        rng.choice(np.arange(40), 16, replace=False),
    ]
    assert plan.scales == [(20, 30, 40)[i] for i in scales]
    for keep, wanted in zip(plan.keep, expected, strict=True):
        assert keep.tolist() == wanted.tolist()


def test_images_must_divide_the_batch():
    with pytest.raises(PortError, match="must divide TRAIN.BATCH_SIZE"):
        plan_minibatch([entry(OVERLAPS)] * 3, [0, 1, 2], config(), np.random.RandomState(0))


# ---- images


@pytest.fixture
def image_file(tmp_path):
    """``image_file(height, width)``: path and pixels."""

    def make(height, width, name="a.png"):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / name), pixels)
        return tmp_path / name, pixels

    return make


def test_multi_scale_training():
    """OHEM, section 5: one of five scales at random for each image, also of one minibatch."""
    scales = (480, 576, 688, 864, 900)
    cfg, rng = config(SCALES=scales), np.random.RandomState(0)
    drawn = np.array([plan_minibatch([entry(OVERLAPS)] * 2, [0, 1], cfg, rng).scales for _ in range(2000)])
    pairs = np.array([[((drawn == (a, b)).all(1)).sum() for b in scales] for a in scales])
    assert pairs.sum() == 2000, "no other scale"
    assert abs(pairs - 80).max() < 45, "each pair of 25 alike, so one image's scale does not say the other's"
    for target in scales:
        prepared, scale = prep_image(np.zeros((375, 500, 3), np.uint8), cfg, target, cfg.TRAIN)
        expected = min(target / 375, 1000 / 500)
        assert scale == expected
        assert prepared.shape[:2] == (round(375 * expected), round(500 * expected))


@pytest.mark.parametrize(
    ("size", "target", "max_size", "scale"),
    [((10, 20), 20, 1000, 2), ((20, 10), 20, 1000, 2), ((10, 20), 20, 30, 1.5), ((10, 20), 5, 1000, 0.5)],
)
def test_scales(size, target, max_size, scale):
    image = np.full((*size, 3), 100, np.uint8)
    cfg = config(MAX_SIZE=max_size)
    cfg.PIXEL_MEANS = (1, 2, 3.5)
    prepared, found = prep_image(image, cfg, target, cfg.TRAIN)
    assert found == scale
    assert prepared.shape == (round(size[0] * scale), round(size[1] * scale), 3)
    assert prepared.dtype == np.float32
    assert prepared[0, 0].tolist() == [99, 98, 96.5]
    assert image[0, 0].tolist() == [100, 100, 100], "the argument must stay as it is"


def test_means_and_standard_deviations():
    cfg = config()
    cfg.merge({"PIXEL_MEANS": [1, 2, 3], "PIXEL_STDS": [1, 2, 4]}, source="test")
    prepared, _ = prep_image(np.full((4, 4, 3), 11, np.uint8), cfg, 4, cfg.TRAIN)
    assert prepared[0, 0].tolist() == [10, 4.5, 2]


def test_sides_cut_to_multiples():
    """PVANet's rule: 30 x 47 pixels at scale 2 are 60 x 94, cut to 48 x 80."""
    cfg = config(SCALE_MULTIPLE_OF=16)
    prepared, scale = prep_image(np.full((30, 47, 3), 100, np.uint8), cfg, 60, cfg.TRAIN)
    assert prepared.shape == (48, 80, 3)
    np.testing.assert_allclose(scale, [80 / 47, 48 / 30] * 2)


def test_blob_of_images_of_different_sizes():
    blob = images_to_blob([np.full((2, 5, 3), 1, np.float32), np.full((4, 3, 3), 2, np.float32)])
    assert blob.shape == (2, 3, 4, 5)
    assert blob[0, :, :2].min() == 1
    assert not blob[0, :, 2:].any()
    assert blob[1, :, :, :3].min() == 2
    assert not blob[1, :, :, 3:].any()


@pytest.mark.parametrize("sizes", [[(2, 5), (4, 3)], [(1, 1), (1, 7), (6, 1)], [(33, 20)]])
@pytest.mark.parametrize("least", [(0, 0), (40, 23)])
def test_blobs_hold_the_images_and_zeros(sizes, least):
    images = [np.random.RandomState(0).rand(*size, 3).astype(np.float32) for size in sizes]
    images[0] = images[0][:, ::-1]  # a view
    np.empty(40 * 40 * 9, np.float32).fill(7)  # what memory that nobody has cleared may hold
    blob = images_to_blob(images, least)
    assert blob.shape[2:] == tuple(max(least[axis], *(size[axis] for size in sizes)) for axis in (0, 1))
    for planes, image, (height, width) in zip(blob, images, sizes, strict=True):
        np.testing.assert_array_equal(planes[:, :height, :width], image.transpose(2, 0, 1))
        assert not planes[:, height:].any() and not planes[:, :, width:].any()


def test_flipped_entries(image_file):
    path, pixels = image_file(6, 8)
    plain, flipped = (entry([0.9], image=str(path), width=8, height=6, flipped=f) for f in (False, True))
    assert np.array_equal(entry_image(plain), pixels)
    assert np.array_equal(entry_image(flipped), pixels[:, ::-1])


@pytest.mark.parametrize("content", [b"", b"not an image", None, "truncated"])
def test_damaged_images(tmp_path, image_file, content):
    path = tmp_path / "bad.jpg"
    if content == "truncated":
        path.write_bytes(image_file(60, 60)[0].read_bytes()[:40])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(PortError) as caught:
        read_image(path)
    assert caught.value.file == path


def test_an_image_of_another_size(image_file):
    path, _ = image_file(6, 8)
    with pytest.raises(PortError, match="the image is 8 x 6, its annotation says 9 x 6"):
        entry_image(entry([0.9], image=str(path), width=9, height=6))


# ---- blobs


def test_expanded_targets():
    compact = np.array([[0, 9, 9, 9, 9], [2, 1, 2, 3, 4]], np.float32)
    train = config(BBOX_INSIDE_WEIGHTS=[1, 1, 0.5, 0.5]).TRAIN
    targets, inside = expand_bbox_targets(compact, 3, train)
    assert targets.tolist() == [[0] * 12, [0] * 8 + [1, 2, 3, 4]]
    assert inside.tolist() == [[0] * 12, [0] * 8 + [1, 1, 0.5, 0.5]]
    train.AGNOSTIC = True
    targets, inside = expand_bbox_targets(compact, 2, train)
    assert targets.tolist() == [[0] * 8, [0] * 4 + [1, 2, 3, 4]]
    assert inside.tolist() == [[0] * 8, [0] * 4 + [1, 1, 0.5, 0.5]]


@pytest.mark.parametrize("bbox_reg", [True, False])
def test_blobs(image_file, bbox_reg):
    """Two images of different sizes, scaled to a shorter side of 20."""
    first, second = image_file(10, 15, "a.png"), image_file(40, 30, "b.png")
    roidb = [
        entry([0.9, 0.8, 0.2], image=str(path), width=pixels.shape[1], height=pixels.shape[0])
        for path, pixels in (first, second)
    ]
    roidb[1]["bbox_targets"][2] = 0  # a background RoI has no target
    cfg = config(BBOX_REG=bbox_reg, BBOX_INSIDE_WEIGHTS=[1, 1, 0, 2])
    plan = MinibatchPlan([0, 1], [20, 20], [np.array([1]), np.array([0, 2])], [1, 1])
    blobs = load_minibatch(roidb, plan, 4, cfg)
    assert blobs["data"].shape == (2, 3, 27, 30)
    assert all(blob.dtype == np.float32 for blob in blobs.values())
    expected = [[0, 8, 10, 12, 14], [1, 0, 2 / 3, 4 / 3, 2], [1, 16 / 3, 6, 20 / 3, 22 / 3]]
    np.testing.assert_allclose(blobs["rois"], expected, rtol=1e-6)
    assert blobs["labels"].tolist() == [2, 1, 0]
    assert ("bbox_targets" in blobs) == bbox_reg
    if bbox_reg:
        assert blobs["bbox_targets"][0].tolist() == [0] * 8 + [0.5] * 4 + [0] * 4
        assert blobs["bbox_inside_weights"][1].tolist() == [0] * 4 + [1, 1, 0, 2] + [0] * 8
        assert blobs["bbox_outside_weights"][1].tolist() == [0] * 4 + [1, 1, 0, 1] + [0] * 8
        assert not blobs["bbox_inside_weights"][2].any()


@pytest.mark.parametrize("multiple", [1, 16])
def test_blobs_of_a_region_proposal_network(image_file, multiple):
    """Ground truth alone, with its class, scaled as the image; proposals of the roidb are not looked at."""
    path, pixels = image_file(30, 47)
    boxes = np.array([[2, 3, 20, 13], [5, 5, 9, 9], [0, 10, 46, 29]], np.uint16)
    classes = np.array([4, 0, 1], np.int32)
    roidb = [{"image": str(path), "width": 47, "height": 30, "flipped": False, "boxes": boxes, "gt_classes": classes}]
    cfg = config(HAS_RPN=True, SCALES=[60, 90], SCALE_MULTIPLE_OF=multiple)
    rng = np.random.RandomState(3)
    plan = plan_minibatch(roidb, [0], cfg, rng)
    after = np.random.RandomState(3)
    assert plan.scales == [[60, 90][after.randint(0, high=2, size=1)[0]]]
    assert rng.randint(1 << 30) == after.randint(1 << 30), "only the scale is drawn"
    blobs = load_minibatch(roidb, MinibatchPlan([0], [60], [], []), 7, cfg)
    fx, fy = (80 / 47, 48 / 30) if multiple == 16 else (2, 2)
    assert set(blobs) == {"data", "im_info", "gt_boxes"}
    assert all(blob.dtype == np.float32 for blob in blobs.values())
    size = blobs["data"].shape[2:]
    assert size == ((48, 80) if multiple == 16 else (60, 94))
    np.testing.assert_allclose(blobs["im_info"], [[*size, *([fx, fy] * 2 if multiple == 16 else [2])]], rtol=1e-6)
    expected = [[2 * fx, 3 * fy, 20 * fx, 13 * fy, 4], [0, 10 * fy, 46 * fx, 29 * fy, 1]]
    np.testing.assert_allclose(blobs["gt_boxes"], expected, rtol=1e-6)
