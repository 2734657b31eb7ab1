"""Opening weight files for reading without a copy."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from prototxt.errors import nearest

from .errors import WeightsError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
_NO_PICKLE = "Pickles are never opened: they can run code. Give the Caffe file."
# First bytes -> (what the file is, what to do about it). None of them can begin a Caffe message.
_OTHER_FORMATS = (
    (HDF5_MAGIC, "an HDF5 file", "Only .caffemodel.h5 and .solverstate.h5 are HDF5."),
    (ZIP_MAGIC, "a zip archive (or a PyTorch or .npz file)", "Unpack it, or give the Caffe file it was made from."),
    (b"PK\x05\x06", "an empty zip archive", "Fetch or write it again."),
    (b"\x1f\x8b", "gzip-compressed", "Decompress it first, for instance with gunzip."),
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        "a checkpoint of PyTorch before 1.6, a pickle",
        "Save it again with torch.save of a newer PyTorch: pickles are never opened, they can run code.",
    ),
    *((bytes([0x80, n]), "a Python pickle", _NO_PICKLE) for n in (2, 3, 4, 5)),
    (b"\x93NUMPY", "a numpy array", "Give the Caffe file."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull`."),
    (b"<", "a web page or XML", "The download failed or the wrong file was given; fetch it again."),
)
_TEXT_CONTROLS = b"\t\n\r\f"


def map_file(path: str | os.PathLike, kind: str) -> memoryview:
    """The bytes of a file of Caffe's own, memory-mapped read-only: nothing is read before it is looked at.

    ``kind`` names what is expected ("a .caffemodel") in the messages. The mapping lives as long as any view on it,
    also after the file was replaced or deleted.

    Raises :class:`WeightsError` when the file is missing, a folder, empty, or recognisably something else: text such
    as a prototxt, HDF5, zip, safetensors, gzip, pickle, a Git LFS pointer, a web page.
    """
    view = open_mapped(path, kind)
    refuse_other_formats(view, path, kind)
    return view


def open_mapped(path: str | os.PathLike, kind: str) -> memoryview:
    """The bytes of a file of any format, memory-mapped read-only.

    Raises :class:`WeightsError` when the file is missing, a folder or empty.
    """
    path = Path(path)
    if not path.exists():
        if path.is_symlink():
            raise WeightsError(f"is a link that leads nowhere: {path.readlink()}", file=path, hint="Give the file.")
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        hint = f"Did you mean {near}?" if near else "Check the path."
        raise WeightsError(f"there is no such file; {kind} is needed", file=path, hint=hint)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise WeightsError(f"is {what}; {kind} is needed", file=path, hint="Give the file itself.")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise WeightsError("the file is empty", file=path, hint="Fetch or write it again.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as err:
        raise WeightsError(f"cannot be read: {err.strerror or err}", file=path) from err


def is_safetensors(view: memoryview) -> bool:
    """Whether a file begins as safetensors does: the length of a JSON object, and its brace."""
    return bytes(view[4:9]) == b"\0\0\0\0{"


def refuse_other_formats(view: memoryview, path: str | os.PathLike, kind: str) -> None:
    """Raises :class:`WeightsError` for a file that is recognisably not one of Caffe's messages."""
    if is_safetensors(view):  # first: its length may look like any of the others
        raise WeightsError(f"is a safetensors file; {kind} is needed", file=path, hint="Give a file of that kind.")
    head = bytes(view[:4096])
    for magic, what, hint in _OTHER_FORMATS:
        if head.startswith(magic):
            raise WeightsError(f"is {what}; {kind} is needed", file=path, hint=hint)
    if head[257:262] == b"ustar":
        raise WeightsError(f"is a tar archive; {kind} is needed", file=path, hint="Unpack it first.")
    # A Caffe message has a control byte (a length or a tag) close to its start; a text has none.
    if all(byte >= 32 or byte in _TEXT_CONTROLS for byte in head):
        hint = "Were the prototxt and the weights given in the wrong order?"
        raise WeightsError(f"is a text file (a prototxt?); {kind} is needed", file=path, hint=hint)
