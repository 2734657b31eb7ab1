import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import LAYERS, PYTHON_LAYERS, Layer, PythonLayer, register, register_python


@pytest.mark.parametrize(
    ("registry", "decorator", "key", "base"),
    [(LAYERS, register, ("Softmax",), Layer), (PYTHON_LAYERS, register_python, ("tests", "Twice"), PythonLayer)],
)
def test_nothing_is_registered_twice(registry, decorator, key, base):
    if key == ("tests", "Twice"):
        decorator(*key)(type("First", (base,), {}))
    before = dict(registry)
    with pytest.raises(ValueError, match="registered twice"):
        decorator(*key)(type("Second", (base,), {}))
    assert registry == before
    PYTHON_LAYERS.pop(("tests", "Twice"), None)


def test_every_class_knows_its_type():
    for kind, cls in LAYERS.items():
        assert kind == "Python" or (issubclass(cls, Layer) and cls.type == kind)


@pytest.mark.parametrize("axis", [-5, 4])
def test_axis_that_is_not_there(run_layer, axis):
    with pytest.raises(PortError, match=f"axis {axis} of a blob with 4 axes"):
        run_layer("Concat", f"concat_param {{ axis: {axis} }}", [[[[1.0]]]])
