"""What every test may use."""

from pathlib import Path

import cv2
import pytest
import torch

GOLDEN = Path(__file__).resolve().parent / "data" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """pytest-xdist runs as many tests at once as there are cores; threads that wait for each other only cost time."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def golden_data():
    """What real Caffe computed, in the forms that ``tests/golden.py`` replays."""
    return GOLDEN
