"""How this project computes the published figures that it has recipes for.

A recipe is a folder ``prototxt/zoo/<backbone>/<recipe>`` with a solver and a ``cfg.yml``, whose comments say what of it
is not verified; what only a single figure needs (iterations, data sets, options of testing) is here.

Iterations that are given here: Fast R-CNN's paper and code train 40,000 on VOC 2007 or 2012, and OHEM's released code
40,000 on VOC 2007, 80,000 on 2007 and 2012 together. All others are the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .figures import Figure, find

# The ImageNet model that a backbone starts from, by its public name.
PRETRAINED = {
    "vgg16": "VGG16.v2.caffemodel",
    "vgg_cnn_m_1024": "VGG_CNN_M_1024.v2.caffemodel",
    "googlenet": "bvlc_googlenet.caffemodel",
    "squeezenet_v1.1": "squeezenet_v1.1.caffemodel",
    "squeezenet_v1.1_fixed": "squeezenet_v1.1.caffemodel",
}
_V07, _V12 = "voc_2007_trainval", "voc_2012_trainval"
IMDBS = {
    "07": _V07, "12": _V12, "07+12": f"{_V07}+{_V12}", "07++12": f"{_V07}+voc_2007_test+{_V12}",
    "VOC07 test": "voc_2007_test", "VOC10 test": "voc_2010_test", "VOC12 test": "voc_2012_test",
    "07++12+COCO": f"{_V07}+voc_2007_test+{_V12}", "COCO14 train": "coco_2014_train",
    "COCO14 trainval": "coco_2014_trainval", "COCO15 test-dev": "coco_2015_test-dev",
}  # fmt: skip
# the release tests OHEM's nets so (experiments/scripts/fast_rcnn_ohem.sh), and plain Fast R-CNN with 100 and 0.05
ALL_DETECTIONS = ("--num_dets", "2000", "--det_thresh", "0.00001")


@dataclass(frozen=True)
class Run:
    """What computes a figure.

    Attributes:
        figure: name of the figure.
        recipe: folder below ``prototxt/zoo/<backbone>``.
        iterations: of the training, where they are not the recipe's own ``max_iter``.
        detectors: patterns of published caffemodels that have this figure, below a folder of weights.
        pretraining: recipe and data set of a training that comes first, whose classes are then mapped onto VOC's.
        settings: keys of the configuration and their values, as ``--set`` takes them.
    """

    figure: str
    recipe: str
    iterations: int | None = None
    detectors: tuple[str, ...] = ()
    pretraining: tuple[str, str] | None = None
    settings: tuple[str, ...] = ()

    @property
    def published(self) -> Figure:
        return find(self.figure)

    @property
    def backbone(self) -> str:
        """The recipe's: ``vgg16`` of ``VGG16``."""
        return self.published.backbone.lower()

    @property
    def train_imdb(self) -> str:
        return IMDBS[self.published.train.removesuffix(" without difficult")]

    @property
    def test_imdb(self) -> str:
        return IMDBS[self.published.test]

    @property
    def test_options(self) -> tuple[str, ...]:
        """Options of ``test_from_prototxt.py``."""
        return ALL_DETECTIONS if self.recipe.startswith("ohem") else ()


_FAST = ("vgg16_fast_rcnn_iter_40000.caffemodel", "fast_rcnn_models/vgg16_fast_rcnn_iter_40000.caffemodel")
_FAST_M = tuple(pattern.replace("vgg16", "vgg_cnn_m_1024") for pattern in _FAST)
_OHEM = (
    "fast_rcnn_ohem_models/*/vgg16*.caffemodel",  # nobody says what the archive calls them
    "fast_rcnn_ohem_models/*/VGG16*.caffemodel",
    "vgg16*ohem*.caffemodel",
)
_OHEM_M = tuple(pattern.replace("vgg16", "vgg_cnn_m_1024").replace("VGG16", "VGG_CNN_M_1024") for pattern in _OHEM)
_DIFFICULT = ("TRAIN.USE_DIFF", "True")  # the paper's and its code's way; the OHEM release leaves them out

