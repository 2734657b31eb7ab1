"""The losses of YOLO heads: RegionLoss (v2) and Yolov3.

Both write down a gradient of their own, and the loss that they report is the sum of its squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.yolo import cell_boxes, centre_overlap
from .base import register
from .loss import LossLayer, given_gradient
from .yolo import anchors_of, head_of

_TRUTHS = 300  # rows for each image in MobileNet-YOLO's labels


def dense_truth(layer, blob: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """MobileNet-YOLO's labels: for each image 300 rows ``(class, x, y, w, h)``, centre and size in units of the image,
    up to the first without a width.

    Returns:
        image ``[T]``, class ``[T]`` and box ``[T, 4]`` of every object.

    Raises:
        PortError: a blob of another size.
    """
    if blob.numel() != batch * _TRUTHS * 5:
        raise layer.error(f"labels hold {batch} x {_TRUTHS} x 5 numbers, not {tuple(blob.shape)}", field="bottom[1]")
    rows = blob.detach().reshape(batch, _TRUTHS, 5)
    there = (rows[..., 3] != 0).long().cumprod(1).bool()
    return there.nonzero()[:, 0], rows[there][:, 0].long(), rows[there][:, 1:]


def sparse_truth(layer, blob: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """AnnotatedData's labels, rows ``(image, label, _, x1, y1, x2, y2, difficult)`` with labels from 1, in the form of
    :func:`dense_truth`."""
    rows = blob.detach().reshape(-1, 8)
    rows = rows[rows[:, 0].trunc() != -1]
    image = rows[:, 0].long()
    if ((image < 0) | (image >= batch)).any():
        raise layer.error(f"ground truth of an image that is not in a batch of {batch}", field="bottom[1]")
    boxes = torch.cat(((rows[:, 3:5] + rows[:, 5:7]) / 2, rows[:, 5:7] - rows[:, 3:5]), 1)
    order = image.argsort(stable=True)
    return image[order], rows[order, 1].long() - 1, boxes[order]


class _YoloLoss(LossLayer):
    """A subclass sets ``boxes`` (of a cell), ``classes`` and ``anchors`` ``[A, 2]``."""

    def infer(self, bottoms):
        head_of(self, bottoms[0], self.boxes, 5 + self.classes)
        return [torch.empty((), device="meta")]

    def truth(self, bottoms) -> tuple[Tensor, Tensor, Tensor]:
        sparse = bottoms[1].shape[-1:] == (8,)
        image, label, box = (sparse_truth if sparse else dense_truth)(self, bottoms[1], len(bottoms[0]))
        if ((label < 0) | (label >= self.classes)).any():
            wrong = label[(label < 0) | (label >= self.classes)][0].item()
            raise self.error(f"class {wrong} (from 0) in a net of {self.classes}", field="bottom[1]")
        return image, label, box

    def best_overlap(self, boxes: Tensor, image: Tensor, truth: Tensor) -> Tensor:
        """The largest IoU of each predicted box ``[B, n, 4, H, W]`` with its image's objects: ``[B, n, H, W]``."""
        batch, count, _, *cells = boxes.shape
        flat, best = boxes.permute(0, 1, 3, 4, 2).reshape(batch, -1, 4), boxes.new_zeros(batch, count, *cells)
        for b in range(batch):
            mine = truth[image == b]
            if len(mine):
                best[b] = centre_overlap(flat[b], mine).amax(1).view(count, *cells)
        return best


def _cell(at: Tensor, cells: int) -> Tensor:
    return (at * cells).long().clamp(0, cells - 1)


def _shape_overlap(sizes: Tensor, truth: Tensor) -> Tensor:
    """IoU of sizes ``[..., N, 2]`` with objects ``[..., K, 4]``, all around one centre."""
    centred = [torch.cat((torch.zeros_like(size), size), -1) for size in (sizes, truth[..., 2:])]
    return centre_overlap(*centred)


