"""The methods behind the one idea of :mod:`.examples`, by name in ``METHODS``: selections, then weightings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .examples import Examples, Method, Selection, Weights
from .focal import num_positives, sigmoid_focal_loss
from .ghm import ghm_weights
from .ohem import chosen_mask, select_hard_rois
from .per_image import hardest_per_image
from .ranks import count_in_groups, rank_in_groups
from .ratio import select_rois_by_ratio
from .sohem import Strata, select_stratified_rois


def _positive(**settings) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"'{name}' must be positive, not {value}")


def _fraction(**settings) -> None:
    for name, value in settings.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"'{name}' must lie between 0 and 1, not {value}")


@dataclass
class Everything(Selection):
    """No cure: every example counts, as ``1 / R``."""

    def select(self, examples):
        return torch.ones_like(examples.labels, dtype=torch.bool)


@dataclass
class OHEM(Selection):
    """Online hard example mining: the ``batch_size`` largest losses of all images together, co-located ones suppressed
    (:func:`~ohem_caffe_port.mining.select_hard_rois`)."""

    batch_size: int = 128
    nms_thresh: float | None = 0.7

    def __post_init__(self):
        _positive(batch_size=self.batch_size)
        _fraction(nms_thresh=self.nms_thresh)

    def select(self, examples):
        rois, thresh = examples.boxes(self.nms_thresh)
        chosen = select_hard_rois(examples.loss, rois, examples.labels, self.batch_size, nms_thresh=thresh, padded=True)
        return chosen_mask(chosen, len(rois))


@dataclass
class SOHEM(Strata, Selection):
    """Stratified OHEM: the hardest of each stratum, as many as its share of the batch at this stage of training
    (:func:`~ohem_caffe_port.mining.select_stratified_rois`, whose settings are this project's)."""

    batch_size: int = 128
    nms_thresh: float | None = 0.7

    def __post_init__(self):
        super().__post_init__()
        _positive(batch_size=self.batch_size)
        _fraction(nms_thresh=self.nms_thresh)

    def select(self, examples):
        rois, thresh = examples.boxes(self.nms_thresh)
        chosen = select_stratified_rois(
            examples.cls_loss, examples.loc_loss, rois, examples.labels, self.batch_size,
            progress=examples.progress, strata=self, nms_thresh=thresh, padded=True,
        )  # fmt: skip
        return chosen_mask(chosen, len(rois))


class _Drawing(Selection):
    """Base of the methods that draw at random: from a stream of their own on each device, from ``seed`` on."""

    def __post_init__(self):
        self._generators: dict = {}

    def state_dict(self):
        return {f"generator/{device}": generator.get_state() for device, generator in self._generators.items()}

    def load_state_dict(self, state):
        for name, value in state.items():
            device = torch.device(name.removeprefix("generator/"))
            self._generators[device] = torch.Generator(device)
            self._generators[device].set_state(value)

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


@dataclass
class FastRCNN(_Drawing):
    """Fast R-CNN's heuristics (section 2.3), which look at no loss: of each image at random a fraction ``fg_fraction``
    of ``rois_per_image`` foreground, if there are as many, and background for the rest.

    Foreground is what has a label; background what has none and overlaps ground truth by at least ``bg_thresh_lo``,
    which needs ``overlaps`` unless it is 0. The draws are a stream of the method's own, from ``seed`` on.
    """

    rois_per_image: int = 64
    fg_fraction: float = 0.25
    bg_thresh_lo: float = 0.1
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        _positive(rois_per_image=self.rois_per_image)
        _fraction(fg_fraction=self.fg_fraction)

    def select(self, examples):
        background = examples.labels == 0
        if self.bg_thresh_lo > 0:
            if examples.overlaps is None:
                raise ValueError("'bg_thresh_lo' above 0 needs the overlaps of the examples")
            background = background & (examples.overlaps >= self.bg_thresh_lo)
        foreground, image = examples.foreground, examples.image
        fg_size = round(self.fg_fraction * self.rois_per_image)
        chosen = foreground & (self._random_rank(foreground, image) < fg_size)
        bg_size = self.rois_per_image - count_in_groups(chosen, image)
        return chosen | (background & (self._random_rank(background, image) < bg_size))

    def _random_rank(self, eligible: Tensor, image: Tensor) -> Tensor:
        keys = torch.rand(len(eligible), generator=self.generator(eligible.device), device=eligible.device)
        return rank_in_groups(torch.where(eligible, keys, 2.0).argsort(), image)


@dataclass
class SSD(Method):
    """SSD's mining (section 2.2): all positives, and of each image the hardest negatives, ``neg_pos_ratio`` for every
    positive (the rule of :func:`~ohem_caffe_port.mining.max_negatives`; of equal losses the first in the input is
    taken); both losses are divided by the number of positives."""

    neg_pos_ratio: float = 3.0
    neg_overlap: float = 0.5

    def __post_init__(self):
        if not self.neg_pos_ratio >= 0:
            raise ValueError(f"'neg_pos_ratio' must not be negative, not {self.neg_pos_ratio}")

    def __call__(self, examples):
        image, foreground = examples.image, examples.foreground
        negative = ~foreground
        if examples.overlaps is not None:
            negative = negative & (examples.overlaps < self.neg_overlap)
        loss = torch.where(negative, examples.cls_loss, -torch.inf)
        rank = rank_in_groups(torch.sort(loss, descending=True, stable=True).indices, image)
        count = (count_in_groups(foreground, image).to(loss.dtype) * self.neg_pos_ratio).long()
        positives = foreground.sum().clamp(min=1)
        counts = (foreground | (negative & (rank < count))).to(examples.cls_loss.dtype) / positives
        return Weights(counts, counts)


@dataclass
class RFCN(Selection):
    """R-FCN's annotator: the ``rois_per_image`` largest losses of each image, without suppression
    (:func:`~ohem_caffe_port.mining.hardest_per_image`; of equal losses the first in the input is taken)."""

    rois_per_image: int = 128

    def __post_init__(self):
        _positive(rois_per_image=self.rois_per_image)

    def select(self, examples):
        return hardest_per_image(examples.loss, examples.image, self.rois_per_image, std_sort=False)


@dataclass
class Ratio(_Drawing):
    """A-Fast-RCNN's variant of OHEM: random foreground and the hardest background, in a fixed ratio
    (:func:`~ohem_caffe_port.mining.select_rois_by_ratio`). The draws are a stream of the method's own, from ``seed``
    on."""

    batch_size: int = 128
    ratio: float = 0.25
    hard_negative: bool = True
    nms_thresh: float | None = 0.7
    corrected: bool = True
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        _positive(batch_size=self.batch_size)
        _fraction(ratio=self.ratio, nms_thresh=self.nms_thresh)

    def select(self, examples):
        rois, thresh = examples.boxes(self.nms_thresh)
        chosen = select_rois_by_ratio(
            examples.loss, rois, examples.labels, self.batch_size, ratio=self.ratio, nms_thresh=thresh,
            hard_negative=self.hard_negative, corrected=self.corrected, rng=self.generator(rois.device),
        )  # fmt: skip
        return chosen_mask(chosen, len(rois))


def _right(examples: Examples) -> Tensor:
    """The probability of the right class, whose negative logarithm a cross-entropy is; below 1."""
    return torch.exp(-examples.cls_loss.clamp(min=torch.finfo(examples.cls_loss.dtype).eps))


def _over_positives(examples: Examples) -> Tensor:
    """Every foreground example counts as 1 / foreground: how single-stage detectors weigh the boxes."""
    return examples.foreground.to(examples.cls_loss.dtype) / num_positives(examples.labels)


@dataclass
class Focal(Method):
    """Focal loss as a weighting of the cross-entropy ``-log(p_t)``: by the quotient of the two gradients, so that the
    gradient is the focal loss's (:func:`~ohem_caffe_port.mining.sigmoid_focal_loss`; ``p_t`` may be a softmax's).
    ``alpha`` weighs foreground and ``1 - alpha`` background, a negative one neither; both losses are divided by the
    number of positives, and every positive's box counts alike. ``cls_loss`` must be a cross-entropy."""

    gamma: float = 2.0
    alpha: float = 0.25

    def __post_init__(self):
        if not self.gamma >= 0 or not self.alpha <= 1:
            raise ValueError(f"'gamma' must not be negative, 'alpha' not above 1: {self}")

    def __call__(self, examples):
        right = _right(examples)
        # the logit of the right class; of an infinite loss as of 1e4, where p_t is 0 as well
        towards = -examples.cls_loss.clamp(max=1e4) - torch.log1p(-right)
        logits = torch.where(examples.foreground, towards, -towards).requires_grad_()
        with torch.enable_grad():
            loss = sigmoid_focal_loss(logits, examples.foreground, alpha=self.alpha, gamma=self.gamma)
            (slope,) = torch.autograd.grad(loss.sum(), logits)
        weights = slope.abs() / (1 - right)  # the cross-entropy's slope is 1 - p_t
        return Weights(weights / num_positives(examples.labels), _over_positives(examples))


@dataclass
class GHM(Method):
    """GHM-C: an example weighs the less, the more others have a gradient ``1 - p_t`` as long as its own
    (:func:`~ohem_caffe_port.mining.ghm_weights`, ``rule`` included); every positive's box counts alike (GHM-R weighs
    coordinates: :func:`~ohem_caffe_port.mining.ghmr_loss`). ``cls_loss`` must be a cross-entropy. The moving average is
    kept in ``acc_sum``."""

    bins: int = 30
    momentum: float = 0.75
    rule: str = "code"
    acc_sum: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        _positive(bins=self.bins)
        if not 0 <= self.momentum < 1 or self.rule not in ("code", "paper"):
            raise ValueError(f"'momentum' must lie from 0 to below 1, 'rule' be 'code' or 'paper': {self}")

    def state_dict(self):
        return {} if self.acc_sum is None else {"acc_sum": self.acc_sum}

    def load_state_dict(self, state):
        average = state.get("acc_sum")
        if average is not None and average.shape != (self.bins,):
            raise ValueError(f"the average of {len(average)} bins, not of {self.bins}")
        self.acc_sum = None if average is None else average.clone()

    def __call__(self, examples):
        length = 1 - _right(examples)
        if self.momentum:
            average = torch.zeros(self.bins, device=length.device) if self.acc_sum is None else self.acc_sum
            self.acc_sum = average.to(length.device)
        valid, total = torch.ones_like(length, dtype=torch.bool), max(1, len(length))
        beta = ghm_weights(
            length, valid, total, bins=self.bins, momentum=self.momentum, acc_sum=self.acc_sum, rule=self.rule
        )
        return Weights(beta.to(length.dtype) / total, _over_positives(examples))


METHODS: dict[str, type[Method]] = {
    "all": Everything,
    "fast_rcnn": FastRCNN,
    "ohem": OHEM,
    "ohem_naive": OHEM,  # the same choice; its net has one branch in place of two
    "sohem": SOHEM,
    "ratio": Ratio,
    "rfcn": RFCN,
    "ssd": SSD,
    "focal": Focal,
    "ghm": GHM,
}
