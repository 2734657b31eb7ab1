"""What a layer is, and the registry from Caffe's ``type`` string to the class."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from prototxt.errors import nearest

from ..config import Config
from ..errors import PortError

LAYERS: dict[str, type[Layer]] = {}
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf  # bytes
MANY = 1 << 30  # as the greatest number of bottoms or tops: any number

# Fields of LayerParameter that the net itself reads.
NET_FIELDS = {
    "name", "type", "bottom", "top", "phase", "loss_weight", "param", "blobs", "propagate_down", "include", "exclude",
}  # fmt: skip
# Choices between implementations of one result (there is one implementation here, so nothing is lost), pictures on a
# screen, and NVIDIA's ignore_difficult_gt, which that fork declares and never reads.
NEUTRAL_FIELDS = {
    "engine", "force_nd_im2col", "cudnn_convolution_algo_seeker", "conv_algos_override", "conv_algorithm",
    "stable_prod_grad",
    "share_in_parallel", "per_fla_fuse", "debug_info", "visualize", "visualize_threshold", "save_file",
    "ignore_difficult_gt",
    "threads", "parser_threads", "cache", "precache",
}  # fmt: skip


@dataclass
class Clock:
    """Where training stands, for layers whose work changes with it; the solver sets both.

    ``iter`` iterations are done of ``max_iter`` (0: nobody said how many there will be).
    """

    iter: int = 0
    max_iter: int = 0


@dataclass
class Context:
    """What a layer may know of the run it is part of.

    ``rng`` is the stream of the data layers and samplers, seeded as the original seeds numpy; ``clock`` is shared by
    all layers of a net; ``device`` is where its blobs are.
    """

    phase: str = "TRAIN"
    cfg: Config = field(default_factory=Config)
    rng: np.random.RandomState = field(default_factory=np.random.RandomState)
    clock: Clock = field(default_factory=Clock)
    device: torch.device = torch.device("cpu")

    @property
    def train(self) -> bool:
        return self.phase == "TRAIN"


class Layer(nn.Module):
    """One layer of a net: ``setup`` declares its parameter blobs, ``forward`` maps bottoms to tops.

    ``setup`` and a first ``forward`` run on meta tensors when the net is built, which infers every shape.

    Class attributes:
        type: Caffe's ``type`` string (set by :func:`register`).
        fields: ``{name of a message in LayerParameter: the fields of it that the layer honours}``.
        num_bottoms, num_tops: least and greatest number.
        saves_top: backward needs the top's values, so a following layer must not overwrite them.
        is_loss: the first top has loss_weight 1 unless stated, and is created when not named.
    """

    type: str
    fields: dict[str, set[str]] = {}
    num_bottoms: tuple[int, int] = (1, 1)
    num_tops: tuple[int, int] = (1, 1)
    saves_top = True
    is_loss = False

    def __init__(self, param, context: Context):
        super().__init__()
        self.param, self.context, self.name = param, context, param.name
        self.blobs = nn.ParameterList()
        self.blob_shapes: list[tuple[int, ...]] = []
        self.fillers: list = []
        self.frozen: list[bool] = []  # per blob: this layer gives it no gradient (its lr_mult is 0)
        self.in_place = False  # set by the net when the top may overwrite the bottom
        self.form: Callable[[Tensor], Tensor] | None = None  # set by the net: type and layout of parameters in products
        self.warnings: list[str] = []
        self._check_fields()

    def setup(self, bottoms: list[Tensor]) -> None:
        """Declares the parameter blobs with :meth:`add_blob`, given the bottoms' shapes (meta tensors)."""

    def forward(self, bottoms: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def infer(self, bottoms: list[Tensor]) -> list[Tensor]:
        """Tops for meta bottoms; layers that read data, or whose output size depends on it, say a nominal shape."""
        return self.forward(bottoms)

    def multiply_adds(self, bottoms: list[tuple[int, ...]], tops: list[tuple[int, ...]]) -> int:
        """Multiply-adds of one forward for these shapes, of layers that are matrix products at heart; others say 0."""
        return 0

    def allow_force_backward(self, bottom: int) -> bool:
        """Whether ``force_backward`` reaches this bottom: not the labels of a loss."""
        return not (self.is_loss and bottom == 1)

    def add_blob(self, shape, filler) -> None:
        """Declares the next parameter blob; it gets its values when the net is complete."""
        self.blobs.append(nn.Parameter(torch.empty(tuple(shape), device="meta")))
        self.blob_shapes.append(tuple(shape))
        self.fillers.append(filler)
        self.frozen.append(False)

    def blob(self, index: int) -> Tensor:
        """Parameter blob ``index`` as this layer's forward must use it: in its own shape (sharing may be PERMISSIVE),
        without gradient where its lr_mult is 0, in the type and layout of the net's precision."""
        blob, shape = self.blobs[index], self.blob_shapes[index]
        if blob.shape != shape:
            blob = blob.view(shape)
        if self.frozen[index]:
            blob = blob.detach()
        return blob if self.form is None else self.form(blob)

    def error(self, message: str, *, field: str | None = None, **where) -> PortError:
        """An error in this layer, to raise. A ``field`` that the layer honours may go without its message's name."""
        field = next((f"{owner}.{field}" for owner, names in self.fields.items() if field in names), field)
        return PortError(message, layer=self.name, field=field, **where)

    def _check_fields(self) -> None:
        """No field is dropped in silence: unknown ones of the layer's own message are errors, others warnings."""
        for descriptor, value in self.param.ListFields():
            name = descriptor.name
            if name in NET_FIELDS:
                continue
            if name not in self.fields:
                self.warnings.append(f"layer '{self.name}': a {self.type} layer does not read {name}; ignored")
                continue
            for sub, _ in value.ListFields():
                if sub.name in self.fields[name]:
                    continue
                if sub.name in NEUTRAL_FIELDS:
                    self.warnings.append(f"layer '{self.name}': {name}.{sub.name} has no effect here")
                    continue
                known = sorted(self.fields[name])
                raise self.error(
                    f"not supported by the {self.type} layer", field=f"{name}.{sub.name}", hint=f"it reads {known}"
                )


def register(type_name: str):
    """Class decorator: makes the class Caffe's layer ``type_name``."""

    def add(cls):
        if type_name in LAYERS:
            raise ValueError(f"layer type {type_name} is registered twice")
        cls.type = type_name
        LAYERS[type_name] = cls
        return cls

    return add


def create_layer(param, context: Context) -> Layer:
    """The layer a ``LayerParameter`` describes.

    Raises:
        PortError: no such type, or a field that the layer does not honour.
    """
    if param.type not in LAYERS:
        near = nearest(param.type, LAYERS)
        raise PortError(
            f"unknown layer type '{param.type}'" + (f"; did you mean '{near}'?" if near else ""),
            layer=param.name,
            field="type",
            hint=f"known types: {', '.join(sorted(LAYERS))}",
        )
    return LAYERS[param.type](param, context)


def own_stream() -> np.random.RandomState:
    """A random stream for one layer, seeded from torch's generator as Caffe seeds its layers' streams from its own."""
    return np.random.RandomState(int(torch.randint(2**31, ())))


def cheap_to_read(values: Tensor) -> bool:
    """Whether a look at the values costs nothing: on the CPU. A GPU would make the host wait, and an index out of range
    is reported there by CUDA itself."""
    return values.device.type == "cpu"


def check_memory(layer: Layer, shapes) -> None:
    """Refuses tops of these shapes when they alone take more than this machine's memory: to try would make it swap.

    Raises:
        PortError: they do.
    """
    size = 4 * sum(math.prod(shape) for shape in shapes)
    if size > MEMORY:
        sizes = ", ".join(str(tuple(shape)) for shape in shapes)
        raise layer.error(
            f"its tops {sizes} take {size / 1e9:,.0f} GB; this machine has {MEMORY / 1e9:.0f} GB",
            hint="is a batch_size or another size too large?",
        )


def canonical_axis(layer: Layer, axis: int, ndim: int) -> int:
    """Caffe's negative axes: counted from the end.

    Raises:
        PortError: an axis the blob does not have.
    """
    if not -ndim <= axis < ndim:
        raise layer.error(f"axis {axis} of a blob with {ndim} axes", field="axis")
    return axis % ndim
