"""Weight files in, named arrays out, and back. Knows numpy and nothing of training."""

from .caffemodel import CaffeModel, LayerWeights, read_caffemodel, write_caffemodel
from .errors import WeightsError
from .solverstate import SolverState, read_solverstate, write_solverstate

__all__ = [
    "CaffeModel",
    "LayerWeights",
    "SolverState",
    "WeightsError",
    "read_caffemodel",
    "read_solverstate",
    "write_caffemodel",
    "write_solverstate",
]
