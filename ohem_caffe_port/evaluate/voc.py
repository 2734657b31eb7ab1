"""Average precision of detections by PASCAL VOC's rules.

M. Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, as py-faster-rcnn's
``voc_eval.py`` applies them: detections in descending order of score; each belongs to the ground truth of its image
and class that it overlaps most; it is right when that overlap is above the threshold and the object was not found
before. Later finds of the same object are wrong. Objects marked difficult are not required, and finding them is
neither right nor wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import PortError

BACKGROUND = "__background__"


@dataclass
class VocResult:
    """Per class: ``ap`` by one of the two rules (see :func:`average_precision`), ``positives``, the number of objects
    that are not difficult, and the curve after each detection in descending order of score (float64 arrays).

    A class without positives has ap nan.
    """

    use_07_metric: bool
    ap: dict[str, float] = field(default_factory=dict)
    positives: dict[str, int] = field(default_factory=dict)
    recall: dict[str, np.ndarray] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, positives: int, recall: np.ndarray, precision: np.ndarray) -> None:
        """One more class, with its curve."""
        self.positives[name], self.recall[name], self.precision[name] = positives, recall, precision
        ap = average_precision(recall, precision, self.use_07_metric) if positives else float("nan")
        self.ap[name] = ap

    def by(self, use_07_metric: bool) -> VocResult:
        """The same curves by the rule that is asked for."""
        result = VocResult(use_07_metric)
        for name, positives in self.positives.items():
            result.add(name, positives, self.recall[name], self.precision[name])
        return result

    @property
    def mean(self) -> float:
        """The mean of ``ap`` over the classes that have ground truth; nan when none has."""
        known = [ap for ap in self.ap.values() if not np.isnan(ap)]
        return float(np.mean(known)) if known else float("nan")


def average_precision(recall: np.ndarray, precision: np.ndarray, use_07_metric: bool) -> float:
    """The average precision in [0, 1] of a curve given after each detection (``recall`` never falls).

    ``use_07_metric``: VOC 2007's mean, over recalls 0, 0.1, ..., 1, of the best precision at that recall or beyond.
    Otherwise VOC 2010's area under the curve, with precision made monotonic in the same way.
    """
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or beyond
    if use_07_metric:
        # Like np.arange(0, 1.1, 0.1) some of these lie an ulp above the decimal, 0.3 for one; published numbers do so.
        first_reaching = np.searchsorted(recall, np.arange(11) * 0.1)
        return float(np.cumsum(precision[first_reaching] / 11.0)[-1])  # elevenths, left to right: the same last bits
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))


def match_detections(
    scores, boxes, images, gt_boxes, gt_images, gt_difficult, ovthresh: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell right from wrong detections of one class, over all images at once.

    Args:
        scores [N], boxes [N, 4], images [N]: the detections; ``images`` are whole numbers.
        gt_boxes [M, 4], gt_images [M], gt_difficult [M] (bool): the ground truth.
        ovthresh: a match needs an overlap (intersection over union) strictly above it.

    Boxes are (x1, y1, x2, y2) pixels, inclusive, all zero-based or all one-based.

    Returns ``(order, right, wrong)``: ``order`` sorts the detections by descending score, equal scores staying in the
    given order; bool arrays ``right`` and ``wrong`` follow that order. A find of a difficult object is neither. Where a
    detection overlaps two objects equally, the earlier one counts.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)[order]
    images = np.asarray(images, np.int64)[order]
    by_image = np.argsort(gt_images, kind="stable")
    gt_boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)[by_image]
    gt_images = np.asarray(gt_images, np.int64)[by_image]
    gt_difficult = np.asarray(gt_difficult, bool)[by_image]

    overlap, gt = _best_overlaps(boxes, images, gt_boxes, gt_images)
    matched = np.flatnonzero(overlap > ovthresh)
    wrong = np.ones(len(boxes), bool)
    wrong[matched] = ~gt_difficult[gt[matched]]
    matched = matched[wrong[matched]]
    right = np.zeros(len(boxes), bool)
    right[matched[np.unique(gt[matched], return_index=True)[1]]] = True  # the first find of each object
    return order, right, wrong & ~right


def evaluate_voc(detections, annotations, classes, *, ovthresh: float = 0.5, use_07_metric: bool) -> VocResult:
    """Average precision of every class.

    Args:
        detections: {class: (image ids, scores [N], boxes [N, 4])}, what :func:`.comp4.read_comp4` and
            :func:`.results.voc_detections` return, or :class:`.comp4.ResultFiles`. A class that is absent has no
            detections.
        annotations: {image id: list of objects}, an object being a dict with ``name``, ``bbox`` and ``difficult``, as
            ``data.pascal_voc.read_annotation`` returns them. Its images are the image set.
        classes: the classes to evaluate; ``__background__`` is passed over.
        ovthresh: a match needs an overlap strictly above it.
        use_07_metric: see :func:`average_precision`; VOC uses it before 2010.

    Boxes are (x1, y1, x2, y2) pixels, inclusive, one-based as in VOC's files, on both sides.

    A class with ground truth but without detections has ap 0. For a class without ground truth the original script
    gives 0 or nan depending on the metric and lets a nan spoil the mean; here its ap is always nan and the mean leaves
    it out. Equal scores, ordered arbitrarily by the original, stay in the given order.

    Raises :class:`PortError` for detections on images without annotation, and for arrays that do not fit together.
    """
    image_numbers = {image: number for number, image in enumerate(annotations)}
    objects = _objects_by_class(annotations)
    result = VocResult(use_07_metric)
    for name in classes:
        if name == BACKGROUND:
            continue
        scores, boxes, images = _checked(name, detections.get(name, ([], [], [])), image_numbers)
        gt_images, gt_boxes, gt_difficult = objects.get(name, ([], [], []))
        _, right, wrong = match_detections(scores, boxes, images, gt_boxes, gt_images, gt_difficult, ovthresh)
        positives = len(gt_difficult) - sum(gt_difficult)
        found, missed = np.cumsum(right), np.cumsum(wrong)
        recall = found / positives if positives else np.full(len(found), np.nan)
        # Before the first right or wrong detection (only difficult ones found so far) precision is 0.
        result.add(name, positives, recall, found / np.maximum(found + missed, 1))
    return result


def pairs_within(groups: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one group: indices [P] into ``groups``, ascending, and into ``others``, whose numbers are sorted."""
    start = np.searchsorted(others, groups, "left")
    count = np.searchsorted(others, groups, "right") - start
    first = np.repeat(np.arange(len(groups)), count)
    return first, np.arange(len(first)) + np.repeat(start - (np.cumsum(count) - count), count)


