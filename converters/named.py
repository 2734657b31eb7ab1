"""Arrays by name: what today's weight files hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class NamedArrays:
    """``arrays`` by name, each tensor once, in the file's order; ``metadata`` as safetensors has it: text by name.

    ``notes`` tell what was decided on the way here, one line each; they are not written to files.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
