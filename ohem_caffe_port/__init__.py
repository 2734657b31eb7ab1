"""Caffe detectors on PyTorch: nets built from prototxts, Caffe's solvers, OHEM, data, testing."""

__version__ = "0.1.0"
