"""``get_imdb``: an image database by its name, such as ``voc_2007_trainval+voc_2012_trainval``."""

from __future__ import annotations

from pathlib import Path

from prototxt.errors import nearest

from ..errors import PortError
from .imdb import Imdb, UnionImdb
from .pascal_voc import PascalVoc, find_devkit
from .proposals import find_proposals
from .sbd import Sbd

# name -> function(name, data_dir, devkit, use_diff, proposals) -> Imdb
_IMDBS = {}


def register_imdb(name: str, make) -> None:
    """Makes ``get_imdb(name)`` call ``make(name, data_dir=, devkit=, use_diff=, proposals=)``."""
    if name in _IMDBS:
        raise ValueError(f"imdb '{name}' is registered twice")
    _IMDBS[name] = make


def list_imdbs() -> list[str]:
    """The registered names, sorted."""
    return sorted(_IMDBS)


def get_imdb(name: str, *, data_dir, devkit=None, use_diff=False, proposals="selective_search") -> Imdb:
    """The imdb called ``name``, or several joined by ``+``.

    ``data_dir``: holds ``VOCdevkit<year>``, ``coco`` and ``selective_search_data``; ``devkit``: the folder of the
    devkit or of COCO where it lies elsewhere; ``use_diff``: keep difficult objects in the ground truth; ``proposals``:
    ``gt`` for ground truth alone, a method (``selective_search`` reads ``<data_dir>/selective_search_data/<name>.mat``
    or ``.npz``), a file or a folder of such files; for COCO see also ``coco.find_coco_proposals``.

    Raises:
        PortError: unknown name (the nearest is suggested), missing devkit, image set or proposals.
    """
    parts = [_get_one(part.strip(), data_dir, devkit, use_diff, proposals) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else UnionImdb(parts)


def _get_one(name, data_dir, devkit, use_diff, proposals) -> Imdb:
    if name not in _IMDBS:
        near = nearest(name, _IMDBS)
        hint = (
            f"Did you mean '{near}'? " if near else ""
        ) + f"Known: {', '.join(list_imdbs())}; join several with '+'."
        raise PortError(f"unknown imdb '{name}'", field="imdb", hint=hint)
    return _IMDBS[name](name, data_dir=data_dir, devkit=devkit, use_diff=use_diff, proposals=proposals)


def _voc(name, *, data_dir, devkit, use_diff, proposals) -> PascalVoc:
    _, year, image_set = name.split("_")
    return PascalVoc(
        name,
        find_devkit(year, data_dir, devkit),
        year,
        image_set,
        proposals=find_proposals(proposals, name, data_dir),
        use_diff=use_diff,
    )


def _shapes(name, *, data_dir, devkit, use_diff, proposals) -> PascalVoc:
    """The embedded data set: drawn into ``<data_dir>/shapes`` at the first use."""
    from .shapes import SHAPE_CLASSES, ensure_shapes

    if devkit is not None:
        raise PortError(
            f"'{name}' has no devkit: it is drawn into <data_dir>/shapes", hint="Leave the devkit option out."
        )
    folder = ensure_shapes(Path(data_dir) / "shapes")
    image_set = name.removeprefix("shapes_")
    return PascalVoc(
        name,
        folder / "VOCdevkit2007",
        "2007",
        image_set,
        classes=SHAPE_CLASSES,
        proposals=find_proposals(proposals, f"voc_2007_{image_set}", folder),
        use_diff=use_diff,
    )


def _sbd(name, *, data_dir, devkit, use_diff, proposals) -> Sbd:
    """MNC's imdb: ``<data_dir>/VOCdevkitSDS``; always ground truth alone."""
    return Sbd(name, devkit or Path(data_dir) / "VOCdevkitSDS", name.rpartition("_")[2])


def _coco(name, *, data_dir, devkit, use_diff, proposals) -> Imdb:
    """``<data_dir>/coco``. Nothing in COCO is marked difficult."""
    from .coco import Coco, find_coco, find_coco_proposals

    if name == "coco_2014_trainval":
        options = {"data_dir": data_dir, "devkit": devkit, "use_diff": use_diff, "proposals": proposals}
        return get_imdb("coco_2014_train+coco_2014_val", **options)
    _, year, image_set = name.split("_")
    folder = find_coco(data_dir, devkit)
    return Coco(name, folder, year, image_set, proposals=find_coco_proposals(proposals, name, data_dir))


for _year in ("2007", "2010", "2012"):
    for _split in ("train", "val", "trainval", "test"):
        register_imdb(f"voc_{_year}_{_split}", _voc)
for _split in ("train", "val"):
    register_imdb(f"voc_2012_seg_{_split}", _sbd)
for _year, _splits in (
    ("2014", ("train", "val", "trainval", "minival", "valminusminival")),
    ("2015", ("test", "test-dev")),
    ("2017", ("train", "val", "test", "test-dev")),
):
    for _split in _splits:
        register_imdb(f"coco_{_year}_{_split}", _coco)
for _split in ("train", "test"):
    register_imdb(f"shapes_{_split}", _shapes)
