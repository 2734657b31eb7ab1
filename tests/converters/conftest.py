"""What the tests of weight files share: where the models are, and protobuf's own idea of Caffe's messages."""

import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from converters import CaffeModel, SolverState, convert, formats, report
from converters.diff import compare
from converters.named import NamedArrays
from prototxt import CaffePortError

_TYPES = {"int32": 5, "int64": 3, "enum": 5, "float": 2, "double": 1, "string": 9, "bytes": 12}

# Only the fields a weight file needs; numbers from caffe.proto of BVLC Caffe and, for raw_*, of NVIDIA's.
_SCHEMA = """
BlobShape        dim=1:int64*p
BlobProto        num=1:int32 channels=2:int32 height=3:int32 width=4:int32 data=5:float*p diff=6:float*p
BlobProto        shape=7:BlobShape double_data=8:double*p raw_data_type=10:enum raw_data=12:bytes
LayerParameter   name=1:string type=2:string bottom=3:string* top=4:string* blobs=7:BlobProto* phase=10:enum
V0LayerParameter name=1:string type=2:string blobs=50:BlobProto*
V1LayerParameter layer=1:V0LayerParameter bottom=2:string* top=3:string* name=4:string type=5:enum blobs=6:BlobProto*
NetParameter     name=1:string layers=2:V1LayerParameter* layer=100:LayerParameter*
SolverState      iter=1:int32 learned_net=2:string history=3:BlobProto* current_step=4:int32
"""


@pytest.fixture(scope="session")
def proto():
    """Message classes of protobuf's own implementation, built from the schema above: an independent reader."""
    file = descriptor_pb2.FileDescriptorProto(name="weights_test.proto", package="weights_test", syntax="proto2")
    messages = {}
    for line in _SCHEMA.strip().splitlines():
        name, *specs = line.split()
        message = messages.get(name) or messages.setdefault(name, file.message_type.add(name=name))
        for spec in specs:
            field_name, rest = spec.split("=")
            number, kind = rest.split(":")
            field = message.field.add(name=field_name, number=int(number), label=3 if "*" in kind else 1)
            field.options.packed = kind.endswith("*p")
            kind = kind.rstrip("*p")
            field.type = _TYPES.get(kind, 11)
            if field.type == 11:
                field.type_name = f".weights_test.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"weights_test.{name}")) for name in messages
    }
    return SimpleNamespace(**classes)


@pytest.fixture(scope="session")
def shared():
    """The folder of golden arrays and real models beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "../shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (real Caffe's files) beside the checkout")
    return folder.resolve()


@pytest.fixture(scope="session")
def run_folder():
    """A solver run of real Caffe: golden.npz, initial.caffemodel, snap_iter_5.caffemodel and .solverstate."""
    return Path(__file__).resolve().parents[1] / "data/solvers/SGD_step_iter2_clip"


@pytest.fixture
def every_dtype():
    """Arrays of each element type and in each way of lying in memory, by name."""
    rng = np.random.default_rng(7)
    base = rng.standard_normal((4, 3, 2))
    arrays = {np.dtype(t).name: (base * 9).astype(t) for t in ("f2", "f4", "i1", "i2", "i4", "i8", "u1", "?")}
    return arrays | {
        "slash/and.dot": base[0],  # float64, behind types of other sizes
        "transposed": base.astype(np.float32).T,
        "strided": rng.standard_normal(9).astype(np.float32)[::-2],
        "big-endian": base.astype(">f4"),
        "unaligned": np.frombuffer(b"\0" + base.astype(np.float32).tobytes(), np.float32, offset=1),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "two pieces": rng.standard_normal((513, 1025)).astype(np.float32),
        "two pieces, transposed": rng.standard_normal((513, 1025)).astype(np.float32).T,
    }


@pytest.fixture
def full_disk():
    """``with full_disk(size)``: no file of this process may grow beyond ``size`` bytes."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


# ---- files that are not right


@pytest.fixture
def bounds():
    """No more memory than a few small files can need, and no endless loop."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (512 << 20), limits[1]))
    signal.alarm(120)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def arrays_of(content):
    """All arrays of anything that ``formats.read`` gives."""
    if isinstance(content, np.ndarray):
        return [content]
    if isinstance(content, CaffeModel):
        return [blob for layer in content.layers for blob in layer.blobs if blob is not None]
    return content.history if isinstance(content, SolverState) else list(content.arrays.values())


def use(content, folder):
    """What the tool does with a file: looks at every value, compares, converts into formats of both kinds and back."""
    for array in arrays_of(content):
        if array is not None:  # a view beyond the file would crash here
            array.tobytes()
    json.dumps(report.describe(content, kind="caffemodel", stats=True).as_dict())
    compare(content, content).as_dict()
    to = "caffemodel" if isinstance(content, NamedArrays) else "npz"
    if isinstance(content, CaffeModel) or to == "caffemodel":
        convert.write(content, folder / "again", to)
        formats.read(folder / "again")


@pytest.fixture
def outcome(bounds):
    """``outcome(path, content=None)``: what is wrong with a file (of these bytes), None if nothing is.

    The only outcomes allowed: it can be read, and used for all that the tool does, or there is one message that names
    the file.
    """

    def read(path, content=None):
        if content is not None:
            path.write_bytes(content)
        try:
            read = formats.read(path)
        except CaffePortError as error:
            assert str(error.file) == str(path), f"the message does not name the file: {error!r}"
            assert "\n" not in error.message, f"more than one line: {error.message}"
            assert len(str(error)) < 2000, f"{len(str(error))} characters"
            return str(error)
        try:
            use(read, path.parent)
        except CaffePortError as error:  # arrays that make no Caffe file, names that the other format cannot hold
            assert len(error.message) < 2000
        return None

    return read


@pytest.fixture
def refused(outcome):
    """``refused(path, content=None)``: the message about a file (of these bytes), which must not be read."""

    def read(path, content=None):
        message = outcome(path, content)
        assert message, "was read"
        return message

    return read
