"""No field of a layer's message is dropped in silence: each is honoured, noted as without effect, or refused."""

import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import LAYERS, Context, PythonLayer
from ohem_caffe_port.layers.base import NET_FIELDS, NEUTRAL_FIELDS
from prototxt import caffe_pb2

FIELDS = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
CLASSES = {kind: PythonLayer if kind == "Python" else cls for kind, cls in LAYERS.items()}
CASES = [
    (kind, message, field.name)
    for kind, cls in CLASSES.items()
    for message in cls.fields
    for field in FIELDS[message].message_type.fields
]


def set_field(message, name) -> None:
    """Gives a field a value that its type allows; that it is present is what counts."""
    field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
    if hasattr(value, "add"):
        value.add()
    elif hasattr(value, "append"):
        value.append("" if field.type == field.TYPE_STRING else 1)
    elif field.message_type:
        value.SetInParent()
    else:
        setattr(message, name, field.default_value)


def create(kind, message, name=None):
    """A layer with one field of one message set, or the empty message."""
    param = caffe_pb2.LayerParameter(name="it", type=kind)
    if name is None:
        set_field(param, message)
    else:
        set_field(getattr(param, message), name)
    return CLASSES[kind](param, Context())


@pytest.mark.parametrize(("kind", "message", "name"), CASES)
def test_honoured_noted_or_refused(kind, message, name):
    if name in CLASSES[kind].fields[message]:
        assert create(kind, message, name).warnings == []
    elif name in NEUTRAL_FIELDS:
        assert create(kind, message, name).warnings == [f"layer 'it': {message}.{name} has no effect here"]
    else:
        with pytest.raises(PortError, match=f"not supported by the {kind} layer") as caught:
            create(kind, message, name)
        assert (caught.value.layer, caught.value.field) == ("it", f"{message}.{name}")


@pytest.mark.parametrize("kind", CLASSES)
def test_honoured_fields_exist(kind):
    for message, names in CLASSES[kind].fields.items():
        assert names <= set(FIELDS[message].message_type.fields_by_name)


@pytest.mark.parametrize("kind", CLASSES)
def test_messages_of_other_layers_are_noted(kind):
    for message in set(FIELDS) - NET_FIELDS - set(CLASSES[kind].fields):
        notes = create(kind, message).warnings
        assert notes == [f"layer 'it': a {kind} layer does not read {message}; ignored"]


def test_fields_that_the_net_reads_exist():
    assert set(FIELDS) >= NET_FIELDS
