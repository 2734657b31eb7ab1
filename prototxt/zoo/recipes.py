"""Recipes: how a detector is trained and tested, as settings; above all the rows of the OHEM paper.

Shrivastava, Gupta, Girshick, *Training Region-based Object Detectors with Online Hard Example Mining* (CVPR 2016,
arXiv 1604.03540). What its released code and configuration say comes first; what stands under ``unverified`` was
remembered or chosen, and is marked so in every file. ``docs/recipes.md`` is the table for readers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from prototxt import caffe_pb2, parse_solver

VOC07, VOC12 = ("voc_2007_trainval", "voc_2007_test"), ("voc_2012_trainval", "voc_2012_test")
VOC0712 = ("voc_2007_trainval+voc_2012_trainval", "voc_2007_test")
VOC07PP12 = ("voc_2007_trainval+voc_2007_test+voc_2012_trainval", "voc_2012_test")
COCO = ("coco_2014_train", "coco_2014_minival")


@dataclass(frozen=True)
class Recipe:
    """Settings of one training and test; the defaults are the paper's Fast R-CNN.

    Attributes:
        row: what it is in the paper, or why it is here.
        method: how RoIs are chosen, which is also the folder of its nets
            (:func:`prototxt.zoo.detectors.train_net`).
        data: imdbs to train and to test on.
        images, rois: of one iteration, the paper's N and B; with mining, ``rois`` are the hard ones.
        passes: forward and backward passes that an iteration is divided into.
        rate, step, iterations: learning rate, iterations after which it is a tenth, iterations in all.
        bg_lo: least overlap of background.
        suppress: co-located RoIs are suppressed before hard ones are chosen.
        scales, test_scales, max_size: lengths of the shorter side, most pixels of the longer one.
        iterated: boxes are regressed twice and voted for when testing (+B).
        classes: with background.
        nets: the recipe in whose folder its nets are, where that is not its method.
        head: settings of the RoI head that these nets have differently from their family.
        unverified: settings that no source of this project gives, each with where it is from.
    """

    row: str
    method: str = "fast_rcnn"
    data: tuple[str, str] = VOC07
    images: int = 2
    rois: int = 128
    passes: int = 1
    rate: float = 0.001
    step: int = 30000
    iterations: int = 80000
    bg_lo: float = 0.1
    suppress: bool = True
    scales: tuple[int, ...] = (600,)
    test_scales: tuple[int, ...] = ()
    max_size: int = 1000
    iterated: bool = False
    classes: int = 21
    nets: str = ""
    head: dict = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    @property
    def mines(self) -> bool:
        return self.method != "fast_rcnn"

    @property
    def folder(self) -> str:
        """Of its nets."""
        return self.nets or self.method

    def but(self, *unverified: str, **changes) -> Recipe:
        """The same recipe with other settings; what is not verified about them adds up."""
        return replace(self, unverified=self.unverified + unverified, **changes)

    def solver(self, net: str, name: str, extra: str = "") -> caffe_pb2.SolverParameter:
        """The solver of ``net``, whose snapshots begin with ``name``. ``extra`` has the last word."""
        passes = f"iter_size: {self.passes}" if self.passes > 1 else ""
        solver = parse_solver(
            f"train_net: '{net}' base_lr: {self.rate} lr_policy: 'step' gamma: 0.1 stepsize: {self.step} display: 20 "
            f"average_loss: 100 momentum: 0.9 {passes} weight_decay: 0.0005 max_iter: {self.iterations} snapshot: 0 "
            f"snapshot_prefix: '{name}'"
        )
        if extra:
            solver.MergeFrom(parse_solver(extra))
        return solver

    def cfg(self, name: str, extra: str = "") -> str:
        """The configuration file without its comments. ``extra``: lines of the top level."""
        mining = ["USE_OHEM: True"] if self.mines else []
        mining += ["OHEM_USE_NMS: False"] if self.mines and not self.suppress else []
        test_scales = self.test_scales or self.scales
        pyramid = ["SCALE_USE: all"] if len(test_scales) > 1 else []
        boxes = ["BBOX_ITERS: 2", "BBOX_ITER_THRESH: 0.05", "BBOX_VOTE: True", "BBOX_VOTE_THRESH: 0.5"]
        train = [
            f"IMS_PER_BATCH: {self.images // self.passes}",
            f"BATCH_SIZE: {self.rois // self.passes}",
            f"BG_THRESH_LO: {self.bg_lo}",
            *mining,
            "ASPECT_GROUPING: False",
            f"IMDB: {self.data[0]}",
            f"SCALES: {list(self.scales)}",
            f"MAX_SIZE: {self.max_size}",
        ]
        test = [
            f"IMDB: {self.data[1]}",
            f"SCALES: {list(test_scales)}",
            f"MAX_SIZE: {self.max_size}",
            *pyramid,
            *(boxes if self.iterated else ()),
        ]
        groups = [f"{group}:\n" + "".join(f"  {line}\n" for line in lines)
                  for group, lines in (("TRAIN", train), ("TEST", test))]  # fmt: skip
        return f"EXP_DIR: {name}\n{extra}" + "".join(groups)


def mined(recipe: Recipe, **changes) -> Recipe:
    """``recipe`` with OHEM: no lower bound on background, and one image in each pass, as in the released solver."""
    return replace(recipe, method="ohem", bg_lo=0.0, passes=recipe.images, **changes)


def small(row: str, data: tuple[str, str], methods, **settings) -> dict[str, Recipe]:
    """The ways to choose RoIs with one budget of this project's own, two images in two passes, so that RoIs are ranked
    within an image."""
    recipes = {}
    for method in methods:
        sampled = Recipe(row, data=data, passes=2, **settings)
        recipes[method] = sampled if method == "fast_rcnn" else mined(sampled).but(method=method)
    return recipes


# ---- the paper's

ROW1, NO_FIGURE = "Table 1: ", "; the paper has no figure of it that this project knows"


def ablation(high_rate: float, absent=()) -> dict[str, Recipe]:
    """Table 1 and two variants, trained on VOC 2007.

    Args:
        high_rate: learning rate of the rows with 2,048 RoIs.
        absent: rows that the paper has for another network only.
    """
    frcn = Recipe(ROW1 + "Fast R-CNN")
    ohem = mined(frcn, row=ROW1 + "OHEM")
    high = {"rois": 2048, "rate": high_rate, "bg_lo": 0.0}
    recipes = {
        "fast_rcnn": frcn,
        "fast_rcnn_bg0": frcn.but(row=ROW1 + "no hard mining heuristic", bg_lo=0.0),
        "fast_rcnn_n1": frcn.but(row=ROW1 + "fewer images per batch", images=1),
        "fast_rcnn_n1_bg0": frcn.but(row=ROW1 + "fewer images per batch", images=1, bg_lo=0.0),
        "fast_rcnn_b2048": frcn.but(row=ROW1 + "bigger batch, higher rate", **high),
        "fast_rcnn_n1_b2048": frcn.but(row=ROW1 + "bigger batch, higher rate", images=1, **high),
        "ohem": ohem,
        "ohem_n1": ohem.but(row=ROW1 + "OHEM", images=1, passes=1),
        "ohem_no_nms": ohem.but(row="OHEM that keeps co-located RoIs" + NO_FIGURE, suppress=False),
        "ohem_naive": ohem.but(row="OHEM in one branch (section 4.3)" + NO_FIGURE, method="ohem_naive"),
    }
    note = " (the paper has this row for VGG16 only)"
    return {name: recipe.but(row=recipe.row + note) if name in absent else recipe for name, recipe in recipes.items()}


def multi_scale(recipe: Recipe) -> Recipe:
    """+M: one of five scales at random for each image in training, all five when testing."""
    return recipe.but(
        "MAX_SIZE: not given; 2000 is that of fast-rcnn's experiments/cfgs/multiscale.yml",
        "TEST.SCALE_USE: all five scales are given; whether every RoI runs at each is not",
        scales=(480, 576, 688, 864, 900), test_scales=(480, 576, 688, 864, 1000), max_size=2000,
    )  # fmt: skip


def iterated(recipe: Recipe) -> Recipe:
    """+B: boxes are scored, moved, and scored and moved again; of all those NMS keeps some, which the others vote
    for."""
    return recipe.but(
        "TEST.BBOX_VOTE_THRESH: remembered",
        "TEST.BBOX_ITER_THRESH: what 'high-scoring' means is not given; 0.05 is Fast R-CNN's least score",
        iterated=True,
    )


def bells_and_whistles(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """What +M and +B add to the Fast R-CNN and OHEM of VOC 2007."""
    frcn, ohem = recipes["fast_rcnn"], recipes["ohem"]
    ends, middle = "VOC 2007 test: {}, +M, +B", "VOC 2007 test: OHEM, {}" + NO_FIGURE
    return {
        "fast_rcnn_m_b": iterated(multi_scale(frcn)).but(row=ends.format("Fast R-CNN")),
        "ohem_m_b": iterated(multi_scale(ohem)).but(row=ends.format("OHEM")),
        "ohem_m": multi_scale(ohem).but(row=middle.format("+M")),
        "ohem_b": iterated(ohem).but(row=middle.format("+B")),
    }


# training sets beside VOC 2007: data, row, and the schedules of Fast R-CNN and of OHEM
# (iterations, step, what of them is not verified)
NOT_GIVEN = (80000, 30000, "iterations, stepsize: not given; those of VOC 2007")
LONG = (200000, 40000, "iterations, stepsize: 200000 and 40000 are remembered")
LARGER = {
    "0712": (
        VOC0712, "VOC 2007 test: {}, trained on 07+12",
        (60000, 30000, "iterations: 60000 is remembered of the Fast R-CNN paper"), LONG,
    ),
    "12": (VOC12, "VOC 2012 test: {}, trained on 12", NOT_GIVEN, NOT_GIVEN),
    "07pp12": (
        VOC07PP12, "VOC 2012 test: {}, trained on 07++12",
        (100000, 40000, "iterations, stepsize: 100000 and 40000 are remembered of the Fast R-CNN paper"), LONG,
    ),
}  # fmt: skip


def larger_sets(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """VOC 2012, and the unions with 2007."""
    found = {}
    for suffix, (data, row, sampled, hard) in LARGER.items():
        for name, title in (("fast_rcnn", "Fast R-CNN"), ("ohem", "OHEM"), ("ohem_m_b", "OHEM, +M, +B")):
            iterations, step, note = hard if recipes[name].mines else sampled
            changes = {"row": row.format(title), "data": data, "iterations": iterations, "step": step}
            found[f"{name}_{suffix}"] = recipes[name].but(note, **changes)
    return found


def coco(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """COCO, whose nets have more classes."""
    notes = (
        "iterations, stepsize: 240000 and 160000 are vaguely remembered; py-faster-rcnn's have 280000 and 200000",
        "no dropout: as py-faster-rcnn's net for COCO",
        "TEST.IMDB: the paper's figures are of test-dev 2015, which a server scores",
    )
    changes = {"data": COCO, "classes": 81, "head": {"dropout": 0}, "iterations": 240000, "step": 160000}
    found = {}
    for name, title in (("fast_rcnn", "Fast R-CNN"), ("ohem", "OHEM"), ("ohem_m", "OHEM, +M")):
        row = f"COCO 2015 test-dev: {title}, trained on train 2014"
        found[f"{name}_coco"] = recipes[name].but(*notes, row=row, nets=f"{recipes[name].method}_coco", **changes)
    return found


def vgg16() -> dict[str, Recipe]:
    """Everything that the paper has."""
    recipes = ablation(0.003)
    recipes |= bells_and_whistles(recipes)
    return recipes | larger_sets(recipes) | coco(recipes)


def vgg_cnn_m_1024() -> dict[str, Recipe]:
    """Table 1."""
    return ablation(0.004, absent=("fast_rcnn_n1", "fast_rcnn_n1_bg0", "ohem_n1"))
