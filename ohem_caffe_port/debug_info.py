"""``debug_info: true``: mean magnitudes of blobs, parameters and gradients, in Caffe's words
(``Net::ForwardDebugInfo``, ``Net::BackwardDebugInfo``)."""

from __future__ import annotations

import torch

from .net import Net


def _mean(tensor) -> str:
    return f"{tensor.detach().abs().mean().item() if tensor.numel() else 0.0:.6g}"


class DebugInfo:
    """Prints the lines of one pass: installed as ``net.watch`` before the forward, asked for the rest after backward.

    A blob that several layers read shows the sum of their gradients under each of them, as the split that Caffe would
    insert does to the layer below.
    """

    def __init__(self, net: Net, log):
        self.net, self.log = net, log
        self.values: dict[int, torch.Tensor] = {}

    def __call__(self, step, layer, tops) -> None:
        """After a layer ran."""
        for v, top in zip(step.tops, tops, strict=True):
            self.log(f"    [Forward] Layer {layer.name}, top blob {self.net.values[v].name} data: {_mean(top)}")
            if top.requires_grad and not top.is_leaf:
                top.retain_grad()
            self.values[v] = top
        for j, blob in enumerate(layer.blobs):
            self.log(f"    [Forward] Layer {layer.name}, param blob {self._display_name(layer, j)} data: {_mean(blob)}")

    def backward(self) -> None:
        """After the backward pass."""
        for step, layer in zip(reversed(self.net.steps), reversed(self.net.layers), strict=True):
            if not step.runs_backward:
                continue
            for v, wanted in zip(step.bottoms, step.propagate, strict=True):
                if wanted and v in self.values and self.values[v].grad is not None:
                    name, grad = self.net.values[v].name, self.values[v].grad
                    self.log(f"    [Backward] Layer {layer.name}, bottom blob {name} diff: {_mean(grad)}")
            for j, blob in enumerate(layer.blobs):
                if not layer.frozen[j] and blob.grad is not None:
                    self.log(f"    [Backward] Layer {layer.name}, param blob {j} diff: {_mean(blob.grad)}")
        blobs = [p.blob.detach() for p in self.net.learnable_params]
        grads = [p.blob.grad for p in self.net.learnable_params if p.blob.grad is not None]
        l1 = [sum(float(t.abs().sum()) for t in group) for group in (blobs, grads)]
        l2 = [sum(float((t * t).sum()) for t in group) ** 0.5 for group in (blobs, grads)]
        self.log(
            f"    [Backward] All net params (data, diff): L1 norm = ({l1[0]:.6g}, {l1[1]:.6g}); "
            f"L2 norm = ({l2[0]:.6g}, {l2[1]:.6g})"
        )

    @staticmethod
    def _display_name(layer, j) -> str:
        specs = layer.param.param
        return specs[j].name if j < len(specs) and specs[j].name else str(j)
