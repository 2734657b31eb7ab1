import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import PYTHON_LAYERS, PythonLayer, register_python


@pytest.fixture
def settings_of(build):
    """``settings_of("'a': 1")``: what a Python layer makes of its param_str."""

    @register_python("tests", "Settings")
    class Settings(PythonLayer):
        def infer(self, bottoms):
            return []

    def make(param_str):
        text = f'python_param {{ module: "tests" layer: "Settings" param_str: "{param_str}" }}'
        return build(f'layer {{ name: "it" type: "Python" {text} }}').layers[0]

    yield make
    del PYTHON_LAYERS["tests", "Settings"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ("# nothing", {}),
        ("'num_classes': 21", {"num_classes": 21}),
        ("{'a': 1, 'b': x}", {"a": 1, "b": "x"}),
        ("a: 1\\nb: [2]", {"a": 1, "b": [2]}),
    ],
)
def test_param_str(settings_of, text, expected):
    assert settings_of(text).settings == expected


@pytest.mark.parametrize(("text", "message"), [("just words", "expected 'key': value"), ("[", "not YAML"),
                                               ("[]", "expected 'key': value"),
                                               ("!!python/object/apply:os.getcwd []", "not YAML")])  # fmt: skip
def test_param_str_that_is_no_mapping(settings_of, text, message):
    with pytest.raises(PortError, match=message) as caught:
        settings_of(text)
    assert caught.value.field == "python_param.param_str"


def test_a_setting_of_the_right_type(settings_of):
    layer = settings_of("{'n': 3, 'flag': true, 'name': x}")
    assert layer.setting("n", int) == 3
    assert layer.setting("flag", bool) is True
    assert layer.setting("absent", str, "default") == "default"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("absent", int, "'absent' is missing"),
        ("name", int, "must be of type int, not 'x'"),
        ("flag", int, "must be of type int, not True"),
    ],
)
def test_a_setting_of_the_wrong_type(settings_of, name, kind, message):
    with pytest.raises(PortError, match=message):
        settings_of("{'flag': true, 'name': x}").setting(name, kind)


def test_nothing_that_a_prototxt_names_is_imported(build):
    with pytest.raises(PortError, match="unknown Python layer antigravity.Anything"):
        build('layer { name: "it" type: "Python" python_param { module: "antigravity" layer: "Anything" } }')
