"""Average precision from the rows of DetectionEvaluate, as SSD's solver computes it (``Solver::TestDetection``).

``ComputeAP`` of ``bbox_util.cpp`` of weiliu89/caffe, branch ssd, in single precision as there; ``101point`` is of
cascade-rcnn.
"""

from __future__ import annotations

import numpy as np

from ..errors import PortError

# ap_version -> number of recalls at which the best precision is read; None: an integral
VERSIONS = {"11point": 11, "101point": 101, "MaxIntegral": None, "Integral": None}
_F = np.float32
_EPSILON = 1e-6  # smaller steps of recall do not count


def average_precisions(rows: np.ndarray, version: str) -> dict[int, float | None]:
    """``{label: average precision}`` of every label that ``rows`` count ground truths of; None where nothing was found.

    Args:
        rows: ``[n, 5]`` of any number of images: ``(-1, label, number of ground truths, -1, -1)``, added up, and
            ``(image, label, score, true, false)``; neither true nor false is left out.
        version: one of :data:`VERSIONS`.

    Raises:
        PortError: a detection that is both true and false, or more that are true than there are ground truths.
    """
    heads = rows[:, 0].astype(int) == -1
    counts, found = rows[heads], rows[~heads]
    true, false = (found[:, column].astype(int) for column in (3, 4))
    judged = (true != 0) | (false != 0)
    if (true + false != 1)[judged].any():
        raise PortError("a row says that its detection is both true and false")
    result: dict[int, float | None] = {}
    for label in np.unique(counts[:, 1].astype(int)).tolist():
        own = judged & (found[:, 1].astype(int) == label)
        positives = int(counts[counts[:, 1].astype(int) == label, 2].astype(int).sum())
        ap = average_precision(found[own, 2], true[own] == 1, positives, version)
        result[label] = ap if own.any() else None
    return result


def average_precision(scores: np.ndarray, true: np.ndarray, positives: int, version: str) -> float:
    """Of one label: detections with a score each, true or false, and the number of ground truths.

    Detections are taken by falling score, equal ones as they come; recall and precision after each are the curve.
    ``11point`` (VOC 2007) and ``101point`` (COCO) mean, over the recalls 0, 0.1, ..., 1 (0, 0.01, ..., 1), the best
    precision at that recall or beyond; ``MaxIntegral`` (VOC 2012) integrates it, ``Integral`` the precision itself.

    Raises:
        PortError: more detections are true than there are ground truths.
    """
    if not len(scores) or not positives:
        return 0.0
    hits = np.cumsum(true[np.argsort(-scores, kind="stable")])
    if hits[-1] > positives:
        raise PortError(f"{hits[-1]} true detections of {positives} ground truths")
    precision = hits.astype(_F) / np.arange(1, len(hits) + 1, dtype=_F)
    recall = hits.astype(_F) / _F(positives)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    points = VERSIONS[version]
    if points is not None:
        falling = np.arange(points - 1, -1, -1) / (points - 1)
        first = np.searchsorted(recall.astype(float), falling)
        terms = np.append(best, _F(0))[first] / _F(points)
    else:
        steps = np.diff(recall, prepend=_F(0))
        terms = np.where(steps > _EPSILON, (best if version == "MaxIntegral" else precision) * steps, 0)
    return float(np.cumsum(terms, dtype=_F)[-1])  # one after the other, as the fork adds them up
