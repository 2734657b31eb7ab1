"""A test net over a whole data set: detections of every image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import distributed
from .config import Config
from .data.images import images_ahead
from .detect import detections_by_class, detector_form, im_detect
from .errors import PortError
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
) -> list[list[np.ndarray]] | None:
    """Detections of all images of ``imdb``: ``all_boxes[class][image]`` is ``[N, 5]`` ``(x1, y1, x2, y2, score)``.

    Of several processes each tests its :func:`~ohem_caffe_port.distributed.shard` of the images; the first one gets the
    detections of all, the others None.

    Proposals are the roidb's boxes that are no ground truth, as in the original's ``test_net``, or the net's own. A net
    that ends in DetectionOutput takes images alone.

    Args:
        thresh, max_per_image: see :func:`detections_by_class`.
        on_image: called after each image (of this process) with its number, pixels and detections by class.

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
    done: list[list[np.ndarray]] = []
    limits = {"thresh": thresh, "max_per_image": max_per_image}
    own = distributed.shard(imdb.num_images)
    for i, image in zip(own, images_ahead(map(imdb.image_path_at, own)), strict=True):
        if shot:
            dets = rows_by_class(im_detect_rows(net, image, cfg), classes, **limits)
        else:
            found = im_detect(net, image, proposals[i], cfg, thresh=thresh)
            dets = detections_by_class(*found, cfg, **limits)
        done.append(dets)
        on_image(i, image, dets)
    done = distributed.gathered(done)
    return None if done is None else [[dets[cls] for dets in done] for cls in range(imdb.num_classes)]


test_net.__test__ = False  # the original's name; not a test case
