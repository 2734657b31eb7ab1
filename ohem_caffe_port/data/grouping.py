"""Object proposals from colour and edges, for machines whose OpenCV lacks the contrib module's selective search.

The idea of selective search (Uijlings et al., IJCV 2013): cut the image into small regions along its edges, then merge
the most similar neighbours again and again; the bounding box of every region that existed on the way is a proposal.
Here a watershed makes the regions, and the merging repeats for several colour spaces, region sizes and similarities.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

COLOUR_BINS = 25  # per channel
MAX_AREA = 400 * 300  # larger images are shrunk first: regions need no finer pixels
MIN_SIDE = 16  # smaller proposals are dropped

# colour space, side of a seed's cell in pixels, what regions are compared by beside their size and fill
STRATEGIES = (
    ("lab", 16, ("colour", "texture")),
    ("chroma", 16, ("colour", "texture")),
    ("bgr", 20, ("texture",)),
    ("bgr", 16, ()),
    ("chroma", 20, ("colour",)),
    ("hsv", 18, ("colour",)),
)


def colour_edge_proposals(image_bgr: np.ndarray, max_boxes: int = 2000, *, strategies=STRATEGIES) -> np.ndarray:
    """Boxes [N, 4] uint16 (x1 y1 x2 y2, zero-based inclusive) of ``image_bgr`` [H, W, 3] uint8, last merged first.

    Deterministic; N is at most ``max_boxes``; sides are at least 16 pixels. Fewer ``strategies`` are quicker.
    """
    height, width = image_bgr.shape[:2]
    scale = min(1.0, (MAX_AREA / (height * width)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.GaussianBlur(cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), (0, 0), 0.8)
    spaces = {
        "bgr": image,
        "lab": cv2.cvtColor(image, cv2.COLOR_BGR2LAB),
        "hsv": cv2.cvtColor(image, cv2.COLOR_BGR2HSV),
        "chroma": (image * (255 / (image.sum(axis=2, keepdims=True) + 1.0))).astype(np.uint8),
    }
    texture = _texture(image)

    ranks, boxes = [], []
    for space, cell, compared in strategies:
        labels = _regions(spaces[space], cell)
        codes = {"colour": spaces[space].astype(np.int64) * COLOUR_BINS // 256, "texture": texture}
        grouped = _group(labels, [_histograms(labels, codes[name]) for name in compared])
        boxes.append(grouped[::-1])
        ranks.append(np.arange(len(grouped)))
    boxes = np.concatenate(boxes)[np.argsort(np.concatenate(ranks), kind="stable")]
    return _to_pixels(boxes, size, (width, height))[:max_boxes]


def _to_pixels(boxes: np.ndarray, size, full_size) -> np.ndarray:
    """Boxes with exclusive ends in an image of ``size`` -> distinct inclusive uint16 boxes in one of ``full_size``."""
    limits = np.array(full_size * 2)
    boxes = np.rint(boxes * (limits / np.array(size * 2))).astype(np.int64)
    boxes = np.minimum(boxes, limits) - (0, 0, 1, 1)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] + 1 >= MIN_SIDE).all(axis=1)]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)].astype(np.uint16)


def _regions(image: np.ndarray, cell: int) -> np.ndarray:
    """Labels [H, W] from 0: a watershed that starts at the flattest pixel of every ``cell`` x ``cell`` square."""
    height, width = image.shape[:2]
    edges = sum(np.abs(cv2.Sobel(image, cv2.CV_32F, dx, 1 - dx)).sum(axis=2) for dx in (0, 1))
    rows = np.linspace(0, height, max(1, height // cell) + 1).astype(int)
    columns = np.linspace(0, width, max(1, width // cell) + 1).astype(int)
    markers = np.zeros((height, width), dtype=np.int32)
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        for left, right in zip(columns[:-1], columns[1:], strict=True):
            y, x = divmod(int(edges[top:bottom, left:right].argmin()), right - left)
            markers[top + y, left + x] = top * width + left + 1
    cv2.watershed(image, markers)
    borders = markers <= 0  # between regions, and around the image
    if borders.all():
        return np.zeros((height, width), dtype=np.int64)  # too small an image for one region
    nearest = ndimage.distance_transform_cdt(borders, return_distances=False, return_indices=True)
    labels = markers[tuple(nearest)]
    lookup = np.cumsum(np.bincount(labels.ravel()) > 0) - 1  # a seed at the image's edge is lost: close the gaps
    return lookup[labels]


def _texture(image: np.ndarray) -> np.ndarray:
    """[H, W, 1] codes of the gradient: 0 where it is flat, else one of 3 strengths x 8 directions."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    strength, angle = cv2.cartToPolar(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    direction = (angle * (8 / (2 * np.pi))).astype(np.int64) % 8
    strength = np.digitize(strength, (16, 48, 110))
    return np.where(strength == 0, 0, 1 + (strength - 1) * 8 + direction)[..., None]


