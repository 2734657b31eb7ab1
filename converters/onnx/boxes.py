"""Boxes in ONNX: decoding, suppression and choosing rows, which all detection layers do.

Groups of candidates are ranked first (:func:`ranked`); everything after works on tables of fixed width and a mask, and
the last operator takes the rows that the mask names. So the order of the rows is that of the table, and the only sizes
that depend on the data are those of a NonMaxSuppression and of the result.
"""

from __future__ import annotations

import numpy as np

from .graph import GraphBuilder, Node, Value

NOTHING = -3e38  # below every score, and finite
_ASIDE = 1e6  # a place where no box of an image is


def length(g: GraphBuilder, value: Value, axis: int) -> int | str:
    """The size of an axis: a number, or the name of a vector with it where the graph leaves it open."""
    size = value.shape[axis]
    return g.sizes(value, axis) if isinstance(size, str) else size


def at_most(g: GraphBuilder, count: int | str, most: int) -> int | str:
    """The smaller of ``count`` and ``most``; ``count`` itself where ``most`` is not positive, which is no limit."""
    if most <= 0:
        return count
    if isinstance(count, int):
        return min(count, most)
    return g.op("ReduceMin", g.vector(count, most), axes=[0], keepdims=1)


def times(g: GraphBuilder, a: int | str, b: int | str) -> int | str:
    """``a`` times ``b``: a number where both are, otherwise the name of a vector with it."""
    return a * b if isinstance(a, int) and isinstance(b, int) else g.op("Mul", g.vector(a), g.vector(b))


def counting(g: GraphBuilder, count: int | str) -> str:
    """The name of the float vector 0, 1 ... ``count`` - 1."""
    if isinstance(count, int):
        return g.constant(np.arange(count))
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    return g.op("Cast", g.op("Range", zero, g.op("Squeeze", count, g.ints(0)), one), to=1)


def split(g: GraphBuilder, x: str, *widths: int) -> list[str]:
    """The names of parts of the last axis."""
    return g.op("Split", x, g.ints(*widths), outputs=len(widths), axis=-1)


def cut(g: GraphBuilder, x: str, start: int, end: int, axis: int = -1) -> str:
    """``x[start:end]`` along an axis."""
    return g.op("Slice", x, g.ints(start), g.ints(end), g.ints(axis))


def reshape(g: GraphBuilder, x: str, *shape: int | str) -> str:
    """ONNX's Reshape: 0 keeps the size, -1 is the rest, a name is that vector's."""
    return g.op("Reshape", x, g.vector(*shape))


def map_size(node: Node, bottom: int = 0) -> tuple[int, int]:
    """Height and width of a bottom ``[N, C, H, W]``, which the boxes of its cells are made of.

    Raises:
        WeightsError: the graph leaves them open.
    """
    size = node.bottoms[bottom].shape[2:]
    if any(isinstance(side, str) for side in size):
        raise node.error("its boxes depend on the map's size, which the graph would leave open")
    return size


def one_image(node: Node, bottom: int = 0) -> None:
    """Raises an error unless a bottom is of a single image, as Caffe's layer demands."""
    if node.bottoms[bottom].sample[0] != 1:
        raise node.error(f"takes one image, not {node.bottoms[bottom].sample[0]}")


def bbox_transform_inv(g: GraphBuilder, boxes: str, deltas: str) -> str:
    """``boxes`` (inclusive corners) moved by ``deltas``, both ``[..., 4]``: R-CNN (Girshick et al. 2014), appendix C;
    as in Fast R-CNN the new corners are ``centre + 0.5 * size``."""
    low, high = split(g, boxes, 2, 2)
    half = g.constant(0.5)
    size = g.op("Add", g.op("Sub", high, low), g.constant(1))
    centre = g.op("Add", low, g.op("Mul", size, half))
    shift, growth = split(g, deltas, 2, 2)
    centre = g.op("Add", g.op("Mul", shift, size), centre)
    half = g.op("Mul", g.op("Mul", g.op("Exp", growth), size), half)
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=-1)


def inclusive(g: GraphBuilder, boxes: str) -> str:
    """Boxes whose last pixels belong to them as NonMaxSuppression must see them: x2 and y2 plus 1."""
    return g.op("Add", boxes, g.constant([0, 0, 1, 1]))


def ranked(g: GraphBuilder, scores: str, boxes: str, count: int | str, *, batch_dims: int = 1):
    """The ``count`` best of each group, of equal ones the first first.

    Args:
        scores: ``[..., K]``.
        boxes: ``[..., K, 4]`` (or any table): of each group, or of all groups that agree in the first ``batch_dims``
            axes.

    Returns:
        the names of their scores ``[..., count]``, boxes ``[..., count, 4]`` and indices ``[..., count]``.
    """
    best, index = g.op("TopK", scores, g.vector(count), outputs=2, axis=-1)
    where = g.op("Unsqueeze", index, g.ints(-1))
    return best, g.op("GatherND", boxes, where, batch_dims=batch_dims), index


def only(g: GraphBuilder, scores: str, valid: str) -> str:
    """``scores`` with those that are not ``valid`` below all others."""
    return g.op("Where", valid, scores, g.constant(NOTHING))


