"""The original's ``SolverWrapper``: training on a roidb, snapshots that are ready for testing, and resuming."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from converters import write_caffemodel
from prototxt.files import replacing

from . import distributed
from .config import Config
from .data.loader import rng_from_arrays, rng_to_arrays
from .data.roidb import add_bbox_regression_targets, filter_roidb
from .errors import PortError
from .net import Net
from .solver import Solver
from .weights import copy_from, to_caffemodel

_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error)


def settle_mining(net: Net, cfg: Config) -> list[str]:
    """Makes the sampler fit the net: one that mines hard RoIs must be given all of them.

    Sets ``TRAIN.USE_OHEM`` and ``TRAIN.BG_THRESH_LO`` where the user has not stated them; returns what was done, for
    the user to read.

    Raises:
        PortError: a ``BG_THRESH_LO`` above 0 was asked for together with mining (the original asserts the same).
    """
    train, done = cfg.TRAIN, []
    if train.HAS_RPN:  # RoIs are sampled by a layer of the net, from TRAIN.BATCH_SIZE alone
        return ["TRAIN.USE_OHEM has no effect on a net that makes its own proposals"] if train.USE_OHEM else []
    mining = [layer.name for layer in net.layers if hasattr(layer, "select")]
    if mining and not train.USE_OHEM:
        if "TRAIN.USE_OHEM" in cfg.explicit:
            return [f"layer {mining[0]} mines among sampled RoIs only, because TRAIN.USE_OHEM is False"]
        train.USE_OHEM = True
        done.append(f"layer {mining[0]} mines hard RoIs: all RoIs of an image go into the net (TRAIN.USE_OHEM)")
    if train.USE_OHEM and train.BG_THRESH_LO != 0:
        if "TRAIN.BG_THRESH_LO" in cfg.explicit:
            raise PortError(
                f"TRAIN.BG_THRESH_LO is {train.BG_THRESH_LO}, but mining takes every background RoI",
                hint="set TRAIN.BG_THRESH_LO to 0.0, or TRAIN.USE_OHEM to False",
            )
        train.BG_THRESH_LO = 0.0
        done.append("TRAIN.BG_THRESH_LO 0.0, as mining takes every background RoI")
    if train.USE_OHEM and not mining:
        done.append("TRAIN.USE_OHEM is set, but no layer of the net mines: all RoIs will be trained on")
    return done


def resume_path(path, kind: str) -> Path:
    """The ``.resume.npz`` beside a file of this kind (``.caffemodel``, ``.solverstate``), ``.h5`` or not."""
    return Path(path).with_name(Path(path).name.removesuffix(".h5").removesuffix(kind) + ".resume.npz")


def normalized_layers(net: Net, means, stds, cfg: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The layers whose outputs are trained as ``(target - mean) / std``: ``{name: (means, stds)}``, one per output.

    ``bbox_pred`` and py-R-FCN's ``rfcn_bbox`` (whose outputs repeat each target for every cell of its grid), and with
    ``RPN_NORMALIZE_TARGETS`` its ``rpn_bbox_pred``.

    Args:
        means, stds: ``[4 * num_classes]`` of the box targets (``[8]`` with ``AGNOSTIC``).
    """
    train, found = cfg.TRAIN, {}
    outputs = {name: len(pair[1]) for name, pair in net.params.items() if len(pair) == 2}
    if train.BBOX_REG and train.BBOX_NORMALIZE_TARGETS:
        for name in ("bbox_pred", "rfcn_bbox"):
            if name in outputs:
                cells = outputs[name] // len(stds) if name == "rfcn_bbox" else 1
                if outputs[name] != max(cells, 1) * len(stds):
                    raise PortError(f"'{name}' has {outputs[name]} outputs, the data set {len(stds)} box targets")
                found[name] = np.repeat(means, cells), np.repeat(stds, cells)
    if train.RPN_NORMALIZE_TARGETS and "rpn_bbox_pred" in outputs:
        anchors = outputs["rpn_bbox_pred"] // 4
        found["rpn_bbox_pred"] = np.tile(train.RPN_NORMALIZE_MEANS, anchors), np.tile(train.RPN_NORMALIZE_STDS, anchors)
    return found


