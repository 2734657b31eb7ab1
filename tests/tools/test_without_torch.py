"""The tools that evaluate never wait for torch, which takes seconds to import."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.pascal_voc import VOC_CLASSES
from ohem_caffe_port.evaluate import save_detections

TOOLS = Path(__file__).resolve().parents[2] / "tools"
XML = """<annotation><size><width>60</width><height>40</height><depth>3</depth></size><object><name>dog</name>
<difficult>0</difficult><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>
"""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
tool = __import__(sys.argv[1])
sys.argv.pop(0)
try:
    tool._cli.run(tool.main)
finally:
    print("torch" if "torch" in sys.modules else "no torch")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(tool, *options)``: what a tool prints where a devkit lies with one image, proposal and detection."""
    monkeypatch.chdir(tmp_path)
    voc = Path("data/VOCdevkit2007/VOC2007")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "../../selective_search_data"):
        (voc / folder).mkdir(parents=True)
    cv2.imwrite(str(voc / "JPEGImages/000001.jpg"), np.zeros((40, 60, 3), np.uint8))
    (voc / "Annotations/000001.xml").write_text(XML)
    (voc / "ImageSets/Main/val.txt").write_text("000001\n")
    box = np.array([[10, 10, 29, 29]], np.float32)
    np.savez("data/selective_search_data/voc_2007_val.npz", **{"000001": box})
    none = np.zeros((0, 5), np.float32)
    all_boxes = [[np.hstack([box, [[0.9]]]).astype(np.float32) if name == "dog" else none] for name in VOC_CLASSES]
    save_detections("detections.npz", all_boxes, ["000001"], VOC_CLASSES)

    def make(tool, *options):
        command = [sys.executable, "-c", PROGRAM, TOOLS, tool, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return make


def test_on_voc(run):
    data = ("--imdb", "voc_2007_val", "--data", "data")
    for command in (
        ("reval", ".", *data),
        ("eval_voc", "--detections", "reval", *data),
        ("eval_recall", *data),
    ):
        printed = run(*command)
        assert "1.0" in printed
        assert printed.endswith("no torch\n")


def test_on_coco(run):
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
    annotations = {
        "images": [{"id": 1, "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{**box, "id": 1, "area": 400, "iscrowd": 0}],
    }
    Path("annotations.json").write_text(json.dumps(annotations))
    Path("results.json").write_text(json.dumps([{**box, "score": 0.9}]))
    printed = run("eval_coco", "--annotations", "annotations.json", "--detections", "results.json")
    assert "1.0" in printed
    assert printed.endswith("no torch\n")
