"""Installs the three packages: ``prototxt`` (text), ``converters`` (weight files), ``ohem_caffe_port`` (nets)."""

from setuptools import find_packages, setup

setup(
    name="ohem_caffe_port",
    version="0.1.0",
    description="Train, test and export Caffe detectors (OHEM, Fast R-CNN) on PyTorch from their own prototxts",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["prototxt", "prototxt.*", "converters", "converters.*", "ohem_caffe_port*"]),
    package_data={"prototxt": ["caffe.proto", "zoo/**/*"], "ohem_caffe_port": ["published/*.csv"]},
    install_requires=[
        "torch>=2.5",
        "protobuf>=4.25",
        "numpy>=1.26",
        "opencv-python>=4.8",
        "pycocotools>=2.0.8",
        "scipy>=1.11",  # selective-search .mat files
        "PyYAML>=6",  # experiments/cfgs/*.yml and param_str
        "tqdm>=4.66",
        "rich>=13",  # tables
    ],
    extras_require={
        "hdf5": ["h5py>=3.10"],  # .caffemodel.h5, HDF5Data, HDF5Output
        "lmdb": ["lmdb>=1.4"],  # Data and AnnotatedData layers
        "leveldb": ["plyvel>=1.5"],
        "onnx": ["onnx>=1.16"],  # convert.py --to onnx
        "plots": ["matplotlib>=3.8"],  # the pictures of compare_mining, plot_roi_loss, eval_recall, reproduce
        "svm": ["scikit-learn>=1.3"],  # train_svms.py
        "fast": ["numba>=0.61"],  # RoI pooling on a CPU, several times as fast
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "ruff==0.17.6"),
            *("h5py>=3.10", "lmdb>=1.4", "onnx>=1.16", "onnxruntime>=1.18", "safetensors>=0.4.5"),
            *("matplotlib>=3.8", "scikit-learn>=1.3", "numba>=0.61"),
        ],
        "selective-search": ["opencv-contrib-python>=4.8"],
    },
)
