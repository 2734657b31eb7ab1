"""Make object proposals for a data set that has none.

    python tools/make_proposals.py --imdb voc_2007_trainval

They are written where training and testing look for them: <data>/selective_search_data/<imdb>.npz.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import _cli

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.proposals import build_proposals, proposal_method
from ohem_caffe_port.errors import PortError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imdb", required=True, help="data set, e.g. voc_2007_trainval (not a union)")
    parser.add_argument("--data", metavar="DIR", help="holds VOCdevkit2007 [$OHEM_DATA or data]")
    parser.add_argument("--devkit", metavar="DIR", help="the VOCdevkit itself [$OHEM_VOCDEVKIT]")
    parser.add_argument(
        "--method",
        default="auto",
        choices=["auto", "selective_search", "colour_edge"],
        help="OpenCV's selective search (needs opencv-contrib-python) or the built-in grouping [auto: what is there]",
    )
    parser.add_argument("--out", metavar="FILE.npz", help="where to write [<data>/selective_search_data/<imdb>.npz]")
    parser.add_argument("--workers", type=int, default=1, help="processes [1]")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    data_dir = args.data or os.environ.get("OHEM_DATA") or Config().DATA_DIR
    out = Path(args.out or Path(data_dir) / "selective_search_data" / f"{args.imdb}.npz")
    if out.exists() and not args.force:
        raise PortError("exists already", file=out, hint="replace it with --force")
    imdb = get_imdb(args.imdb, data_dir=data_dir, devkit=_cli.devkit_of(args, args.imdb), proposals="gt")
    print(f"{imdb.name}: {imdb.num_images} images, method {proposal_method(args.method)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    build_proposals(imdb, out, args.method, args.workers)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    _cli.run(main)