def _best_overlaps(boxes, images, gt_boxes, gt_images) -> tuple[np.ndarray, np.ndarray]:
    """Overlap with, and index of, the ground truth each box overlaps most; (-inf, -1) where its image has none.

    ``gt_images`` is sorted.
    """
    overlap, best = np.full(len(boxes), -np.inf), np.full(len(boxes), -1)
    box, gt = pairs_within(images, gt_images)
    if not len(box):
        return overlap, best
    pairs = _overlaps(boxes[box], gt_boxes[gt])
    first = np.flatnonzero(np.diff(box, prepend=-1))  # of the pairs of each box
    overlap[box[first]] = np.maximum.reduceat(pairs, first)
    candidates = np.where(pairs == overlap[box], gt, len(gt_boxes))
    best[box[first]] = np.minimum.reduceat(candidates, first)
    return overlap, best


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [P, 4] pair by pair, inclusive pixels; nan for two boxes of no area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    shared = np.prod(np.maximum(sides, 0), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (_areas(a) + _areas(b) - shared)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def _objects_by_class(annotations) -> dict[str, tuple[list, list, list]]:
    """{class: (image numbers, boxes, difficult)} in the order of the annotations."""
    objects: dict[str, tuple[list, list, list]] = {}
    for number, image in enumerate(annotations.values()):
        for obj in image:
            images, boxes, difficult = objects.setdefault(obj["name"], ([], [], []))
            images.append(number)
            boxes.append(obj["bbox"])
            difficult.append(bool(obj["difficult"]))
    return objects


def _checked(name: str, detections, image_numbers: dict) -> tuple[np.ndarray, np.ndarray, list[int]]:
    ids, scores, boxes = detections
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    scores, boxes = np.asarray(scores, np.float64), np.asarray(boxes, np.float64)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if scores.ndim != 1 or boxes.shape != (len(scores), 4) or len(ids) != len(scores):
        raise PortError(
            f"detections of class '{name}' do not fit together: {len(ids)} images, scores {scores.shape}, "
            f"boxes {boxes.shape}",
            hint="Give N image ids, N scores and N x 4 boxes.",
        )
    numbers = [image_numbers.get(image, -1) for image in ids]
    strange = numbers.count(-1)
    if strange:
        raise PortError(
            f"{strange} of {len(ids)} detections of class '{name}' are on images without annotation, the first on "
            f"{ids[numbers.index(-1)]!r}",
            hint="Were the detections made on another image set?",
        )
    return scores, boxes, numbers
