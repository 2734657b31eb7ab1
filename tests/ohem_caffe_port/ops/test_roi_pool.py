import importlib.util
import math
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import RoIPool, roi_pool
from ohem_caffe_port.ops.roi_bins import Settings

module = sys.modules["ohem_caffe_port.ops.roi_pool"]  # whose name in the package is the function's

F32 = np.float32


def half_away(value) -> int:
    """C's ``round``."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


def inside(cell, _bin, start, end, *_):
    """Whether caffe-fast-rcnn's backward finds a maximum."""
    return start <= cell <= end


def mscnn_finds(cell, index, start, end, size, bins, scale):
    """Whether MS-CNN's backward does, which looks for the bin in the RoI clipped to the image."""
    start, end = max(start, 0), min(end, half_away(size / scale) - 1)
    bin_size = F32(max(end - start + 1, 1)) / F32(bins)
    first, last = math.floor(F32(cell - start) / bin_size), math.ceil(F32(cell - start + 1) / bin_size)
    return start <= cell <= end and first <= index < last


RULES = {"inside": inside, "mscnn": mscnn_finds, "all": lambda *_: True}


def slow_roi_pool(features, rois, pooled_h, pooled_w, scale, grad=None, pad_ratio=0, gradient="inside"):
    """ROIPooling, RoI by RoI and cell by cell, in Caffe's single precision.

    Returns the output, and the gradient of ``features`` when one of the output is given.
    """
    finds = RULES[gradient]
    _, channels, height, width = features.shape
    out = np.zeros((len(rois), channels, pooled_h, pooled_w), dtype=features.dtype)
    dfeatures = np.zeros_like(features)
    for r, roi in enumerate(rois):
        image = int(roi[0])
        pad = [
            (F32(last) - F32(first) + F32(1)) * F32(pad_ratio) for first, last in zip(roi[1:3], roi[3:], strict=True)
        ]
        padded = [F32(c) + sign * p for c, sign, p in zip(roi[1:], (-1, -1, 1, 1), pad * 2, strict=True)]
        x1, y1, x2, y2 = (half_away(c * F32(scale)) for c in padded)
        bin_h = F32(max(y2 - y1 + 1, 1)) / F32(pooled_h)
        bin_w = F32(max(x2 - x1 + 1, 1)) / F32(pooled_w)
        for ph in range(pooled_h):
            for pw in range(pooled_w):
                top = min(max(math.floor(F32(ph) * bin_h) + y1, 0), height)
                bottom = min(max(math.ceil(F32(ph + 1) * bin_h) + y1, 0), height)
                left = min(max(math.floor(F32(pw) * bin_w) + x1, 0), width)
                right = min(max(math.ceil(F32(pw + 1) * bin_w) + x1, 0), width)
                for c in range(channels):
                    best, where = None, None
                    for y in range(top, bottom):
                        for x in range(left, right):
                            if best is None or features[image, c, y, x] > best:
                                best, where = features[image, c, y, x], (y, x)
                    if best is None:
                        continue
                    out[r, c, ph, pw] = best
                    y, x = where
                    found = finds(y, ph, y1, y2, height, pooled_h, scale) and finds(
                        x, pw, x1, x2, width, pooled_w, scale
                    )
                    if grad is not None and found:
                        dfeatures[image, c, y, x] += grad[r, c, ph, pw]
    return out, dfeatures


@pytest.fixture(autouse=True, params=["numba", "plain"])
def way(request, monkeypatch):
    """Every test runs both ways of pooling on a CPU."""
    if request.param == "plain":
        monkeypatch.setattr(module, "_kernels", lambda device: None)
    elif module._kernels("cpu") is None:
        pytest.skip("needs numba")
    return request.param


def check(features, rois, pooled=(7, 7), scale=1.0, **options):
    features, rois = np.asarray(features, dtype=F32), np.asarray(rois, dtype=F32).reshape(-1, 5)
    rng = np.random.default_rng(0)
    grad = rng.integers(-8, 9, (len(rois), features.shape[1], *pooled)).astype(F32)  # sums are exact
    expected, expected_grad = slow_roi_pool(features, rois, *pooled, scale, grad, **options)
    x = torch.tensor(features, requires_grad=True)
    out = roi_pool(x, torch.tensor(rois), *pooled, scale, **options)
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    out.backward(torch.tensor(grad))
    np.testing.assert_array_equal(x.grad.numpy(), expected_grad)
    with torch.no_grad():
        np.testing.assert_array_equal(roi_pool(x, torch.tensor(rois), *pooled, scale, **options).numpy(), expected)
    return out


