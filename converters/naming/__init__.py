"""Names that people can use for Caffe's weights: :mod:`.content` names and un-names what a file holds, :mod:`.recipes`
the blobs of one layer, by the names of :mod:`.layer_types`; :mod:`.net` adds what only a prototxt tells."""

from .content import from_named, is_caffes, model_of_net, to_named
from .layer_types import suffixes

__all__ = ["from_named", "is_caffes", "model_of_net", "suffixes", "to_named"]
