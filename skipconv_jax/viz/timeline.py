"""A frame on an engine as a timeline: every operation a bar, in the row of its kind."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from skipconv_jax import whole_files


def timeline(kinds: Sequence[str], seconds: np.ndarray, path: Path, title: str = "") -> None:
    """Draws operations one behind the other, a row per kind; kinds by the time they take.

    Args:
      kinds: of the operations, in the order they ran.
      seconds: of every operation.
      path: of the PNG.
      title: above it.
    """
    ends = 1e3 * np.cumsum(seconds)
    starts = ends - 1e3 * np.asarray(seconds)
    total = dict.fromkeys(kinds, 0.0)
    for kind, taken in zip(kinds, seconds, strict=True):
        total[kind] += 1e3 * float(taken)
    rows = sorted(total, key=lambda kind: -total[kind])
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(rows), 2)))
    figure, axis = plt.subplots(figsize=(12, 1.2 + 0.35 * len(rows)), constrained_layout=True)
    for row, kind in enumerate(rows):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        bars = [(starts[i], ends[i] - starts[i]) for i in mine]
        axis.broken_barh(bars, (row - 0.4, 0.8), facecolors=colours[row], linewidth=0)
    axis.set_yticks(range(len(rows)))
    axis.set_yticklabels([f"{kind} ({len([k for k in kinds if k == kind])})" for kind in rows])
    for row, kind in enumerate(rows):
        share = total[kind] / max(sum(total.values()), 1e-12)
        text = f" {total[kind]:.3f} ms, {share:.0%}"
        axis.text(ends[-1], row, text, va="center", fontsize=8)
    axis.set_xlim(0, ends[-1] * 1.15)
    axis.invert_yaxis()
    axis.set_xlabel("ms since the call began")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)