def random_rois(rng, number, images, width, height):
    first, second = rng.uniform(0, (width, height), (2, number, 2))
    corners = np.hstack([np.minimum(first, second), np.maximum(first, second)])
    return np.hstack([rng.integers(0, images, (number, 1)), corners]).astype(F32)


@pytest.mark.parametrize("pooled", [(7, 7), (6, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize("scale", [1 / 16, 1 / 8, 0.3])
def test_random_rois_of_several_images(pooled, scale):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((3, 2, 14, 19))
    check(features, random_rois(rng, 20, 3, 19 / scale, 14 / scale), pooled, scale)


@pytest.mark.parametrize("extent", [57, 114, 121, 7, 13, 1, 6])
def test_extents_where_single_precision_reaches_one_cell_further(extent):
    """57 / 7 * 7 in float32 exceeds 57: the last bin ends one cell behind the RoI, and that cell gets no gradient."""
    features = np.random.default_rng(2).standard_normal((1, 1, extent + 4, extent + 4))
    features[..., extent:, :] += 10  # the cells behind the RoI win wherever a bin sees them
    features[..., extent:] += 10
    out = check(features, [[0, 0, 0, extent - 1, extent - 1]])
    assert bool((out > 5).any()) == (extent in (57, 114, 121))


@pytest.mark.parametrize("corner", [0.5, 1.5, 2.5, 3.49999, -0.5, -1.5, -2.5])
def test_halves_round_away_from_zero(corner):
    features = np.arange(64.0).reshape(1, 1, 8, 8)
    check(features, [[0, corner, corner, corner + 3, corner + 3]], (2, 2))


@pytest.mark.parametrize(
    "roi",
    [
        pytest.param((5, 5, 3, 3), id="malformed"),
        pytest.param((5, 2, 3, 6), id="malformed on one axis"),
        pytest.param((7, 7, -7, -7), id="far apart"),
        pytest.param((-20, -20, -10, -10), id="above left of the image"),
        pytest.param((30, 30, 40, 40), id="below right of the image"),
        pytest.param((-5, -5, 3, 3), id="partly outside"),
        pytest.param((6, 6, 30, 9), id="partly behind"),
        pytest.param((2, 2, 2, 2), id="one cell"),
        pytest.param((0, 0, 7, 7), id="everything"),
    ],
)
def test_odd_rois(roi):
    features = np.random.default_rng(3).standard_normal((1, 2, 8, 8)) - 5  # empty bins give 0, more than any cell
    check(features, [[0, *roi]], (3, 3))


def test_the_first_of_equal_maxima_gets_the_gradient():
    features = np.random.default_rng(4).integers(0, 2, (2, 3, 9, 11))
    check(features, random_rois(np.random.default_rng(5), 25, 2, 11, 9), (2, 3))


@pytest.mark.parametrize("pooled", [(7, 7), (2, 5)])
@pytest.mark.parametrize("scale", [1 / 16, 1.5])
@pytest.mark.parametrize("gradient", RULES)
@pytest.mark.parametrize("pad_ratio", [0, 0.25])
def test_forks(pooled, scale, gradient, pad_ratio):
    rng = np.random.default_rng(6)
    rois = random_rois(rng, 30, 2, 19 / scale, 14 / scale)
    rois[:3, 1:] = rois[:3, [3, 4, 1, 2]]  # malformed
    rois[3:12, 1:] += rng.uniform(-8, 8, (9, 4)) / scale  # across the map's edge
    check(rng.standard_normal((2, 2, 14, 19)), rois, pooled, scale, pad_ratio=pad_ratio, gradient=gradient)


def test_hand_worked():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    rois = torch.tensor([[0, 0.0, 0, 3, 3], [0, 1, 1, 2, 2]])
    expected = torch.tensor([[[[5.0, 7], [13, 15]]], [[[5, 6], [9, 10]]]])
    assert torch.equal(roi_pool(features, rois, 2, 2, 1.0), expected)


@pytest.mark.parametrize("arrange", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT])
def test_features_that_are_not_contiguous(arrange):
    rng = np.random.default_rng(6)
    features = torch.tensor(rng.standard_normal((2, 4, 9, 9)), dtype=torch.float32)
    rois = torch.tensor(random_rois(rng, 8, 2, 70, 70))
    strided = arrange(features)
    assert not strided.is_contiguous()
    slope = torch.randint(-8, 9, (8, 3, 3, 4)).float().permute(0, 3, 1, 2)
    expected, found = (pooled_with_gradient(blob, rois, slope) for blob in (features, strided))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def pooled_with_gradient(features, rois, slope):
    leaf = features.detach().requires_grad_()
    out = roi_pool(leaf, rois, *slope.shape[2:], 1 / 8)
    assert out.is_contiguous()
    return out.detach(), *torch.autograd.grad(out, leaf, slope)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    """Maxima are exact; gradients of half types are summed in float32 and rounded once."""
    rng = np.random.default_rng(9)
    features = torch.tensor(rng.integers(-99, 99, (2, 4, 9, 9)), dtype=dtype)
    rois = torch.tensor(random_rois(rng, 40, 2, 70, 70))
    slope = torch.tensor(rng.integers(-8, 9, (40, 4, 3, 3)))
    expected = pooled_with_gradient(features.float(), rois, slope.float())
    for out, wanted in zip(pooled_with_gradient(features, rois, slope.to(dtype)), expected, strict=True):
        assert out.dtype == dtype
        assert torch.equal(out, wanted.to(dtype))


@pytest.mark.parametrize("channels", [1, 33, 131, 300])
def test_threads_change_nothing(channels):
    """Channels are shared out, also where their number is no multiple of anything."""
    rng = np.random.default_rng(10)
    features = torch.tensor(rng.standard_normal((2, channels, 9, 9)), dtype=torch.float32)
    rois = torch.tensor(random_rois(rng, 30, 2, 70, 70))
    slope = torch.randn(30, channels, 2, 3, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3, 8):
            torch.set_num_threads(number)
            results.append(pooled_with_gradient(features, rois, slope))
    finally:
        torch.set_num_threads(threads)
    expected = [pooled_with_gradient(f, rois, s) for f, s in zip(features.split(1, 1), slope.split(1, 1), strict=True)]
    for kind, parts in enumerate(zip(*expected, strict=True)):
        for result in results:
            assert torch.equal(result[kind], torch.cat(parts, 1))


def test_after_a_fork():
    """A worker process pools as its parent did before."""
    features, rois = torch.randn(1, 64, 9, 9), torch.tensor([[0, 0.0, 0, 60, 60]])
    expected = roi_pool(features, rois, 2, 2, 1 / 8)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(pooled_to_list, (features.tolist(), rois.tolist())).get(60)
    assert found == expected.tolist()


def pooled_to_list(features, rois):
    return roi_pool(torch.tensor(features), torch.tensor(rois), 2, 2, 1 / 8).tolist()


def test_gradient_is_the_derivative():
    rng = np.random.default_rng(7)
    features = torch.tensor(rng.permutation(2 * 2 * 6 * 7).reshape(2, 2, 6, 7) * 0.1, requires_grad=True)
    rois = torch.tensor(random_rois(rng, 5, 2, 6, 5)).double()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 2, 3, 1.0), (features,), eps=1e-3)


