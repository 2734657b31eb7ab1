"""What the tests of weight files share: where the models are, and protobuf's own idea of Caffe's messages."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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
