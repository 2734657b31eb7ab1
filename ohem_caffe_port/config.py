"""The keys of the original ``fast_rcnn/config.py``, typed and checked, as one object that is passed along."""

from __future__ import annotations

import ast
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml

from prototxt.errors import nearest

from .errors import PortError

# Least and greatest value of keys where another one could only fail later, less clearly.
RANGES = {
    "TRAIN.SCALES": (1, math.inf),
    "TRAIN.MAX_SIZE": (1, math.inf),
    "TRAIN.IMS_PER_BATCH": (1, math.inf),
    "TRAIN.BATCH_SIZE": (-1, math.inf),
    "TRAIN.FG_FRACTION": (0, 1),
    "TRAIN.RPN_FG_FRACTION": (0, 1),
    "TRAIN.OHEM_RATIO": (0, 1),
    "TRAIN.RPN_BATCHSIZE": (1, math.inf),
    "TRAIN.SCALE_MULTIPLE_OF": (1, math.inf),
    "TRAIN.SNAPSHOT_ITERS": (1, math.inf),
    "TRAIN.PREFETCH_WORKERS": (0, math.inf),
    "TEST.SCALES": (1, math.inf),
    "TEST.MAX_SIZE": (1, math.inf),
    "TEST.SCALE_MULTIPLE_OF": (1, math.inf),
    "TEST.BBOX_ITERS": (1, math.inf),
    "TEST.BBOX_VOTE_THRESH": (0, 1),
    "RNG_SEED": (0, 2**32 - 1),
}
NOT_ZERO = {"TRAIN.BATCH_SIZE"}
CHOICES = {"TEST.SCALE_USE": ("nearest", "all")}
# MNC's files give lists to keys that are numbers elsewhere: one value for each group of RoIs.
LISTS = {key: f"{key}_LIST" for key in ("FG_FRACTION", "BG_THRESH_HI", "BG_THRESH_LO")}
ANY_LENGTH = {  # all other lists are as long as their default
    "TRAIN.SCALES", "TEST.SCALES", "TEST.MAX_ROIS_GPU", "TRAIN.FG_THRESH_HI", "TRAIN.FG_THRESH_LO", "TRAIN.BG_FRACTION",
    "TRAIN.FRACTION_SAMPLE", "TRAIN.THRESH_LO_SAMPLE", "TRAIN.THRESH_HI_SAMPLE",
    *(f"TRAIN.{key}" for key in LISTS.values()),
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Plain YAML and the one Python object that files of these projects contain, a tuple of plain values."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


def read_yaml(text: str):
    """The value of a YAML text; nothing in it is executed.

    Raises:
        yaml.YAMLError: not YAML, or with objects of Python in it.
    """
    return yaml.load(text, _Loader)


@dataclass
class TrainConfig:
    SCALES: tuple = (600,)  # shorter side of the image; one of them at random for each image
    MAX_SIZE: int = 1000  # longest side of the scaled image
    IMS_PER_BATCH: int = 2
    SCALE_MULTIPLE_OF: int = 1  # PVANet: both sides of the scaled image are cut to multiples of it
    BATCH_SIZE: int = 128  # RoIs in a minibatch; -1: all (py-R-FCN)
    FG_FRACTION: float = 0.25
    FG_THRESH: float = 0.5  # foreground: overlap >= FG_THRESH
    BG_THRESH_HI: float = 0.5  # background: overlap in [LO, HI)
    BG_THRESH_LO: float = 0.1
    USE_FLIPPED: bool = True
    BBOX_REG: bool = True
    BBOX_THRESH: float = 0.5  # overlap from which a RoI trains the box regression
    SNAPSHOT_ITERS: int = 10000
    SNAPSHOT_INFIX: str = ""
    USE_PREFETCH: bool = False
    SEED_PASSES: bool = False  # the random numbers of each pass depend on RNG_SEED and its number alone
    PREFETCH_WORKERS: int = 1  # threads that prepare minibatches when USE_PREFETCH; the result does not depend on it
    BBOX_NORMALIZE_TARGETS: bool = True
    BBOX_INSIDE_WEIGHTS: tuple = (1.0, 1.0, 1.0, 1.0)
    BBOX_NORMALIZE_TARGETS_PRECOMPUTED: bool = False
    BBOX_NORMALIZE_MEANS: tuple = (0.0, 0.0, 0.0, 0.0)
    BBOX_NORMALIZE_STDS: tuple = (0.1, 0.1, 0.2, 0.2)
    PROPOSAL_METHOD: str = "selective_search"
    ASPECT_GROUPING: bool = True
    AGNOSTIC: bool = False  # one box for all classes: targets in columns 4 to 7 (py-R-FCN)
    HAS_RPN: bool = False  # proposals come from the net itself; implied by a net whose data layer gives im_info
    RPN_POSITIVE_OVERLAP: float = 0.7  # anchors are positive from this overlap on, and the best one of each object
    RPN_NEGATIVE_OVERLAP: float = 0.3  # and negative below this one
    RPN_CLOBBER_POSITIVES: bool = False  # negative wins where both hold
    RPN_FG_FRACTION: float = 0.5
    RPN_BATCHSIZE: int = 256  # anchors that train, at most RPN_FG_FRACTION of them positive
    RPN_NMS_THRESH: float = 0.7
    RPN_PRE_NMS_TOP_N: int = 12000  # proposals before and after suppression; 0 or less: all
    RPN_POST_NMS_TOP_N: int = 2000
    RPN_MIN_SIZE: int = 16  # least side of a proposal, in pixels of the unscaled image
    RPN_BBOX_INSIDE_WEIGHTS: tuple = (1.0, 1.0, 1.0, 1.0)
    RPN_POSITIVE_WEIGHT: float = -1.0  # share of the positive anchors in the weights; below 0: all anchors alike
    RPN_NORMALIZE_TARGETS: bool = False  # anchors' targets are normalised by the next two keys (py-R-FCN)
    RPN_NORMALIZE_MEANS: tuple = (0.0, 0.0, 0.0, 0.0)
    RPN_NORMALIZE_STDS: tuple = (0.1, 0.1, 0.2, 0.2)
    USE_OHEM: bool = False  # all RoIs of an image go into the net; implied by a net that mines
    OHEM_USE_NMS: bool = True
    OHEM_NMS_THRESH: float = 0.7
    OHEM_RATIO: float = 0.0  # adversarial-frcnn: from 0.1 on, this share of the hard RoIs is random foreground
    OHEM_HARD_NEG: bool = True  # and the rest the hardest background, or with False random background too
    USE_ASDN: bool = False  # OHEMDataLayer has one more top, the class probabilities of the RoIs that it chose
    IMDB: str = ""  # data set when --imdb is not given
    USE_DIFF: bool = False  # objects marked difficult are ground truth too, as in the Fast R-CNN paper (use_diff)
    # MNC: a list has one value for each group of RoIs; FG_FRACTION and BG_THRESH_* of its files are the keys with _LIST
    FG_FRACTION_LIST: tuple = (0.3,)
    FG_THRESH_HI: tuple = (1.0,)
    FG_THRESH_LO: tuple = (0.5,)
    BG_FRACTION: tuple = (0.85, 0.15)
    BG_THRESH_HI_LIST: tuple = (0.5, 0.1)
    BG_THRESH_LO_LIST: tuple = (0.1, 0.0)
    FG_SEG_THRESH: float = 0.5  # overlap of masks from which a RoI is an object
    FG_DET_THRESH: float = 0.5  # overlap of boxes, for CFM
    FRACTION_SAMPLE: tuple = (0.3, 0.5, 0.2)  # CFM's groups
    THRESH_LO_SAMPLE: tuple = (0.5, 0.1, 0.0)
    THRESH_HI_SAMPLE: tuple = (1.0, 0.5, 0.1)
    CFM_INPUT_MASK_SIZE: int = 14  # read by the original only, as TEST's
    MIX_INDEX: bool = True  # read by the original only: a net's bottoms and tops say it


@dataclass
class TestConfig:
    SCALES: tuple = (600,)
    SCALE_USE: str = "nearest"  # each RoI at the scale where its area comes closest to 224^2; or "all": at every scale
    MAX_SIZE: int = 1000
    SCALE_MULTIPLE_OF: int = 1
    NMS: float = 0.3
    SVM: bool = False
    BBOX_REG: bool = True
    AGNOSTIC: bool = False  # bbox_pred has one box for all classes, in columns 4 to 7; implied by its width
    HAS_RPN: bool = False  # boxes come from the net's blob rois; implied by its input im_info
    PROPOSAL_METHOD: str = "selective_search"
    RPN_NMS_THRESH: float = 0.7
    RPN_PRE_NMS_TOP_N: int = 6000
    RPN_POST_NMS_TOP_N: int = 300
    RPN_MIN_SIZE: int = 16
    BBOX_ITERS: int = 1  # 2: the regressed boxes of a class are scored and moved once more (iterative box regression)
    BBOX_ITER_THRESH: float = 0.0  # least score of a box that is scored again
    BBOX_VOTE: bool = False  # survivors of NMS become score-weighted means of the boxes they overlap
    BBOX_VOTE_THRESH: float = 0.5  # by this IoU or more
    BBOX_VOTE_N_WEIGHTED_SCORE: int = 1  # above 1: their scores too, over so many boxes
    BBOX_VOTE_WEIGHT_EMPTY: float = 0.5
    IMDB: str = ""
    CFM_INPUT_MASK_SIZE: int = 14  # of the masks that CFM's data layer gives
    # Read by MNC's tester only.
    MASK_MERGE_IOU_THRESH: float = 0.5
    MASK_MERGE_NMS_THRESH: float = 0.3
    MAX_ROIS_GPU: tuple = (2000,)
    GROUP_SCALE: int = 1
    USE_TOP_K_MCG: int = 0
    USE_MASK_MERGE: bool = True
    USE_GPU_MASK_MERGE: bool = True

    __test__ = False  # not a test case, whatever pytest thinks of the name


@dataclass
class Config:
    """All settings, with the original's defaults; docs/training.md says which keys are additions of this project."""

    TRAIN: TrainConfig = field(default_factory=TrainConfig)
    TEST: TestConfig = field(default_factory=TestConfig)
    DEDUP_BOXES: float = 1.0 / 16.0  # scale at which two RoIs count as the same one; 0 switches it off
    PIXEL_MEANS: tuple = (102.9801, 115.9465, 122.7717)  # BGR
    PIXEL_STDS: tuple = (1.0, 1.0, 1.0)  # BGR; the image is divided by them after the means are subtracted
    RNG_SEED: int = 3
    EPS: float = 1e-14
    DATA_DIR: str = "data"  # holds VOCdevkit<year> and selective_search_data
    EXP_DIR: str = "default"
    MASK_SIZE: int = 21  # MNC: side of the masks that a net predicts
    BINARIZE_THRESH: float = 0.4  # MNC: a mask is where its value is at least this
    # Read by the originals only; accepted so that their .yml files load.
    MNC_MODE: bool = True
    CFM_MODE: bool = False
    ROOT_DIR: str = ""
    MODELS_DIR: str = ""
    MATLAB: str = "matlab"
    USE_GPU_NMS: bool = True
    GPU_ID: int = 0

    def __post_init__(self):
        self.explicit: set[str] = set()  # dotted keys that a file or the command line set

    def merge(self, values: dict, *, source: str) -> None:
        """Takes over ``values`` (nested like this object).

        Raises:
            PortError: an unknown key (with the nearest known one), or a value of another type or out of range, naming
                ``source``.
        """
        _merge(self, values, source, "", self.explicit)

    def merge_file(self, path) -> None:
        """Takes over a YAML file such as the original's ``experiments/cfgs/*.yml``; nothing in it is executed."""
        try:
            values = read_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PortError(f"cannot read the configuration: {error.strerror}", file=path) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            raise PortError(
                f"not a YAML file: {getattr(error, 'problem', None) or error}",
                file=path,
                line=None if line is None else line + 1,
            ) from None
        if values is None:
            return
        if not isinstance(values, dict):
            raise PortError("a configuration is a mapping of keys to values", file=path)
        self.merge(values, source=str(path))

    def merge_list(self, items: list[str]) -> None:
        """Takes over ``["TRAIN.SCALES", "[480,600]", ...]``, the form of the original's ``--set``."""
        if len(items) % 2:
            raise PortError(f"--set takes pairs KEY VALUE; '{items[-1]}' has no value")
        for key, text in zip(items[0::2], items[1::2], strict=True):
            try:
                value = ast.literal_eval(text)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval raises
                value = text
            nested: dict = {}
            inner = nested
            *groups, last = key.split(".")
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[last] = value
            self.merge(nested, source="--set")

    def to_dict(self) -> dict:
        return asdict(self)


def _merge(target, values: dict, source: str, prefix: str, explicit: set[str]) -> None:
    known = {f.name for f in fields(target)}
    for key, value in values.items():
        if prefix == "TRAIN." and isinstance(value, (list, tuple)):
            key = LISTS.get(key, key)
        name = f"{prefix}{key}"
        if key not in known:
            near = nearest(str(key), known)
            raise PortError(
                f"unknown configuration key '{name}'" + (f"; did you mean '{prefix}{near}'?" if near else ""),
                file=source,
            )
        old = getattr(target, key)
        if is_dataclass(old):
            if not isinstance(value, dict):
                raise PortError(f"'{name}' is a group of keys, not a value", file=source)
            _merge(old, value, source, f"{name}.", explicit)
        else:
            setattr(target, key, _in_range(_coerce(value, old, name, source), old, name, source))
            explicit.add(name)


def _in_range(value, old, name: str, source: str):
    """``value``, if it has a length and a size that :data:`RANGES` allows, or is one of its :data:`CHOICES`."""
    if isinstance(old, tuple) and len(value) != len(old) and name not in ANY_LENGTH:
        raise PortError(f"{name} must be {len(old)} numbers (default {old!r}), not {len(value)}", file=source)
    low, high = RANGES.get(name, (-math.inf, math.inf))
    numbers = value if isinstance(value, tuple) else (value,)
    if name in RANGES and not all(low <= v <= high and (v or name not in NOT_ZERO) for v in numbers):
        wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise PortError(f"{name} must be {wanted}{' and not 0' * (name in NOT_ZERO)}, not {value!r}", file=source)
    if name in CHOICES and value not in CHOICES[name]:
        raise PortError(f"{name} must be {' or '.join(CHOICES[name])}, not {value!r}", file=source)
    return value


def _coerce(value, old, name: str, source: str):
    """``value`` in the type of the default; ints may stand for floats, one number for a list of one."""
    if isinstance(old, tuple):
        flat = value
        while isinstance(flat, (list, tuple)) and len(flat) == 1 and isinstance(flat[0], (list, tuple)):
            flat = flat[0]  # the original's PIXEL_MEANS is [[[b, g, r]]]
        if isinstance(flat, (int, float)) and not isinstance(flat, bool):
            flat = [flat]
        number = (int, float)
        if isinstance(flat, (list, tuple)) and flat and all(isinstance(v, number) for v in flat):
            return tuple(flat)
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is type(old):
        return value
    expected = "a list of numbers" if isinstance(old, tuple) else f"of type {type(old).__name__}"
    raise PortError(f"{name} must be {expected} (default {old!r}), not {value!r}", file=source)
