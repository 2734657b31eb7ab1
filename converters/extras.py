"""Libraries that only some users need: imported when they are used, never at start."""

from __future__ import annotations

import importlib

from .errors import WeightsError


def library(package: str, extra: str):
    """The module ``package``, which ``pip install 'ohem_caffe_port[extra]'`` installs.

    Raises :class:`WeightsError` when it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise WeightsError(
            f"needs the library {package}, which is not installed",
            hint=f"Install it with: pip install 'ohem_caffe_port[{extra}]'",
        ) from None
