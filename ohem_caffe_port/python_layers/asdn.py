"""The layers of A-Fast-RCNN's spatial dropout network (ASDN), as its authors released them in adversarial-frcnn.

Wang, Shrivastava, Gupta, "A-Fast-RCNN" (CVPR 2017), section 4.1; the release differs from the paper in many numbers. A
mask has one channel, and 1 where a cell of the RoI's features is dropped. None of these layers passes a gradient to
the features; the random draws are those of the original.

Where the original does what its authors cannot have meant, ``'corrected': True`` in ``param_str`` does what they
meant; each layer says what that changes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..layers import PythonLayer, register_python
from ..layers.loss import given_gradient

MODULE = "roi_data_layer.layer"


class AsdnLayer(PythonLayer):
    """Base of this family: what several of its layers read and check."""

    known_settings = {"corrected"}

    def setup(self, bottoms):
        self.corrected = self.setting("corrected", bool, False)

    def count(self, name: str, default: int | None = None, least: int = 0) -> int:
        value = self.setting(name, int, default)
        if value < least:
            raise self.error(f"'{name}' must be at least {least}, not {value}", field="python_param.param_str")
        return value

    def check_rows(self, bottoms, *indices: int) -> None:
        rows = [len(bottoms[i]) for i in indices]
        if len(set(rows)) > 1:
            named = ", ".join(f"'{self.param.bottom[i]}' has {n}" for i, n in zip(indices, rows, strict=True))
            raise self.error(f"needs one row for each RoI, but {named}")

    def square_map(self, bottom, index: int = 0) -> int:
        """The side of a bottom ``[N, C, S, S]``."""
        if bottom.dim() != 4 or bottom.shape[2] != bottom.shape[3]:
            raise self.error(f"'{self.param.bottom[index]}' must be maps [N, C, S, S], not {tuple(bottom.shape)}")
        return bottom.shape[2]

    def probabilities(self, bottom, index: int, classes: int) -> torch.Tensor:
        """A bottom ``[N, classes, ...]`` as rows."""
        if bottom.shape[1:].numel() != classes:
            raise self.error(f"num_classes is {classes}, but '{self.param.bottom[index]}' is {tuple(bottom.shape)}")
        return bottom.detach().reshape(len(bottom), classes)


class AlternatingLayer(AsdnLayer):
    """Base of the two layers that leave some passes of an iteration alone. ``param_str``: ``iter_size`` as in the
    solver, and ``maintain_before``: pass ``k`` (from 1) is a clean one when ``k % iter_size < maintain_before``."""

    known_settings = AsdnLayer.known_settings | {"iter_size", "maintain_before"}

    def setup(self, bottoms):
        super().setup(bottoms)
        self.iter_size, self.maintain_before = self.count("iter_size", least=1), self.count("maintain_before")
        self.passes = 0

    def remembered(self):
        return {"passes": np.array(self.passes)}

    def remember(self, state):
        self.passes = int(state["passes"])

    def clean_pass(self) -> bool:
        """Counts a pass, and says whether it is to be left alone."""
        self.passes = (self.passes + 1) % self.iter_size
        return self.passes < self.maintain_before


@register_python(MODULE, "ASDNPretrainLabelLayer")
class ASDNPretrainLabelLayer(AsdnLayer):
    """adversarial-frcnn's ``ASDNPretrainLabelLayer``: the foreground RoIs of a minibatch, those with a label above 0.

    Bottoms: features ``[N, C, H, W]``, labels ``[N]``, rois ``[N, 5]``; tops: the same, foreground rows only.
    """

    num_bottoms, num_tops = (3, 3), (3, 3)

    def infer(self, bottoms):
        self.check_rows(bottoms, 0, 1, 2)
        return [b.new_empty(shape) for b, shape in zip(bottoms, self._shapes(bottoms), strict=True)]

    def forward(self, bottoms):
        self.check_rows(bottoms, 0, 1, 2)
        rows = (bottoms[1].reshape(-1) > 0).nonzero()[:, 0]
        shapes = self._shapes(bottoms)
        return [b.detach().reshape(s).index_select(0, rows) for b, s in zip(bottoms, shapes, strict=True)]

    @staticmethod
    def _shapes(bottoms):
        return bottoms[0].shape, bottoms[1].shape[:1], bottoms[2].shape


@register_python(MODULE, "ASDNPretrainDataLayer")
class ASDNPretrainDataLayer(AsdnLayer):
    """adversarial-frcnn's ``ASDNPretrainDataLayer``: every RoI's features with each window of a grid set to 0 in turn.

    Bottom: features ``[N, C, S, S]``. Tops: the features ``[W * N, C, S, S]`` and the masks ``[W * N, 1, S, S]``; row
    ``w * N + n`` is RoI ``n`` without window ``w``. ``param_str``: ``drop_size`` and ``drop_stride`` in cells; ``W`` is
    ``ceil(S / drop_stride)`` squared. A window that would reach over the edge starts one cell earlier and is then cut;
    ``corrected`` moves it back as far as it needs.
    """

    num_tops = (2, 2)
    known_settings = AsdnLayer.known_settings | {"drop_size", "drop_stride"}

    def setup(self, bottoms):
        super().setup(bottoms)
        self.size, self.stride = self.count("drop_size", least=1), self.count("drop_stride", least=1)

    def forward(self, bottoms):
        features = bottoms[0].detach()
        windows = self.windows(self.square_map(features)).to(features)
        count, rows = len(windows), len(features)
        dropped = features * (1 - windows)[:, None]
        return [dropped.flatten(0, 1), windows.repeat_interleave(rows, 0, output_size=count * rows)]

    def windows(self, side: int) -> torch.Tensor:
        """Masks ``[W, 1, side, side]``, rows first."""
        if self.size > side:
            raise self.error(f"'drop_size' is {self.size}, but the maps have a side of {side}")
        strips = torch.zeros(math.ceil(side / self.stride), side)  # the windows along one axis
        for strip, start in zip(strips, range(0, side, self.stride), strict=True):
            over = max(0, start + self.size - side)
            start -= over if self.corrected else min(over, 1)
            strip[start : start + self.size] = 1
        return (strips[:, None, :, None] * strips[None, :, None, :]).view(-1, 1, side, side)


@register_python(MODULE, "ASDNPretrainLossLayer")
class ASDNPretrainLossLayer(AsdnLayer):
    """adversarial-frcnn's ``ASDNPretrainLossLayer``: sigmoid cross-entropy between predicted masks and the windows that
    hurt most.

    Bottoms: mask logits ``[N, 1, S, S]``, the windows' masks ``[W * N, 1, S, S]`` and the class probabilities without
    them ``[W * N, num_classes]`` (rows as ``ASDNPretrainDataLayer`` makes them), labels ``[N]`` of foreground RoIs,
    and their rois and the data, which are not read. The target of a RoI is the window that leaves its class the lowest
    probability, the first of equals. The loss is the mean over all cells; with no RoI it is 0.

    ``param_str``: ``num_classes``, ``drop_neg``. The latter should spare 60 % of the cells outside the window, at
    random, from the gradient; the original draws the numbers and then drops the product. ``corrected`` applies it.
    """

    num_bottoms = (4, 6)
    known_settings = AsdnLayer.known_settings | {"num_classes", "drop_neg"}

    def setup(self, bottoms):
        super().setup(bottoms)
        self.num_classes, self.drop_neg = self.setting("num_classes", int), self.setting("drop_neg", bool)

    def infer(self, bottoms):
        return [bottoms[0].new_empty(())]

    def forward(self, bottoms):
        logits, windows, labels = bottoms[0], bottoms[1].detach(), bottoms[3].reshape(-1).long()
        self.check_rows(bottoms, 0, *range(3, min(5, len(bottoms))))
        self.check_rows(bottoms, 1, 2)
        probability = self.probabilities(bottoms[2], 2, self.num_classes)
        rows = len(logits)
        if not rows:
            return [logits.sum()]
        if len(windows) % rows or not len(windows) or windows.shape[1:] != logits.shape[1:]:
            raise self.error(f"masks {tuple(windows.shape)} do not fit predictions {tuple(logits.shape)}")
        column = labels.repeat(len(windows) // rows)[:, None]
        hardest = probability.gather(1, column).view(-1, rows).argmin(0)
        target = windows.view(-1, *logits.shape)[hardest, torch.arange(rows, device=logits.device)]
        loss = binary_cross_entropy_with_logits(logits, target)
        if self.drop_neg:
            draws = torch.from_numpy(self.context.rng.random_sample(tuple(logits.shape))).to(logits.device)
            if self.corrected:
                kept = (target == 1) | (draws < 0.4)
                loss = given_gradient(loss, logits, (logits.sigmoid() - target) * kept / logits.numel())
        return [loss]


@register_python(MODULE, "ASDNDataLayer")
class ASDNDataLayer(AlternatingLayer):
    """adversarial-frcnn's ``ASDNDataLayer``: drops cells of foreground RoIs where the mask network would.

    Bottoms: predicted masks ``[N, 1, S, S]`` (probabilities), labels ``[N]``. Tops: mask_thres ``[N, 1, S, S]``, 1
    where dropped, and mask_thres_block ``[N, channels, S, S]``, its opposite, to multiply the features with.

    ``param_str``: of the ``permute_count`` cells of a foreground RoI with the highest prediction (equal ones in order)
    a random ``count_drop`` are dropped, of a background RoI's cells a random ``count_drop_neg``; ``channels`` of the
    features; ``iter_size``, ``maintain_before``: in a clean pass nothing is dropped.
    """

    num_bottoms, num_tops = (2, 2), (2, 2)
    known_settings = AlternatingLayer.known_settings | {"count_drop", "permute_count", "count_drop_neg", "channels"}

    def setup(self, bottoms):
        super().setup(bottoms)
        self.count_drop, self.permute_count = self.count("count_drop"), self.count("permute_count")
        self.count_drop_neg, self.channels = self.count("count_drop_neg"), self.count("channels", least=1)
        cells = self.square_map(bottoms[0]) ** 2
        if bottoms[0].shape[1] != 1:
            raise self.error(f"'{self.param.bottom[0]}' must have one channel, not {bottoms[0].shape[1]}")
        if self.permute_count > cells:
            raise self.error(f"'permute_count' is {self.permute_count}, but a mask has {cells} cells",
                             field="python_param.param_str")  # fmt: skip

    def infer(self, bottoms):
        return self._tops(torch.empty_like(bottoms[0]))

    def forward(self, bottoms):
        self.check_rows(bottoms, 0, 1)
        masks = torch.zeros_like(bottoms[0])
        if not self.clean_pass():
            flat, chosen = masks.view(len(masks), -1), self.choose(*bottoms)
            flat[chosen] = 1
        return self._tops(masks)

    def choose(self, predicted, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and cells to drop."""
        rng, drawn = self.context.rng, []
        order = (1 - predicted.detach()).flatten(1).sort(dim=1, stable=True).indices
        foreground = (labels.reshape(-1) != 0).cpu().numpy()
        cells = order.shape[1]
        for row, positive in enumerate(foreground):  # one draw for each row, in order, as in the original
            if positive:
                ranks = rng.permutation(self.permute_count)[: self.count_drop]
            else:
                ranks = rng.permutation(cells)[: self.count_drop_neg] if self.count_drop_neg else ()
            drawn += [(row, rank, positive) for rank in ranks]
        drawn = np.array(drawn, np.int64).reshape(-1, 3).T
        rows, ranks, positive = torch.from_numpy(drawn).to(order.device)
        return rows, torch.where(positive == 1, order[rows, ranks], ranks)

    def _tops(self, masks):
        return [masks, (1 - masks).expand(-1, self.channels, -1, -1)]


