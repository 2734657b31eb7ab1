"""The SVM of one class: its solver, and the cache of examples that it is trained on again and again."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field

import numpy as np

from converters.extras import library

from ..errors import PortError

# Liblinear stops when the projected gradients of all examples are this close to each other. Then they are close to 0,
# as they should be, because that of an easy example is. Scikit-learn's defaults are 1e-4 and 1000.
_TOLERANCE, _MAX_EPOCHS = 1e-6, 10_000


@dataclass(frozen=True)
class SvmSettings:
    """Hyper-parameters, with the values of R-CNN and ``train_svms.py``."""

    C: float = 0.001  # weight of the hinge losses against the norm of the weights
    bias: float = 10.0  # the constant feature whose weight is the bias: the larger, the less the bias is regularised
    pos_weight: float = 2.0  # of the loss of a positive, against 1 for a negative
    retrain_after: int = 2000  # a class is trained again when more negatives than this are new
    hard_above: float = -1.0001  # scores above this are hard
    evict_below: float = -1.1  # after training, scores below this leave the cache
    neg_iou: float = 0.3  # negatives overlap the objects of the class by less than this
    norm: float = 20.0  # features are scaled to this mean norm
    norm_images: int = 100  # random images that the mean norm is measured on


@dataclass(frozen=True)
class Round:
    """One training of one class's SVM: what was in the cache before, and after easy negatives left; the terms of the
    objective that it minimised; support vectors (scores on the margin or beyond); whether liblinear converged; seconds
    that it took."""

    positives: int
    negatives: int
    kept: int
    pos_loss: float
    neg_loss: float
    reg_loss: float
    pos_support: int
    neg_support: int
    converged: bool
    seconds: float

    @property
    def objective(self) -> float:
        return self.pos_loss + self.neg_loss + self.reg_loss


def train_svm(
    positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings, seed=0
) -> tuple[np.ndarray, float, bool]:
    """The linear SVM that liblinear's dual coordinate descent finds (Hsieh et al., ICML 2008).

    Minimises ``|w|^2 / 2 + (b / B)^2 / 2 + C (p sum max(0, 1 - s_i) + sum max(0, 1 + s_j))`` over positives i and
    negatives j with scores ``s = w x + b``, where ``B`` is ``settings.bias`` and ``p`` ``settings.pos_weight``. Where
    there are examples of one kind only the answer is ``w = 0`` and a bias of 1 or -1.

    Args:
        positives, negatives: features ``[P, D]`` and ``[N, D]``.
        seed: of the order in which liblinear visits the examples.

    Returns:
        The weights ``[D]`` float64, the bias, and whether liblinear converged.

    Raises:
        WeightsError: scikit-learn is not installed.
        PortError: features that are not finite.
    """
    if not len(positives) or not len(negatives):
        return np.zeros(positives.shape[1]), 1.0 if len(positives) else -1.0, True
    features = np.concatenate([positives, negatives])
    if not np.isfinite(features).all():
        raise PortError("the features are not finite", hint="are these the weights of a trained net?")
    labels = np.repeat([1, -1], [len(positives), len(negatives)])
    svm = library("sklearn.svm", "svm").LinearSVC(
        C=settings.C, class_weight={1: settings.pos_weight, -1: 1}, intercept_scaling=settings.bias, loss="hinge",
        dual=True, random_state=seed, tol=_TOLERANCE, max_iter=_MAX_EPOCHS,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ConvergenceWarning, which the caller is told otherwise
        svm.fit(features, labels)
    return svm.coef_[0].astype(np.float64), float(svm.intercept_[0]), bool(svm.n_iter_ < _MAX_EPOCHS)


@dataclass
class ClassSvm:
    """The SVM of one class and its cache of examples, whose features are those of the net, not scaled.

    ``scale``: what features are multiplied by for training; ``mined``: negatives that ever came into the cache;
    ``weights`` ``[D]``, ``bias``: for features that are not scaled, 0 until the first training (-1 in a class without
    positives, as :func:`train_svm` says).
    """

    name: str
    positives: np.ndarray
    scale: float
    settings: SvmSettings = SvmSettings()
    seed: int = 0
    rounds: list[Round] = field(default_factory=list)
    mined: int = 0

    def __post_init__(self):
        dim = self.positives.shape[1]
        self.weights, self.bias = np.zeros(dim), 0.0 if len(self.positives) else -1.0
        self._negatives = [np.zeros((0, dim), np.float32)]
        self._new = 0

    def hard(self, scores: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
        """Which RoIs are hard negatives: indices into ``scores`` ``[R]``; ``overlaps`` ``[R]`` are the IoUs with the
        objects of the class."""
        if not len(self.positives):
            return np.zeros(0, np.int64)
        return np.flatnonzero((scores > self.settings.hard_above) & (overlaps < self.settings.neg_iou))

    def add(self, negatives: np.ndarray) -> bool:
        """Takes features ``[N, D]`` into the cache. Trains when enough are new; says whether it did."""
        self._negatives.append(negatives)
        self._new += len(negatives)
        self.mined += len(negatives)
        enough = self._new > self.settings.retrain_after
        if enough:
            self.train()
        return enough

    def train(self) -> None:
        """Trains on the cache and drops what is easy then; if all negatives are, all stay, as in the original."""
        start, settings = time.perf_counter(), self.settings
        negatives = np.concatenate(self._negatives)
        scaled = self.positives * np.float32(self.scale), negatives * np.float32(self.scale)
        weights, bias, converged = train_svm(*scaled, settings, self.seed)
        pos_scores, neg_scores = (features @ weights + bias for features in scaled)
        stay = neg_scores >= settings.evict_below
        self._negatives = [negatives[stay] if stay.any() else negatives]
        self._new = 0
        self.weights, self.bias = weights * self.scale, bias
        self.rounds.append(
            Round(
                positives=len(self.positives),
                negatives=len(negatives),
                kept=len(self._negatives[0]),
                pos_loss=float(settings.C * settings.pos_weight * np.maximum(0, 1 - pos_scores).sum()),
                neg_loss=float(settings.C * np.maximum(0, 1 + neg_scores).sum()),
                reg_loss=float(weights @ weights + (bias / settings.bias) ** 2) / 2,
                pos_support=int((pos_scores <= 1).sum()),
                neg_support=int((neg_scores >= -1).sum()),
                converged=converged,
                seconds=time.perf_counter() - start,
            )
        )
