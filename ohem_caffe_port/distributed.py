"""Several processes that train one net or test one together, started by ``torchrun``: ``docs/distributed.md``.

Everything here does nothing where there is one process. The passes of an iteration are numbered as one process with
``iter_size`` times as large would do them; process ``r`` of ``K`` does passes ``r, r + K, ...``. All processes go
through one stream of random choices, and each loads only what it computes.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import PortError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TOLD = "ohem_caffe_port/errors"  # in the processes' common store: how many have an error to tell
_WAIT = timedelta(days=7)  # one may test, or write a snapshot, for as long as it takes; an end is noticed at once


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _together() else 0


def is_root() -> bool:
    """Whether this is the one that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """Which of the processes on this machine this is: the number of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", rank()))


# ---- beginning and end


@contextmanager
def joined():
    """Joins the processes that ``torchrun`` started, as a context or a decorator; alone, it does nothing.

    Only the first process prints. Of all errors the first is told, by the process that has it; the others end with exit
    code 2 and without a word.

    Raises:
        PortError: started in some other way, or the others cannot be reached.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    store = _join()
    shown = sys.stdout, sys.stderr
    if not is_root():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        if _is_first(store):
            sys.stdout, sys.stderr = shown
            raise
        time.sleep(1)  # the first end makes torchrun stop the rest, and the message is still on its way
        raise SystemExit(2) from None
    gc.collect()  # what still holds the group, whose threads must not outlive Python
    dist.destroy_process_group()


def _join():
    """Sets up the process group; returns the store that all share."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise PortError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set",
            hint="start several processes with  torchrun --nproc-per-node K tools/...;  for one, unset WORLD_SIZE",
        )
    if not dist.is_available():
        raise PortError("this PyTorch was built without torch.distributed")
    from torch.distributed.rendezvous import rendezvous  # not there without it

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _connection():
        try:
            store, number, count = next(rendezvous("env://"))
        except ValueError as error:
            raise PortError(f"{' or '.join(_VARIABLES)} is wrong: {error}") from None
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_WAIT)
    return store


def _is_first(store) -> bool:
    """Whether no other process has told of an error yet."""
    try:
        return store.add(_TOLD, 1) == 1
    except RuntimeError:  # the store went with its process
        return True


@contextmanager
def _connection():
    """The end of another process becomes an error of one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        words = str(error).strip().splitlines()
        raise PortError(
            "another process of this run has ended, or cannot be reached", hint=words[0] if words else None
        ) from None


# ---- sharing work


def shard(count: int) -> range:
    """Which of ``count`` items, images say, are this process's: every ``size()``-th."""
    return range(rank(), count, size())


def gathered(own: list) -> list | None:
    """The items of all processes in order, each of which did its :func:`shard`; None but in the first process."""
    if size() == 1:
        return own
    parts: list | None = [None] * size() if is_root() else None
    with _connection():
        dist.gather_object(own, parts)
    if parts is None:
        return None
    return [parts[i % size()][i // size()] for i in range(sum(map(len, parts)))]


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if size() > 1:
        with _connection():
            dist.all_reduce(values)
    return values


def from_root(number: int) -> int:
    """The first process's number."""
    if size() == 1:
        return number
    with _connection():
        box = [number]
        dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def root_first():
    """The first process does what is inside before the others: it may leave files behind, which they find."""
    if is_root():
        yield
        total(torch.zeros(1))
    else:
        total(torch.zeros(1))
        yield


def in_turn(load, skip):
    """``load()`` of this process's turn in a round in which every process has one; ``skip()`` in the others' turns."""
    for place in range(size()):
        if place == rank():
            own = load()
        else:
            skip()
    return own


# ---- training


def seed_pass(net, seed: int, number: int) -> None:
    """Makes the random numbers of the pass that comes next depend on nothing but ``seed`` and its number (from 0 over
    the whole training): those of torch's generators, of the net's stream, and of layers that draw from one of their
    own. Layers that count passes are told the number."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(4)
    torch.manual_seed(int(mixed[0]))
    net.rng.seed(mixed)
    for layer in net.layers:
        if layer.param.bottom and hasattr(layer, "rng"):  # of data layers it is the stream of the data
            layer.rng.seed(mixed)
        if hasattr(layer, "passes"):
            layer.passes = number


class SummedPasses:
    """Forward and backward of a net whose gradients are summed over all processes by DistributedDataParallel.

    After the last pass of an iteration each parameter's ``.grad`` is the sum over all passes of all processes; it lies
    in DistributedDataParallel's own buckets, so there is one copy of the gradients. The processes begin with the first
    one's parameters. From now on an interrupt waits for the end of an iteration, which all processes leave together; a
    second one does not.

    Args:
        net: the :class:`~ohem_caffe_port.net.Net` that is trained.

    Raises:
        PortError: another process has ended.
    """

    def __init__(self, net):
        self.net, self.ddp = net, None
        self.asked = self.stop = False  # this process was interrupted; one was
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)
        if any(p.requires_grad for p in net.parameters()):
            with _connection():
                self.ddp = nn.parallel.DistributedDataParallel(_Loss(net), gradient_as_bucket_view=True)
            self.ddp.register_comm_hook(None, _sum)

    def clear(self) -> None:
        """Sets the gradients to zero, where they lie."""
        for p in self.net.learnable_params:
            if p.blob.grad is not None:
                p.blob.grad.zero_()

    def __call__(self, last: bool) -> None:
        """One pass; with the ``last`` of an iteration the gradients are summed."""
        if self.ddp is None:
            self.net()
            return
        with nullcontext() if last else self.ddp.no_sync():
            loss = self.ddp()
            with _connection():
                self.net.backward(loss)

    def totals(self, values: Tensor) -> Tensor:
        """The sum over all processes of a vector; also agrees on whether one of them was interrupted."""
        values = total(torch.cat([values, values.new_tensor([float(self.asked)])]))
        self.stop = bool(values[-1])
        return values[:-1]

    def iteration(self, run) -> None:
        """``run()``, an iteration, during which :meth:`totals` is called once.

        Raises:
            KeyboardInterrupt: after it, in all processes, when one was interrupted before that call.
        """
        run()
        if self.stop:
            raise KeyboardInterrupt

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one does not wait


class _Loss(nn.Module):
    """A net whose forward gives its loss, as DistributedDataParallel wants it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        self.net()
        return _OfAll.apply(self.net.loss, *(p for p in self.net.parameters() if p.requires_grad))


class _OfAll(torch.autograd.Function):
    """A loss, as if each parameter took part in it. A pass without examples may reach only some of them, and
    DistributedDataParallel would wait for the others; its own search for those costs more, and warns that it does."""

    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad):
        return grad, *[None] * ctx.parameters


def _sum(_, bucket):
    """Communication hook: the sum; the mean, which is what DistributedDataParallel takes, comes with ``iter_size``."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
