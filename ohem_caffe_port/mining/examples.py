"""One idea behind all cures for imbalance: given the losses of examples, say which of them count, and how much.

A method is an object with settings that maps :class:`Examples` to :class:`Weights`; the loss to minimise is
``(weights.cls * cls_loss).sum() + (weights.loc * loc_loss).sum()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """How much each example counts, ``[R]`` both: in the classification loss, and in the localisation loss. An example
    with 0 does not count. Normalisers are part of the weights."""

    cls: Tensor
    loc: Tensor


@dataclass
class Examples:
    """What a method may look at, one entry for each of ``R`` examples (RoIs, anchors, priors). Examples that must
    never count (labels below 0) are left out beforehand.

    Attributes:
        cls_loss: ``[R]`` classification loss, not normalised; a cross-entropy where a method says so.
        labels: ``[R]``, 0 is background.
        loc_loss: ``[R]`` localisation loss, 0 for background; None where boxes are not learned.
        rois: ``[R, 5]`` rows ``(image, x1, y1, x2, y2)``, inclusive pixels; None: one image, and no suppression.
        overlaps: ``[R]`` largest overlap with any ground truth, where it is known.
        progress: which part of training is done, 0 to 1.
    """

    cls_loss: Tensor
    labels: Tensor
    loc_loss: Tensor | None = None
    rois: Tensor | None = None
    overlaps: Tensor | None = None
    progress: float = 0.0

    def __post_init__(self):
        self.cls_loss = self.cls_loss.detach()
        self.loc_loss = torch.zeros_like(self.cls_loss) if self.loc_loss is None else self.loc_loss.detach()

    @property
    def loss(self) -> Tensor:
        return self.cls_loss + self.loc_loss

    @property
    def foreground(self) -> Tensor:
        return self.labels > 0

    @property
    def image(self) -> Tensor:
        return torch.zeros_like(self.labels).long() if self.rois is None else self.rois[:, 0].long()

    def boxes(self, nms_thresh: float | None) -> tuple[Tensor, float | None]:
        """``rois`` and the threshold of their suppression; one image's and None where there are no boxes."""
        if self.rois is not None:
            return self.rois, nms_thresh
        return self.cls_loss.new_zeros(len(self.labels), 5), None


class Method:
    """Base of the methods: dataclasses, so that printing one shows its settings.

    Raises:
        ValueError: settings that make no sense, or examples that lack what the method looks at.
    """

    def __call__(self, examples: Examples) -> Weights:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers from call to call (a moving average, a random stream), to be kept in a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on where :meth:`state_dict` was taken.

        Raises:
            ValueError: a state of other settings.
        """


class Selection(Method):
    """Base of the methods that choose: the chosen ones count alike, and their mean is the loss."""

    def __call__(self, examples: Examples) -> Weights:
        counts = self.select(examples).to(examples.cls_loss.dtype)
        weights = counts / counts.sum().clamp(min=1)
        return Weights(weights, weights)

    def select(self, examples: Examples) -> Tensor:
        """Which examples count: ``[R]`` bool."""
        raise NotImplementedError
