"""Published figures as data, and how this project runs those that it has a recipe for."""

from .figures import SOURCED, UNVERIFIED, Figure, find, read_figures
from .runs import PRETRAINED, RUNS, Run

__all__ = ["PRETRAINED", "RUNS", "SOURCED", "UNVERIFIED", "Figure", "Run", "find", "read_figures"]
