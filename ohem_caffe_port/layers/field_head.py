"""Settings and bottoms of the layers that sit on a proposal head of MS-CNN or cascade-rcnn: its loss and accuracy."""

from __future__ import annotations

from .base import Layer
from .box_base import bbox_norm, check_bounds, field_sizes


def set_up_head(layer: Layer) -> None:
    """Sets ``p`` (the first message in ``layer.fields``), ``norm``, ``ignore_label``, ``group`` (the fields' sizes) and
    ``stride``; MS-CNN's heads have one field and call the stride ``downsample_rate``.

    Raises:
        PortError: settings that make no sense.
    """
    name = next(iter(layer.fields))
    layer.p = p = getattr(layer.param, name)
    layer.norm = bbox_norm(layer)
    check_bounds(layer, name)
    if p.cls_num < 2 or (p.objectness and p.cls_num != 2):
        raise layer.error(f"{p.cls_num} classes; 2 with objectness, else 2 or more", field=f"{name}.cls_num")
    loss = layer.param.loss_param
    layer.ignore_label = loss.ignore_label if loss.HasField("ignore_label") else None
    if "stride" in layer.fields[name]:
        layer.group, layer.stride = field_sizes(layer, p, name), p.stride
    else:
        layer.group, layer.stride = [(p.field_w, p.field_h)], p.downsample_rate
        if p.coord_num != 4:
            raise layer.error("a box has 4 coordinates", field=f"{name}.coord_num")
    if not (layer.stride and all(min(field) for field in layer.group)):
        raise layer.error("stride and sizes of fields must be positive", field=name)


def one_field_maps(layer: Layer, bottoms):
    """MS-CNN's two bottoms as scores ``[N, C, H, W]``, regression outputs ``[N, 4, H, W]``, truth ``[N, 6, H, W]``.

    Raises:
        PortError: shapes that do not fit.
    """
    shape, classes = tuple(bottoms[0].shape), layer.p.cls_num
    if len(shape) != 4 or shape[1] != classes + 4 or bottoms[1].shape != (shape[0], 6, *shape[2:]):
        raise layer.error(
            f"bottoms {[tuple(b.shape) for b in bottoms]}: they must be [N, {classes} + 4, H, W] and [N, 6, H, W]",
            field="cls_num",
        )
    return *bottoms[0].split([classes, 4], 1), bottoms[1]


def group_maps(layer: Layer, bottoms):
    """cascade-rcnn's three bottoms, checked: scores, regression outputs, truth, all of ``N * G`` maps.

    Raises:
        PortError: shapes that do not fit.
    """
    shape, classes, group = tuple(bottoms[0].shape), layer.p.cls_num, len(layer.group)
    wanted = [(shape[0], c, *shape[2:]) for c in (classes, 4, 6)]
    if len(shape) != 4 or shape[0] % group or [tuple(b.shape) for b in bottoms] != wanted:
        raise layer.error(
            f"bottoms {[tuple(b.shape) for b in bottoms]}: they must be [{group} N, {classes} or 4 or 6, H, W]",
            field="cls_num",
        )
    return bottoms
