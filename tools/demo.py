"""Detect objects in images, and draw them.

    python tools/demo.py photo.jpg holidays/ --def test.prototxt --net snapshot.caffemodel

Proposals come from --proposals, from <image>_boxes.mat beside an image, as in the original's data/demo, or are made
here; a net that makes its own needs none. Pictures with boxes go to output/demo/<name of the weights>.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import _cli
import cv2
import numpy as np
from rich.table import Table

from ohem_caffe_port.data.coco import COCO_CLASSES
from ohem_caffe_port.data.images import read_image
from ohem_caffe_port.data.pascal_voc import VOC_CLASSES
from ohem_caffe_port.data.proposals import generate_proposals, load_demo_boxes, load_npz, proposal_method
from ohem_caffe_port.data.shapes import SHAPE_CLASSES
from ohem_caffe_port.detect import detections_by_class, detector_form, im_detect
from ohem_caffe_port.draw import draw_detections
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.single_shot import detection_layer, im_detect_rows, rows_by_class
from ohem_caffe_port.weights import copy_from
from prototxt.files import replacing

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
CLASSES = {len(names): names for names in (VOC_CLASSES, SHAPE_CLASSES, COCO_CLASSES)}
LEAST = 0.05  # test_net.py's least score: of the boxes that vote, or are scored again


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="images, or folders of images")
    parser.add_argument("--def", dest="prototxt", required=True, metavar="FILE", help="test prototxt")
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights")
    parser.add_argument("--cfg", metavar="FILE", help="YAML with the original's keys; cfg.yml beside the prototxt")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="e.g. --set TEST.BBOX_VOTE True"
    )
    parser.add_argument(
        "--proposals",
        metavar="NAME|FILE|DIR",
        help="auto, selective_search or colour_edge make them; an .npz file or a folder of <image>_boxes.mat has them",
    )
    parser.add_argument("--conf", "--thresh", type=float, default=0.8, metavar="X", help="least score [0.8]")
    parser.add_argument("--nms", type=float, metavar="X", help="suppression within a class [TEST.NMS, 0.3]")
    parser.add_argument(
        "--classes", metavar="NAMES|FILE", help="names without background, with commas or a line each [VOC's for 21]"
    )
    parser.add_argument("--output", metavar="DIR", help="where pictures go [output/demo/<name of the weights>]")
    parser.add_argument("--gpu", type=int, metavar="ID", help="CUDA device; -1 is the CPU [0 where there is one]")
    parser.add_argument("--cpu", action="store_const", dest="gpu", const=-1, help="as --gpu -1")
    parser.add_argument("--lenient", action="store_true", help="list unknown prototxt fields, do not stop at them")
    args = parser.parse_args()
    args.data = None
    return args


def main() -> int:
    args = parse_args()
    files = find_images(args.images)
    output = Path(args.output or Path("output/demo") / Path(args.caffemodel).stem)
    pictures = name_pictures(files, output)
    cfg = _cli.load_config(args, args.prototxt)
    if args.nms is not None:
        cfg.merge({"TEST": {"NMS": args.nms}}, source="--nms")
    net = Net(args.prototxt, "TEST", cfg=cfg, device=_cli.pick_device(args), lenient=args.lenient)
    net.keep_blobs = False
    _cli.show(net.warnings)
    shot = detection_layer(net)
    form = None if shot else detector_form(net, cfg)
    number = shot.param.detection_output_param.num_classes if shot else form.classes
    classes = class_names(args.classes, number)
    print(copy_from(net, args.caffemodel).summary())
    own_boxes = shot or form.has_rpn
    for name, given in (("--proposals", args.proposals if own_boxes else None), ("--nms", args.nms if shot else None)):
        if given is not None:
            raise PortError("of no use: the net does that itself", file=args.prototxt, field=name)

    for file, picture in zip(files, pictures, strict=True):
        image = read_image(file)
        boxes = None if own_boxes else proposals_of(file, image, args.proposals)
        start = time.perf_counter()
        if shot:
            dets = rows_by_class(im_detect_rows(net, image, cfg), number, thresh=LEAST, max_per_image=0)
        else:
            thresh = min(LEAST, args.conf)
            found = im_detect(net, image, boxes, cfg, thresh=thresh)
            dets = detections_by_class(*found, cfg, thresh=thresh, max_per_image=0)
        seconds = time.perf_counter() - start
        dets = [rows[rows[:, 4] >= args.conf] for rows in dets]
        with replacing(_cli.output_folder(output) / picture) as stream:
            stream.write(cv2.imencode(".jpg", draw_detections(image, dets, classes, args.conf))[1].tobytes())
        among = "" if own_boxes else f" among {len(boxes)} proposals"
        print_detections(f"{file}: %d detections{among} in {seconds:.2f} s", dets, classes)
    print(f"pictures: {output}")
    return 0


def find_images(paths) -> list[Path]:
    """The image files that ``paths`` name or, where they are folders, hold, in alphabetical order."""
    files = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES and not p.is_dir())
        if not inside:
            raise PortError("no images in this folder", file=path, hint=f"they end in {', '.join(sorted(IMAGES))}")
        if not inside[0].is_file():
            raise PortError("there is no such image", file=path)
        files += inside
    return files


def name_pictures(files: list[Path], output: Path) -> list[str]:
    """The name of each file's picture in ``output``; no two are the same, and none is one of ``files``."""
    names: dict[str, Path] = {}
    inputs = {file.resolve() for file in files}
    for file in files:
        name = f"{file.stem}.jpg"
        if name in names:
            raise PortError(f"its picture would replace that of {names[name]}", file=file, hint="do them one at a time")
        if (output / name).resolve() in inputs:
            raise PortError("a picture would replace it", file=file, hint="name another folder with --output")
        names[name] = file
    return list(names)


