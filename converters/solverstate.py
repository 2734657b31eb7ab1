"""``.solverstate``: what a solver needs besides the weights to go on where it stopped.

SolverState fields: iter=1, learned_net=2, history=3 (BlobProto), current_step=4; SSD: minimum_loss=5,
iter_last_event=6.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

import numpy as np

from prototxt.files import replacing

from .blob import decode_blob, encode_blob
from .dtypes import flat
from .errors import WeightsError
from .files import map_file
from .hdf5 import is_hdf5, read_hdf5_state, write_hdf5_state
from .wire import I32, LEN, VARINT, expect, fields, len_field, signed, varint_field


@dataclass
class SolverState:
    """``iter`` iterations are done; ``learned_net`` is the caffemodel saved with this state.

    ``history`` has one array per learnable parameter, shared ones once, in the net's order; solvers with two
    histories (Adam, AdaDelta) store all of the first, then all of the second. SGD's history contains the learning
    rate. ``current_step`` counts the steps taken by the step, multistep and plateau policies. ``minimum_loss`` and
    ``iter_last_event``, when that was reached or a step taken, are of SSD's plateau policy; None where there is none.
    """

    iter: int = 0
    learned_net: str = ""
    history: list[np.ndarray] = field(default_factory=list)
    current_step: int = 0
    minimum_loss: float | None = None
    iter_last_event: int = 0


def read_solverstate(path: str | os.PathLike) -> SolverState:
    """Read a ``.solverstate``, binary (the history arrays are read-only views on the memory-mapped file) or HDF5.

    Raises :class:`WeightsError` for a file that is missing, cut short, damaged or of another format.
    """
    if is_hdf5(path):
        return SolverState(**read_hdf5_state(path))
    data = map_file(path, "a .solverstate")
    try:
        return _decode_state(data)
    except WeightsError as err:
        err.file = path
        raise


def write_solverstate(path: str | os.PathLike, state: SolverState) -> None:
    """Write a ``.solverstate`` that Caffe can restore, HDF5 when ``path`` ends in ``.h5``. It appears whole or not at
    all.

    Raises :class:`CaffePortError` when the file cannot be written.
    """
    if str(path).endswith(".h5"):
        write_hdf5_state(path, **vars(state))
        return
    with replacing(path) as file:
        file.write(varint_field(1, state.iter))
        file.writelines(len_field(2, state.learned_net.encode("utf-8", "surrogateescape")))
        for blob in state.history:
            file.writelines(flat(len_field(3, *encode_blob(blob))))
        file.write(varint_field(4, state.current_step))
        if state.minimum_loss is not None:
            file.write(bytes([5 << 3 | I32]) + struct.pack("<f", state.minimum_loss))
            file.write(varint_field(6, state.iter_last_event))


def _decode_state(data: memoryview) -> SolverState:
    state, has_iter = SolverState(), False
    for number, wire, value in fields(data):
        if number == 1:
            if wire == LEN:
                break  # a NetParameter begins with its name
            expect(number, wire, VARINT)
            state.iter, has_iter = signed(value), True
        elif number == 2:
            expect(number, wire, LEN)
            state.learned_net = bytes(value).decode("utf-8", "surrogateescape")  # a path, whatever its bytes
        elif number == 3:
            expect(number, wire, LEN)
            state.history.append(_decode_history(value, len(state.history)))
        elif number == 4:
            expect(number, wire, VARINT)
            state.current_step = signed(value)
        elif number == 5:
            expect(number, wire, I32)
            state.minimum_loss = float(value[-1])
        elif number == 6:
            expect(number, wire, VARINT)
            state.iter_last_event = signed(value)
    if not has_iter:
        raise WeightsError("is not a .solverstate: it has no iteration number", hint="Is it a .caffemodel?")
    return state


def _decode_history(message: memoryview, index: int) -> np.ndarray:
    try:
        return decode_blob(message)
    except WeightsError as err:
        err.field = f"history[{index}]"
        raise