@register_python(MODULE, "ASDNLossLayer")
class ASDNLossLayer(AlternatingLayer):
    """adversarial-frcnn's ``ASDNLossLayer``: sigmoid cross-entropy between the mask network's prediction and the masks
    that did harm.

    Bottoms: mask logits ``[N, 1, S, S]``, mask_thres of ``ASDNDataLayer``, class probabilities ``[N, num_classes]``
    before and after masking, labels ``[N]``, and rois and data, which are not read. Only foreground RoIs count whose
    class lost more than ``score_thres``; the sum is divided by the number of cells of all RoIs.

    ``param_str``: ``num_classes``, ``score_thres``, and ``iter_size``, ``maintain_before``: in a clean pass there is no
    gradient, and the loss keeps its last value, so that what is displayed is too high; with ``corrected`` it is 0.
    """

    num_bottoms = (5, 7)
    known_settings = AlternatingLayer.known_settings | {"num_classes", "score_thres"}

    def setup(self, bottoms):
        super().setup(bottoms)
        self.num_classes, threshold = self.setting("num_classes", int), self.settings.get("score_thres")
        self.score_thres = threshold if type(threshold) is int else self.setting("score_thres", float)
        self.last = None  # the loss of the last pass that was not clean

    def remembered(self):
        return super().remembered() | ({} if self.last is None else {"last": self.last.cpu().numpy()})

    def remember(self, state):
        super().remember(state)
        self.last = torch.from_numpy(state["last"]) if "last" in state else None

    def infer(self, bottoms):
        return [bottoms[0].new_empty(())]

    def forward(self, bottoms):
        logits, masks, labels = bottoms[0], bottoms[1].detach(), bottoms[4].reshape(-1).long()
        if self.clean_pass():
            return [logits.new_zeros(()) if self.corrected or self.last is None else self.last.to(logits)]
        self.check_rows(bottoms, *range(min(6, len(bottoms))))
        if masks.shape != logits.shape:
            raise self.error(f"masks {tuple(masks.shape)} do not fit predictions {tuple(logits.shape)}")
        before, after = (
            self.probabilities(bottoms[i], i, self.num_classes).gather(1, labels[:, None])[:, 0] for i in (2, 3)
        )
        harmed = (labels > 0) & (after + self.score_thres < before)
        loss = binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1).sum(1)
        loss = torch.where(harmed, loss, 0).sum() / max(1, logits.numel())
        self.last = loss.detach()
        return [loss]
