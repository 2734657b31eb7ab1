"""Pictures of detections."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np


def class_colour(index: int, count: int) -> tuple[int, int, int]:
    """A BGR colour of its own for each of ``count`` classes."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(count, 1), 0.9, 1.0)
    return int(blue * 255), int(green * 255), int(red * 255)


def draw_detections(image: np.ndarray, dets: list[np.ndarray], classes, thresh: float = 0.5) -> np.ndarray:
    """A copy of ``image`` (``[H, W, 3]`` uint8 BGR) with a labelled box for every detection above ``thresh``.

    Args:
        dets: for every class ``[N, 5]`` ``(x1, y1, x2, y2, score)``, as from ``detections_by_class``.
        classes: names, background first.
    """
    picture = np.ascontiguousarray(image)
    if picture is image:
        picture = image.copy()
    size = max(0.35, min(image.shape[:2]) / 900)
    found = [(det, cls) for cls, rows in enumerate(dets) for det in rows if det[4] >= thresh]
    for det, cls in sorted(found, key=lambda item: item[0][4]):  # the best is drawn last, on top
        colour = class_colour(cls - 1, len(classes) - 1)
        x1, y1, x2, y2 = (round(float(v)) for v in det[:4])
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 2)
        label = f"{classes[cls]} {det[4]:.2f}"
        (width, height), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        left, top = min(x1, max(0, image.shape[1] - width)), max(y1, height + base)
        cv2.rectangle(picture, (left, top - height - base), (left + width, top), colour, cv2.FILLED)
        cv2.putText(picture, label, (left, top - base // 2), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
