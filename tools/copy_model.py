r"""Put a model together from layers of others, as a list in JSON says: adversarial-frcnn's do_net_surgery.py.

    python tools/copy_model.py --out_net_def models/pascal_voc/VGG16/fast_rcnn_adv/train.prototxt \
        --net_surgery_json models/pascal_voc/VGG16/fast_rcnn_adv/init_weights2.json --out_net_file train_init.caffemodel

The list: [{"model": FILE, "copy_ops": {"source": [LAYER, ...], "dest": [LAYER, ...], "reshape": [0, ...]}}, ...]. A
non-zero "reshape" lets a parameter have another shape of as many numbers; the "prototxt" of an entry is not needed and
not read. The model that is written holds the layers of the list only: loaded with --weights, the others start anew.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import _cli

import prototxt
from converters import CaffeModel, LayerWeights, WeightsError, read_caffemodel, write_caffemodel
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import LOADED, NOT_IN_FILE, check


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_net_def", required=True, metavar="FILE", help="prototxt of the net the model is for")
    parser.add_argument("--net_surgery_json", required=True, metavar="FILE", help="which layers come from where")
    parser.add_argument("--out_net_file", required=True, metavar="FILE", help=".caffemodel to write")
    parser.add_argument("--model", nargs="+", metavar="FILE", help="take these, in the list's order, for its own files")
    parser.add_argument("--phase", choices=["TRAIN", "TEST"], default="TRAIN", help="of the net [TRAIN]")
    parser.add_argument("--cfg", metavar="FILE", help="YAML of the original's keys, for data and mining layers")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cfg = Config()
    if args.cfg:
        cfg.merge_file(args.cfg)
    operations = read_operations(args.net_surgery_json, args.model)
    net = Net(prototxt.read_net(args.out_net_def), args.phase, cfg=cfg, path=args.out_net_def, initialize=False)
    layers: dict[str, LayerWeights] = {}
    for path, copies in operations:
        model = {layer.name: layer for layer in read_caffemodel(path).layers}
        for source, dest, reshape in copies:
            if source not in model or not model[source].blobs:
                raise WeightsError("has no weights in this file", file=path, layer=source)
            if dest in layers:
                print(f"note: layer '{dest}' is given twice; the later one counts")
            layers[dest] = copied(model[source], dest, net, reshape)
    model = CaffeModel(net.name, list(layers.values()))
    for layer, _, verdict in check(net, model).rows:
        if verdict not in (LOADED, NOT_IN_FILE):
            raise WeightsError(verdict, file=args.net_surgery_json, layer=layer, hint=f"the net is {args.out_net_def}")
    write_caffemodel(args.out_net_file, model)
    print(f"{args.out_net_file}: {len(layers)} layers; the net's others start anew: {missing(net, layers) or 'none'}")
    return 0


def read_operations(path, models=None) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """``[(model, [(source, dest, reshape)])]`` of a file; ``models`` take the place of its own.

    Raises:
        WeightsError: not JSON, or not of that form.
    """

    def wrong(message):
        return WeightsError(message, file=path)

    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise wrong(f"not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise wrong("must be a list of objects with 'model' and 'copy_ops'")
    if models and len(models) != len(entries):
        raise wrong(f"names {len(entries)} models; --model names {len(models)}")
    operations = []
    for i, entry in enumerate(entries):
        copy, model = entry.get("copy_ops"), models[i] if models else entry.get("model")
        lists = [copy.get(key) for key in ("source", "dest", "reshape")] if isinstance(copy, dict) else [None]
        if not isinstance(model, str) or not all(isinstance(values, list) for values in lists):
            raise wrong(f"entry {i + 1}: needs 'model' and 'copy_ops' with the lists 'source', 'dest', 'reshape'")
        if len({len(values) for values in lists}) > 1:
            raise wrong(
                f"entry {i + 1}: 'source', 'dest' and 'reshape' have {[len(values) for values in lists]} entries"
            )
        if not all(isinstance(name, str) for name in lists[0] + lists[1]):
            raise wrong(f"entry {i + 1}: 'source' and 'dest' are names of layers")
        operations.append((model, [(s, d, bool(r)) for s, d, r in zip(*lists, strict=True)]))
    return operations


def copied(layer: LayerWeights, dest: str, net: Net, reshape: bool) -> LayerWeights:
    """The weights of ``layer`` under the name ``dest``; with ``reshape`` in the shapes that they have in the net."""
    blobs = layer.blobs
    if reshape and dest in net.params:
        shapes = net.layer_by_name[dest].blob_shapes
        if [blob is not None and blob.size for blob in blobs] == [math.prod(shape) for shape in shapes]:
            blobs = [blob.reshape(shape) for blob, shape in zip(blobs, shapes, strict=True)]
    return LayerWeights(dest, layer.type, blobs=blobs, transposed=layer.transposed)


def missing(net: Net, layers: dict) -> str:
    """The net's layers with parameters of which none is in ``layers``, nor in a layer that they share them with."""
    given = {id(blob) for name in layers for blob in net.params[name]}
    return ", ".join(name for name, blobs in net.params.items() if not any(id(blob) in given for blob in blobs))


if __name__ == "__main__":
    _cli.run(main)