def test_no_rois():
    features = torch.zeros(1, 2, 4, 4, requires_grad=True)
    out = roi_pool(features, torch.zeros(0, 5), 3, 3, 1.0)
    assert out.shape == (0, 2, 3, 3)
    out.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("image", [-1, 2])
def test_an_image_that_is_not_there(image):
    with pytest.raises(ValueError, match="batch of 2 images"):
        roi_pool(torch.zeros(2, 1, 4, 4), torch.tensor([[image, 0.0, 0, 1, 1]]), 2, 2, 1.0)


def test_many_rois_go_in_parts(monkeypatch):
    """More cells than are listed at a time."""
    monkeypatch.setattr(module, "_CELLS_AT_A_TIME", 500)
    features = torch.randn(1, 256, 6, 6, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(random_rois(np.random.default_rng(8), 150, 1, 6, 6))
    parts = torch.cat([roi_pool(features, part, 7, 7, 1.0) for part in rois.split(10)])
    assert torch.equal(roi_pool(features, rois, 7, 7, 1.0), parts)


def test_module_is_the_function():
    features, rois = torch.randn(1, 2, 5, 5), torch.tensor([[0, 0.0, 0, 30, 30]])
    assert torch.equal(RoIPool(2, 2, 1 / 8)(features, rois), roi_pool(features, rois, 2, 2, 1 / 8))


@pytest.mark.parametrize("way", ["plain"], indirect=True)  # once
def test_without_numba():
    code = "import sys; sys.modules['numba'] = None\n"
    code += "import torch, ohem_caffe_port.ops as o\n"
    code += "print(o.roi_pool(torch.arange(16.).view(1, 1, 4, 4), torch.tensor([[0, 0., 0, 3, 3]]), 2, 2, 1.).tolist())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[[[[5.0, 7.0], [13.0, 15.0]]]]\n"


@pytest.mark.parametrize("way", ["numba"], indirect=True)
def test_where_nothing_can_be_written():
    """A read-only installation and no home: numba has no place for what it compiles, so every process compiles."""
    code = "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"
    code += "import torch, ohem_caffe_port.ops as o, ohem_caffe_port.ops.roi_pool_numba as n\n"
    code += "print(o.roi_pool(torch.arange(16.).view(1, 1, 4, 4), torch.tensor([[0, 0., 0, 3, 3]]), 2, 2, 1.).tolist())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[[[[5.0, 7.0], [13.0, 15.0]]]]\n"


SETTINGS = [
    Settings(7, 7, 1 / 16),
    Settings(2, 5, 1.5, 0.0, "all"),
    Settings(9, 8, 0.3, 0.25, "mscnn"),  # bins of two programs
    Settings(3, 3, 1 / 16, 0.25, "mscnn"),
    Settings(1, 2, 1.5, 0.25, "inside"),
]


def check_kernel(device):
    """The Triton kernel gives what the loop does, bit for bit."""
    from ohem_caffe_port.ops import roi_pool_triton

    rng = np.random.default_rng(11)
    for how in SETTINGS:
        rois = random_rois(rng, 6, 2, 11 / how.spatial_scale, 8 / how.spatial_scale)
        rois[:2, 1:] = rois[:2, [3, 4, 1, 2]]  # malformed
        rois[2:4, 1:] += rng.uniform(-8, 8, (2, 4)) / how.spatial_scale  # across the map's edge
        features = rng.integers(-20, 20, (2, 3, 8, 11)).astype(F32)  # with ties
        grad = rng.integers(-8, 9, (6, 3, how.pooled_h, how.pooled_w)).astype(F32)
        expected = slow_roi_pool(features, rois, *how[:3], grad, *how[3:])
        for dtype in (torch.float32,) if how.pooled_h != 3 else (torch.bfloat16, torch.float16, torch.float64):
            x, slope = torch.tensor(features, device=device).to(dtype), torch.tensor(grad, device=device).to(dtype)
            boxes = torch.tensor(rois, device=device)
            found = [roi_pool_triton.forward(x, boxes, how), roi_pool_triton.backward(x, boxes, slope, how)]
            torch.use_deterministic_algorithms(True)
            found.append(roi_pool_triton.backward(x, boxes, slope, how))
            torch.use_deterministic_algorithms(False)
            for out, wanted in zip(found, (*expected, expected[1]), strict=True):
                assert out.dtype == dtype
                np.testing.assert_array_equal(out.double().cpu(), torch.tensor(wanted).to(dtype).double())
    boxes[0, 0] = 2  # an image that is not there
    out = roi_pool_triton.forward(x, boxes, how)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()
    assert roi_pool_triton.backward(x, boxes, slope, how).isfinite().all()
    assert roi_pool_triton.forward(x, boxes[:0], how).shape == (0, 3, how.pooled_h, how.pooled_w)


@pytest.mark.parametrize("way", ["plain"], indirect=True)  # once
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_in_the_interpreter():
    code = "import test_roi_pool; test_roi_pool.check_kernel('cpu')"
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(sys.path), "PATH": "", "HOME": "/tmp"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, cwd=__file__.rpartition("/")[0], env=environment
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(way):
    check_kernel("cuda")
    features = torch.randn(2, 300, 38, 50, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(random_rois(np.random.default_rng(12), 500, 2, 800, 600))
    expected = roi_pool(features, rois, 7, 7, 1 / 16)  # in torch operations on the GPU, or in numba here
    assert torch.equal(roi_pool(features.cuda(), rois.cuda(), 7, 7, 1 / 16).cpu(), expected)