def save_unnormalized(net: Net, path, means: np.ndarray, stds: np.ndarray, cfg: Config) -> None:
    """Writes a caffemodel whose :func:`normalized_layers` (and every layer that shares them) predict plain box deltas.

    Training regresses ``(target - mean) / std``; ``W * std`` and ``b * std + mean`` undo that, as the original's
    ``SolverWrapper.snapshot`` does, so that testing needs no statistics. The net itself is unchanged afterwards.

    Args:
        means, stds: ``[4 * num_classes]``.
    """
    scales = normalized_layers(net, means, stds, cfg)
    original = {p: p.detach().clone() for name in scales for p in net.params[name]}
    with torch.no_grad():
        for name, (mean, std) in scales.items():
            weight, bias = (p.detach().cpu().numpy() for p in net.params[name])
            scaled = weight * std.reshape(-1, *[1] * (weight.ndim - 1)), bias * std + mean
            for p, value in zip(net.params[name], scaled, strict=True):
                p.copy_(torch.from_numpy(value))
        try:
            write_caffemodel(path, to_caffemodel(net), phase="TRAIN")
        finally:
            for p, value in original.items():
                p.copy_(value)


class Trainer:
    """Trains a detector on a roidb.

    Args:
        solver: with the net to train; its data layer must take a roidb.
        roidb: prepared (:func:`ohem_caffe_port.data.roidb.get_training_roidb`); it is filtered, and gets box targets.
        cfg: the net's configuration.
        output_dir: where snapshots go.

    Attributes:
        means, stds: ``[4 * num_classes]`` of the box targets.

    Raises:
        PortError: a net without such a data layer or for another number of classes, or a roidb that leaves nothing to
            train on.
    """

    def __init__(self, solver: Solver, roidb: list[dict], cfg: Config, output_dir):
        self.solver, self.net, self.cfg, self.output_dir = solver, solver.net, cfg, Path(output_dir)
        data_layers = [layer for layer in self.net.layers if hasattr(layer, "set_roidb")]
        if not data_layers:
            raise PortError(
                "no layer of the net takes images with RoIs",
                file=self.net.source,
                hint="its first layer must be type Python, module roi_data_layer.layer, layer RoIDataLayer",
            )
        self.data_layer = data_layers[0]
        roidb = filter_roidb(roidb, cfg)
        classes = roidb[0]["gt_overlaps"].shape[1]
        if getattr(self.data_layer, "num_classes", classes) != classes:
            raise self.data_layer.error(
                f"num_classes is {self.data_layer.num_classes}, the data set has {classes} (background included)",
                file=self.net.source,
                field="python_param.param_str",
                hint="train a net with as many classes as the imdb, or on another imdb",
            )
        self.means = self.stds = np.zeros(0)
        train = cfg.TRAIN
        normalizes = train.BBOX_REG and train.BBOX_NORMALIZE_TARGETS
        if train.HAS_RPN and normalizes and not train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
            raise PortError(
                "box targets of proposals that the net makes itself have no statistics to be normalised by",
                field="TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED",
                hint="set it to True; TRAIN.BBOX_NORMALIZE_MEANS and STDS are then used",
            )
        if train.BBOX_REG:
            self.means, self.stds = add_bbox_regression_targets(roidb, cfg)
        self.data_layer.set_roidb(roidb)

    def run(self, max_iters: int, on_iteration=lambda: None) -> list[Path]:
        """Trains until ``max_iters`` iterations are done, calling ``on_iteration()`` after each; returns the snapshots.

        One is written every ``TRAIN.SNAPSHOT_ITERS`` iterations and one at the end.

        Raises:
            PortError: more iterations than a ``poly`` learning rate lasts, or a loss or weight that is not finite.
        """
        self.solver.check_iterations(max_iters)
        paths = []
        try:
            while self.solver.iter < max_iters:
                self.solver.step()
                on_iteration()
                if self.solver.iter % self.cfg.TRAIN.SNAPSHOT_ITERS == 0 or self.solver.iter >= max_iters:
                    paths.append(self.snapshot())
        finally:
            self.data_layer.loader.close()
        return paths

    @property
    def prefix(self) -> Path:
        """What the names of the snapshots begin with."""
        infix = f"_{self.cfg.TRAIN.SNAPSHOT_INFIX}" if self.cfg.TRAIN.SNAPSHOT_INFIX else ""
        return self.output_dir / (Path(self.solver.param.snapshot_prefix or "snapshot").name + infix)

    def snapshot(self) -> Path:
        """Writes ``<prefix>_iter_<n>.caffemodel`` to test with, ``.solverstate`` and ``.resume.npz`` to resume from.

        Raises:
            CaffePortError: weights that are not finite (older snapshots stay), or a file that cannot be written.
        """
        for name, blobs in self.net.params.items():
            if not all(bool(blob.isfinite().all()) for blob in blobs):
                raise PortError(
                    f"weights are no longer finite after iteration {self.solver.iter}; no snapshot is written",
                    layer=name,
                    hint="a lower base_lr is the usual cure",
                )
        path = self.solver.snapshot_path(".caffemodel", self.prefix)
        if not distributed.is_root():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        save_unnormalized(self.net, path, self.means, self.stds, self.cfg)
        self.solver.save_state(path)
        with replacing(resume_path(path, ".caffemodel")) as file:
            np.savez(file, **self._resume_state())
        return path

    def _resume_state(self) -> dict[str, np.ndarray]:
        """What a ``.solverstate`` and a caffemodel for testing leave out: random streams, position in the data, the
        normalised box regression, what layers remember, and the losses that the display averages over."""
        state = {"torch_rng": torch.get_rng_state().numpy(), "recent_losses": np.array(self.solver._recent)}
        if self.net.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.net.device).numpy()
        for name, blobs in self._normalized_params():
            state |= {f"{name}/{j}": blob.detach().cpu().numpy() for j, blob in enumerate(blobs)}
        for name, layer in self._remembering():
            state |= {f"layer/{name}/{k}": v for k, v in layer.remembered().items()}
        state |= {f"net/{k}": v for k, v in rng_to_arrays(self.net.rng.get_state()).items()}
        return state | {f"data/{k}": v for k, v in self.data_layer.loader.state_dict().items()}

    def _normalized_params(self):
        """Names and parameters of the layers that a caffemodel for testing holds un-normalised; bbox_pred always."""
        names = {"bbox_pred", *normalized_layers(self.net, self.means, self.stds, self.cfg)}
        return [(name, self.net.params[name]) for name in sorted(names) if name in self.net.params]

    def _remembering(self):
        """Names and layers that go on from pass to pass, by more than their parameters."""
        return [(layer.name, layer) for layer in self.net.layers if hasattr(layer, "remembered")]

    def resume(self, path) -> list[str]:
        """Continues from a ``.solverstate``.

        With the ``.resume.npz`` that :meth:`snapshot` puts beside it, training goes on bit for bit as if it had never
        stopped (on the same machine). A state that Caffe wrote itself restores weights, history and iteration; the
        data then start from the beginning. Returns what the user should know.

        Raises:
            CaffePortError: a state, caffemodel or ``.resume.npz`` that is missing, damaged or of another net or data.
        """
        self.solver.restore(path)
        extra = resume_path(path, ".solverstate")
        if not extra.is_file():
            return [
                f"no {extra.name} beside the solver state: the order of the data starts anew, and bbox_pred is taken "
                "from the caffemodel as it is (a snapshot of this program or of train_net.py is un-normalised)"
            ]
        try:
            with np.load(extra, allow_pickle=False) as arrays:
                state = {key: arrays[key] for key in arrays.files}
            with torch.no_grad():
                for name, blobs in self._normalized_params():
                    for j, blob in enumerate(blobs):
                        blob.copy_(torch.from_numpy(state[f"{name}/{j}"].reshape(blob.shape)))
            for name, layer in self._remembering():
                prefix = f"layer/{name}/"
                own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                if own:  # older files have none
                    layer.remember(own)
            self.net.rng.set_state(rng_from_arrays({k[4:]: v for k, v in state.items() if k.startswith("net/")}))
            # last: without prefetching the data are drawn from the net's stream
            self.data_layer.loader.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("data/")})
            self.solver._recent.extend(state["recent_losses"].astype(float).tolist())
            torch.set_rng_state(torch.from_numpy(state["torch_rng"]))
            if "cuda_rng" in state and self.net.device.type == "cuda":
                torch.cuda.set_rng_state(torch.from_numpy(state["cuda_rng"]), self.net.device)
        except PortError as error:
            error.file = error.file or extra
            raise
        except (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, *_BROKEN_ZIP) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise PortError(
                f"cannot be used for resuming: {what}",
                file=extra,
                hint="it is damaged, or of another net; without it, training resumes with the data from the start",
            ) from None
        return []


def load_weights(net: Net, paths: str) -> list[str]:
    """Loads one caffemodel, or several separated by commas as Caffe's ``--weights``; returns a line about each."""
    return [copy_from(net, part.strip()).summary() for part in paths.split(",") if part.strip()]
