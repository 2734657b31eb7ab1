"""Draws the pictures of docs/mining.md: ``python docs/draw_mining.py`` (needs matplotlib, the extra ``plots``).

The same 300 RoIs of one image in each: to the right the classification loss, upwards the localisation loss; background
has none of that and lies in the strip at the bottom. Grey RoIs do not count; the larger the dot of another, the more
its classification counts.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch

from ohem_caffe_port.mining import METHODS, Examples, Strata

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of what draws

FOLDER = Path(__file__).parent / "images"
SETTINGS = {
    "fast_rcnn": {"rois_per_image": 64}, "ohem": {"batch_size": 64}, "sohem": {"batch_size": 64},
    "ratio": {"batch_size": 64}, "rfcn": {"rois_per_image": 64},
}  # fmt: skip


def examples() -> Examples:
    """RoIs as a net half trained sees them: most background is easy, boxes crowd around a few objects."""
    rng = np.random.default_rng(3)
    count = 300
    labels = np.where(np.arange(count) < 45, 1, 0)
    centres = rng.uniform(40, 260, (6, 2))[rng.integers(0, 6, count)]
    centres = np.where(rng.random(count)[:, None] < 0.6, centres, rng.uniform(20, 280, (count, 2)))
    size = 60 * np.exp(rng.normal(0, 0.25, (count, 2)))
    corners = centres + rng.normal(0, 8, (count, 2)) - size / 2
    rois = np.hstack([np.zeros((count, 1)), corners, corners + size])
    cls = np.exp(rng.normal(np.where(labels, -0.7, -2.2), 1.1))
    loc = np.exp(rng.normal(-1, 0.9, count)) * labels
    overlaps = np.where(labels, rng.uniform(0.5, 1, count), rng.uniform(0, 0.5, count))
    return Examples(*(torch.tensor(a) for a in (cls, labels, loc, rois, overlaps)))


def draw(name: str, found: Examples, path: Path) -> None:
    weights = METHODS[name](**SETTINGS.get(name, {}))(found).cls
    strip = np.random.default_rng(0).uniform(0.008, 0.02, len(weights))
    height = torch.where(found.foreground, found.loc_loss, torch.tensor(strip)).numpy()
    counts = (weights > weights.max() * 1e-4).numpy()
    size = 3 + 45 * (weights / weights.max()).numpy()
    figure, axes = plt.subplots(figsize=(4.2, 2.9), layout="constrained")
    axes.scatter(found.cls_loss[~counts], height[~counts], s=5, c="#c8c8c8", linewidths=0)
    for kind, colour, text in ((0, "#3b6fb6", "background"), (1, "#d9622b", "foreground")):
        rows = counts & (found.foreground.numpy() == kind)
        axes.scatter(found.cls_loss[rows], height[rows], s=size[rows], c=colour, alpha=0.65, linewidths=0, label=text)
    if name == "sohem":
        alpha, beta, bounds, _ = Strata().at(0)
        cls = np.geomspace(1e-3, 30)
        for bound in bounds:
            axes.plot(cls, alpha * cls / (bound * beta), color="#555555", linewidth=0.7, linestyle="--")
    axes.set(xscale="log", yscale="log", xlim=(5e-3, 8), ylim=(6e-3, 6))
    axes.set(xlabel="classification loss", ylabel="localisation loss")
    axes.legend(fontsize=7, loc="upper left", markerscale=0.8)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for method in METHODS:
        if method != "ohem_naive":  # the choice of ohem
            draw(method, examples(), FOLDER / f"mining_{method}.png")
