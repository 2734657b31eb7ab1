"""Weight files in, named arrays out, and back. Knows numpy and nothing of training."""

from .binaryproto import read_binaryproto, write_binaryproto
from .caffemodel import CaffeModel, LayerWeights, read_caffemodel, write_caffemodel
from .errors import WeightsError
from .formats import kind_of, read
from .named import NamedArrays
from .naming import from_named, to_named
from .npz import read_npz, write_npz
from .safetensors import read_safetensors, write_safetensors
from .solverstate import SolverState, read_solverstate, write_solverstate
from .torch_state import read_pt, write_pt

__all__ = [
    "CaffeModel",
    "LayerWeights",
    "NamedArrays",
    "SolverState",
    "WeightsError",
    "from_named",
    "kind_of",
    "read",
    "read_binaryproto",
    "read_caffemodel",
    "read_npz",
    "read_pt",
    "read_safetensors",
    "read_solverstate",
    "to_named",
    "write_binaryproto",
    "write_caffemodel",
    "write_npz",
    "write_pt",
    "write_safetensors",
    "write_solverstate",
]
