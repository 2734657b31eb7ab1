"""Write the proposals of a region proposal network, to train or test a Fast R-CNN with.

    python tools/rpn_generate.py --def rpn_test.pt --net rpn.caffemodel --imdb voc_2007_trainval
    python tools/train_from_prototxt.py stage1_fast_rcnn_solver30k40k.pt --imdb voc_2007_trainval --proposals rpn ...

They go where ``--proposals rpn`` and the key PROPOSAL_METHOD find them: <data>/rpn_data/<imdb>.npz. Unless TEST's keys
are stated there are at most 2000 for an image, and all anchors take part in the suppression, as in alternating
training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli
from tqdm import tqdm

from ohem_caffe_port.data.images import read_image
from ohem_caffe_port.data.proposals import save_npz
from ohem_caffe_port.detect import im_proposals
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from

ALTERNATING = {"RPN_PRE_NMS_TOP_N": -1, "RPN_POST_NMS_TOP_N": 2000}  # of train_faster_rcnn_alt_opt.py


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--def", dest="prototxt", required=True, metavar="FILE", help="test prototxt of the network")
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights")
    parser.add_argument("--out", metavar="FILE.npz", help="where to write [<data>/rpn_data/<imdb>.npz]")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    _cli.add_common_options(parser)
    args = parser.parse_args()
    if not args.imdb:
        parser.error("which --imdb?")
    return args


def main() -> int:
    args = parse_args()
    cfg = _cli.load_config(args, args.prototxt)
    for key, value in ALTERNATING.items():
        if f"TEST.{key}" not in cfg.explicit:
            setattr(cfg.TEST, key, value)
    out = Path(args.out or Path(cfg.DATA_DIR) / "rpn_data" / f"{args.imdb}.npz")
    if out.suffix != ".npz":
        raise PortError("must end in .npz", file=out, field="--out")
    if out.exists() and not args.force:
        raise PortError("exists already", file=out, hint="replace it with --force")
    args.proposals = None
    imdb = _cli.open_imdb(args, cfg, args.imdb, "gt")
    net = Net(args.prototxt, "TEST", cfg=cfg, device=_cli.pick_device(args), lenient=args.lenient)
    net.keep_blobs = True
    _cli.show(net.warnings)
    print(copy_from(net, args.caffemodel).summary())
    images = tqdm(range(imdb.num_images), unit="image", dynamic_ncols=True, disable=None)
    boxes = [im_proposals(net, read_image(imdb.image_path_at(i)), cfg)[0] for i in images]
    save_npz(out, imdb.image_index, boxes)
    print(f"wrote {out}: {sum(map(len, boxes))} proposals of {imdb.num_images} images")
    return 0


if __name__ == "__main__":
    _cli.run(main)
