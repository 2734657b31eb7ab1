"""Arrays from and to HDF5 files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from converters.extras import library
from prototxt import CaffePortError
from prototxt.files import replacing

from .. import distributed
from .base import MANY, Layer, own_stream, register


def _h5py(layer: Layer):
    try:
        return library("h5py", "hdf5")
    except CaffePortError as error:
        raise layer.error(error.message, hint=error.hint) from None


@register("HDF5Data")
class HDF5Data(Layer):
    """``HDF5DataLayer``: rows of datasets in HDF5 files, for each top the dataset of its name.

    ``source`` is a list of files, read one after the other and over and over; a batch runs on from one file to the
    next. With ``shuffle`` the order of the files is random in every pass, the order of rows in every file. All
    datasets of a file have one number of rows; a row's shape is the same in all files. Values become float32.
    ``transform_param`` is refused, as in Caffe.
    """

    fields = {"hdf5_data_param": {"source", "batch_size", "shuffle"}}
    num_bottoms, num_tops = (0, 0), (1, MANY)

    def setup(self, bottoms):
        p = self.param.hdf5_data_param
        if self.param.HasField("transform_param"):
            raise self.error("HDF5Data does not transform data", field="transform_param")
        if p.batch_size < 1:
            raise self.error("must be positive", field="hdf5_data_param.batch_size")
        self.batch_size, self.shuffle = p.batch_size, p.shuffle
        self.rng = own_stream()
        try:
            self.files = Path(p.source).read_text(encoding="utf-8", errors="surrogateescape").split()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise self.error(
                f"the list '{p.source}' cannot be read: {reason}", field="hdf5_data_param.source"
            ) from None
        if not self.files:
            raise self.error(f"the list '{p.source}' is empty", field="hdf5_data_param.source")
        self._row_shapes: list[tuple[int, ...]] = []
        self._start_pass()

    def infer(self, bottoms):
        return [torch.empty((self.batch_size, *shape), device="meta") for shape in self._row_shapes]

    def forward(self, bottoms):
        return distributed.in_turn(self._batch, self._batch) if self.context.train else self._batch()

    def _batch(self) -> list[torch.Tensor]:
        pieces, missing = [], self.batch_size
        while missing:
            if self._row == len(self._rows):
                self._next_file()
            rows = self._rows[self._row : self._row + missing]
            pieces.append([dataset[rows] for dataset in self._datasets])
            self._row += len(rows)
            missing -= len(rows)
        return [torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*pieces, strict=True)]

    def _start_pass(self) -> None:
        self._order = self.rng.permutation(len(self.files)) if self.shuffle else np.arange(len(self.files))
        self._file = 0
        self._load(self.files[self._order[0]])

    def _next_file(self) -> None:
        if len(self.files) == 1:
            self._start_rows()
        elif self._file + 1 < len(self.files):
            self._file += 1
            self._load(self.files[self._order[self._file]])
        else:
            self._start_pass()

    def _start_rows(self) -> None:
        count = len(self._datasets[0])
        self._rows = self.rng.permutation(count) if self.shuffle else np.arange(count)
        self._row = 0

    def _load(self, name: str) -> None:
        self._datasets = self._read(name)
        shapes = [dataset.shape[1:] for dataset in self._datasets]
        self._row_shapes = self._row_shapes or shapes
        if shapes != self._row_shapes:
            raise self.error(
                f"'{name}' has rows of shapes {shapes}, the file before {self._row_shapes}",
                field="hdf5_data_param.source",
            )
        self._start_rows()

    def _read(self, name: str) -> list[np.ndarray]:
        h5py, datasets = _h5py(self), []
        if not Path(name).is_file():
            hint = "paths in the list are seen from the working directory, and hold no spaces"
            raise self.error(f"'{name}' is not there", field="hdf5_data_param.source", hint=hint)
        try:
            with h5py.File(name, "r") as file:
                for top in self.param.top:
                    if not isinstance(file.get(top), h5py.Dataset):
                        there = [key for key in sorted(file) if isinstance(file.get(key), h5py.Dataset)]
                        raise self.error(f"'{name}' has no dataset '{top}'", hint=f"it has {there}", field="top")
                    if file[top].dtype.kind not in "fiu" or not file[top].shape:
                        raise self.error(f"dataset '{top}' of '{name}' is no array of numbers", field="top")
                    datasets.append(file[top][()].astype(np.float32, copy=False))
        except (OSError, RuntimeError, KeyError, MemoryError) as error:
            raise self.error(f"'{name}' cannot be read: {error}", field="hdf5_data_param.source") from None
        counts = {len(dataset) for dataset in datasets}
        if len(counts) > 1 or 0 in counts:
            rows = ", ".join(f"{top}: {len(d)}" for top, d in zip(self.param.top, datasets, strict=True))
            raise self.error(
                f"the datasets of '{name}' need one number of rows, above 0 ({rows})", field="hdf5_data_param.source"
            )
        return datasets


@register("HDF5Output")
class HDF5Output(Layer):
    """``HDF5OutputLayer``: writes its two bottoms to datasets ``data`` and ``label`` of the HDF5 file ``file_name``.

    Both are written with four axes, ones behind where there are fewer. The first forward replaces the file, each later
    one adds its rows (Caffe stops at the second); the file is whole at any time. No gradient goes back. Of several
    processes the first writes its own rows.
    """

    fields = {"hdf5_output_param": {"file_name"}}
    num_bottoms, num_tops = (2, 2), (0, 0)

    def setup(self, bottoms):
        _h5py(self)
        if not self.param.hdf5_output_param.file_name:
            raise self.error("names no file", field="hdf5_output_param.file_name")
        self._started = False

    def infer(self, bottoms):
        for bottom in bottoms:
            if not 1 <= bottom.dim() <= 4:
                raise self.error(f"takes bottoms of 1 to 4 axes, not {bottom.dim()}", field="bottom")
        if len(bottoms[0]) != len(bottoms[1]):
            raise self.error(f"its bottoms have {len(bottoms[0])} and {len(bottoms[1])} rows", field="bottom")
        return []

    def forward(self, bottoms):
        self.infer(bottoms)
        if not distributed.is_root():
            return []
        path = Path(self.param.hdf5_output_param.file_name)
        try:
            with replacing(path, "w+b") as file:
                if self._started:
                    with path.open("rb") as old:
                        shutil.copyfileobj(old, file, 1 << 20)
                with _h5py(self).File(file, "a") as hdf5:
                    for name, bottom in zip(("data", "label"), bottoms, strict=True):
                        self._append(hdf5, name, bottom.detach().cpu().numpy())
        except CaffePortError as error:
            if error.layer:
                raise
            raise self.error(f"{path}: {error.message}", field="hdf5_output_param.file_name", hint=error.hint) from None
        self._started = True
        return []

    def _append(self, hdf5, name: str, rows: np.ndarray) -> None:
        rows = rows.reshape(rows.shape + (1,) * (4 - rows.ndim))
        if name not in hdf5:
            hdf5.create_dataset(name, data=rows, maxshape=(None, *rows.shape[1:]))
            return
        dataset = hdf5[name]
        if dataset.shape[1:] != rows.shape[1:]:
            raise self.error(f"rows of shape {rows.shape[1:]} after {dataset.shape[1:]} in the same file")
        dataset.resize(len(dataset) + len(rows), axis=0)
        dataset[-len(rows) :] = rows
