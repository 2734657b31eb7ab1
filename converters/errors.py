"""What can be wrong with a weight file."""

from prototxt.errors import CaffePortError


class WeightsError(CaffePortError):
    """A weight or solver-state file that cannot be read: missing, cut short, damaged, or of another format."""
