r"""Weight files of Caffe into today's formats, and back; or a look at what is in them.

    python tools/convert.py VGG16.caffemodel                         # writes VGG16.safetensors, shows what is inside
    python tools/convert.py models/ --out converted/ --to pt         # a folder and those below it
    python tools/convert.py weights.safetensors --to caffemodel --prototxt net.prototxt
    python tools/convert.py detect.caffemodel --to onnx --prototxt detect.prototxt --shape data=1,3,300,300
    python tools/convert.py a.caffemodel --list --stats              # only looks
    python tools/convert.py a.caffemodel --diff b.safetensors        # exit code 0: the same, 1: not

Reads .caffemodel of any age, .caffemodel.h5, .solverstate, .solverstate.h5, .binaryproto, .safetensors, .pt and .npz.
Exit code 2: something could not be read or written; the other files of the run are converted all the same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

import _cli
from _progress import Progress

from converters import CaffeModel, convert, formats, report
from converters.errors import WeightsError
from converters.named import NamedArrays
from prototxt import CaffePortError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="convert.py FILE|FOLDER... [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="weight files, or folders of them")
    group = parser.add_argument_group("output")
    group.add_argument("--to", choices=convert.FORMATS, help="[safetensors; caffemodel for .safetensors, .pt and .npz]")
    group.add_argument(
        "--out", metavar="PATH", help="file to write, or folder (there, or ending in /) [beside the input]"
    )
    group.add_argument("--force", action="store_true", help="write over files that are there")
    group.add_argument(
        "--caffe-names", action="store_true", help="conv1.0 for conv1.weight, BatchNorm's arrays as Caffe's"
    )
    group = parser.add_argument_group("net: checks the weights, and tells types, order and sharing")
    group.add_argument("--prototxt", metavar="FILE", help="the net's; needed for --to onnx")
    group.add_argument("--phase", choices=["TRAIN", "TEST"], help="which of its layers [TEST]")
    group.add_argument(
        "--shape", nargs="+", default=[], metavar="BLOB=N,C,H,W", help="shapes of inputs or data layers' tops"
    )
    group.add_argument("--cfg", metavar="FILE", help="YAML of the original's keys, for proposal layers")
    group.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="single keys")
    group.add_argument(
        "--lenient", action="store_true", help="list unknown prototxt fields instead of stopping at them"
    )
    group.add_argument("--target", choices=["onnxruntime", "opencv"],
                       help="what the ONNX file must run in; OpenCV 5 lacks some operators [onnxruntime]")  # fmt: skip
    group = parser.add_argument_group("looking")
    group.add_argument("--list", action="store_true", help="only show what is inside, write nothing")
    group.add_argument("--stats", action="store_true", help="read all values: min, max, mean; warn of NaN and of zeros")
    group.add_argument("--diff", metavar="FILE", help="compare with this file layer by layer, write nothing")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout, for scripts, errors too")
    args = parser.parse_args()
    for name, value in vars(args).items():
        if value == "" or (isinstance(value, list) and "" in value):
            parser.error(f"{name}: a name is empty")
    to = args.to or ("onnx" if args.out and args.out.endswith(".onnx") else None)
    if (args.out or args.to) and (args.list or args.diff):
        parser.error("--list and --diff write nothing: leave out --out and --to")
    if (args.shape or args.cfg or args.set or args.phase or args.lenient) and not args.prototxt:
        parser.error("--shape, --cfg, --set, --phase and --lenient tell of the net: give --prototxt")
    if args.target and to != "onnx":
        parser.error("--target is for --to onnx")
    if args.caffe_names and to in ("caffemodel", "h5", "onnx"):
        parser.error("--caffe-names is for safetensors, pt and npz")
    args.phase, args.target = args.phase or "TEST", args.target or "onnxruntime"
    return args


def main() -> int:
    args = parse_args()
    try:
        return show_diff(args) if args.diff else convert_files(args)
    except BrokenPipeError:
        raise
    except _cli.MISTAKES as error:
        if args.json:  # scripts read stdout
            print(json.dumps({"error": _cli.message(error)}, indent=1))
        raise


def convert_files(args) -> int:
    """All files of the command line, one after the other; the exit code."""
    if args.to == "onnx" and not args.prototxt:
        raise WeightsError("--to onnx needs the net: give --prototxt")
    net = NetFile(args) if args.prototxt else None
    jobs, skipped = convert.find_files(args.files, args.to, every_kind=args.list)
    if not jobs:
        raise WeightsError(f"holds no weight files to convert; {skipped} other files are there", file=args.files[0])
    if not args.list:
        convert.plan_outputs(jobs, args.to, args.out, force=args.force, inputs=[args.prototxt] if net else [])
    documents = []
    with Progress(jobs) as progress:
        for job in jobs:
            progress.begin(job)
            try:
                inside, document = process(job, args, net)
                with progress.printing():
                    if not args.json:
                        show(job, inside, document, tables=len(jobs) == 1 or args.list or args.stats)
            except BrokenPipeError:
                raise
            except _cli.MISTAKES as error:
                if getattr(error, "file", job) is None:
                    error.file = job.source
                document = {"source": str(job.source), "error": _cli.message(error)}
                with progress.printing():
                    print(report.printable(f"error: {document['error']}"), file=sys.stderr)
            documents.append(document)
            progress.end(job)
    failed = sum("error" in document for document in documents)
    if args.json:
        print(json.dumps({"files": documents, "skipped": skipped}, indent=1, allow_nan=False))
    elif len(jobs) > 1 or skipped:
        done = "read" if args.list else "converted"
        print(f"{len(jobs) - failed} files {done}, {failed} failed, {skipped} others left alone")
    return 2 if failed else 0


def process(job, args, net) -> tuple[report.Report, dict]:
    """Reads a file, looks at it, checks it against the net, writes it: what is in it, and the same for ``--json``."""
    if job.error:
        raise job.error
    begun = time.perf_counter()
    content, fitting = formats.read(job.source), {}
    if net and job.content == "model":
        fitting = {"check": net.check(content, job.source)}
        if isinstance(content, CaffeModel) and content.shared_once:  # HDF5 files know no types, and no order
            content = convert.as_caffe(content, net=net.in_phase)
    inside = report.describe(content, kind=job.kind, stats=args.stats)
    document = {"source": str(job.source), **inside.as_dict(), "notes": list(net.notes) if net else [], **fitting}
    if not args.list:
        if job.to == "onnx":
            document["graph"], notes = net.write_onnx(job, args.target)
        else:
            param = net.in_phase if net else None
            notes = convert.write(content, job.target, job.to, net=param, caffe_names=args.caffe_names)
        document["notes"] += notes
        size, seconds = job.target.stat().st_size, time.perf_counter() - begun
        document["output"] = {"path": str(job.target), "format": job.to, "bytes": size, "seconds": round(seconds, 3)}
    return inside, finite(document)


def show(job, inside, document: dict, *, tables: bool) -> None:
    """What came of one file, for people."""
    if tables:
        print_table(f"{job.source}: {inside.headline()}", inside.table())
    rows = document.get("check", [])
    misses = [
        f"layer '{row['layer']}', {row['shapes']}: {row['verdict']}" for row in rows if row["verdict"] != "loaded"
    ]
    _cli.show(map(report.printable, inside.warnings + document["notes"] + misses))
    if rows:
        print(f"{len(rows) - len(misses)} layers fit the net")
    if "output" not in document:
        return
    output = document["output"]
    source = "" if tables else f"{job.source}, {report.short(inside.parameters)} parameters -> "
    written = f"{output['path']}: {report.short(output['bytes'], 'B')} in {output['seconds']:.2f} s"
    print(report.printable(source + written))
    for name, shape in document.get("graph", {}).items():
        print(report.printable(f"  {name}: {shape}"))


def print_table(title: str, table) -> None:
    print(report.printable(title))
    _cli.console().print(table, markup=False, highlight=False)


def finite(value):
    """``value`` with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_diff(args) -> int:
    """Compares two files; 0 when they are the same, 1 when not."""
    if len(args.files) > 1:
        raise WeightsError("--diff compares two files: give one in front of it", file=args.files[1])
    from converters.diff import compare

    net = NetFile(args).in_phase if args.prototxt else None
    paths = args.files[0], args.diff
    contents = [formats.read(path) for path in paths]
    foreign = [isinstance(content, NamedArrays) and "kind" not in content.metadata for content in contents]
    if net is not None or not all(foreign):  # two files of PyTorch are compared as they are
        contents = [convert.as_caffe(c, net=net, path=path) for c, path in zip(contents, paths, strict=True)]
    difference = compare(*contents)
    if args.json:
        document = {"first": args.files[0], "second": args.diff, **difference.as_dict()}
        print(json.dumps(finite(document), indent=1, allow_nan=False))
    else:
        if not difference.identical:
            print_table(f"first: {args.files[0]}, second: {args.diff}", difference.table())
        print(difference.summary())
    return 0 if difference.identical else 1


