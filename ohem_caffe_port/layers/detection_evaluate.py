"""DetectionEvaluate: detections judged against ground truth, for the solver's mAP."""

from __future__ import annotations

import torch

from ..evaluate.ssd_files import output_boxes, read_name_sizes
from ..ops import jaccard_overlap
from ..ops.mscnn import overlap as pixel_overlap
from .base import Layer, register


@register("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Marks each detection as true or false positive: top rows ``(image, label, score, true, false)``.

    Before them comes one row ``(-1, label, number of ground truths, -1, -1)`` for each class but the background. A
    detection is true when the ground truth of its image and label that it overlaps most, by at least
    ``overlap_threshold``, has not been found by one with a greater score; of difficult ground truth, unless
    ``evaluate_difficult_gt``, it is neither. Rows are sorted by image and label, and by falling score where there is
    ground truth to compare with.

    SSD's (weiliu89/caffe): bottoms detections ``[1, 1, N, 7]`` of DetectionOutput (label -1 is none) and ground truth
    ``[1, 1, G, 8]`` (``image label _ x1 y1 x2 y2 difficult``, up to the first image -1), both in units of the image;
    top ``[1, 1, R, 5]``. With ``name_size_file`` both are scaled to pixels first (:func:`output_boxes`), with its next
    line for every image that has detections. cascade-rcnn's, known by its third bottom, the images' sizes
    ``[B, 2]`` (height, width): rows are ``(image, x1, y1, x2, y2, label, score)`` and ``(image, x1, y1, x2, y2, label,
    ignored, difficult)``, pixels, scaled by ``name_size_file``'s size over the bottom's; top ``[R, 5, 1, 1]``.
    """

    fields = {
        "detection_evaluate_param": {
            "num_classes", "background_label_id", "overlap_threshold", "evaluate_difficult_gt", "name_size_file",
            "resize_param",
        }
    }  # fmt: skip
    num_bottoms = (2, 3)
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p, name = self.param.detection_evaluate_param, "detection_evaluate_param."
        if p.num_classes < 1:
            raise self.error("must be given, and at least 1", field=name + "num_classes")
        if p.overlap_threshold <= 0:
            raise self.error("must be positive", field=name + "overlap_threshold")
        self.pixels = len(bottoms) == 3
        if self.pixels and not p.name_size_file:
            raise self.error(
                "must be given where the third bottom has the images' sizes", field=name + "name_size_file"
            )
        self.background = 0 if self.pixels else p.background_label_id
        self.sizes: list[tuple[str, int, int]] | None = None
        self.image = 0  # so many images have passed, of those in name_size_file

    def infer(self, bottoms):
        rows = self._rows(bottoms[0], 7).shape[0] + len(self._classes())
        self._rows(bottoms[1], 8)
        return [torch.empty((rows, 5, 1, 1) if self.pixels else (1, 1, rows, 5), device="meta")]

    def _classes(self) -> list[int]:
        return [c for c in range(self.param.detection_evaluate_param.num_classes) if c != self.background]

    def _rows(self, blob, width):
        axis = 1 if self.pixels else -1
        if blob.dim() < 2 or blob.shape[axis] != width:
            raise self.error(f"rows have {width} values, on axis {axis}, not {tuple(blob.shape)}")
        return blob.reshape(-1, width)

    @torch.no_grad()
    def forward(self, bottoms):
        p = self.param.detection_evaluate_param
        found, truth = (self._rows(b, width).cpu() for b, width in zip(bottoms[:2], (7, 8), strict=True))
        if self.pixels:
            found, truth = found[:, [0, 5, 6, 1, 2, 3, 4]], truth[:, [0, 5, 6, 1, 2, 3, 4, 7]]
        elif (truth[:, 0] == -1).any():
            truth = truth[: int((truth[:, 0] == -1).nonzero()[0])]
        found, truth = found[found[:, 0] != -1], truth[truth[:, 0] != -1]
        self._check_labels(found, truth)
        images = found[:, 0].long().unique().tolist()  # sorted
        boxes, areas, true_boxes, true_areas = self._scaled(found, truth, images, bottoms)
        real = found[:, 1] != -1
        found, boxes, areas = found[real], boxes[real], areas[real]

        same = (found[:, None, :2].long() == truth[None, :, :2].long()).all(2)
        comparable = same.any(1)
        order = torch.where(comparable, found[:, 2], 0).argsort(descending=True, stable=True)
        for column in (1, 0):
            order = order[found[order, column].long().argsort(stable=True)]
        found, same, comparable = found[order], same[order], comparable[order]
        overlaps = self._overlaps(boxes[order], areas[order], true_boxes, true_areas)
        overlaps = torch.cat((overlaps.where(same, -1), overlaps.new_full((len(found), 1), -1.0)), 1)
        most, target = overlaps.max(1)
        hit = most >= p.overlap_threshold
        difficult = torch.cat((truth[:, 7] != 0, torch.tensor([False])))
        counted = hit & (~difficult[target] | p.evaluate_difficult_gt)
        place = torch.arange(len(found))
        first = torch.full((len(difficult),), len(found))
        first.scatter_reduce_(0, target[counted], place[counted], "amin")
        true = counted & (first[target] == place)
        false = ~hit | (counted & ~true)

        easy = torch.ones(len(truth), dtype=torch.bool) if p.evaluate_difficult_gt else ~difficult[:-1]
        classes = torch.tensor(self._classes())
        number = (truth[easy, 1].long()[:, None] == classes).sum(0)
        none = torch.full_like(classes, -1)
        heads = torch.stack((none, classes, number, none, none), 1).float()
        rows = torch.cat((heads, torch.cat((found[:, :3], true[:, None], false[:, None]), 1)))
        rows = rows.to(bottoms[0].device)
        return [rows[..., None, None] if self.pixels else rows[None, None]]

    def _check_labels(self, found, truth) -> None:
        for rows, what in ((found, "detection"), (truth, "ground truth")):
            if (rows[:, 1].long() == self.background).any():
                raise self.error(f"a {what} has the background's label, {self.background}")

    def _scaled(self, found, truth, images, bottoms):
        """Boxes and areas of both in the units in which they are compared."""
        p = self.param.detection_evaluate_param
        boxes, true_boxes = found[:, 3:7].clone(), truth[:, 3:7].clone()
        areas, true_areas = boxes.new_zeros(len(boxes)), boxes.new_zeros(len(true_boxes))
        if not p.name_size_file:
            return boxes, areas, true_boxes, true_areas
        if self.sizes is None:
            self.sizes = read_name_sizes(p.name_size_file)
            if not self.sizes:
                raise self.error("lists no image", field="detection_evaluate_param.name_size_file")
        resize = p.resize_param if p.HasField("resize_param") else None
        for image in images:
            _, height, width = self.sizes[self.image]
            self.image = (self.image + 1) % len(self.sizes)
            for of, all_boxes, all_areas in ((found, boxes, areas), (truth, true_boxes, true_areas)):
                mine = of[:, 0].long() == image
                if self.pixels:
                    if not 0 <= image < len(bottoms[2]):
                        raise self.error(f"no size for image {image}", field="bottom[2]")
                    size = bottoms[2].reshape(-1, 2)[image].cpu()
                    all_boxes[mine] *= (torch.tensor([height, width]) / size).flip(0).repeat(2)
                else:
                    scaled, area = output_boxes(all_boxes[mine].numpy(), height, width, resize)
                    all_boxes[mine], all_areas[mine] = torch.from_numpy(scaled), torch.from_numpy(area)
        return boxes, areas, true_boxes, true_areas

    def _overlaps(self, boxes, areas, others, other_areas):
        if self.pixels:
            return pixel_overlap(boxes[:, None], others[None], edges="corners")
        if not self.param.detection_evaluate_param.name_size_file:
            return jaccard_overlap(boxes, others)
        # JaccardOverlap of boxes in pixels: those that do not meet share the one pixel 0 to 0
        low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
        size = torch.where((high >= low).all(2, keepdim=True), high - low, 0) + 1
        inter = size.prod(2)
        return inter / (areas[:, None] + other_areas[None, :] - inter)
