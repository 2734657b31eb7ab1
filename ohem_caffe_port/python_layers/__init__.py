"""The Python layers of known projects, one file each; importing this package registers them."""

from . import ohem, roi_data

__all__ = ["ohem", "roi_data"]