RUNS = {
    run.figure: run
    for run in (
        # Fast R-CNN
        Run("fast_rcnn-vgg16-07", "fast_rcnn", 40000, _FAST, settings=_DIFFICULT),
        Run("fast_rcnn-vgg16-07_nodiff", "fast_rcnn", 40000),
        Run("fast_rcnn-vgg16-07-repo", "fast_rcnn", 40000),
        Run("fast_rcnn-vgg16-07+12", "fast_rcnn_0712", settings=_DIFFICULT),
        Run("fast_rcnn-vgg16-12", "fast_rcnn_12", 40000, settings=_DIFFICULT),
        Run("fast_rcnn-vgg16-07++12", "fast_rcnn_07pp12", settings=_DIFFICULT),
        Run("fast_rcnn-vgg16-12-voc10", "fast_rcnn_12", 40000, settings=_DIFFICULT),
        Run("fast_rcnn-vgg16-07++12-voc10", "fast_rcnn_07pp12", settings=_DIFFICULT),
        Run("fast_rcnn-vgg_cnn_m_1024-07", "fast_rcnn", 40000, _FAST_M, settings=_DIFFICULT),
        Run("fast_rcnn_m_b-vgg16-07", "fast_rcnn_m_b"),
        Run("fast_rcnn-vgg16-coco", "fast_rcnn_coco"),
        # OHEM, as released and as in the paper
        Run("ohem-vgg16-07-repo", "ohem", 40000, _OHEM),
        Run("ohem-vgg16-07+12-repo", "ohem", 80000),
        Run("ohem-vgg_cnn_m_1024-07-repo", "ohem", 40000, _OHEM_M),
        Run("ohem-vgg16-07", "ohem"),
        Run("ohem-vgg_cnn_m_1024-07", "ohem"),
        Run("ohem-vgg16-07+12", "ohem_0712"),
        Run("ohem-vgg16-12", "ohem_12"),
        Run("ohem-vgg16-07++12", "ohem_07pp12"),
        Run("ohem_m_b-vgg16-07", "ohem_m_b"),
        Run("ohem_m_b-vgg16-07+12", "ohem_m_b_0712"),
        Run("ohem_m_b-vgg16-12", "ohem_m_b_12"),
        Run("ohem_m_b-vgg16-07++12", "ohem_m_b_07pp12"),
        Run("ohem_m_b-vgg16-07++12+coco", "ohem_m_b_07pp12", pretraining=("ohem_m_coco", "coco_2014_trainval")),
        Run("ohem-vgg16-coco", "ohem_coco"),
        Run("ohem_m-vgg16-coco", "ohem_m_coco"),
        Run("ohem_m-vgg16-coco_trainval", "ohem_m_coco"),
        # Table 1 of OHEM's paper
        Run("fast_rcnn-vgg_cnn_m_1024-07-table1", "fast_rcnn"),
        Run("fast_rcnn-vgg16-07-table1", "fast_rcnn"),
        Run("fast_rcnn_bg0-vgg_cnn_m_1024-07", "fast_rcnn_bg0"),
        Run("fast_rcnn_bg0-vgg16-07", "fast_rcnn_bg0"),
        Run("fast_rcnn_n1-vgg16-07", "fast_rcnn_n1"),
        Run("fast_rcnn_n1_bg0-vgg16-07", "fast_rcnn_n1_bg0"),
        Run("fast_rcnn_n1_b2048-vgg_cnn_m_1024-07", "fast_rcnn_n1_b2048"),
        Run("fast_rcnn_b2048-vgg_cnn_m_1024-07", "fast_rcnn_b2048"),
        Run("fast_rcnn_n1_b2048-vgg16-07", "fast_rcnn_n1_b2048"),
        Run("fast_rcnn_b2048-vgg16-07", "fast_rcnn_b2048"),
        Run("ohem_n1-vgg16-07", "ohem_n1"),
    )
}