def class_names(given: str | None, number: int) -> tuple[str, ...]:
    """Names of ``number`` classes, background first."""
    if given is None:
        return CLASSES.get(number) or ("__background__", *(f"class {k}" for k in range(1, number)))
    try:
        is_file = Path(given).is_file()
    except OSError:  # names with commas that are too long for a path
        is_file = False
    try:
        text = Path(given).read_text(encoding="utf-8").splitlines() if is_file else given.split(",")
    except UnicodeDecodeError:
        raise PortError("not a text file", file=given, field="--classes") from None
    names = [name.strip() for name in text if name.strip()]
    if len(names) != number - 1:
        raise PortError(f"{len(names)} names for {number - 1} classes", field="--classes", hint="leave background out")
    return ("__background__", *names)


def proposals_of(file: Path, image: np.ndarray, given: str | None) -> np.ndarray:
    """Boxes ``[R, 4]`` for an image: see the module's docstring.

    Raises:
        PortError: none there, or boxes of another image.
    """
    beside = Path(given or file.parent) / f"{file.stem}_boxes.mat"
    if given and given.endswith(".npz"):
        source, boxes = given, load_npz(given, [file.stem])[0]
    elif given and Path(given).is_dir() or not given and beside.is_file():
        source, boxes = beside, load_demo_boxes(beside)
    else:
        source, boxes = "proposals", generate_proposals(image, proposal_method(given or "auto"))
    if not len(boxes):
        raise PortError("no proposals for this image", file=file)
    height, width = image.shape[:2]
    if boxes[:, 2].max() >= width or boxes[:, 3].max() >= height:
        raise PortError(f"boxes reach outside of {file}, {width} x {height} pixels", file=source)
    return boxes


def print_detections(title: str, dets, classes) -> None:
    """A table of what was found in one image, the best first; ``title`` has a %d for how many."""
    rows = sorted(
        ((row, classes[cls]) for cls, of_class in enumerate(dets) for row in of_class), key=lambda r: -r[0][4]
    )
    print(title % len(rows))
    if not rows:
        return
    table = Table("class")
    for column in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(column, justify="right")
    for row, name in sorted(rows, key=lambda item: -item[0][4]):
        table.add_row(name, f"{row[4]:.3f}", *(f"{value:.1f}" for value in row[:4]))
    _cli.console().print(table)


if __name__ == "__main__":
    _cli.run(main)
