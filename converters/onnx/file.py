"""ONNX models into files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prototxt.files import replacing

from ..extras import library

LIMIT = 2**31 - 2**24  # bytes of parameters: protobuf messages end at 2 GiB, and the graph needs some of it


def write_onnx(path: str | os.PathLike, model, *, limit: int = LIMIT) -> list[Path]:
    """Writes an ``onnx.ModelProto``, whole or not at all; returns the files written.

    Above ``limit`` bytes the parameters go to a second file beside it, ``<name>.data``, as ONNX knows it ("external
    data"): both are needed then, side by side, and ``model`` is left without their values.

    Raises:
        CaffePortError: the folder is missing, the disk is full...
    """
    path = Path(path)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= limit:
        with replacing(path) as file:
            file.write(model.SerializeToString())
        return [path]
    data = path.with_name(path.name + ".data")
    external = library("onnx.external_data_helper", "onnx")
    external.convert_model_to_external_data(model, location=data.name, size_threshold=0)
    with replacing(path) as file, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        external.write_external_data_tensors(model, folder)
        file.write(model.SerializeToString())
        (Path(folder) / data.name).replace(data)
    return [path, data]
