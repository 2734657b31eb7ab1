"""How exactly a Net computes: faithfully in float32, or faster where the user asks for it. ``docs/speed.md`` says what
each way costs in fidelity."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from prototxt.errors import nearest

from .errors import PortError

PRECISIONS = ("fp32", "tf32", "bf16")
CONVOLUTIONS = {"Convolution", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise"}
PRODUCTS = CONVOLUTIONS | {"InnerProduct"}  # in bf16 they multiply bfloat16 and add up in float32
# Layers that hand values on, rounding each once at most: in bf16 they work in the type of their bottoms.
CARRIERS = {
    "ReLU", "ReLU6", "Dropout", "ROIPooling", "Concat", "Slice", "Split", "Flatten", "Reshape", "Squeeze", "Permute",
    "Crop", "Eltwise", "ShuffleChannel", "Silence",
}  # fmt: skip


def carries(layer) -> bool:
    """Whether a layer works in the type it is given; of pooling, maxima alone do."""
    if layer.type == "Pooling":
        return layer.method == "MAX" and not layer.with_index  # which counts cells
    return layer.type in CARRIERS


def widened(blob: Tensor) -> Tensor:
    """``blob``, as float32 where it is bfloat16."""
    return blob.float() if blob.dtype == torch.bfloat16 else blob


class Precision:
    """A way to compute.

    * ``fp32``: as Caffe does. On a GPU TensorFloat-32 is switched off, which torch allows for convolutions by default.
    * ``tf32``: on a GPU, factors of convolutions and inner products are rounded to 10 bits of mantissa.
    * ``bf16``: convolutions and inner products multiply bfloat16 (7 bits of mantissa, float32's range) and add up in
      float32; what lies between them (:data:`CARRIERS`) stays bfloat16. Parameters, their gradients and all other
      layers, such as losses, softmax, mining and normalisation, are float32.

    Args:
        name: one of :data:`PRECISIONS`.
        channels_last: feature maps and weights of convolutions lie in memory as ``[N, H, W, C]``, for which GPUs have
            the faster kernels; the shapes stay the same. None: in bf16 only.

    Raises:
        PortError: another name.
    """

    def __init__(self, name: str = "fp32", *, channels_last: bool | None = None):
        if name not in PRECISIONS:
            near = nearest(name, PRECISIONS)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(PRECISIONS)}"
            raise PortError(f"unknown precision '{name}'", hint=hint)
        self.name = name
        self.channels_last = name == "bf16" if channels_last is None else channels_last
        self.dtype = torch.bfloat16 if name == "bf16" else torch.float32

    @property
    def converts(self) -> bool:
        """Whether blobs change their type or layout on the way from layer to layer."""
        return self.channels_last or self.dtype != torch.float32

    def __str__(self) -> str:
        return f"{self.name}, channels last" if self.channels_last else self.name

    def check(self, device: torch.device) -> None:
        """Refuses what the device cannot do.

        Raises:
            PortError: TensorFloat-32 without a GPU that has it, or bfloat16 on a GPU without.
        """
        if self.name == "fp32" or (self.name == "bf16" and device.type == "cpu"):
            return
        what, hint = {"tf32": "TensorFloat-32", "bf16": "bfloat16"}[self.name], "fp32 runs everywhere"
        if device.type != "cuda":
            raise PortError(f"precision {self.name}: {what} is for NVIDIA's GPUs, not for '{device.type}'", hint=hint)
        if torch.cuda.get_device_capability(device) < (8, 0):
            name = torch.cuda.get_device_name(device)
            raise PortError(f"precision {self.name}: {name} has no {what}, which came with Ampere", hint=hint)

    @contextmanager
    def in_force(self, device: torch.device):
        """Sets torch's global switches for CUDA as this precision needs them, and restores them at the end."""
        if device.type != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        switches = [
            (matmul, "allow_tf32", self.name == "tf32"),
            (cudnn, "allow_tf32", self.name == "tf32"),
            (matmul, "allow_bf16_reduced_precision_reduction", False),  # sums in float32, however they are split
        ]
        before = [getattr(owner, switch) for owner, switch, _ in switches]
        try:
            for owner, switch, value in switches:
                setattr(owner, switch, value)
            yield
        finally:
            for (owner, switch, _), value in zip(switches, before, strict=True):
                setattr(owner, switch, value)

    def install(self, layers) -> None:
        """Tells the layers in what form to compute with their parameters (``Layer.blob``)."""
        for layer in layers:
            if self.converts and layer.type in PRODUCTS:
                layer.form = self._kernel if layer.type in CONVOLUTIONS else self._matrix

    def bottoms(self, layer, bottoms: list[Tensor]) -> list[Tensor]:
        """The bottoms of a layer in the type and layout that it computes in."""
        if not self.converts or carries(layer):
            return bottoms
        if layer.type in CONVOLUTIONS:
            return [self._kernel(b) for b in bottoms]
        if layer.type in PRODUCTS:
            return [self._matrix(b) for b in bottoms]
        full = torch.contiguous_format
        return [b.to(torch.float32 if b.dtype == self.dtype else b.dtype, memory_format=full) for b in bottoms]

    def _matrix(self, blob: Tensor) -> Tensor:
        return blob.to(self.dtype)

    def _kernel(self, blob: Tensor) -> Tensor:
        if self.channels_last and blob.dim() == 4:
            return blob.to(self.dtype, memory_format=torch.channels_last)
        return blob.to(self.dtype)
