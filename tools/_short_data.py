"""Data sets with fewer images, as folders of their own beside which nothing is copied: images are links."""

from __future__ import annotations

import json
from pathlib import Path

from ohem_caffe_port.data.coco import Coco
from ohem_caffe_port.data.imdb import Imdb, UnionImdb
from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.data.proposals import save_npz
from prototxt.files import replacing

DEVKIT = "VOCdevkit"  # within the folder; a name that find_devkit knows for every year


def shorten(imdb: Imdb, count, folder: Path, method: str) -> None:
    """Writes ``imdb`` with ``count(images)`` of its images into ``folder``, which then serves as ``--data``.

    Images are taken at even distances. The proposals go to ``<method>_data/<name>.npz``, which is written last: where
    it is, nothing is done. Unions are shortened part by part. Data sets other than VOC and COCO stay as they are.
    """
    if isinstance(imdb, UnionImdb):
        for part in imdb.parts:
            shorten(part, count, folder, method)
        return
    done = folder / f"{method}_data" / f"{imdb.name}.npz"
    if done.is_file() or not imdb.name.startswith(("voc_", "coco_")):
        return
    total, wanted = imdb.num_images, count(imdb.num_images)
    chosen = [round(k * (total - 1) / max(wanted - 1, 1)) for k in range(wanted)]
    print(f"{imdb.name}: {wanted} of {total} images", flush=True)
    (_shorten_coco if isinstance(imdb, Coco) else _shorten_voc)(imdb, chosen, folder)
    boxes = imdb.proposal_boxes() or [[]] * total
    save_npz(done, [imdb.image_index[i] for i in chosen], [boxes[i] for i in chosen])


def _shorten_voc(imdb: PascalVoc, chosen: list[int], folder: Path) -> None:
    devkit = folder / DEVKIT / imdb.data_path.name
    sets = devkit / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", "JPEGImages"):
        _link(devkit / name, imdb.data_path / name)
    with replacing(sets / f"{imdb.image_set}.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{imdb.image_index[i]}\n" for i in chosen)


def _shorten_coco(imdb: Coco, chosen: list[int], folder: Path) -> None:
    data, ids = imdb.coco.dataset, {int(imdb.image_index[i]) for i in chosen}
    content = {
        "images": [image for image in data["images"] if image["id"] in ids],
        "annotations": [each for each in data.get("annotations", ()) if each["image_id"] in ids],
        "categories": data["categories"],
    }
    annotations = folder / "coco" / "annotations" / imdb.annotation_path.name
    annotations.parent.mkdir(parents=True, exist_ok=True)
    _link(folder / "coco" / imdb.image_folder.name, imdb.image_folder)
    with replacing(annotations, "w", encoding="utf-8") as file:
        json.dump(content, file)


def _link(path: Path, target: Path) -> None:
    if not path.exists():
        path.symlink_to(target.resolve(), target_is_directory=True)
