"""Greedy suppression as a Triton kernel, for GPUs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PARTS = 32  # programs, a power of two


def first_survivors(boxes: Tensor, groups: Tensor | None, alive: Tensor, thresh: float, limit: int) -> Tensor:
    """:func:`ohem_caffe_port.ops.nms.first_survivors`, bit for bit, in one kernel that ends with the last survivor.

    A program holds all boxes in registers, so the time grows with the number of survivors and, above a few thousand
    boxes, with theirs. Where nothing ends early, groups are divided among programs. ``boxes`` are float32 or float64.
    """
    total = len(boxes)
    parts = _PARTS if groups is not None and limit >= total else 1
    keep = torch.full((limit,), total, dtype=torch.int64, device=boxes.device)
    if limit:
        block = triton.next_power_of_2(total)
        least = torch.full((1,), thresh, dtype=boxes.dtype, device=boxes.device)
        group = alive if groups is None else groups.contiguous()
        with torch.cuda.device_of(boxes):
            _kernel[(parts,)](
                boxes.contiguous(), group, alive.contiguous(), least, keep, total, limit,
                GROUPED=groups is not None, PARTS=parts, DOUBLE=boxes.dtype == torch.float64, BLOCK=block,
                num_warps=min(32, max(1, block // 256)),
                enable_fp_fusion=False,  # a fused multiply-add is not rounded as numpy's two operations are
            )  # fmt: skip
    return keep if parts == 1 else keep.sort().values


@triton.jit(do_not_specialize=["total", "limit"])
def _kernel(
    boxes, groups, alive, least, keep, total, limit,
    GROUPED: tl.constexpr, PARTS: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, BLOCK)
    there = place < total
    x1 = tl.load(boxes + 4 * place, mask=there, other=0)
    y1 = tl.load(boxes + 4 * place + 1, mask=there, other=0)
    x2 = tl.load(boxes + 4 * place + 2, mask=there, other=0)
    y2 = tl.load(boxes + 4 * place + 3, mask=there, other=0)
    if GROUPED:
        group = tl.load(groups + place, mask=there, other=0)
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    thresh = tl.load(least)
    left = tl.load(alive + place, mask=there, other=0) != 0
    if PARTS > 1:
        left = left & ((group & (PARTS - 1)) == tl.program_id(0))
    best = tl.min(tl.where(left, place, total), 0)
    kept = 0
    while (best < total) & (kept < limit):
        tl.store(keep + (best if PARTS > 1 else kept), best)
        bx1 = tl.load(boxes + 4 * best)
        by1 = tl.load(boxes + 4 * best + 1)
        bx2 = tl.load(boxes + 4 * best + 2)
        by2 = tl.load(boxes + 4 * best + 3)
        # minimum and maximum may drop a NaN here; the area has it still
        w = tl.maximum(tl.minimum(x2, bx2) - tl.maximum(x1, bx1) + 1, 0)
        h = tl.maximum(tl.minimum(y2, by2) - tl.maximum(y1, by1) + 1, 0)
        inter = w * h
        union = (bx2 - bx1 + 1) * (by2 - by1 + 1) + area - inter
        if DOUBLE:
            covered = inter / union > thresh
        else:
            covered = tl.div_rn(inter, union) > thresh  # the operator is less exact
        if GROUPED:
            covered = covered & (group == tl.load(groups + best))
        left = left & (covered == 0) & (place > best)
        best = tl.min(tl.where(left, place, total), 0)
        kept += 1
