"""The Python layers of BVLC Caffe's own examples."""

from __future__ import annotations

from ..layers import PythonLayer, register_python


@register_python("pyloss", "EuclideanLossLayer")
class EuclideanLossLayer(PythonLayer):
    """``examples/pycaffe/layers/pyloss.py``: half the squared distance of two blobs, divided by the number of rows.

    It counts as a loss only with a ``loss_weight``, as every Python layer does.
    """

    num_bottoms, num_tops = (2, 2), (1, 1)

    def forward(self, bottoms):
        if bottoms[0].numel() != bottoms[1].numel():
            raise self.error(f"bottoms differ in size: {[tuple(b.shape) for b in bottoms]}")
        d = bottoms[0] - bottoms[1].view_as(bottoms[0])
        return [(d * d).sum().reshape(1) / bottoms[0].shape[0] / 2]
