"""``.pt``: a state dict of PyTorch, which ``torch.load(path, weights_only=True, mmap=True)`` opens.

Such a file is a zip archive with the values of each tensor in an entry of its own and a pickle that names them. The
pickle is written here by hand, so that torch (two seconds and 200 MB) is not needed; reading leaves it to torch, which
with ``weights_only=True`` runs nothing of it. The metadata lie in an entry that torch does not look at,
``archive/extra/metadata.json``.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings

import numpy as np

from .archive import read_entries, writing
from .dtypes import DTYPES, Pieces, dtype_of
from .errors import WeightsError
from .named import NamedArrays

_METADATA = "extra/metadata.json"
_STATES = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights in their checkpoints


def write_pt(path: str | os.PathLike, named: NamedArrays) -> None:
    """Write a ``.pt`` with a dict of tensors; the file appears whole or not at all, no array is copied on the way.

    Raises :class:`WeightsError` for an array that torch has no type for, :class:`CaffePortError` when the file cannot
    be written.
    """
    dtypes = {name: dtype_of(array, name) for name, array in named.arrays.items()}
    tensors = [
        _item(name, i, dtypes[name].storage, array.shape) for i, (name, array) in enumerate(named.arrays.items())
    ]
    records = {
        "data.pkl": b"".join([b"\x80\x02}(", *tensors, b"u."]),  # protocol 2, an empty dict, its items, the end
        "byteorder": b"little",
        "version": b"3\n",
        _METADATA: json.dumps(named.metadata).encode(),
    }
    with writing(path) as add:
        for name, record in records.items():
            add(f"archive/{name}", record)
        for i, (name, array) in enumerate(named.arrays.items()):
            add(f"archive/data/{i}", Pieces(array, dtypes[name].numpy))


def _item(name: str, index: int, storage: str, shape: tuple[int, ...]) -> bytes:
    """The pickle of ``name: _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)``."""
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    count = int(np.prod(shape, dtype=np.int64))
    place = _tuple(_text("storage"), _global("torch", storage), _text(str(index)), _text("cpu"), _int(count))
    hooks = _global("collections", "OrderedDict") + b")R"
    parts = (place + b"Q", _int(0), _tuple(*map(_int, shape)), _tuple(*map(_int, strides)), b"\x89", hooks)
    return _text(name) + _global("torch._utils", "_rebuild_tensor_v2") + _tuple(*parts) + b"R"


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(number: int) -> bytes:
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def read_pt(path: str | os.PathLike) -> NamedArrays:
    """The tensors of a ``.pt`` or ``.pth``: a state dict, or a checkpoint that has one as ``state_dict``, ``model`` or
    ``model_state_dict``. Views on the memory-mapped file; bfloat16 is widened to float32, in memory.

    What is no tensor, such as the epoch or the optimizer's state, is left out and named in the notes.

    Raises :class:`WeightsError` for a file that is missing, damaged, of another format (pickles of PyTorch before 1.6,
    TorchScript), needs more than tensors and plain containers to be loaded, or has sparse or quantised tensors.
    """
    entries = read_entries(path, "a PyTorch file (.pt)", packed=False)
    folder = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
    if folder is None:
        raise WeightsError("is a zip archive, but not one of PyTorch: it has no data.pkl", file=path)
    if folder + "constants.pkl" in entries:
        raise WeightsError(
            "is a TorchScript program, not a state dict",
            file=path,
            hint="Save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pt').",
        )
    try:
        named = _named(_load(path), {len(data) for data in entries.values()})
        named.metadata = _read_metadata(entries.get(folder + _METADATA))
    except WeightsError as error:
        error.file = path
        raise
    return named


def _load(path):
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: an error says more
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is not right
        reason = str(error).strip().splitlines() or [type(error).__name__]
        wanted = next((line.strip() for line in reason if "GLOBAL" in line), reason[0])
        raise WeightsError(
            f"cannot be loaded as tensors only: {wanted[:300]}",
            hint="Nothing in the file was run. Save model.state_dict(), which has tensors only, with torch.save.",
        ) from None


def _named(content, sizes: set[int]) -> NamedArrays:
    import torch

    ignored: list[str] = []
    if isinstance(content, dict):
        state = next((key for key in _STATES if isinstance(content.get(key), dict)), None)
        if state is not None:
            ignored = [str(key) for key in content if key != state]
            content = content[state]
    if not isinstance(content, dict):
        raise WeightsError(f"holds a {type(content).__name__}, not a state dict")
    named = NamedArrays()
    for key, value in content.items():
        name = str(key).encode("utf-8", "backslashreplace").decode()
        if isinstance(value, torch.Tensor):
            named.arrays[name] = _array(value.detach(), name, sizes)
        else:
            ignored.append(name)
    if not named.arrays:
        raise WeightsError(f"holds no tensors, only {', '.join(ignored)[:200] or 'an empty dict'}")
    if ignored:
        named.notes.append(f"no tensors, left out: {', '.join(ignored)}")
    return named


def _array(tensor, name: str, sizes: set[int]) -> np.ndarray:
    import torch

    if tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        kind = "quantised" if tensor.is_quantized else f"{tensor.device.type}, {tensor.layout}"
        raise WeightsError(f"tensor '{name}' is {kind}", hint="Only ordinary dense tensors are read.")
    stored = tensor.untyped_storage().nbytes()
    if stored not in sizes or tensor.numel() * tensor.element_size() > stored:  # torch checks neither
        raise WeightsError(f"tensor '{name}' claims the shape {tuple(tensor.shape)}, more than the file has")
    if tensor.ndim > 32:
        raise WeightsError(f"tensor '{name}' has {tensor.ndim} axes, more than 32")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        array = tensor.resolve_conj().resolve_neg().numpy()
    except TypeError:  # numpy has no such type
        raise WeightsError(f"tensor '{name}' is of type {tensor.dtype}, which is not one of weights") from None
    if array.dtype not in [row.numpy for row in DTYPES]:
        raise WeightsError(f"tensor '{name}' is of type {tensor.dtype}, which is not one of weights")
    array.flags.writeable = False
    return array


def _read_metadata(record: memoryview | None) -> dict[str, str]:
    try:
        metadata = {} if record is None else json.loads(bytes(record))
        return {str(key): value for key, value in metadata.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}
