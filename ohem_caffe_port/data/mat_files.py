"""MATLAB's .mat files, whose content is data and never code."""

from __future__ import annotations

from pathlib import Path

import scipy.io

from ..errors import PortError


def read_mat(path, *names: str):
    """The array that ``names`` lead to: a variable and, where it is a structure, fields of its only element. Without
    names, a dict of all variables.

    Raises:
        PortError: a file that is missing, broken or of MATLAB 7.3, or nothing of these names in it.
    """
    try:
        with Path(path).open("rb") as file:
            value = scipy.io.loadmat(file)
    except NotImplementedError:
        raise PortError("a MATLAB 7.3 file (HDF5)", file=path, hint="save it with -v7") from None
    except OSError as error:
        raise PortError(f"cannot be read: {error.strerror or error}", file=path) from None
    except Exception as error:  # scipy raises many kinds for a broken file
        raise PortError(f"not a readable .mat file: {error}", file=path, hint="fetch the file again") from None
    try:
        for name in names:
            value = value[name]
            while value.dtype == object and value.size == 1:
                value = value.item()
    except (KeyError, ValueError, IndexError, AttributeError):
        raise PortError(f"has no '{'.'.join(names)}'", file=path) from None
    return value
