r"""Write a prototxt of an older Caffe in today's form: V0 and V1 nets, `input_dim`, `solver_type`, and what else has
a new place. Comments are not kept.

    python tools/upgrade_prototxt.py old.prototxt              # to the terminal
    python tools/upgrade_prototxt.py old.prototxt new.prototxt
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import _cli

import prototxt
from ohem_caffe_port.errors import PortError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="prototxt of a net or a solver")
    parser.add_argument("target", nargs="?", help="file to write [the terminal]")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    parser.add_argument("--lenient", action="store_true", help="drop unknown fields instead of stopping at them")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.target and Path(args.target).exists() and not args.force:
        raise PortError("is there already", file=args.target, hint="give --force to overwrite it")
    unknown: list = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        message = prototxt.read_any(args.source, lenient=args.lenient, unknown=unknown)
    notes = [f"unknown field dropped: {field}" for field in unknown] + [str(w.message) for w in caught]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if args.target is None:
        print(prototxt.to_text(message), end="")
        return 0
    prototxt.write_text(message, args.target)
    kind = "solver" if isinstance(message, prototxt.caffe_pb2.SolverParameter) else f"{len(message.layer)} layers"
    print(f"{args.target}: {kind}")
    return 0


if __name__ == "__main__":
    _cli.run(main)
