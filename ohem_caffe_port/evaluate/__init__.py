"""From detections to average precision, from proposals to recall, and the files that keep detections."""

from .comp4 import ResultFiles, read_comp4, read_detections, write_comp4
from .recall import proposal_recall
from .results import apply_nms, load_detections, save_detections, voc_detections
from .voc import VocResult, average_precision, evaluate_voc, match_detections

__all__ = [
    "ResultFiles",
    "VocResult",
    "apply_nms",
    "average_precision",
    "evaluate_voc",
    "load_detections",
    "match_detections",
    "proposal_recall",
    "read_comp4",
    "read_detections",
    "save_detections",
    "voc_detections",
    "write_comp4",
]