class NetFile:
    """The net of ``--prototxt``: torch is imported here and only here."""

    def __init__(self, args):
        import prototxt
        from ohem_caffe_port.config import Config
        from ohem_caffe_port.graph import filter_layers
        from ohem_caffe_port.inputs import reshape_inputs

        self.path, self.phase, self.cfg = args.prototxt, args.phase, Config()
        if args.cfg:
            self.cfg.merge_file(args.cfg)
        self.cfg.merge_list(args.set)
        unknown: list = []
        self.param = prototxt.read_net(args.prototxt, lenient=args.lenient, unknown=unknown)
        reshape_inputs(self.param, _cli.parse_shapes(args.shape))
        self.sources = {layer.name for layer in self.param.layer if not layer.bottom}
        if not args.diff:
            self.shapes = self.build(initialize=False)
            self.notes = [*(f"unknown field ignored: {field}" for field in unknown), *self.shapes.warnings]
        layers = filter_layers(self.param, self.phase, self.param.state.level, self.param.state.stage)
        self.in_phase = prototxt.caffe_pb2.NetParameter(name=self.param.name, layer=layers)

    def build(self, *, initialize: bool):
        """The net; without ``initialize`` only for its shapes."""
        from ohem_caffe_port import python_layers  # noqa: F401  registers them
        from ohem_caffe_port.net import Net

        try:
            return Net(self.param, self.phase, cfg=self.cfg, path=self.path, initialize=initialize)
        except CaffePortError as error:
            if error.layer in self.sources:
                error.hint = "--shape BLOB=N,C,H,W stands in for data that are not here"
            raise

    def check(self, content, path) -> list[dict]:
        """How the weights fit each layer of the net.

        Raises:
            WeightsError: weights of other shapes than the net's; all of them are named.
        """
        from ohem_caffe_port.weights import LOADED, check

        checked = check(self.shapes, content, path)
        if checked.misfits:
            wrong = [f"layer '{layer}', {shapes}: {why}" for layer, shapes, why in checked.rows if why != LOADED]
            raise WeightsError("the weights do not fit the net", file=path, hint="\n  ".join(wrong))
        if not checked.loaded and self.shapes.params:
            there = ", ".join(row[0] for row in checked.rows if row[0] not in self.shapes.params)
            hint = f"the file has {there[:300]}; the net has {', '.join(self.shapes.params)[:300]}"
            raise WeightsError("no layer of the file is in the net", file=path, hint=hint)
        return [dict(zip(("layer", "shapes", "verdict"), row, strict=True)) for row in checked.rows]

    def write_onnx(self, job, target: str) -> tuple[dict[str, str], list[str]]:
        """Writes the net with the weights of a file; its inputs and outputs with their shapes, and notes."""
        from converters.onnx import write_onnx
        from ohem_caffe_port.export import to_onnx
        from ohem_caffe_port.weights import NOT_IN_FILE, copy_from

        net, notes = self.build(initialize=True), []
        missing = [layer for layer, _, verdict in copy_from(net, job.source).rows if verdict == NOT_IN_FILE]
        if missing:
            raise WeightsError(f"has no weights for {', '.join(missing)}", file=job.source)
        model = to_onnx(net, target=target, notes=notes, metadata={"weights": job.source.name})
        convert.make_folder(job.target)
        notes += [f"the weights, more than 2 GiB, are in {path}" for path in write_onnx(job.target, model)[1:]]
        ends = (("input", model.graph.input), ("output", model.graph.output))
        return {f"{what} {value.name}": graph_shape(value) for what, values in ends for value in values}, notes


def graph_shape(value) -> str:
    """batch x 3 x 300 x 300"""
    return " x ".join(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim)


if __name__ == "__main__":
    _cli.run(main)
