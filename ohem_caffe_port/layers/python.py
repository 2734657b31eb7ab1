"""The "Python" layer: a class looked up by ``module`` and ``layer``; nothing a prototxt names is imported."""

from __future__ import annotations

import yaml

from prototxt.errors import nearest

from ..config import read_yaml
from ..errors import PortError
from .base import LAYERS, MANY, Layer

PYTHON_LAYERS: dict[tuple[str, str], type[PythonLayer]] = {}


class PythonLayer(Layer):
    """A layer that a known project wrote in Python, found by ``module`` and ``layer``; base of their classes.

    ``settings`` is ``param_str`` read as YAML (the form most of those projects use): a dict, empty when absent. A
    setting that is not one of ``known_settings`` has no effect, and a warning says so; None knows any.

    A layer that goes on from pass to pass by more than its blobs gives that in ``remembered()``, a dict of arrays, and
    takes it back in ``remember(state)``: :class:`ohem_caffe_port.train.Trainer` keeps it for a resumed training.
    """

    type = "Python"
    fields = {"python_param": {"module", "layer", "param_str"}}
    num_bottoms, num_tops = (0, MANY), (0, MANY)
    known_settings: set[str] | None = None

    def __init__(self, param, context):
        super().__init__(param, context)
        self.settings = self.read_settings(param.python_param.param_str)
        for name in self.settings if self.known_settings is not None else ():
            if name not in self.known_settings:
                near = nearest(str(name), self.known_settings)
                hint = f"; did you mean '{near}'?" if near else ""
                self.warnings.append(f"layer '{self.name}': param_str: '{name}' has no effect{hint}")

    def read_settings(self, text: str) -> dict:
        """``param_str`` as a dict; layers whose original reads another form than YAML have their own.

        Raises:
            PortError: it is not of that form.
        """
        try:
            settings = read_yaml(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise self.error(f"not YAML: {text!r} ({problem})", field="python_param.param_str") from None
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise self.error(f"expected 'key': value pairs, got {text!r}", field="python_param.param_str")
        return settings

    def setting(self, name: str, kind: type, default=None):
        """A value of ``param_str``; without a default it must be there.

        Raises:
            PortError: it is missing or of another type.
        """
        value = self.settings.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            state = "is missing" if value is None else f"must be of type {kind.__name__}, not {value!r}"
            raise self.error(f"'{name}' {state}", field="python_param.param_str")
        return value


def register_python(module: str, layer: str):
    """Class decorator: makes a :class:`PythonLayer` the layer ``layer`` of ``module``."""

    def add(cls):
        if (module, layer) in PYTHON_LAYERS:
            raise ValueError(f"Python layer {module}.{layer} is registered twice")
        PYTHON_LAYERS[module, layer] = cls
        return cls

    return add


def _create(param, context):
    from .. import python_layers  # noqa: F401  fills the registry; they build on this module

    key = param.python_param.module, param.python_param.layer
    if key not in PYTHON_LAYERS:
        names = {f"{module}.{layer}": (module, layer) for module, layer in PYTHON_LAYERS}
        near = nearest(".".join(key), names)
        raise PortError(
            f"unknown Python layer {'.'.join(key)}" + (f"; did you mean {near}?" if near else ""),
            layer=param.name,
            field="python_param",
            hint=f"known: {', '.join(sorted(names))}. Code named in a prototxt is never imported; register your own "
            "class with ohem_caffe_port.layers.register_python",
        )
    return PYTHON_LAYERS[key](param, context)


LAYERS["Python"] = _create
