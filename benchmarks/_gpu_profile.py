"""Where a training iteration's time goes, by torch's profiler: groups of operations, and how long the GPU idles."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

# The first pattern found in the name of an operation, or of one that it is part of, decides; layers are in the names.
GROUPS = {
    "update": r"^update$",
    "mining": r"^layer (Python|BoxAnnotatorOHEM)$",
    "RoI pooling": r"^layer ROIPooling|RoIPool",
    "casts and copies": r"aten::(to|copy_|_to_copy|clone|contiguous)$|ToCopyBackward|Memcpy|Memset",
    "convolution": r"conv(olution)?|^layer Convolution",
    "inner product": r"aten::(mm|addmm|linear|bmm|matmul)|MmBackward|LinearBackward|^layer InnerProduct",
    "gradients added up": r"AccumulateGrad",
    "losses, softmax": r"^layer .*(Loss|Softmax)|Loss.*Backward",
}
REST = "other (ReLU, pooling, ...)"


@contextmanager
def named_layers(solver):
    """Each layer's forward, and the update, appear under their names in a profile."""

    def within(name, function):
        def run(*args, **options):
            with record_function(name):
                return function(*args, **options)

        return run

    with ExitStack() as stack:
        for layer in solver.net.layers:
            stack.enter_context(mock.patch.object(layer, "forward", within(f"layer {layer.type}", layer.forward)))
        stack.enter_context(mock.patch.object(solver, "apply_update", within("update", solver.apply_update)))
        yield


def by_group(solver, iterations: int, gpu: bool) -> str:
    """Lines with the share of each group in the time of all operations (of a GPU's kernels, where there is one)."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with named_layers(solver), profile(activities=activities) as found:
        solver.step(iterations)
    spent = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            own = sum(kernel.duration for kernel in event.kernels) if gpu else event.self_cpu_time_total
            spent[group_of(event)] += own
    total = sum(spent.values()) or 1.0
    shares = sorted(spent.items(), key=lambda item: -item[1])
    return "\n".join(f"  {name:28s}{part / total:6.1%}{part / iterations / 1e3:10.2f} ms" for name, part in shares)


def group_of(event) -> str:
    """The group of an operation of a profile."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return next((group for group, pattern in GROUPS.items() if any(re.search(pattern, name) for name in names)), REST)


def busy_share(step, iterations: int) -> float:
    """The part of the time during which the GPU computes or copies, from the first kernel of ``step(iterations)`` to
    the last."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step(iterations)
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    return union(spans) / (max(end for _, end in spans) - spans[0][0]) if spans else 0.0


def union(spans) -> float:
    """The length of the union of intervals, sorted by their beginnings."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