def _last(place: Tensor, size: int) -> Tensor:
    """Which of the entries of ``place`` ``[E]`` is the last at its place, as a mask."""
    entry = torch.arange(len(place), device=place.device)
    last = torch.full((size,), -1, device=place.device).scatter_reduce_(0, place, entry, "amax")
    return last[place] == entry


@register("RegionLoss")
class RegionLoss(_YoloLoss):
    """The loss of a YOLO v2 head, of MobileNet-YOLO or of Intel's fork (YOLO9000, Redmon and Farhadi, CVPR 2017).

    Bottoms: the head ``[B, num (5 + num_class), S, S]`` and labels. Those of MobileNet-YOLO have 300 rows ``(class, x,
    y, w, h)`` an image, those of Intel's fork are AnnotatedData's rows of 8; which fork's loss it is goes by that.

    The objectness of every box should be 0, unless the box overlaps an object by more than ``thresh``. The box of each
    object's cell whose anchor (``biases``, in cells; with ``bias_match: 0`` whose prediction) is nearest to its shape
    should have its place, its size, an objectness of 1 (with ``rescore`` the IoU) and its class; of two objects with
    one box the later counts. Each error, times its ``..._scale`` and the slope of its sigmoid, is the gradient, and the
    sum of squares is the loss; both over B, but Intel's loss is not divided. Without ``rescore`` the box counts
    ``2 - w h``-fold. Intel's cuts errors of the box at 1 and multiplies that of objectness by ``2 (1 - p)^2``; it does
    not read ``rescore``.
    """

    fields = {
        "region_loss_param": {
            "side", "num_class", "bias_match", "coords", "num", "softmax", "jitter", "rescore", "object_scale",
            "class_scale", "noobject_scale", "coord_scale", "absolute", "thresh", "random", "biases",
        }
    }  # fmt: skip

    def setup(self, bottoms):
        p = self.param.region_loss_param
        if p.coords != 4:
            raise self.error("a box has 4", field="region_loss_param.coords")
        self.boxes, self.classes = p.num, p.num_class
        self.anchors = anchors_of(self, p, range(p.num), "region_loss_param")

    def infer(self, bottoms):
        if bottoms[0].dim() == 4 and bottoms[0].shape[2] != bottoms[0].shape[3]:
            raise self.error(f"takes square maps, not {tuple(bottoms[0].shape)}", field="bottom[0]")
        return super().infer(bottoms)

    def forward(self, bottoms):
        p, intel = self.param.region_loss_param, bottoms[1].shape[-1:] == (8,)
        self.infer(bottoms)
        head = head_of(self, bottoms[0], p.num, 5 + p.num_class).detach()
        batch, side = len(head), head.shape[-1]
        anchors = torch.as_tensor(self.anchors, device=head.device)
        image, label, truth = self.truth(bottoms)
        x = torch.sigmoid(head[:, :, :2])
        boxes = cell_boxes(x, head[:, :, 2:4], anchors, (side, side))
        objectness, classes = torch.sigmoid(head[:, :, 4]), torch.softmax(head[:, :, 5:], 2)

        slope = torch.zeros_like(head)
        slope[:, :, 4] = p.noobject_scale * objectness * objectness * (1 - objectness)
        slope[:, :, 4][self.best_overlap(boxes, image, truth) > p.thresh] = 0

        column, row = _cell(truth[:, 0], side), _cell(truth[:, 1], side)
        sizes = anchors / side if p.bias_match else boxes[image, :, 2:, row, column]
        anchor = _shape_overlap(sizes.expand(len(truth), -1, -1), truth[:, None]).amax(2).argmax(1)
        place = ((image * p.num + anchor) * side + row) * side + column
        last = _last(place, batch * p.num * side * side)
        image, label, truth, column, row, anchor = (of[last] for of in (image, label, truth, column, row, anchor))
        at = (image, anchor, slice(None), row, column)
        near = objectness[image, anchor, row, column]
        overlap = centre_overlap(boxes[at][:, None], truth[:, None])[:, 0, 0]
        offset = truth[:, :2] * side - torch.stack((column, row), 1)
        error = torch.cat((offset - x[at], torch.log(truth[:, 2:] * side / anchors[anchor]) - head[at][:, 2:4]), 1)
        scale = torch.full_like(near, p.coord_scale)
        wanted = torch.ones_like(near)
        if intel:
            error = error.clamp(-1, 1)
            confidence = p.object_scale * 2 * (1 - near) ** 3
        else:
            scale = scale if p.rescore else scale * (2 - truth[:, 2] * truth[:, 3])
            wanted = overlap if p.rescore else wanted
            confidence = p.object_scale * (wanted - near)
        error[:, :2] *= x[at] * (1 - x[at])
        kind = classes[at] - torch.nn.functional.one_hot(label, p.num_class)
        slope[at] = torch.cat(
            (-scale[:, None] * error, (-confidence * near * (1 - near))[:, None], p.class_scale * kind), 1
        )
        value = (slope * slope).sum()
        return [given_gradient(value if intel else value / batch, bottoms[0], (slope / batch).view_as(bottoms[0]))]


