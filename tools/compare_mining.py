"""Trains one detector with each way of choosing examples, under one budget and the same seeds, and compares them.

python tools/compare_mining.py
python tools/compare_mining.py --methods ohem,focal,ghm --iters 2000 --seeds 3 --output output/compare
python tools/compare_mining.py --imdb voc_2007_trainval --test_imdb voc_2007_test --family squeezenet_v1.1 \\
    --weights squeezenet_v1.1.caffemodel

Runs that are done are not repeated: an interrupted comparison goes on where it was, and further methods or seeds add
to what is there. One folder can take several processes, each with methods of its own; --report then shows all.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import _cli
import _mining_report
import torch

from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import write_comp4
from ohem_caffe_port.mining import METHODS
from ohem_caffe_port.net import Net
from ohem_caffe_port.results import evaluate_results
from ohem_caffe_port.roi_loss import RoiLoss
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.testing import test_net
from ohem_caffe_port.train import Trainer, load_weights, settle_mining
from ohem_caffe_port.weights import copy_from
from prototxt import parse_net
from prototxt.errors import nearest
from prototxt.files import replacing
from prototxt.zoo import detectors
from prototxt.zoo.generate import FAMILIES, ZOO

OVERLAPS = (0.5, 0.7)  # that a correct detection must exceed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), metavar="A,B,...", help=f"[{','.join(METHODS)}]")
    parser.add_argument("--iters", type=int, default=600, help="iterations of each run [600]")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method, with the seeds 0, 1, ... [2]")
    parser.add_argument("--family", default="shapes", choices=list(FAMILIES), help="backbone and head [shapes]")
    parser.add_argument("--weights", metavar="FILE", help="caffemodel that every run starts from")
    parser.add_argument("--test_imdb", help="data set for the average precision [the configuration's]")
    parser.add_argument("--points", type=int, default=12, help="points of a curve [12]")
    parser.add_argument("--probe", type=int, default=8, metavar="N", help="images for the loss over all RoIs [8]")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too, for a page of documentation")
    parser.add_argument("--report", action="store_true", help="train nothing, show the runs that are done")
    _cli.add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    methods = list(dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip()))
    if not methods:
        raise PortError("--methods names none", hint=f"known: {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            near = nearest(name, METHODS)
            hint = f"did you mean {near}? " if near else ""
            raise PortError(f"--methods: unknown method '{name}'", hint=f"{hint}known: {', '.join(METHODS)}")
    for option in ("iters", "seeds", "points", "probe"):
        if getattr(args, option) < 1:
            raise PortError(f"--{option} must be positive, not {getattr(args, option)}")
    device = _cli.pick_device(args)
    output = _cli.output_folder(args.output or "output/compare_mining")
    budget = {
        "iters": args.iters, "family": args.family, "weights": args.weights, "imdb": args.imdb,
        "test_imdb": args.test_imdb, "set": args.set, "probe": args.probe,
    }  # fmt: skip
    results = []
    for seed in range(args.seeds):  # seed by seed, so that an early end leaves something of every method
        for name in methods:
            file = output / name / f"seed{seed}" / "result.json"
            done = read_result(file)
            if args.report and done is None:
                continue
            if not args.report and (done is None or done["budget"] != budget):
                print(f"---- {name}, seed {seed}")
                file.parent.mkdir(parents=True, exist_ok=True)
                done = {"method": name, "seed": seed, "budget": budget, **Run(name, seed, args, device, file.parent)()}
                with replacing(file, "w", encoding="utf-8") as stream:
                    json.dump(done, stream, indent=1)
            results.append(done)
    if not results:
        raise PortError("no run is done there", file=output, hint="leave out --report, or name another --output")
    _mining_report.write(results, output, args.markdown)
    return 0


def read_result(file: Path) -> dict | None:
    """A run's results; None where there are none."""
    if not file.is_file():
        return None
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
        return done if {"method", "seed", "budget", "device"} <= set(done) else None
    except (OSError, ValueError, TypeError):
        return None


