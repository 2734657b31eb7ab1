"""RoI max pooling on CPUs, compiled by numba.

All channels of a bin are compared at once: a cell's channels lie side by side, some at a time, so that these channels
of the whole map stay in a core's cache. Threads share out the channels, so no two of them write to one place, and a
gradient is summed in the order of RoIs and bins whatever their number. The first calls in a new installation take about
4 seconds more, to compile; the result is kept beside this file or in the user's cache directory (``NUMBA_CACHE_DIR``),
and later processes take half a second to load it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from .roi_bins import Settings, find_bins

_LEAST, _MOST = 32, 128  # channels at a time: fewer cost too much for each cell, more do not stay in cache


def forward(features: Tensor, rois: Tensor, how: Settings) -> Tensor:
    """:func:`~ohem_caffe_port.ops.roi_pool` of float32 or float64 features."""
    pooled = features.new_empty((len(rois), features.shape[1], how.pooled_h, how.pooled_w))
    _run(_pool, features, rois, how, pooled)
    return pooled


def backward(features: Tensor, rois: Tensor, grad: Tensor, how: Settings) -> Tensor:
    """The gradient of ``features``, for that of the result."""
    sums = features.new_empty(features.shape)
    _run(_add_gradients, features, rois, how, grad.contiguous(), sums)
    return sums


def _run(kernel, features, rois, how, *blobs) -> None:
    """On Python's threads, for a kernel lets go of its lock. Unlike numba's own they bear ``fork``, torch's beside them
    and several callers. No operation of torch runs on several threads before: its idle threads would keep the cores."""
    bins = find_bins(rois, features.shape, how)
    arrays = [t.numpy() for t in (*bins, *(blob.flatten(2) for blob in (features.detach().contiguous(), *blobs)))]
    channels = features.shape[1]
    threads = max(1, min(torch.get_num_threads(), channels // _LEAST))
    blocks = threads * -(-channels // (_MOST * threads))
    edges = [channels * k // blocks for k in range(blocks + 1)]
    parts = iter(list(zip(edges[:-1], edges[1:], strict=True)))

    def work():
        for first, end in parts:  # whoever is ready takes the next
            kernel(first, end, *features.shape[2:], *arrays)

    with ThreadPoolExecutor() as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
    for other in others:
        other.result()


def _compiled(function):
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no place that can be written to: every process compiles
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _cells(features, first, end):
    """These channels of ``[N, C, H*W]``, side by side: ``[N*H*W, end - first]``."""
    batch, _, size = features.shape
    cells = np.empty((batch * size, end - first), features.dtype)
    for image in range(batch):
        rows = cells[image * size : (image + 1) * size]
        for c in range(end - first):
            plane = features[image, first + c]
            for k in range(size):
                rows[k, c] = plane[k]
    return cells


@_compiled
def _keep_larger(largest, cells):
    for k in range(len(cells)):
        for c in range(len(largest)):
            largest[c] = cells[k, c] if cells[k, c] > largest[c] else largest[c]


@_compiled
def _pool(first, end, height, width, image, ys, xs, features, pooled):
    """The maxima of some channels: ``features`` ``[N, C, H*W]``, ``pooled`` ``[R, C, bins]``."""
    cells = _cells(features, first, end)
    best = np.empty((pooled.shape[2], end - first), cells.dtype)
    for r in range(len(image)):
        for k in range(len(best)):
            top, bottom = ys[r, k // xs.shape[1], :2]
            left, right = xs[r, k % xs.shape[1], :2]
            if top >= bottom or left >= right:
                best[k] = 0
                continue
            start = (image[r] * height + top) * width
            largest = best[k]
            largest[:] = cells[start + left]
            for row in range(start, start + (bottom - top) * width, width):
                _keep_larger(largest, cells[row + left : row + right])
        for c in range(end - first):
            for k in range(len(best)):
                pooled[r, first + c, k] = best[k, c]


@_compiled
def _find_larger(largest, at, cells, place):
    for k in range(len(cells)):
        here = np.int32(place + k)
        for c in range(len(largest)):
            larger = cells[k, c] > largest[c]
            largest[c] = cells[k, c] if larger else largest[c]
            at[c] = here if larger else at[c]


@_compiled
def _add_gradients(first, end, height, width, image, ys, xs, features, grad, sums):
    """Sums the gradients ``[R, C, bins]`` of some channels in ``sums`` ``[N, C, H*W]``."""
    cells = _cells(features, first, end)
    sums[:, first:end] = 0
    size, bins = end - first, xs.shape[1]
    largest, at = np.empty(size, cells.dtype), np.empty((bins, size), np.int32)
    for r in range(len(image)):
        slope = grad[r, first:end]
        image_cells = cells[image[r] * height * width : (image[r] + 1) * height * width]
        image_sums = sums[image[r], first:end]
        for i in range(ys.shape[1]):
            top, bottom, first_y, last_y = ys[r, i]
            for j in range(bins):
                left, right, first_x, last_x = xs[r, j]
                if top >= bottom or left >= right:
                    at[j] = -1
                    continue
                largest[:] = image_cells[top * width + left]
                at[j] = top * width + left
                for row in range(top * width, bottom * width, width):
                    _find_larger(largest, at[j], image_cells[row + left : row + right], row + left)
                if first_y > top or bottom > last_y or first_x > left or right > last_x:
                    for c in range(size):
                        y, x = at[j, c] // width, at[j, c] % width
                        if y < first_y or y >= last_y or x < first_x or x >= last_x:
                            at[j, c] = -1
            for c in range(size):
                for j in range(bins):
                    if at[j, c] >= 0:
                        image_sums[c, at[j, c]] += slope[c, i * bins + j]
