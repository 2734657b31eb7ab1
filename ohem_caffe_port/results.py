"""The detections of a data set as result files, and their average precision: by the rules of that data set.

Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path

from .data.coco import Coco
from .data.imdb import UnionImdb
from .errors import PortError
from .evaluate import VocResult, evaluate_voc, read_comp4, write_comp4
from .evaluate.coco import CocoResult, evaluate_coco, read_coco_results, write_coco_results


def write_results(folder, all_boxes, imdb) -> list[Path]:
    """Writes what ``imdb``'s evaluation reads, and returns the paths: VOC's comp4 files, or
    ``detections_<set><year>_results.json`` in COCO's form. The folder is created.

    Raises:
        PortError: a joined data set has no form of its own.
    """
    if isinstance(imdb, UnionImdb):
        raise PortError(f"'{imdb.name}' is several data sets: results are written for one")
    if not isinstance(imdb, Coco):
        return write_comp4(folder, all_boxes, imdb.image_index, imdb.classes, image_set=imdb.image_set)
    path = _coco_results(folder, imdb)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_coco_results(path, all_boxes, imdb.image_index, imdb.category_ids)
    return [path]


def evaluate_results(folder, imdb, *, ovthresh: float = 0.5) -> VocResult | CocoResult | None:
    """Average precision of the files that :func:`write_results` wrote into ``folder``; None when the ground truth was
    never published.

    VOC: scores are rounded in the files as the original rounds them, so its numbers. The rule is the data set's: 11
    points before VOC 2010, the area under the curve from then on. COCO has thresholds of its own, whatever
    ``ovthresh``.
    """
    if not imdb.has_ground_truth:
        return None
    if isinstance(imdb, Coco):
        return evaluate_coco(imdb.coco, read_coco_results(_coco_results(folder, imdb), imdb.coco)[0])
    detections = read_comp4(folder, image_set=imdb.image_set)
    rule = imdb.use_07_metric
    return evaluate_voc(detections, imdb.annotations(), imdb.classes, ovthresh=ovthresh, use_07_metric=rule)


def _coco_results(folder, imdb: Coco) -> Path:
    return Path(folder) / f"detections_{imdb.data_name}_results.json"
