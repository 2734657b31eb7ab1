"""Images and roidb through the data layer, the solver, un-normalised snapshots and testing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from converters import read_caffemodel
from ohem_caffe_port.data.roidb import add_bbox_regression_targets
from ohem_caffe_port.detect import detections_by_class, im_detect
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import save_unnormalized
from ohem_caffe_port.weights import copy_from

from .common import Differences, compare_weights, config_of, flat


def load_roidb(folder: Path) -> tuple[list[dict], list[np.ndarray]]:
    arrays = np.load(folder / "roidb.npz")
    roidb, images = [], []
    for i in range(int(arrays["n"])):
        keys = ("boxes", "gt_classes", "max_classes", "max_overlaps", "gt_overlaps")
        entry = {key: arrays[f"{key}_{i}"] for key in keys}
        entry |= {key: int(arrays[f"{key}_{i}"]) for key in ("width", "height")}
        entry["flipped"] = bool(arrays[f"flipped_{i}"])
        roidb.append(entry)
        images.append(arrays[f"image_{i}"])
    return roidb, images


def replay_end_to_end(folder: Path) -> dict:
    found = Differences()
    info = json.loads((folder / "info.json").read_text())
    golden = np.load(folder / "golden.npz")
    cfg = config_of(info)
    cfg.RNG_SEED = info["rng_seed"]
    roidb, images = load_roidb(folder)
    with tempfile.TemporaryDirectory() as scratch:
        for i, (entry, image) in enumerate(zip(roidb, images, strict=True)):
            entry["image"] = f"{scratch}/{i}.png"
            cv2.imwrite(entry["image"], image)
        means, stds = add_bbox_regression_targets(roidb, cfg)
        solver = Solver(folder / "solver.prototxt", cfg=cfg)
        net = solver.net
        copy_from(net, folder / "pretrained.caffemodel")
        data_layer = net.layers[0]
        data_layer.set_roidb(roidb)
        sequence: list[list[int]] = []
        make_plan = data_layer.loader.plan

        def recorded(*arguments):
            plan = make_plan(*arguments)
            sequence.append(plan.roidb_inds)
            return plan

        data_layer.loader.plan = recorded
        loss_names = [layer.param.top[0] for layer in net.layers if layer.is_loss]
        sub, forward = 0, net.forward

        def watched(**kwargs):
            nonlocal sub
            result = forward(**kwargs)
            found.add("losses", [net.losses[n].item() for n in loss_names], golden["losses_sub"][sub], f"pass {sub}")
            for name in data_layer.names:
                blob = flat(net.blobs[name])
                if f"sub/{sub}/{name}" in golden:
                    found.add("inputs", blob, golden[f"sub/{sub}/{name}"], f"sub/{sub}/{name}")
                elif f"sub/{sub}/{name}_sum" in golden:
                    sums = [blob.sum(dtype=np.float64), np.abs(blob).sum(dtype=np.float64)]
                    found.add("input_sums", sums, golden[f"sub/{sub}/{name}_sum"], f"sub/{sub}/{name}_sum")
            if f"sub/{sub}/rois_hard" in golden:
                found.add("rois", net.blobs["rois_hard"], golden[f"sub/{sub}/rois_hard"], f"pass {sub}")
            sub += 1
            return result

        net.forward = watched
        for _ in range(info["iters"]):
            solver.step()
            reference = [s for s in info["snapshots"] if s.endswith(f"_iter_{solver.iter}.caffemodel")]
            for name in reference:
                path = Path(scratch) / name
                save_unnormalized(net, path, means, stds, cfg)
                compare_models(found, path, folder / name)
        found.add("indices", sequence[: len(info["sequence"])], info["sequence"], "sequence of images")
        compare_weights(found, net, golden, "w_final_normalized/")
    compare_detections(found, folder, golden, cfg, info["snapshots"][-1])
    found.tolerances["input_sums"] = {"rel": 1e-6}
    return found.report()


def compare_models(found, ours: Path, reference: Path) -> None:
    """Layer by layer, in order: names, types, bottoms and tops (the automatic splits too), and values."""
    a, b = read_caffemodel(ours), read_caffemodel(reference)
    listed = [[(x.name, x.type, x.bottoms, x.tops) for x in model.layers] for model in (a, b)]
    found.add("snapshot_layers", listed[0] != listed[1], False, reference.name)
    by_name = {layer.name: layer for layer in a.layers}
    for layer in b.layers:
        for j, blob in enumerate(layer.blobs):
            found.add("snapshot", by_name[layer.name].blobs[j], blob, f"{reference.name}/{layer.name}/{j}")
    found.tolerances |= {"snapshot": {"abs": 5e-7}, "snapshot_layers": {"abs": 0}}


def compare_detections(found, folder, golden, cfg, snapshot) -> None:
    net = Net(folder / "test.prototxt", "TEST", cfg=cfg)
    copy_from(net, folder / snapshot)  # Caffe's own snapshot, so that this compares testing alone
    images = [cv2.imread(str(path)) for path in sorted((folder / "images").glob("im_*.png"))]
    for k in sorted({int(key.split("/")[1]) for key in golden.files if key.startswith("det/")}):
        boxes = golden[f"det/{k}/boxes_in"]
        scores, pred_boxes = im_detect(net, images[k], boxes, cfg)
        found.add("inputs", flat(net.blobs["data"]), golden[f"det/{k}/data"], f"det/{k}/data")
        found.add("inputs", flat(net.blobs["rois"]), golden[f"det/{k}/rois_dedup"], f"det/{k}/rois_dedup")
        found.add("detections", scores, golden[f"det/{k}/scores"], f"det/{k}/scores")
        found.add("detections", pred_boxes, golden[f"det/{k}/pred_boxes"], f"det/{k}/pred_boxes")
        by_class = detections_by_class(scores, pred_boxes, cfg, thresh=0.05, max_per_image=0)
        for cls, dets in enumerate(by_class):
            if f"det/{k}/cls{cls}" in golden:
                found.add("detections", dets, golden[f"det/{k}/cls{cls}"], f"det/{k}/cls{cls}")
                found.notes["detections_compared"] = found.notes.get("detections_compared", 0) + len(dets)
