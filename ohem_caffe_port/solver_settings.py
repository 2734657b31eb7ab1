"""The fields of a ``SolverParameter``: which ones are honoured, and what is refused before any work is done."""

from __future__ import annotations

import math

from converters.extras import library
from prototxt import CaffePortError
from prototxt.errors import nearest

from .optim import POLICIES, UPDATES

HONOURED = {
    "net", "train_net", "net_param", "train_net_param", "train_state", "type", "base_lr", "lr_policy", "gamma", "power",
    "stepsize", "stepvalue", "max_iter", "momentum", "momentum2", "rms_decay", "delta", "weight_decay",
    "regularization_type", "clip_gradients", "iter_size", "average_loss", "display", "snapshot_prefix",
    "random_seed", "weights", "snapshot", "snapshot_after_train", "snapshot_format", "solver_mode", "device_id",
    "debug_info", "test_initialization", "test_compute_loss", "test_iter", "test_interval", "test_net",
    "test_net_param", "test_state", "vstep_lr", "vstep_size", "eval_type", "ap_version", "show_per_class_result",
    "plateau_winsize", "stagelr", "stageiter",
}  # fmt: skip
NEUTRAL = {"snapshot_diff", "layer_wise_reduce"}  # without influence on the result of training


def check_settings(p, error) -> list[str]:
    """Notes about the fields of a solver that have no effect, one line each.

    Args:
        p: the ``SolverParameter``.
        error: ``error(message, field, hint=None)`` makes the error about a field.

    Raises:
        PortError: an unknown type or policy, a setting that is missing or that Caffe refuses.
    """
    warnings = []
    if p.type not in UPDATES:
        near = nearest(p.type, UPDATES)
        raise error(f"unknown solver type '{p.type}'" + (f"; did you mean {near}?" if near else ""), "type")
    if p.lr_policy not in POLICIES:
        near = nearest(p.lr_policy, POLICIES)
        message = f"unknown policy '{p.lr_policy}'" + (f"; did you mean '{near}'?" if near else "")
        known = f"known policies: {', '.join(POLICIES)}"
        raise error(message if p.lr_policy else "is needed", "lr_policy", known)
    needs = {
        "step": ["stepsize", "gamma"], "exp": ["gamma"], "inv": ["gamma", "power"], "multistep": ["gamma"],
        "sigmoid": ["gamma", "stepsize"], "poly": ["max_iter"], "plateau": ["gamma"],
    }.get(p.lr_policy, [])  # fmt: skip
    lists = {"vstep": ("vstep_lr", "vstep_size"), "multifixed": ("stagelr", "stageiter")}
    if p.lr_policy in lists:
        rates, ends = lists[p.lr_policy]
        counts = len(getattr(p, rates)), len(getattr(p, ends))
        if not counts[0] or counts[0] != counts[1]:
            raise error(f"{counts[0]} rates and {counts[1]} {ends}; as many of each", rates)
    elif not p.HasField("base_lr"):
        needs = ["base_lr"]
    for field in needs:
        if not p.HasField(field):
            raise error(f"is needed (lr_policy '{p.lr_policy}')", field)
    if p.lr_policy in ("step", "sigmoid") and p.stepsize < 1:
        raise error("must be positive", "stepsize")
    if "gamma" in needs and p.gamma < 0 and p.lr_policy != "sigmoid":  # that falls only with one below 0
        raise error("must not be negative", "gamma")
    if p.regularization_type not in ("L1", "L2"):
        raise error(f"is L1 or L2, not '{p.regularization_type}'", "regularization_type")
    if p.iter_size < 1:
        raise error("must be positive", "iter_size")
    if p.type == "AdaGrad" and p.momentum or p.type == "RMSProp" and p.momentum:
        raise error(f"cannot be used with {p.type}", "momentum")
    if p.type == "Adam" and not (0 <= p.momentum < 1 and 0 <= p.momentum2 < 1):
        raise error("must lie between 0 and 1, as must momentum2 (Adam)", "momentum")
    if p.snapshot_format == p.HDF5:  # found out now, and not when the first snapshot is due
        try:
            library("h5py", "hdf5")
        except CaffePortError as missing:
            raise error(f"HDF5 {missing.message}", "snapshot_format", missing.hint) from None
    for field in ("max_iter", "snapshot", "display"):
        if getattr(p, field) < 0:
            raise error("must not be negative", field)
    if p.type == "RMSProp" and not 0 <= p.rms_decay < 1:
        raise error("must lie between 0 and 1", "rms_decay")
    for descriptor, value in p.ListFields():
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"must be a finite number, not {value}", descriptor.name)
        if descriptor.name in NEUTRAL and value:
            warnings.append(f"solver field {descriptor.name} has no effect on this training")
        elif descriptor.name not in HONOURED | NEUTRAL:
            warnings.append(f"solver field {descriptor.name} is not supported, and ignored")
    return warnings
