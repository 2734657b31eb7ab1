"""LMDB and LevelDB as Caffe uses them: records in the order of their keys, read over and over again; and what the
``Datum`` in such a record holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from google.protobuf.message import DecodeError

from converters.extras import library
from prototxt import CaffePortError, caffe_pb2

from ..errors import PortError
from .image_size import encoded_size
from .images import AS_STORED, COLOR, GRAY, decode_image

_FILES = {"LMDB": "data.mdb", "LEVELDB": "CURRENT"}  # what every database of that kind has in its folder


class _Lmdb:
    """An LMDB, opened without its lock file: nothing is written to the folder."""

    def __init__(self, path: Path):
        lmdb = library("lmdb", "lmdb")
        self.path, self.failure = path, lmdb.Error
        try:
            self.environment = lmdb.open(str(path), readonly=True, lock=False, subdir=path.is_dir())
        except lmdb.Error as error:
            raise PortError(f"not an LMDB that can be opened: {error}", file=path) from None
        pages = self.environment.info()["last_pgno"] + 1
        size = (path / "data.mdb" if path.is_dir() else path).stat().st_size
        if pages * self.environment.stat()["psize"] > size:  # reading past the end would kill the process
            raise PortError("the LMDB is cut off", file=path, hint="copy or make it again")

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with self.environment.begin() as transaction:
            yield from transaction.cursor()

    def __getitem__(self, key: bytes) -> bytes:
        with self.environment.begin() as transaction:
            return transaction.get(key)

    def __len__(self) -> int:
        return self.environment.stat()["entries"]


class _LevelDb:
    """A LevelDB. The library locks the folder and writes its log there: one process at a time can read it."""

    def __init__(self, path: Path):
        plyvel = library("plyvel", "leveldb")
        self.path, self.failure = path, plyvel.Error
        try:
            self.db = plyvel.DB(str(path), create_if_missing=False)
        except plyvel.Error as error:
            raise PortError(f"not a LevelDB that can be opened: {_words(error)}", file=path) from None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with self.db.iterator(verify_checksums=True) as iterator:
            yield from iterator

    def __getitem__(self, key: bytes) -> bytes:
        return self.db.get(key, verify_checksums=True)

    def __len__(self) -> int:
        with self.db.iterator(include_value=False) as iterator:
            return sum(1 for _ in iterator)


_BACKENDS = {"LMDB": _Lmdb, "LEVELDB": _LevelDb}
_opened: WeakValueDictionary = WeakValueDictionary()  # neither library opens one database twice in a process


def open_database(source: str, backend: str):
    """The database in folder ``source``; iterating gives ``(key, value)`` in the order of keys, ``[key]`` a value.

    All who read one database share it; it is closed when nobody does.

    Raises:
        PortError: nothing is there, it is another kind of database, or the backend's library is not installed.
    """
    path = Path(source)
    if not path.exists():
        raise PortError("there is no such database", file=source, hint="paths are seen from the working directory")
    if path.is_dir() and not (path / _FILES[backend]).is_file():  # LevelDB would begin to write there
        other = next((kind for kind, name in _FILES.items() if (path / name).is_file()), None)
        hint = f"the folder holds one of the other backend; say  backend: {other}" if other else None
        raise PortError(f"holds no {backend}: there is no {_FILES[backend]} in it", file=source, hint=hint)
    key = backend, path.resolve()
    database = _opened.get(key)
    if database is None:
        try:
            database = _opened[key] = _BACKENDS[backend](path)
        except PortError:
            raise
        except CaffePortError as error:
            raise PortError(f"backend {backend} {error.message}", hint=error.hint) from None
    return database


def endless_records(database, rng: np.random.RandomState | None = None) -> Iterator[tuple[bytes, bytes]]:
    """``(key, value)`` for ever: pass after pass in the order of keys, or, given ``rng``, every pass but the first in a
    new random order (the ``shuffle`` of yjxiong's and NVIDIA's forks).

    Raises:
        PortError: the database is empty or damaged.
    """
    keys: list[bytes] = []
    try:
        if next(iter(database), None) is None:
            raise PortError("the database has no records")
        for key, value in database:
            if rng is not None:
                keys.append(key)
            yield key, value
        while rng is None:
            yield from database
        while True:
            keys = [keys[i] for i in rng.permutation(len(keys))]
            yield from ((key, database[key]) for key in keys)
    except database.failure as error:
        raise PortError(f"the database is damaged: {_words(error)}", file=database.path) from None


def _words(error: Exception) -> str:
    """The message of an error; plyvel's are bytes."""
    return " ".join(a.decode(errors="replace") if isinstance(a, bytes) else str(a) for a in error.args)


def peeked(records: Iterator) -> tuple[object, Iterator]:
    """The next element, and an iterator that still begins with it."""
    first = next(records)
    return first, chain([first], records)


def parse_record(message_type, value: bytes):
    """A record as a message, ``caffe_pb2.Datum`` or ``AnnotatedDatum``.

    Raises:
        PortError: it is none.
    """
    try:
        return message_type.FromString(value)
    except DecodeError:
        raise PortError(f"it is no {message_type.DESCRIPTOR.name}, or damaged") from None


def datum_image(datum: caffe_pb2.Datum, *, color: bool = False, gray: bool = False) -> np.ndarray:
    """The pixels of a Datum as ``[H, W, C]`` uint8 (BGR where it is an image), or float32 from ``float_data``.

    ``color`` and ``gray`` say how an encoded image is decoded; without them, as it is stored.

    Raises:
        PortError: an image that cannot be decoded or has 16 bits, or values that do not fit the shape.
    """
    if datum.encoded:
        image = decode_image(datum.data, COLOR if color else GRAY if gray else AS_STORED)
        if image is None:
            raise PortError("its image cannot be decoded: it is damaged or cut off")
        if image.dtype != np.uint8:
            raise PortError(f"its image holds {image.dtype}, not bytes", hint="force_color or force_gray makes bytes")
        return image if image.ndim == 3 else image[:, :, None]
    if not datum.data and not datum.float_data:
        raise PortError("it holds no image", hint="a Data layer reads Datum records, AnnotatedData AnnotatedDatum ones")
    shape = (datum.channels, datum.height, datum.width)
    values = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or values.size != math.prod(shape):
        kind = "bytes" if datum.data else "values of float_data"
        raise PortError(f"its shape is {shape} (channels, height, width), and it has {values.size} {kind}")
    return values.reshape(shape).transpose(1, 2, 0)


def datum_size(datum: caffe_pb2.Datum) -> tuple[int, int]:
    """Height and width of the image in a Datum.

    Raises:
        PortError: an image that cannot be decoded.
    """
    if not datum.encoded:
        return datum.height, datum.width
    return encoded_size(datum.data) or datum_image(datum).shape[:2]
