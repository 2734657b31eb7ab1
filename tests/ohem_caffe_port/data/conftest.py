"""A VOC devkit of three images, written by the tests themselves."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.io


def _object_xml(name, box, difficult=0):
    sides = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox></object>"
    )


class Devkit:
    """``<data_dir>/VOCdevkit2007`` with images of 60 x 40 pixels and proposals for the image set ``train``."""

    objects = {
        "000001": [("dog", (11, 11, 30, 30)), ("person", (1, 1, 60, 40), 1)],
        "000002": [("cat", (5, 6, 24, 35)), ("dog", (31, 6, 60, 40))],
        "000003": [("person", (1, 1, 20, 40))],
    }
    # columns y1 x1 y2 x2, from 1, as MATLAB stores them
    cells = {
        "000001": [(11, 11, 30, 30), (11, 16, 30, 35), (1, 1, 5, 5), (11, 16, 30, 35), (1, 1, 2, 60)],
        "000002": [(6, 5, 35, 20), (1, 1, 40, 60)],
        "000003": [(1, 1, 40, 10), (21, 41, 40, 60)],
    }

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self.voc = data_dir / "VOCdevkit2007" / "VOC2007"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.voc / part).mkdir(parents=True)
        for image_id, objects in self.objects.items():
            self.image(image_id)
            self.annotation(image_id, "".join(_object_xml(*obj) for obj in objects))
        self.image_set("train", list(self.objects))
        (data_dir / "selective_search_data").mkdir()
        self.proposals(self.cells)

    def image(self, image_id, width=60, height=40):
        pixels = np.full((height, width, 3), 128, dtype=np.uint8)
        cv2.imwrite(str(self.voc / "JPEGImages" / f"{image_id}.jpg"), pixels)

    def annotation(self, image_id, objects_xml) -> Path:
        path = self.voc / "Annotations" / f"{image_id}.xml"
        path.write_text(f"<annotation>\n{objects_xml}</annotation>")
        return path

    def one_object(self, image_id, name="dog", box=(1, 1, 20, 20), difficult=0) -> Path:
        return self.annotation(image_id, _object_xml(name, box, difficult))

    def image_set(self, name, ids):
        (self.voc / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))

    def proposals(self, cells, name="voc_2007_train", dtype=np.uint16, images=True) -> Path:
        boxes = np.empty((1, len(cells)), dtype=object)
        ids = np.empty((len(cells), 1), dtype=object)
        for k, (image_id, rows) in enumerate(cells.items()):
            boxes[0, k], ids[k, 0] = np.array(rows, dtype=dtype).reshape(-1, 4), image_id
        path = self.data_dir / "selective_search_data" / f"{name}.mat"
        scipy.io.savemat(path, {"boxes": boxes, "images": ids} if images else {"boxes": boxes})
        return path


@pytest.fixture
def devkit(tmp_path):
    return Devkit(tmp_path)


@pytest.fixture
def make_cfg():
    """A configuration with the original's defaults for OHEM, and changes to its TRAIN section."""

    def make(**changes):
        train = {
            "USE_FLIPPED": True,
            "FG_THRESH": 0.5,
            "BG_THRESH_HI": 0.5,
            "BG_THRESH_LO": 0.0,
            "BBOX_REG": True,
            "BBOX_THRESH": 0.5,
            "BBOX_NORMALIZE_TARGETS": True,
            "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": False,
            "BBOX_NORMALIZE_MEANS": (0.0, 0.0, 0.0, 0.0),
            "BBOX_NORMALIZE_STDS": (0.1, 0.1, 0.2, 0.2),
            "BBOX_INSIDE_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
            "AGNOSTIC": False,
        }
        return SimpleNamespace(TRAIN=SimpleNamespace(**{**train, **changes}), EPS=1e-14)

    return make


@pytest.fixture
def shared_voc():
    """The folder of real VOC images beside the checkout, where there is one."""
    folder = Path(__file__).resolve().parents[3] / "../shared/voc"
    if not folder.is_dir():
        pytest.skip("no real VOC images beside the checkout (../shared/voc)")
    return folder
