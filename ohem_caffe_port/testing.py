"""A test net over a whole data set: detections of every image, and their average precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .config import Config
from .data.coco import Coco
from .data.imdb import UnionImdb
from .data.minibatch import read_image
from .detect import detections_by_class, detector_form, im_detect
from .errors import PortError
from .evaluate import VocResult, evaluate_voc, read_comp4, write_comp4
from .evaluate.coco import CocoResult, evaluate_coco, read_coco_results, write_coco_results
from .net import Net
from .single_shot import detection_layer, im_detect_rows, rows_by_class


def test_net(
    net: Net,
    imdb,
    cfg: Config,
    *,
    thresh: float = 0.05,
    max_per_image: int = 100,
    on_image: Callable[[int, np.ndarray, list[np.ndarray]], None] = lambda i, image, dets: None,
) -> list[list[np.ndarray]]:
    """Detections of all images of ``imdb``: ``all_boxes[class][image]`` is ``[N, 5]`` ``(x1, y1, x2, y2, score)``.

    Proposals are the roidb's boxes that are no ground truth, as in the original's ``test_net``, or the net's own. A net
    that ends in DetectionOutput takes images alone.

    Args:
        thresh, max_per_image: see :func:`detections_by_class`.
        on_image: called after each image with its number, pixels and detections by class.

    Raises:
        PortError: an image without proposals, or a net with another number of classes than the data set.
    """
    shot = detection_layer(net)
    form = None if shot else detector_form(net, cfg)
    classes = shot.param.detection_output_param.num_classes if shot else form.classes
    if classes != imdb.num_classes:
        raise PortError(
            f"the net scores {classes} classes, {imdb.name} has {imdb.num_classes} (background included)",
            file=net.source,
            hint="give the data set that the net was trained for",
        )
    proposals: list = [None] * imdb.num_images
    if form and not form.has_rpn:
        proposals = [entry["boxes"][entry["gt_classes"] == 0] for entry in imdb.roidb]
        for i, boxes in enumerate(proposals):
            if not len(boxes):
                hint = "give proposals for this image set"
                raise PortError(f"image {imdb.image_index[i]} has no proposals", hint=hint)
    all_boxes: list[list[np.ndarray]] = [[] for _ in range(imdb.num_classes)]
    limits = {"thresh": thresh, "max_per_image": max_per_image}
    for i in range(imdb.num_images):
        image = read_image(imdb.image_path_at(i))
        if shot:
            dets = rows_by_class(im_detect_rows(net, image, cfg), classes, **limits)
        else:
            found = im_detect(net, image, proposals[i], cfg, thresh=thresh)
            dets = detections_by_class(*found, cfg, **limits)
        for cls, found in enumerate(dets):
            all_boxes[cls].append(found)
        on_image(i, image, dets)
    return all_boxes


test_net.__test__ = False  # the original's name; not a test case


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
