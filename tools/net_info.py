r"""Show what a net is made of: layers, shapes, parameters, multiply-adds, memory, which run backward and why not.

    python tools/net_info.py train.prototxt
    python tools/net_info.py deploy.prototxt --shape data=1,3,600,1000 rois=2000,5
    python tools/net_info.py train_val.prototxt --phase TRAIN --shape data=64,3,227,227 label=64

--shape also stands in for data layers whose data are not here.
"""

from __future__ import annotations

import argparse
import json

import _cli

import prototxt
from ohem_caffe_port import python_layers  # noqa: F401  registers them
from ohem_caffe_port.config import Config
from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.net import Net


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", help="prototxt of a net")
    parser.add_argument("--phase", choices=["TRAIN", "TEST"], help="[TEST for a net with Input layers, else TRAIN]")
    parser.add_argument("--level", type=int, help="level of the net's state")
    parser.add_argument("--stage", nargs="+", default=[], help="stages of the net's state")
    parser.add_argument(
        "--shape", nargs="+", default=[], metavar="BLOB=N,C,H,W", help="shapes of inputs, or of data layers' tops"
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML of the original's keys, for data and mining layers")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="single keys")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--lenient", action="store_true", help="list unknown fields instead of stopping at them")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cfg = Config()
    if args.cfg:
        cfg.merge_file(args.cfg)
    cfg.merge_list(args.set)
    unknown: list = []
    param = prototxt.read_net(args.net, lenient=args.lenient, unknown=unknown)
    phase = args.phase or ("TEST" if any(layer.type == "Input" for layer in param.layer) else "TRAIN")
    reshape_inputs(param, _cli.parse_shapes(args.shape))
    net = Net(param, phase, level=args.level, stages=args.stage, cfg=cfg, path=args.net, initialize=False)
    summary = net.summary()
    if args.json:
        print(json.dumps(summary.as_dict(), indent=1))
        return 0
    _cli.show([*(f"unknown field ignored: {f}" for f in unknown), *net.warnings])
    _cli.console().print(summary.table())
    return 0


if __name__ == "__main__":
    _cli.run(main)