class Run:
    """One training with one method and seed. Calling it trains, tests, and gives the numbers for ``result.json``."""

    def __init__(self, method: str, seed: int, args, device, folder: Path):
        sampled = "fast_rcnn" if method == "fast_rcnn" else "ohem"  # by the data layer, or all RoIs of an image
        self.cfg = cfg = _cli.load_config(args, ZOO / args.family / sampled / "train.prototxt")
        cfg.RNG_SEED = seed
        torch.manual_seed(seed)
        self.args, self.device, self.folder, self.iters = args, device, folder, args.iters
        imdb = _cli.open_imdb(args, cfg, args.imdb or cfg.TRAIN.IMDB, cfg.TRAIN.PROPOSAL_METHOD)
        self.test_imdb = _cli.open_imdb(args, cfg, args.test_imdb or cfg.TEST.IMDB, cfg.TEST.PROPOSAL_METHOD)
        if not self.test_imdb.has_ground_truth:
            raise PortError(f"{self.test_imdb.name} has no public ground truth to test against", field="--test_imdb")
        family = FAMILIES[args.family]
        recipe = replace(family.recipes[sampled], classes=imdb.num_classes)
        self.head = family.net(recipe)
        net = Net(parse_net(detectors.train_net(method, method, **self.head)), cfg=cfg, device=device)
        net.keep_blobs = False
        settle_mining(net, cfg)
        if args.weights:
            print("\n".join(load_weights(net, args.weights)))
        param = recipe.solver("", method, family.solver)
        param.ClearField("train_net")
        param.max_iter, param.stepsize, param.display = args.iters, max(1, int(0.8 * args.iters)), 0
        self.solver = Solver(param, net)
        roidb = get_training_roidb(imdb, cfg)
        self.trainer = Trainer(self.solver, roidb, cfg, folder)
        self.roi_loss = RoiLoss(net, roidb, args.probe)
        self.share = torch.zeros(2, dtype=torch.float64, device=device)  # weight of foreground, weight of all
        net.layer_by_name["loss_cls"].register_forward_pre_hook(self._watch_weights)
        self.curve, self.times = [], []

    def __call__(self) -> dict:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.share, kept = torch.zeros_like(self.share), kept_bytes(self.solver.net)
        result = {"device": str(self.device), "iterations": self.iters}
        self.curve.append({"iter": 0, "roi_loss": self.roi_loss()})
        self.started = self._clock()
        try:
            model = self.trainer.run(self.iters, self._after_iteration)[-1]
        except PortError as error:  # a method under which training diverges is a result, too
            print(f"failed: {error}")
            finite = [point for point in self.curve if math.isfinite(point["roi_loss"])]
            return result | {"failed": error.message, "curve": finite}
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else kept
        result |= {
            "ap": self._average_precision(model),
            "curve": self.curve,
            "foreground": statistics.fmean(point["foreground"] for point in self.curve[1:]),
            "seconds": statistics.median(self.times),
            "megabytes": peak / 2**20,
        }
        last, ap = self.curve[-1], result["ap"]["0.5"]["mean"]
        print(f"AP {ap:.4f}, loss over all RoIs {last['roi_loss']:.4f}, {1e3 * result['seconds']:.0f} ms an iteration")
        return result

    def _clock(self) -> float:
        """Seconds: of this process on a CPU, where others may keep it waiting; of the clock on the wall on a GPU."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _after_iteration(self) -> None:
        self.times.append(self._clock() - self.started)
        done = self.solver.iter
        if done % max(1, self.iters // self.args.points) == 0 or done == self.iters:
            foreground, weight = self.share.tolist()
            share = foreground / weight if weight else 0.0
            self.curve.append({"iter": done, "roi_loss": self.roi_loss(), "foreground": share})
            self.share.zero_()
        self.started = self._clock()

    def _watch_weights(self, layer, inputs) -> None:
        """Adds up how much foreground and how much of everything the class loss sees."""
        _, labels, *weights = inputs[0]
        if labels.is_meta:
            return
        weight = weights[0].view_as(labels) if weights else labels >= 0
        self.share += torch.stack([(weight * (labels > 0)).sum(), weight.sum()])

    def _average_precision(self, model: Path) -> dict:
        imdb, cfg = self.test_imdb, self.cfg
        net = Net(parse_net(detectors.test_net("test", **self.head)), "TEST", cfg=cfg, device=self.device)
        copy_from(net, model)
        all_boxes = test_net(net, imdb, cfg)
        results = self.folder / "results"
        write_comp4(results, all_boxes, imdb.image_index, imdb.classes, image_set=imdb.image_set)
        found = {overlap: evaluate_results(results, imdb, ovthresh=overlap) for overlap in OVERLAPS}
        aps = {str(overlap): {**result.ap, "mean": result.mean} for overlap, result in found.items()}
        return {k: {name: None if math.isnan(ap) else ap for name, ap in each.items()} for k, each in aps.items()}


def kept_bytes(net: Net) -> int:
    """What a forward pass keeps for its backward pass, weights aside."""
    own = {p.blob.untyped_storage().data_ptr() for p in net.learnable_params}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net()
    total = sum(kept.values())
    net.loss = torch.zeros(())
    return total


if __name__ == "__main__":
    _cli.run(main)
