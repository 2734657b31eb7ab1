"""The error of this package; see :class:`prototxt.errors.CaffePortError` for its fields."""

from prototxt.errors import CaffePortError


class PortError(CaffePortError):
    """A net, configuration, data set or solver that cannot be used as it is."""
