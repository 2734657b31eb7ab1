"""A detector's weights for other classes: of COCO's 81 rows the 21 of VOC, to fine-tune on VOC from COCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from converters import CaffeModel, LayerWeights, WeightsError

# VOC's name -> COCO's, where they differ
VOC_TO_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
SCORES, BOXES = ("cls_score", "rfcn_cls"), ("bbox_pred", "rfcn_bbox")


def class_indices(source: Sequence[str], target: Sequence[str], aliases: Mapping[str, str] = VOC_TO_COCO) -> np.ndarray:
    """For each class of ``target`` its index in ``source`` [len(target)]; ``aliases`` are names of source by those of
    target.

    Raises:
        WeightsError: source lacks some of them.
    """
    index = {name: i for i, name in enumerate(source)}
    found = [index.get(name, index.get(aliases.get(name, ""))) for name in target]
    missing = [name for name, i in zip(target, found, strict=True) if i is None]
    if missing:
        raise WeightsError(
            f"no rows for these classes: {', '.join(missing)}", hint=f"The model's are {', '.join(source)}."
        )
    return np.array(found)


def map_classes(model: CaffeModel, indices: np.ndarray, num_source: int) -> tuple[CaffeModel, dict[str, tuple]]:
    """``model`` with the rows of other classes in the layers that have some for each class.

    These are cls_score and bbox_pred, rfcn_cls and rfcn_bbox, their copies (``cls_score_readonly``), and every layer
    that shares a parameter with one of them. Outputs lie class by class: one for each class, four, or one for each cell
    of R-FCN's grid. Box layers of 8 outputs (or 8 for each cell) serve all classes alike and stay.

    Args:
        indices: [C] of :func:`class_indices`; num_source: classes of the model, background included.

    Returns:
        The new model, which shares the other layers' arrays with the old one, and ``{layer: (outputs before, after)}``.

    Raises:
        WeightsError: no such layer, or one whose outputs are not those of ``num_source`` classes.
    """
    chosen, layers, counts = _per_class(model), [], {}
    for layer in model.layers:
        kind = chosen.get(layer.name)
        if kind is None or not layer.blobs:
            layers.append(layer)
            continue
        outputs = _outputs(layer)
        if outputs % num_source == 0:
            block = outputs // num_source
            rows = (indices[:, None] * block + np.arange(block)).ravel()
            layer = replace(layer, blobs=[blob[rows] for blob in _rows_first(layer)], transposed=False)
        elif kind not in BOXES or outputs % 8:
            raise WeightsError(
                f"has {outputs} outputs, which {num_source} classes do not divide",
                layer=layer.name,
                hint="Was the model trained on other classes?",
            )
        layers.append(layer)
        counts[layer.name] = outputs, _outputs(layer)
    if not counts:
        raise WeightsError("has no layer with weights for each class", hint=f"Known: {', '.join(SCORES + BOXES)}.")
    return replace(model, layers=layers, form=""), counts


def normalize_boxes(model: CaffeModel, means: np.ndarray, stds: np.ndarray) -> CaffeModel:
    """``model`` whose box layers predict ``(delta - mean) / std`` where they predicted plain deltas: what training with
    normalised targets expects, and the inverse of :func:`ohem_caffe_port.train.save_unnormalized`.

    ``means, stds``: [4 * classes] (or [8]); outputs of a std of 0, classes that training never sees, become 0.

    Raises:
        WeightsError: a box layer with another number of outputs.
    """
    chosen, layers = _per_class(model), []
    for layer in model.layers:
        if chosen.get(layer.name) in BOXES and layer.blobs:
            cells, rest = divmod(_outputs(layer), len(stds))
            if rest or not cells:
                raise WeightsError(f"has {_outputs(layer)} outputs for {len(stds)} box targets", layer=layer.name)
            mean, std = np.repeat(means, cells), np.repeat(stds, cells)
            factor = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
            weight, *bias = _rows_first(layer)
            weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            blobs = [blob.astype(np.float32) for blob in (weight, *((b - mean) * factor for b in bias))]
            layer = replace(layer, blobs=blobs, transposed=False)
        layers.append(layer)
    return replace(model, layers=layers)


def _per_class(model: CaffeModel) -> dict[str, str]:
    """``{layer: the one of SCORES and BOXES that it is, is a copy of, or shares a parameter with}``."""
    chosen = {}
    for layer in model.layers:
        kinds = [kind for kind in SCORES + BOXES if layer.name == kind or layer.name.startswith(f"{kind}_")]
        if kinds:
            chosen[layer.name] = kinds[0]
    shared = {param: chosen[layer.name] for layer in model.layers if layer.name in chosen for param in layer.params}
    for layer in model.layers:
        for param in layer.params:
            if param and param in shared:
                chosen.setdefault(layer.name, shared[param])
    return chosen


def _rows_first(layer: LayerWeights) -> list[np.ndarray]:
    """The blobs with outputs along the first axis: not transposed, without the leading ones of legacy shapes."""
    blobs = []
    for j, blob in enumerate(layer.blobs):
        if blob is None:
            raise WeightsError("shares its weights in a way that only HDF5 files do", layer=layer.name)
        if layer.type == "InnerProduct":
            blob = blob.reshape(blob.shape[-2:]) if j == 0 else blob.reshape(-1)
        blobs.append(blob.T if layer.transposed and j == 0 else blob)
    return blobs


def _outputs(layer: LayerWeights) -> int:
    return len(_rows_first(layer)[0])
