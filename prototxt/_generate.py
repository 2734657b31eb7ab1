"""Makes ``caffe_pb2.py`` from ``caffe.proto``: ``make proto``, or ``python prototxt/_generate.py``.

Needs ``grpcio-tools==1.62.3`` in an environment of its own (it pins an old protobuf): code of that protoc, 25.1, loads
in every protobuf from 4.25 on, while newer generated code refuses older runtimes.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTO = HERE / "caffe.proto"
GENERATED = HERE / "caffe_pb2.py"


def stamp(proto: Path = PROTO) -> str:
    """The first line of ``caffe_pb2.py``: which ``caffe.proto`` it was made from."""
    return f"# Made from caffe.proto with sha256 {hashlib.sha256(proto.read_bytes()).hexdigest()}\n"


def generate() -> str:
    """The text of ``caffe_pb2.py`` for the present ``caffe.proto``."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        # The name inside the descriptor is ohem_caffe_port/caffe.proto, so that no other caffe.proto collides with it.
        arguments = ["protoc", f"-Iohem_caffe_port={HERE}", f"--python_out={folder}", "ohem_caffe_port/caffe.proto"]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        return stamp() + (Path(folder) / "ohem_caffe_port" / "caffe_pb2.py").read_text()


if __name__ == "__main__":
    GENERATED.write_text(generate(), encoding="utf-8")
    print(f"wrote {GENERATED}")
