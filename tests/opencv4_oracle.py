"""OpenCV 4's own Caffe reader and layers, as a second opinion. OpenCV 5 no longer has them.

    python tests/opencv4_oracle.py NET.prototxt WEIGHTS INPUTS.npz OUTPUTS.npz BLOB=LAYER:TOP [...]

Feeds the arrays of INPUTS.npz, by name, and writes the named blobs, each of which is top number TOP of LAYER. Knows
only cv2 and numpy, so that it runs under another interpreter than the tests: the one named by ``OPENCV4_PYTHON``.
"""

import sys

import cv2
import numpy as np


def main(prototxt: str, weights: str, inputs: str, outputs: str, *wanted: str) -> None:
    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromCaffe(prototxt, weights)
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)  # a fused layer's blob is not Caffe's any more
    net.enableWinograd(False)
    arrays = np.load(inputs)
    for name in arrays.files:
        net.setInput(arrays[name], name)
    blobs, places = zip(*(one.split("=") for one in wanted), strict=True)
    layers, tops = zip(*(place.rsplit(":", 1) for place in places), strict=True)
    known = net.getLayerNames()  # now and then OpenCV calls a layer by its top
    layers = [layer if layer in known else blob for blob, layer in zip(blobs, layers, strict=True)]
    results = [every[int(top)] for every, top in zip(net.forwardAndRetrieve(layers), tops, strict=True)]
    np.savez(outputs, **dict(zip(blobs, results, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