def there(g: GraphBuilder, scores: str) -> str:
    """Which of the ``scores`` are not of those that :func:`only` put below all others."""
    return g.op("Greater", scores, g.constant(NOTHING / 2))


def survivors(g: GraphBuilder, boxes: str, valid: str, count: int | str, threshold: float, most: int = 0) -> str:
    """Greedy suppression in groups, the best first: bool ``[G, count]``.

    NonMaxSuppression is given ranks for scores: so equal scores keep their order, and OpenCV 5 takes no negative ones.
    Every group ends with one more box, of the last rank, for OpenCV 5 cannot run what finds nothing. A box without an
    area neither suppresses nor is suppressed; as OpenCV thinks that all of those are the same box, they are put aside.

    Args:
        boxes: ``[G, count, 4]``; a box goes when its IoU with a better one of its group is above ``threshold``.
        valid: ``[G, count]`` bool; other boxes neither survive nor suppress.
        most: a group keeps so many; 0 is no limit.
    """
    number = g.constant(float(count)) if isinstance(count, int) else g.op("Cast", count, to=1)
    ranks = g.op("Sub", g.op("Add", number, g.constant(1)), counting(g, count))
    ranks = g.op("Where", valid, ranks, g.constant(0))
    ranks = g.op("Unsqueeze", g.op("Pad", ranks, g.ints(0, 0, 0, 1), g.constant(1)), g.ints(1))
    boxes = g.op("Pad", boxes, g.ints(0, 0, 0, 0, 1, 0))
    low, high = split(g, boxes, 2, 2)
    has_area = g.op("Greater", g.op("ReduceMin", g.op("Sub", high, low), axes=[2], keepdims=1), g.constant(0))
    places = reshape(g, counting(g, count + 1 if isinstance(count, int) else g.op("Add", count, g.ints(1))), -1, 1)
    aside = g.op("Add", g.op("Mul", places, g.constant([2, 0, 2, 0])), g.constant([_ASIDE, 0, _ASIDE + 1, 1]))
    boxes = g.op("Where", has_area, boxes, aside)
    found = g.op("NonMaxSuppression", boxes, ranks, g.ints(most or 1 << 30), g.constant([threshold]), g.constant([0]))
    ones = g.op("Expand", g.constant([1]), g.op("Gather", g.op("Shape", found), g.ints(0)))
    none = g.op("Mul", ranks, g.constant(0))
    kept = g.op("Squeeze", g.op("ScatterND", none, found, ones), g.ints(1))
    return g.op("Greater", cut(g, kept, 0, -1, 1), g.constant(0))


def best_overall(g: GraphBuilder, scores: str, kept: str, count: int | str) -> str:
    """Which of the ``kept`` ``[B, K]`` are among the ``count`` best of their row: bool; of equal ones the first."""
    best, index = g.op("TopK", only(g, scores, kept), g.vector(count), outputs=2, axis=-1)
    none = g.op("Mul", g.op("Cast", kept, to=1), g.constant(0))
    chosen = g.op("ScatterElements", none, index, g.op("Cast", there(g, best), to=1), axis=1)
    return g.op("Greater", chosen, g.constant(0))


def places(g: GraphBuilder, flags: str, most: int | str | None = None) -> str:
    """The indices of what ``flags`` ``[K]`` (bool or float) name.

    For OpenCV there are always ``most`` of them, the last of which repeat the first: its first run plans, for as many
    rows as there are then, the operators of the layers behind this one; with other numbers they fail, or give numbers
    that mean nothing. What suppresses boxes that overlap drops such rows. None: no layer is behind this one.
    """
    if most is None or not g.for_opencv:
        return g.op("Squeeze", g.op("NonZero", flags), g.ints(0))
    note = f"layer '{g.prefix}' gives as many rows as it may find at most: behind those found the first is repeated"
    g.notes += [note] if note not in g.notes else []
    count = g.op("Shape", flags)
    ranks = g.op("Mul", g.op("Cast", flags, to=1), g.op("Sub", g.op("Cast", count, to=1), counting(g, count)))
    best, index = g.op("TopK", ranks, g.vector(most), outputs=2)
    return g.op("Where", g.op("Greater", best, g.constant(0)), index, cut(g, index, 0, 1))


def rows(g: GraphBuilder, table: str, flags: str, most: int | str | None = None) -> str:
    """The rows of ``table`` ``[K, C]`` that ``flags`` ``[K]`` name, in order; see :func:`places`. Without ``most``
    OpenCV 5 cannot run what has none."""
    return g.op("Gather", table, places(g, flags, most), axis=0)


def rows_or(g: GraphBuilder, table: str, flags: str, stand_ins: str, most: int | str | None = None) -> str:
    """:func:`rows`, or when there are none all of ``stand_ins`` ``[S, C]``."""
    flags = g.op("Cast", flags, to=1)
    none = g.op("Sub", g.constant(1), g.op("ReduceMax", flags, axes=[0], keepdims=1))
    flags = g.op("Concat", flags, g.op("Expand", none, g.op("Gather", g.op("Shape", stand_ins), g.ints(0))), axis=0)
    return rows(g, g.op("Concat", table, stand_ins, axis=0), flags, most)
