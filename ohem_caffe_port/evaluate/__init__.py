"""From detections to average precision, and the files that keep detections."""

from .results import load_detections, read_comp4, save_detections, voc_detections, write_comp4
from .voc import VocResult, average_precision, evaluate_voc, match_detections

__all__ = [
    "VocResult",
    "average_precision",
    "evaluate_voc",
    "load_detections",
    "match_detections",
    "read_comp4",
    "save_detections",
    "voc_detections",
    "write_comp4",
]
