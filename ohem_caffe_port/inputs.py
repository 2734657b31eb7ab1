"""Inputs of other shapes, or in the place of data layers, for a look at a net without its data."""

from __future__ import annotations

from .errors import PortError


def reshape_inputs(net_param, shapes: dict[str, tuple[int, ...]]) -> None:
    """Changes ``net_param``: every blob of ``shapes`` becomes an input of that shape.

    The blob must be a top of an ``Input`` layer, or of a layer without bottoms (a data layer): such a layer, in every
    phase, is replaced by an ``Input`` layer, and all of its tops need a shape.

    Raises:
        PortError: a name that is no such blob, or a data layer's top without a shape.
    """
    sources = [layer for layer in net_param.layer if not layer.bottom and layer.top]
    known = {top for layer in sources for top in layer.top}
    unknown = [name for name in shapes if name not in known]
    if unknown:
        raise PortError(
            f"no input or data layer makes '{unknown[0]}'; they make {', '.join(sorted(known)) or 'nothing'}"
        )
    for layer in sources:
        if not set(layer.top) & set(shapes):
            continue
        declared = {}
        if layer.type == "Input":
            given = layer.input_param.shape
            declared = {top: tuple(given[i if len(given) > 1 else 0].dim) for i, top in enumerate(layer.top) if given}
        missing = [top for top in layer.top if top not in shapes and top not in declared]
        if missing:
            raise PortError(f"its top '{missing[0]}' needs a shape, too", layer=layer.name)
        tops = list(layer.top)
        kept = type(layer)(name=layer.name, type="Input", top=tops, include=layer.include, exclude=layer.exclude)
        for top in tops:
            kept.input_param.shape.add(dim=shapes.get(top, declared.get(top)))
        layer.CopyFrom(kept)
