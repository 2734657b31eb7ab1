"""A test net over a whole data set: detections of every image, and their average precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .config import Config
from .data.minibatch import read_image
from .data.pascal_voc import read_annotation
from .detect import detections_by_class, detector_form, im_detect
from .errors import PortError
from .evaluate import VocResult, evaluate_voc, read_comp4
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
            dets = detections_by_class(*im_detect(net, image, proposals[i], cfg), cfg, **limits)
        for cls, found in enumerate(dets):
            all_boxes[cls].append(found)
        on_image(i, image, dets)
    return all_boxes


test_net.__test__ = False  # the original's name; not a test case


def evaluate_results(folder, imdb, *, ovthresh: float = 0.5) -> VocResult | None:
    """Average precision of the comp4 files in ``folder`` (scores rounded as the original rounds them, so its numbers).

    The rule is the data set's: 11 points before VOC 2010, the area under the curve from then on. None when the ground
    truth was never published.
    """
    if not imdb.has_ground_truth:
        return None
    annotations = {name: read_annotation(imdb.annotation_path_at(i)) for i, name in enumerate(imdb.image_index)}
    detections = read_comp4(folder, image_set=imdb.image_set)
    return evaluate_voc(detections, annotations, imdb.classes, ovthresh=ovthresh, use_07_metric=imdb.use_07_metric)