def _histograms(labels: np.ndarray, codes: np.ndarray, bins: int = COLOUR_BINS) -> np.ndarray:
    """[R, channels * bins] float32: how often each code occurs in each region; a row sums to 1."""
    num = labels.max() + 1
    counts = [
        np.bincount((labels * bins + codes[..., c]).ravel(), minlength=num * bins).reshape(num, bins)
        for c in range(codes.shape[2])
    ]
    counts = np.concatenate(counts, axis=1).astype(np.float32)
    return counts / counts.sum(axis=1, keepdims=True)


def _group(labels: np.ndarray, histograms: list[np.ndarray]) -> np.ndarray:
    """Boxes (exclusive ends) of all regions of ``labels`` and of their successive merges, in that order.

    Two neighbours are alike when their histograms intersect, when they are small, and when together they fill their
    box: the measures of Uijlings et al., section 3.2, size counted twice. A merge keeps one of the two indices.
    """
    num, area = int(labels.max()) + 1, labels.size
    sizes = np.bincount(labels.ravel(), minlength=num).astype(np.float64)
    boxes = np.array(
        [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels + 1)], dtype=np.float64
    )
    features = np.concatenate(histograms, axis=1) if histograms else np.zeros((num, 0), dtype=np.float32)
    adjacent = np.zeros((num, num), dtype=bool)
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        adjacent[a, b] = adjacent[b, a] = True
    np.fill_diagonal(adjacent, False)

    def similarity(i, others):
        alike = np.minimum(features[i], features[others]).sum(axis=1)
        joined = np.maximum(boxes[i, 2:], boxes[others, 2:]) - np.minimum(boxes[i, :2], boxes[others, :2])
        together = sizes[i] + sizes[others]
        return alike - 2 * together / area - (joined.prod(axis=1) - together) / area

    table = np.full((num, num), -np.inf, dtype=np.float32)
    for i in range(num):
        others = np.flatnonzero(adjacent[i])
        table[i, others] = similarity(i, others)
    best = table.max(axis=1)  # per row, so that a step costs O(R) and not O(R^2)
    found = [boxes.copy()]
    for _ in range(num - 1):
        i = int(best.argmax())
        j = int(table[i].argmax())
        share = sizes[i] / (sizes[i] + sizes[j])
        features[i] = share * features[i] + (1 - share) * features[j]
        sizes[i] += sizes[j]
        boxes[i] = (*np.minimum(boxes[i, :2], boxes[j, :2]), *np.maximum(boxes[i, 2:], boxes[j, 2:]))
        found.append(boxes[i : i + 1].copy())

        neighbours = adjacent[i] | adjacent[j]
        neighbours[[i, j]] = False
        adjacent[j] = adjacent[:, j] = False
        adjacent[i] = adjacent[:, i] = neighbours
        for gone in (i, j):
            table[gone] = table[:, gone] = -np.inf
        others = np.flatnonzero(neighbours)
        table[i, others] = table[others, i] = similarity(i, others)
        best[j] = -np.inf
        best[i] = table[i].max()
        best[others] = table[others].max(axis=1)
    return np.concatenate(found)
