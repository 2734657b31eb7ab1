"""Test a detector on a data set and print its average precision.

python tools/test_from_prototxt.py --def test.prototxt --net snapshot.caffemodel --imdb voc_2007_test

``torchrun --nproc-per-node K`` in the place of ``python`` shares the images out over K processes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import _cli
import _evaluation
import cv2
from tqdm import tqdm

from ohem_caffe_port import distributed
from ohem_caffe_port.data.imdb import UnionImdb
from ohem_caffe_port.detect import detector_form
from ohem_caffe_port.draw import draw_detections
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import save_detections
from ohem_caffe_port.net import Net
from ohem_caffe_port.single_shot import detection_layer
from ohem_caffe_port.testing import test_net
from ohem_caffe_port.weights import copy_from
from prototxt.files import replacing

DEFAULT_IMDB = "voc_2007_test"  # test_net.py's own


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--def", dest="prototxt", required=True, metavar="FILE", help="test prototxt")
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights")
    parser.add_argument("--wait", action="store_true", help="wait until the weights file exists")
    parser.add_argument("--num_dets", type=int, default=100, help="most detections for an image, 0 for all [100]")
    parser.add_argument("--det_thresh", type=float, default=0.05, help="least score [0.05]")
    parser.add_argument("--comp", action="store_true", help="competition mode: write result files, do not evaluate")
    parser.add_argument(
        "--vis", type=int, nargs="?", const=20, default=0, metavar="N", help="draw the first N images [20]"
    )
    parser.add_argument("--vis_thresh", type=float, default=0.5, help="least score of a drawn box [0.5]")
    parser.add_argument(
        "--iou", type=_evaluation.overlap, default=0.5, help="overlap a correct detection must exceed [0.5]"
    )
    parser.add_argument("--json", metavar="FILE", help="write the average precisions there too")
    _cli.add_common_options(parser)
    _cli.add_speed_options(parser)
    return parser.parse_args()


@distributed.joined()
def main() -> int:
    args = parse_args()
    _evaluation.can_be_written(args.json, "--json")
    if args.num_dets < 0:
        raise PortError(f"--num_dets must not be negative, not {args.num_dets}", hint="0 keeps all detections")
    cfg = _cli.load_config(args, args.prototxt)
    while args.wait and not Path(args.caffemodel).exists():
        print(f"waiting for {args.caffemodel} ...")
        time.sleep(10)
    device = _cli.pick_device(args)
    precision = _cli.pick_precision(args, device)
    net = Net(args.prototxt, "TEST", cfg=cfg, device=device, lenient=args.lenient, precision=precision)
    net.keep_blobs = False
    _cli.compile_if_asked(args, net)
    _cli.show(net.warnings)
    report = copy_from(net, args.caffemodel)
    print(report.summary())
    unset = [layer for layer, _, verdict in report.rows if verdict == "not in the file"]
    if unset:
        _cli.show([f"these layers keep their initial values: {', '.join(unset)}"])
    own_boxes = detection_layer(net) or detector_form(net, cfg).has_rpn
    method = "gt" if own_boxes else cfg.TEST.PROPOSAL_METHOD
    imdb = _cli.open_imdb(args, cfg, args.imdb or cfg.TEST.IMDB or DEFAULT_IMDB, method)
    if isinstance(imdb, UnionImdb):
        raise PortError(f"'{imdb.name}' is several data sets", field="--imdb", hint="test on one after the other")
    output = Path(args.output or Path("output") / cfg.EXP_DIR / imdb.name / Path(args.caffemodel).stem)

    with tqdm(total=imdb.num_images, unit="image", dynamic_ncols=True, disable=None) as bar:

        def on_image(i, image, dets):
            bar.update(min(distributed.size(), bar.total - bar.n))  # the other processes do theirs meanwhile
            if i < distributed.size():  # the first; net, weights and data fit together, so there will be results
                _cli.output_folder(output)
            if i < args.vis:
                (output / "images").mkdir(exist_ok=True)
                picture = draw_detections(image, dets, imdb.classes, args.vis_thresh)
                with replacing(output / "images" / f"{imdb.image_index[i]}.jpg") as file:
                    file.write(cv2.imencode(".jpg", picture)[1].tobytes())

        all_boxes = test_net(net, imdb, cfg, thresh=args.det_thresh, max_per_image=args.num_dets, on_image=on_image)
    if all_boxes is None:  # of another process
        return 0
    save_detections(output / "detections.npz", all_boxes, imdb.image_index, imdb.classes)
    print(f"detections: {output / 'detections.npz'}")
    _evaluation.score(all_boxes, imdb, output / "results", args)
    return 0


if __name__ == "__main__":
    _cli.run(main)
