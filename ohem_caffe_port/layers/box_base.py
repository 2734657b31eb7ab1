"""What the box layers of MS-CNN and Cascade R-CNN have in common."""

from __future__ import annotations

from .base import Layer

BBOX_REG = {"bbox_mean", "bbox_std"}


def bbox_norm(layer: Layer) -> tuple[list[float], list[float]]:
    """Means and standard deviations of a ``bbox_reg_param``: four of each, for x, y, width and height.

    Raises:
        PortError: not four, or a deviation that is not positive.
    """
    p = layer.param.bbox_reg_param
    means, stds = list(p.bbox_mean), list(p.bbox_std)
    if not means and not stds:
        return [0.0] * 4, [1.0] * 4
    if len(means) != 4 or len(stds) != 4 or min(stds) <= 0:
        raise layer.error(
            f"means {means} and deviations {stds}: give four of each, deviations above 0", field="bbox_reg_param"
        )
    return means, stds


def field_sizes(layer: Layer, message, name: str) -> list[tuple[int, int]]:
    """The (width, height) of every field that a message with ``field_w`` and ``field_h`` lists.

    Raises:
        PortError: none, or more of one than of the other.
    """
    if not 0 < len(message.field_w) == len(message.field_h):
        raise layer.error(
            f"{len(message.field_w)} values of field_w and {len(message.field_h)} of field_h: give as many of each",
            field=name,
        )
    return list(zip(message.field_w, message.field_h, strict=True))


def check_bounds(layer: Layer, name: str) -> None:
    """Raises PortError unless ``field_xyr`` and ``field_whr`` of the message ``name`` bound something."""
    p = getattr(layer.param, name)
    for field in ("field_xyr", "field_whr"):
        if getattr(p, field) <= 0:
            raise layer.error(f"{getattr(p, field)} is not above 0", field=f"{name}.{field}")


class BoxLayer(Layer):
    """A layer that chooses or compares boxes: no gradient goes through it; asking for one in training is an error."""

    saves_top = False

    def __init__(self, param, context):
        super().__init__(param, context)
        if context.train and any(param.propagate_down):
            raise self.error("no gradient goes through this layer", field="propagate_down", hint="it must be false")

    def allow_force_backward(self, bottom):
        return False
