r"""VGG16 with OHEM on a GPU, 2,000 RoIs of each image of 600 x 1000: images per second, share of the card's matrix peak
and memory, from the faithful mode to the fastest, each with the error of its losses against the faithful one.

    python benchmarks/gpu.py                     # needs nothing but what setup.py asks for, and torch for CUDA
    python benchmarks/gpu.py --profile           # and where the rest of the time goes
    python benchmarks/gpu.py --device cpu --scale 16 --repeats 1    # a try-out of this script, no more

The net is `prototxt/zoo/vgg16/ohem` with random weights and without dropout. One iteration is that of its solver: two
minibatches of an image each, and an update. Operations are counted as `net.summary()` does, two for a multiply-add:
forward for every layer, and backward once for the bottoms that want a gradient and once for weights that learn, so that
the read-only branch counts forward alone. The peak is that of a square matrix product of the same type, timed in the
same run. The last two rows read images from files, through the data layer of training; for the others the minibatch
lies in the device's memory.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from _gpu_profile import busy_share, by_group
from _nets import Repeated, build, data_layer, find
from rich.console import Console
from rich.table import Table

from ohem_caffe_port.precision import Precision
from ohem_caffe_port.segments import compile_net, compile_update
from ohem_caffe_port.solver import Solver
from prototxt import CaffePortError

PASSES, BATCH_SIZE = 2, 64  # vgg16/ohem's iter_size, and the RoIs that it trains on for each image
LOSSES = 4  # iterations whose losses are compared


@dataclass(frozen=True)
class Way:
    """A row of the table. ``padded``: mining does not make the host wait; ``fused``: the update is compiled;
    ``compiled``: so are convolutions and heads; ``graph``: forward and backward are one CUDA graph."""

    name: str
    precision: str = "fp32"
    channels_last: bool | None = None
    padded: bool = False
    fused: bool = False
    compiled: bool = False
    graph: bool = False
    files: bool = False


FASTEST = Way("bf16, fused update, CUDA graph", "bf16", padded=True, fused=True, graph=True)
WAYS = [
    Way("fp32 (faithful)"),
    Way("tf32", "tf32"),
    Way("tf32, channels last", "tf32", channels_last=True),
    Way("bf16, channels last", "bf16"),
    Way("bf16, padded mining", "bf16", padded=True),
    Way("bf16, fused update", "bf16", padded=True, fused=True),
    Way("bf16, fused, compiled", "bf16", padded=True, fused=True, compiled=True),
    FASTEST,
    Way("fp32, images from files", files=True),
    Way("bf16, fused, images from files", "bf16", padded=True, fused=True, files=True),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="[cuda]")
    parser.add_argument("--recipe", default="vgg16/ohem", help="of the zoo, with OHEM [vgg16/ohem]")
    parser.add_argument("--images", type=int, default=1, help="of a minibatch [1]")
    parser.add_argument("--scale", type=int, default=1, help="divide the image's sides and the RoIs by this [1]")
    parser.add_argument("--repeats", type=int, default=10, help="iterations of which the median counts [10]")
    parser.add_argument("--workers", type=int, default=4, help="threads that read images ahead [4]")
    parser.add_argument("--ways", type=int, nargs="+", metavar="N", help=f"rows, from 1 to {len(WAYS)} [all]")
    parser.add_argument("--profile", action="store_true", help="share of each group of operations, row by row")
    args = parser.parse_args()
    for name in ("images", "scale", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.workers < 0 or not all(1 <= n <= len(WAYS) for n in args.ways or ()):
        parser.error(f"--workers must not be negative; --ways are numbers from 1 to {len(WAYS)}")
    if args.device.partition(":")[0] not in ("cuda", "cpu"):
        parser.error(f"--device is cuda or cpu, not {args.device}")
    try:
        find(args.recipe)
    except CaffePortError as error:
        parser.error(str(error))
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --scale 16 tries the script out")
    return args


def main() -> int:
    args = parse_args()
    sizes = (600, 64), (1000, 96), (2000, BATCH_SIZE)
    args.height, args.width, args.rois = (max(least, size // args.scale) for size, least in sizes)
    where = torch.cuda.get_device_name(args.device) if on_gpu(args) else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}: {args.recipe}, {PASSES} x {args.images} images of {args.height} x "
          f"{args.width} in an iteration, {args.rois} RoIs each")  # fmt: skip
    table = Table("way", "images/s", "ms/iteration", "TFLOP/s", "peak TFLOP/s", "share", "memory", "idle", "loss error")
    faithful, operations, notes = None, 0.0, []
    for way in [WAYS[n - 1] for n in args.ways or range(1, len(WAYS) + 1)]:
        if on_gpu(args):
            torch.cuda.reset_peak_memory_stats()
        try:
            solver = prepare(args, way)
            losses = [(solver.step(), solver.loss)[1] for _ in range(LOSSES)]
            seconds = statistics.median(timed(args, solver.step) for _ in range(args.repeats))
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if on_gpu(args) else "-"
            idle = f"{1 - busy_share(solver.step, 3):.1%}" if on_gpu(args) else "-"
            if args.profile:
                notes.append((way.name, by_group(solver, 3 if on_gpu(args) else 1, on_gpu(args))))
            operations = operations or PASSES * count_operations(solver.net)
        except Exception as error:  # noqa: BLE001  a way that this machine lacks; the others are still worth a row
            table.add_row(way.name, *["-"] * 8)
            words = str(error).strip().splitlines() or [""]
            notes.append((way.name, f"not measured: {type(error).__name__}: {words[0]}"))
            continue
        finally:
            solver = None
            gc.collect()
        if faithful is None and way == WAYS[0]:
            faithful = losses
        rate, peak = operations / seconds / 1e12, matrix_peak(args, way.precision) / 1e12
        error = "-" if way.files or faithful is None else f"{largest_error(losses, faithful):.1e}"
        table.add_row(way.name, f"{PASSES * args.images / seconds:.2f}", f"{1e3 * seconds:.1f}", f"{rate:.3g}",
                      f"{peak:.3g}", f"{rate / peak:.0%}", memory, idle, error)  # fmt: skip
    print(f"{operations / 1e12:.3g} T operations in an iteration")
    Console(width=150).print(table)
    for name, note in notes:
        print(f"\n{name}\n{note}")
    return 0


def on_gpu(args) -> bool:
    return args.device != "cpu"


def prepare(args, way: Way) -> Solver:
    """The solver of one way, with the same weights and the same minibatch for all."""
    if not on_gpu(args) and (way.graph or way.precision == "tf32"):
        raise RuntimeError("for CUDA alone")
    precision = Precision(way.precision, channels_last=way.channels_last)
    workers = args.workers if way.files else 0
    settings = ["TRAIN.USE_PREFETCH", str(workers > 0), "TRAIN.PREFETCH_WORKERS", str(max(1, workers))]
    sizes = {"images": args.images, "rois": args.rois, "height": args.height, "width": args.width}
    options = {"device": args.device, "precision": precision, "settings": settings}
    solver = build(args.recipe, batch_size=BATCH_SIZE * args.images, iter_size=PASSES, dropout=0, **sizes, **options)
    net = solver.net
    if not way.files:
        layer = data_layer(net)
        batch = layer.loader.next_minibatch()
        layer.loader.close()
        layer.loader = Repeated({name: torch.as_tensor(blob).to(args.device) for name, blob in batch.items()})
    for layer in net.layers:
        if hasattr(layer, "select"):
            layer.padded = way.padded
    if way.fused:
        compile_update(solver)
    if way.compiled:
        compile_net(net)
    solver.step()  # compiles, chooses algorithms, fills the allocator
    solver.step()
    if way.graph:
        as_graph(solver)
    return solver


def as_graph(solver: Solver) -> None:
    """From now on a pass is the replay of one CUDA graph; it adds to the gradients, which stay where they are."""
    net = solver.net
    learned = [p.blob for p in net.learnable_params if p.blob.grad is not None]

    def clear():
        torch._foreach_zero_([blob.grad for blob in learned])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a warm-up, as torch asks for
        for _ in range(3):
            net()
            net.backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net()
        net.backward()
    solver._clear_gradients = clear
    solver._forward_backward = lambda i: graph.replay()


def timed(args, function) -> float:
    """Seconds of one call."""
    if on_gpu(args):
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if on_gpu(args):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def largest_error(losses, faithful) -> float:
    """The largest relative difference of the first iterations' losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, faithful, strict=True))


def count_operations(net) -> float:
    """Operations of a pass's matrix products and convolutions, by the shapes that its blobs have in one."""
    shapes: dict[int, tuple] = {}
    net.watch = lambda step, layer, tops: shapes.update(zip(step.tops, (tuple(top.shape) for top in tops), strict=True))
    net()
    net.watch, total = None, 0
    for step, layer in zip(net.steps, net.layers, strict=True):
        forward = layer.multiply_adds([shapes[v] for v in step.bottoms], [shapes[v] for v in step.tops])
        backward = any(step.propagate) + (not all(layer.frozen)) if step.runs_backward else 0
        total += forward * (1 + backward)
    return 2.0 * total


def matrix_peak(args, precision: str) -> float:
    """Operations per second of a square matrix product, the best of ten."""
    side = 8192 if on_gpu(args) else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=args.device, dtype=dtype) for _ in range(2))
    with Precision(precision).in_force(torch.device(args.device)):
        torch.mm(a, b)
        return 2.0 * side**3 / min(timed(args, lambda: torch.mm(a, b)) for _ in range(10))


if __name__ == "__main__":
    sys.exit(main())
