"""What every tool does the same way: options, devices, and turning a user's mistake into one message."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from prototxt import CaffePortError

# What needs torch is imported where it is used: tools/convert.py is done before torch would be there.


MISTAKES = (CaffePortError, OSError)


def run(main) -> None:
    """Runs ``main()``; a user's mistake ends in one message and exit code 2, an interrupt in exit code 130.

    Half-written files are removed when the process is told to stop (SIGTERM, SIGHUP), too.
    """
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP is not on every system, and nohup has it ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    if hasattr(sys.stdout, "reconfigure"):  # names of files that the terminal's encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except BrokenPipeError:  # the other end of `... | head` has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("stopped: nobody reads the output any more", file=sys.stderr)
        sys.exit(2)
    except MISTAKES as error:
        print(f"error: {message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        print(f"error: out of GPU memory: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


def _stop(number: int, _frame) -> None:
    """Leaves as a shell says that a signal has ended a process; what waits to clean up does so on the way out."""
    sys.exit(128 + number)


def message(error: CaffePortError | OSError) -> str:
    """What a user is told of one of :data:`MISTAKES`."""
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}"
    return str(error)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that the original's ``train_net.py`` and ``test_net.py`` share, and where data lie."""
    group = add_data_options(parser)
    group.add_argument("--output", metavar="DIR", help="where results go [output/<EXP_DIR>/<imdb>]")
    group.add_argument("--gpu", type=int, metavar="ID", help="CUDA device; -1 is the CPU [0 where there is one]")
    group.add_argument(
        "--lenient", action="store_true", help="list unknown prototxt fields instead of stopping at them"
    )


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`pick_precision`, and ``--compile``."""
    group = parser.add_argument_group("faster and less exact (docs/speed.md)")
    group.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="fp32: as Caffe [default]; tf32 on NVIDIA's GPUs; bf16: products of bfloat16, channels last",
    )  # fmt: skip
    group.add_argument(
        "--channels_last", action="store_true", help="feature maps lie as [N, H, W, C]; those of bf16 do"
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile for runs of layers; takes minutes at first"
    )


def add_data_options(parser: argparse.ArgumentParser):
    """The options of :func:`load_config` and :func:`open_imdb`; returns their group."""
    group = parser.add_argument_group("configuration and data")
    group.add_argument(
        "--cfg", metavar="FILE", help="YAML with the original's keys; cfg.yml beside the prototxt if absent"
    )
    group.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="e.g. --set TRAIN.SCALES '[480,600]'"
    )
    group.add_argument("--imdb", help="data set, e.g. voc_2007_trainval or voc_2007_trainval+voc_2012_trainval")
    group.add_argument(
        "--data", metavar="DIR", help="holds VOCdevkit2007, coco, selective_search_data [$OHEM_DATA or data]"
    )
    group.add_argument("--devkit", metavar="DIR", help="the VOCdevkit itself [$OHEM_VOCDEVKIT], or COCO's folder")
    group.add_argument("--proposals", metavar="NAME|FILE", help="proposal method, a .mat / .npz file, or a folder")
    return group


def load_config(args, beside=None):
    """A Config: defaults, then ``--cfg`` (or ``cfg.yml`` in the folder of the prototxt ``beside``), then ``--set``."""
    from ohem_caffe_port.config import Config

    cfg = Config()
    default = Path(beside).parent / "cfg.yml" if beside else None
    if args.cfg:
        cfg.merge_file(args.cfg)
    elif default and default.is_file():
        print(f"configuration: {default}")
        cfg.merge_file(default)
    cfg.merge_list(args.set)
    if args.data or os.environ.get("OHEM_DATA"):
        cfg.DATA_DIR = args.data or os.environ["OHEM_DATA"]
    return cfg


def open_imdb(args, cfg, name: str, method: str):
    """The data set ``name`` with the proposals of ``method`` unless ``--proposals`` says otherwise."""
    from ohem_caffe_port import distributed
    from ohem_caffe_port.data.factory import get_imdb

    options = {"use_diff": cfg.TRAIN.USE_DIFF, "proposals": args.proposals or method}
    with distributed.root_first():  # it may have to be drawn
        return get_imdb(name, data_dir=cfg.DATA_DIR, devkit=devkit_of(args, name), **options)


def devkit_of(args, name: str) -> str | None:
    """The folder of ``--devkit``, or but for COCO that of $OHEM_VOCDEVKIT; the embedded data sets have none."""
    if name.startswith("shapes_"):
        return None
    return args.devkit or (not name.startswith("coco_") and os.environ.get("OHEM_VOCDEVKIT")) or None


def output_folder(path) -> Path:
    """Creates the folder for results and proves that a file can be written there: now, and not after hours of work.

    Raises:
        PortError: it cannot.
    """
    from ohem_caffe_port.errors import PortError

    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PortError(
            f"results cannot be written there: {error.strerror}", file=path, hint="name another folder with --output"
        ) from None
    return Path(path)


def pick_device(args, solver=None):
    """The ``torch.device`` of ``--gpu``, or else of a solver's ``solver_mode`` and ``device_id``.

    Of several processes each gets the device of its own number on its machine.

    Raises:
        PortError: there is no such device.
    """
    import torch

    from ohem_caffe_port import distributed
    from ohem_caffe_port.errors import PortError
    from ohem_caffe_port.memory import keep_freed_memory

    count, processes = torch.cuda.device_count(), distributed.size()
    if processes > 1 and args.gpu not in (None, -1):
        raise PortError(
            f"--gpu {args.gpu} with {processes} processes: each takes the device of its own number",
            hint="CUDA_VISIBLE_DEVICES says which devices they see; --gpu -1 is the CPU",
        )
    if args.gpu is not None and not -1 <= args.gpu < count:
        raise PortError(
            f"--gpu {args.gpu}: this machine has {count} CUDA devices", hint="leave it out, or use --gpu -1"
        )
    on_cpu = args.gpu == -1 or args.gpu is None and solver is not None and solver.solver_mode == solver.CPU
    of_several = f"{processes} processes, each " if processes > 1 else ""
    if count == 0 or on_cpu:
        print(f"{of_several}on the CPU, {torch.get_num_threads()} threads")
        keep_freed_memory()
        return torch.device("cpu")
    wished = list(solver.device_id) if solver is not None else []
    if processes > 1:
        if wished:
            show(["solver field device_id has no effect: each process takes the device of its own number"])
        wished = [distributed.local_rank()]
        if wished[0] >= count:
            raise PortError(
                f"{count} CUDA devices for more processes of this machine", hint=f"say  --nproc-per-node {count}"
            )
    index = args.gpu if args.gpu is not None else wished[0] if wished else 0
    if index >= count:
        raise PortError(f"the solver's device_id is {index}; this machine has {count} CUDA devices", field="device_id")
    device = torch.device("cuda", index)
    print(f"{of_several}on {torch.cuda.get_device_name(device)}")
    return device


def pick_precision(args, device):
    """The :class:`~ohem_caffe_port.precision.Precision` of ``--precision`` and ``--channels_last``.

    Raises:
        PortError: the device cannot compute so.
    """
    from ohem_caffe_port.precision import Precision

    precision = Precision(args.precision, channels_last=args.channels_last or None)
    precision.check(device)
    if precision.converts or precision.name != "fp32":
        show([f"precision {precision}: not Caffe's numbers to the last digits, see docs/speed.md"])
    return precision


def compile_if_asked(args, net, solver=None) -> None:
    """``--compile``: runs of the net's layers are compiled at their first forward, on a GPU the solver's update, too.

    Raises:
        PortError: the net has none, or there is no compiler.
    """
    if args.compile:
        from ohem_caffe_port.segments import compile_net, compile_update

        if solver is not None and net.device.type == "cuda":
            compile_update(solver)
        runs = compile_net(net)
        show([f"{len(runs)} runs of {sum(s.last - s.first + 1 for s in runs)} layers are compiled at their first use"])


def parse_shapes(texts) -> dict[str, tuple[int, ...]]:
    """``{"data": (1, 3, 600, 1000)}`` of ``["data=1,3,600,1000"]``.

    Raises:
        PortError: another form.
    """
    from ohem_caffe_port.errors import PortError

    shapes = {}
    for text in texts:
        name, _, dims = text.partition("=")
        try:
            shapes[name] = tuple(int(d) for d in dims.replace("x", ",").split(","))
        except ValueError:
            raise PortError(f"--shape {text}: expected BLOB=N,C,H,W") from None
        if not all(0 <= size < 2**63 for size in shapes[name]):
            raise PortError(f"--shape {text}: sizes are not negative, and below 2^63")
    return shapes


def console():
    """A :class:`rich.console.Console` for tables; wide where the output is no terminal, so that nothing is folded."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def show(lines) -> None:
    """Notices and warnings, one to a line."""
    for line in lines:
        print(f"note: {line}")
