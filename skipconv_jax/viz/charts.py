"""Charts (PNG, drawn without a display): cost and firing over a stream, firing per stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from skipconv_jax import whole_files

_COLOURS = (
    "#4285f4",
    "#db4437",
    "#0f9d58",
    "#f4a000",
    "#7e57c2",
    "#00838f",
    "#8d6e63",
    "#607d8b",
    "#c0ca33",
    "#ec407a",
)


class Bins:
    """Means of rows in at most `2 most` bins, in constant memory however long the stream."""

    def __init__(self, most: int = 1000) -> None:
        self._most, self._size = most, 1
        self._bins: list[dict[str, Any]] = []
        self._open: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one frame: `frame`, `gmac`, `ms`, `firing`, and maybe `reset`."""
        self._open.append(row)
        if len(self._open) < self._size:
            return
        self._bins.append(_mean_row(self._open))
        self._open = []
        if len(self._bins) == 2 * self._most:
            pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
            self._bins = [_mean_row(pair) for pair in pairs]
            self._size *= 2

    def rows(self) -> list[dict[str, Any]]:
        """The bins, as rows for `stream_chart`."""
        return self._bins + ([_mean_row(self._open)] if self._open else [])


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "frame": rows[0]["frame"],
        "gmac": float(np.mean([row["gmac"] for row in rows])),
        "ms": float(np.mean([row["ms"] for row in rows])),
        "firing": {
            k: float(np.mean([row["firing"][k] for row in rows])) for k in rows[0]["firing"]
        },
        "reset": any(row.get("reset") for row in rows),
    }


def stream_chart(rows: Sequence[Mapping[str, Any]], dense_gmac: float, path: Path) -> None:
    """GMAC, firing per stage and milliseconds of every frame.

    Args:
      rows: per frame `frame`, `gmac`, `ms`, `firing` (stage: share) and maybe `reset`.
      dense_gmac: cost of the dense network, drawn as the bar to stay under.
      path: of the PNG.
    """
    frames = np.asarray([row["frame"] for row in rows])
    figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True, constrained_layout=True)
    cost = np.asarray([row["gmac"] for row in rows])
    axes[0].plot(frames, cost, color=_COLOURS[0], lw=1.2, label=f"skipped (mean {cost.mean():.4g})")
    axes[0].axhline(dense_gmac, color="0.4", ls="--", lw=1, label=f"dense ({dense_gmac:.4g})")
    axes[0].set_ylabel("GMAC / frame")
    _draw_firing(axes[1], frames, rows)
    axes[2].plot(frames, [row["ms"] for row in rows], color=_COLOURS[2], lw=1, label="time")
    axes[2].set_ylabel("ms / frame")
    axes[2].set_xlabel("frame")
    for axis in axes:
        if axis.images:
            continue
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        for row in rows:
            if row.get("reset"):
                axis.axvline(row["frame"], color="0.7", lw=0.8, zorder=0)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def _draw_firing(axis: Any, frames: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per stage, or a row of an image where they are too many to tell apart."""
    stages = list(rows[0]["firing"])
    shares = np.asarray([[100 * row["firing"][stage] for stage in stages] for row in rows])
    if len(stages) <= _MOST_LINES:
        for colour, stage, line in zip(_cycle(stages), stages, shares.T, strict=True):
            axis.plot(frames, line, lw=1, color=colour, label=stage)
        axis.set_ylabel("fired, % of MACs")
        return
    extent = (frames[0] - 0.5, frames[-1] + 0.5, len(stages), 0)
    image = axis.imshow(shares.T, aspect="auto", extent=extent, vmin=0, vmax=100, cmap="magma")
    axis.figure.colorbar(image, ax=axis, label="fired, % of MACs", pad=0.01)
    axis.set_ylabel(f"layer (of {len(stages)})")


def stage_chart(firing: Mapping[str, float], path: Path, title: str = "") -> None:
    """Bars of the share of work done, per stage (after the paper's Figure 8)."""
    figure, axis = plt.subplots(figsize=(6, 3.4), constrained_layout=True)
    shares = [100 * share for share in firing.values()]
    bars = axis.bar(list(firing), shares, color=_COLOURS[0])
    axis.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize=8)
    axis.set_ylabel("fired, % of MACs")
    axis.set_ylim(0, max([*shares, 1.0]) * 1.15)
    axis.tick_params(axis="x", rotation=30)
    axis.set_title(title, fontsize=10)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


_MOST_LINES = 12


def _cycle(keys: Any) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(len(keys))]


def sweep_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    chosen: tuple[float, float] | None,
    path: Path,
    title: str,
    lost: str = "drop",
) -> None:
    """What is lost over what is spent: a line per way to set thresholds, and the chosen point.

    Args:
      lines: by name, (share of the dense multiply-accumulates in per cent, drop) pairs.
      chosen: one such pair; None for none.
      path: of the PNG.
      title: above it.
      lost: what the drop is of.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for colour, (name, points) in zip(_COLOURS, lines.items(), strict=False):
        xs, ys = zip(*sorted(points), strict=True)
        axis.plot(xs, ys, ".-", color=colour, label=name)
    if chosen is not None:
        axis.plot(*chosen, "*", color="black", markersize=14, label="chosen", zorder=3)
    axis.set(xlabel="multiply-accumulates, % of dense", ylabel=lost, title=title, xscale="log")
    shown = (1, 2, 3, 5, 10, 20, 30, 50, 100)
    axis.set_xticks(shown, [str(tick) for tick in shown])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)
