"""Writes the networks and recipes of this folder: ``python -m prototxt.zoo.generate``.

``<family>/<recipe>/`` holds ``solver.prototxt`` and ``cfg.yml``. The nets of a family are written once for each way of
choosing RoIs, into the recipe of that name (``fast_rcnn``, ``ohem``, ``ohem_naive``); other recipes name them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prototxt import parse_net, write_text

from . import backbones, recipes
from .detectors import test_net, train_net
from .layers import DECAYED
from .recipes import Recipe

ZOO = Path(__file__).parent
METHODS = ("fast_rcnn", "ohem", "ohem_naive")  # of every family; one may have more


@dataclass(frozen=True)
class Family:
    """A backbone with its RoI head, and what it is trained with.

    Attributes:
        backbone: see :mod:`prototxt.zoo.backbones`.
        head: settings of :func:`prototxt.zoo.detectors.head`.
        recipes: by name; there is one for each of :data:`METHODS`.
        weights: name of the caffemodel that training starts from.
        solver, cfg: text that its solvers and configurations have beside their recipe's.
        changed: settings of the head that some method has differently.
    """

    backbone: Callable
    head: dict
    recipes: dict[str, Recipe]
    weights: str = ""
    solver: str = ""
    cfg: str = ""
    changed: dict[str, dict] = field(default_factory=dict)

    def net(self, recipe: Recipe) -> dict:
        """Keyword arguments for :func:`train_net` and :func:`test_net`."""
        head = {**self.head, **self.changed.get(recipe.method, {}), **recipe.head}
        return {"backbone": self.backbone, "classes": recipe.classes, **head}


VGG = {"pool": ("roi_pool5", "pool5"), "dropout": 0.5, "init": None}
# biases of the released nets decay, but for the ones that two branches share by name
VGG_CHANGED = {"fast_rcnn": {"params": DECAYED}}
IMAGENET_MEANS = "PIXEL_MEANS: [104, 117, 123]\n"
SMALL_VOC = {"scales": (480,), "max_size": 800, "rate": 0.002, "step": 2100, "iterations": 2800}
SHAPES = ("shapes_train", "shapes_test")
FAMILIES = {
    "shapes": Family(
        backbones.shapes_backbone,
        {"pooled": 6, "hidden": (256,)},
        recipes.small("the embedded data set", SHAPES, (*METHODS, "sohem"), scales=(200,), max_size=320, step=1600,
                      iterations=2000, classes=7),
        solver="type: 'Adam' momentum2: 0.999 display: 100",
        cfg="DEDUP_BOXES: 0.25\n",
    ),
    "squeezenet_v1.1": Family(
        backbones.squeezenet_backbone,
        {"pooled": 6, "hidden": (512,), "dropout": 0.5},
        recipes.small("a budget of this project's own, for a CPU", recipes.VOC07, METHODS, **SMALL_VOC),
        "squeezenet_v1.1.caffemodel",
        cfg=IMAGENET_MEANS,
    ),
    "squeezenet_v1.1_fixed": Family(
        backbones.squeezenet_fixed_backbone,
        {"pooled": 4, "hidden": (512,), "dropout": 0.5},
        recipes.small("a budget of this project's own, for a CPU", ("voc_2007_train", "voc_2007_val"), METHODS,
                      scales=(320,), max_size=500, rate=0.01, step=800, iterations=1000),
        "squeezenet_v1.1.caffemodel",
        cfg=IMAGENET_MEANS,
    ),
    "googlenet": Family(
        backbones.googlenet_backbone,
        {"pooled": 6, "hidden": (512,), "dropout": 0.5},
        recipes.small("a budget of this project's own", recipes.VOC07, METHODS, **SMALL_VOC),
        "bvlc_googlenet.caffemodel",
        cfg=IMAGENET_MEANS,
    ),
    "vgg16": Family(
        backbones.vgg16_backbone,
        {"pooled": 7, "hidden": (4096, 4096), **VGG},
        recipes.vgg16(),
        "VGG16.v2.caffemodel",
        changed=VGG_CHANGED,
    ),
    "vgg_cnn_m_1024": Family(
        backbones.vgg_cnn_m_backbone,
        {"pooled": 6, "hidden": (4096, 1024), **VGG},
        recipes.vgg_cnn_m_1024(),
        "VGG_CNN_M_1024.v2.caffemodel",
        changed=VGG_CHANGED,
    ),
}  # fmt: skip
# What came of it: one run with the seed of the file, on two CPU cores.
MEASURED = {
    ("squeezenet_v1.1_fixed", "fast_rcnn"): "mAP 0.178 on 800 images of voc_2007_val, 3 seeds (docs/comparison.md)",
    ("squeezenet_v1.1_fixed", "ohem"): "mAP 0.210 on 800 images of voc_2007_val, 3 seeds (docs/comparison.md)",
    ("shapes", "fast_rcnn"): "mAP 0.691 on shapes_test, 1.5 minutes",
    ("shapes", "ohem"): "mAP 0.727 on shapes_test, 2.3 minutes",
    ("shapes", "sohem"): "mAP 0.734 on shapes_test with RNG_SEED 0, where ohem has 0.758 (docs/comparison.md)",
    ("shapes", "ohem_naive"): "mAP 0.738 on shapes_test, 5.7 minutes on a busy machine",
    (
        "squeezenet_v1.1",
        "ohem",
    ): "mAP 0.145 on 280 images of voc_2007_val after training on 480 of voc_2007_train, 75 minutes",
}


def comments(family_name: str, name: str) -> list[str]:
    """What the configuration of a recipe begins with: what it is, the commands, what is not verified."""
    family = FAMILIES[family_name]
    recipe, folder = family.recipes[name], f"prototxt/zoo/{family_name}"
    if family_name == "shapes":
        return [f"make demo METHOD={name}", MEASURED[family_name, name]]
    run = f"{family_name}_{name}"
    model = f"output/{run}/{recipe.data[0]}/{run}_iter_{recipe.iterations}.caffemodel"
    released = " --num_dets 2000 --det_thresh 0.00001" if recipe.mines else ""  # as in the released scripts
    return [
        recipe.row,
        f"python tools/train_from_prototxt.py {folder}/{name}/solver.prototxt --weights {family.weights}",
        f"python tools/test_from_prototxt.py --def {folder}/{recipe.folder}/test.prototxt "
        f"--cfg {folder}/{name}/cfg.yml --net {model}{released}",
        *(f"not verified: {what}" for what in recipe.unverified),
        MEASURED.get((family_name, name), "not measured"),
    ]


def generate(zoo: Path = ZOO) -> None:
    """Writes all families into ``zoo``."""
    for family_name, family in FAMILIES.items():
        for name, recipe in family.recipes.items():
            folder, run = zoo / family_name / name, f"{family_name}_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            net = f"../{recipe.folder}/train.prototxt"
            if recipe.folder == name:
                net, settings = "train.prototxt", family.net(recipe)
                write_text(parse_net(train_net(run, recipe.method, **settings)), folder / "train.prototxt")
                write_text(parse_net(test_net(run, **settings)), folder / "test.prototxt")
            write_text(recipe.solver(net, run, family.solver), folder / "solver.prototxt")
            head = "".join(f"# {line}\n" for line in comments(family_name, name))
            (folder / "cfg.yml").write_text(head + recipe.cfg(run, family.cfg))
    from . import adversarial, single_shot  # they build on this module

    adversarial.generate(zoo)
    single_shot.generate(zoo)


if __name__ == "__main__":
    generate()