@register("Yolov3")
class Yolov3(_YoloLoss):
    """MobileNet-YOLO's loss of a YOLO v3 head (YOLOv3, Redmon and Farhadi, 2018), with ``iou_loss: MSE``.

    Bottoms: the head ``[B, num (5 + num_class), H, W]``, whose anchors are those that ``mask`` names (``biases``, in
    pixels; a cell has ``anchors_scale`` of them), and labels, 300 rows ``(class, x, y, w, h)`` an image.

    As RegionLoss, but classes are sigmoids of their own; an object belongs to the anchor of its shape among all
    ``biases``, if this head has that one, and to every anchor of this head that overlaps its shape by more than
    ``iou_thresh``; objects with one box add their classes up. ``use_logic_gradient`` brings in ``object_scale``, and
    multiplies the gradient, not the loss, by the slopes of the sigmoids; ``noobject_scale`` is not read. Classes aim at
    ``1 - e / 2`` and ``e / 2``, e the ``label_smooth_eps``. ``use_focal_loss`` multiplies the classes of a box's first
    object by ``-(1 - p) (2 p log p + p - 1) / 2``, p that of its class.
    """

    fields = {
        "yolov3_param": {
            "side", "num_class", "num", "object_scale", "class_scale", "noobject_scale", "coord_scale", "thresh",
            "anchors_scale", "biases", "mask", "use_logic_gradient", "use_focal_loss", "iou_loss", "iou_thresh",
            "label_smooth_eps", "iou_normalizer", "max_delta", "accumulate",
        }
    }  # fmt: skip

    def setup(self, bottoms):
        p = self.param.yolov3_param
        if p.iou_loss != p.MSE:
            raise self.error("only MSE is supported", field="yolov3_param.iou_loss")
        if len(p.mask) != p.num:
            raise self.error(f"{len(p.mask)} for {p.num} boxes of a cell", field="yolov3_param.mask")
        self.boxes, self.classes = p.num, p.num_class
        self.anchors = anchors_of(self, p, range(len(p.biases) // 2), "yolov3_param")
        anchors_of(self, p, p.mask, "yolov3_param")

    def forward(self, bottoms):
        p = self.param.yolov3_param
        self.infer(bottoms)
        head = head_of(self, bottoms[0], p.num, 5 + p.num_class).detach()
        batch, (height, width) = len(head), head.shape[-2:]
        anchors, mask = torch.as_tensor(self.anchors, device=head.device), list(p.mask)
        image_size = width * p.anchors_scale, height * p.anchors_scale
        size = head.new_tensor(image_size)
        image, label, truth = self.truth(bottoms)
        output = torch.sigmoid(head)
        output[:, :, 2:4] = head[:, :, 2:4]
        boxes = cell_boxes(output[:, :, :2], output[:, :, 2:4], anchors[mask], image_size)

        slope = torch.zeros_like(head)
        slope[:, :, 4] = output[:, :, 4]
        slope[:, :, 4][self.best_overlap(boxes, image, truth) > p.thresh] = 0

        object_, slot = self._owners(anchors, mask, size, truth)
        image, label, truth = image[object_], label[object_], truth[object_]
        column, row = _cell(truth[:, 0], width), _cell(truth[:, 1], height)
        at = (image, slot, slice(None), row, column)
        cells = truth.new_tensor([width, height])
        offset = truth[:, :2] * cells - torch.stack((column, row), 1)
        wanted = torch.cat((offset, torch.log(truth[:, 2:] * size / anchors[mask][slot])), 1)
        scale = p.coord_scale * (2 - truth[:, 2] * truth[:, 3])
        near = output[at]
        confidence = (near[:, 4] - 1) * (p.object_scale if p.use_logic_gradient else 1)
        place = ((image * p.num + slot) * height + row) * width + column
        last = _last(place, batch * p.num * height * width)
        at_last = tuple(of if isinstance(of, slice) else of[last] for of in at)
        values = torch.cat((scale[:, None] * (near[:, :4] - wanted), confidence[:, None]), 1)[last]
        slope[at_last] = torch.cat((values, self._class_slope(near[:, 5:], label, place)[last]), 1)

        value = (slope * slope).sum() / batch
        if p.use_logic_gradient:
            steep = output * (1 - output)
            steep[:, :, 2:4] = 1
            slope = slope * steep
        return [given_gradient(value, bottoms[0], (slope / batch).view_as(bottoms[0]))]

    def _owners(self, anchors, mask, size, truth):
        """``(object, slot)`` of every pair of an object and an anchor of this head that answers for it, in the fork's
        order: by object, the best anchor first."""
        p = self.param.yolov3_param
        overlap = _shape_overlap(anchors / size, truth).T  # [T, A]
        best = overlap.argmax(1) if len(truth) else torch.zeros(0, dtype=torch.long, device=truth.device)
        slots = torch.tensor([mask.index(a) if a in mask else -1 for a in range(len(anchors))], device=truth.device)
        chosen = torch.zeros(len(truth), 1 + len(anchors), dtype=torch.bool, device=truth.device)
        chosen[:, 0] = slots[best] >= 0
        if p.iou_thresh < 1:
            # the fork compares with the best anchor's slot, if this head has it
            taken = torch.where(slots[best] >= 0, slots[best], best)
            others = (overlap > p.iou_thresh) & (slots >= 0)
            chosen[:, 1:] = others & (torch.arange(len(anchors), device=truth.device) != taken[:, None])
        object_, which = chosen.nonzero().unbind(1)
        return object_, torch.where(which == 0, slots[best[object_]], slots[which - 1])

    def _class_slope(self, prob, label, place):
        """Gradient of each pair's classes ``[E, C]``, the same for all pairs of a box; the last one's is used."""
        p = self.param.yolov3_param
        smooth = p.label_smooth_eps
        one = torch.nn.functional.one_hot(label, p.num_class).to(prob)
        entry = torch.arange(len(place), device=place.device)
        same = place[:, None] == place
        if not len(place):  # no object belongs to this head
            return torch.zeros_like(prob)
        first = same & (entry == same.to(torch.uint8).argmax(1)[:, None])  # [E, E]: the first pair of each one's box
        positive = (same.to(prob) @ one).clamp(max=1)
        slope = p.class_scale * (prob - (positive * (1 - smooth) + 0.5 * smooth))
        if not p.use_focal_loss:
            return slope
        # the fork smooths no label of the first object and multiplies its classes; later ones set their own class
        initial = first.to(prob) @ one
        own = (prob * initial).sum(1, keepdim=True) + 1e-15
        focus = -(1 - own) * (2 * own * torch.log(own) + own - 1) * 0.5
        later = ((same & ~first).to(prob) @ one).clamp(max=1)
        return torch.where(later > 0, slope, p.class_scale * (prob - initial) * focus)
