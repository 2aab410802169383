"""One convolution at a time: time against activity for the distinct shapes of HRNet-w32, on a CPU.

    python -m benchmarks.layers [--json PATH] [--chart PATH]

A share of a layer's blocks fires, side by side in a stripe; `native` runs a program of one
convolution, `blocks` and `reference` are `skip_conv` in XLA, `dense` is XLA's convolution. Times
are medians over frames, in turns; the chart adds up all 293 layers. `ideal` is the fastest time of
each layer, dense or with all blocks firing, times its activity.
"""

import argparse
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import native, whole_files
from skipconv_jax.models import hrnet_w32, init_variables
from skipconv_jax.native import ConvSpec, GateSpec, Program, ProgramBuilder
from skipconv_jax.ops import InputNormGate, Previous, init_state, skip_conv
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.fold import ConvNode, build
from skipconv_jax.viz.tables import markdown

BLOCK = 8
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
_XLA = ("reference", "blocks")
_THRESHOLD = 1e-4


def shapes(size: int = 256) -> list[tuple[Conv, int]]:
    """The distinct convolutions of HRNet-w32 and how often each occurs."""
    model, frame = hrnet_w32(joints=15), jnp.zeros((1, size, size, 3))
    graph = build(model.apply, init_variables(model, jax.random.key(0), frame), frame)
    counts = Counter(n.conv for n in graph.nodes if isinstance(n, ConvNode))
    return sorted(counts.items(), key=lambda item: -item[0].macs * item[1])


def frames_of(conv: Conv, share: float, rng: np.random.Generator) -> tuple[list[jax.Array], float]:
    """Two frames that differ under `share` of the blocks, and the share that it came to.

    Change keeps a halo away from other blocks, so that only the blocks meant fire.
    """
    grid = conv.grid(BLOCK)
    fired = round(share * grid[0] * grid[1])
    x = rng.normal(size=(1, *conv.in_spatial, conv.in_channels)).astype(np.float32)
    y = x.copy()
    for index in range(fired):
        at = divmod(index, grid[1])
        spans = []
        for axis, k in enumerate(at):
            stride, pad = conv.strides[axis], conv.padding[axis][0]
            reach = conv.window[axis] - 1
            low = k * BLOCK * stride - pad + reach
            high = ((k + 1) * BLOCK - 1) * stride - pad + 1
            whole = slice(max(low, 0), min(max(high, low + 1), conv.in_spatial[axis]))
            spans.append(whole)
        y[:, spans[0], spans[1]] += 1.0
    return [jnp.asarray(x), jnp.asarray(y)], fired / (grid[0] * grid[1])


def program_of(conv: Conv, kernel: np.ndarray) -> Program:
    """The convolution alone; its output stays in the engine, as inside a network."""
    builder = ProgramBuilder()
    h, w = conv.in_spatial
    x = builder.input(h, w, conv.in_channels, raw=conv.in_channels < 16)
    count = float(conv.window[0] * conv.window[1] * conv.in_channels)
    spec = ConvSpec(
        kernel,
        name="layer",
        strides=(conv.strides[0], conv.strides[1]),
        padding=conv.padding,
        gate=GateSpec("norm", [_THRESHOLD], BLOCK, count=count),
    )
    y = builder.conv(x, spec)
    # A reader, so that change is passed on; it never fires after its first frame.
    reader = np.zeros((1, 1, conv.out_channels, 1), np.float32)
    builder.output(builder.conv(y, ConvSpec(reader, name="reader", gate=GateSpec("norm", [3e38]))))
    return builder.finish()


class Native:
    """Times the convolution inside the engine."""

    def __init__(self, conv: Conv, kernel: np.ndarray) -> None:
        self.program = program_of(conv, kernel)
        self.state = self.program.init_state(1)
        self.step = jax.jit(self.program.apply, donate_argnums=1)
        self.at = self.program.names.index("layer")

    def __call__(self, frame: jax.Array) -> float:
        """Seconds of one frame."""
        with native.profile() as profile:
            _, self.state, masks = self.step(self.program.constants, self.state, frame)
            jax.block_until_ready(masks)
            return float(profile.seconds()[self.at])

    def state_bytes(self) -> int:
        """Bytes of state, the reader's and the frame's included."""
        return 4 * self.program.state_size


class Xla:
    """Times `skip_conv` under jit, or the dense convolution."""

    def __init__(self, conv: Conv, kernel: np.ndarray, implementation: str | None) -> None:
        params = {"kernel": jnp.asarray(kernel)}
        x = jnp.zeros((1, *conv.in_spatial, conv.in_channels), jnp.float32)
        options: dict[str, Any] = {"strides": conv.strides, "padding": conv.padding}
        gate = InputNormGate(_THRESHOLD, block=BLOCK)
        options.update(gate=gate, policy=Previous())
        self.state: Any = init_state(params, x, **options) if implementation else None
        self._params = params
        self._dense = jax.jit(conv)
        self._step = jax.jit(
            functools.partial(skip_conv, implementation=implementation, **options),
            donate_argnums=1,
        )

    def __call__(self, frame: jax.Array) -> float:
        """Seconds of one frame."""
        start = time.perf_counter()
        if self.state is None:
            jax.block_until_ready(self._dense(frame, self._params["kernel"]))
        else:
            y, self.state = self._step(self._params, self.state, frame)
            jax.block_until_ready(y)
        return time.perf_counter() - start


def measure(conv: Conv, calls: int, repeats: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """A row per activity."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*conv.window, conv.in_channels, conv.out_channels))
    kernel = (kernel / np.sqrt(kernel[..., 0].size)).astype(np.float32)
    runs: dict[str, Callable[[jax.Array], float]] = {"native": Native(conv, kernel)}
    runs.update({name: Xla(conv, kernel, name) for name in _XLA})
    runs["dense"] = Xla(conv, kernel, None)
    rows, seen = [], set()
    for share in shares:
        frames, activity = frames_of(conv, share, rng)
        if activity in seen:
            continue
        seen.add(activity)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for t in range(repeats + 2):
            for name, run in runs.items():
                times[name].append(run(frames[t % 2]) * 1e3)
        row: dict[str, Any] = {"shape": label(conv), "calls": calls, "activity": activity}
        row.update(mmac=conv.macs / 1e6, state_kb=runs["native"].state_bytes() / 1e3)  # type: ignore[attr-defined]
        for name, values in times.items():
            row[name] = [float(v) for v in np.percentile(values[2:], [50, 10, 90])]
        rows.append(row)
    return rows


def label(conv: Conv) -> str:
    """Kernel, stride, channels and output side."""
    k, s = conv.window[0], conv.strides[0]
    side = conv.out_spatial[0]
    return f"{k}x{k}/{s} {conv.in_channels}->{conv.out_channels} @{side}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; `median (10-90 %)` of the native engine, medians of the others."""
    header = [
        "layer", "calls", "MMAC", "state kB", "fired", "native ms (10-90 %)", "blocks ms",
        "reference ms", "XLA dense ms", "native, of dense",
    ]  # fmt: skip
    cells = []
    for r in rows:
        mid, low, high = r["native"]
        cells.append([
            r["shape"], f"{r['calls']}", f"{r['mmac']:.1f}", f"{r['state_kb']:.0f}",
            f"{r['activity']:.0%}", f"{mid:.3f} ({low:.3f}-{high:.3f})", f"{r['blocks'][0]:.3f}",
            f"{r['reference'][0]:.3f}", f"{r['dense'][0]:.3f}", f"{mid / r['dense'][0]:.2f}",
        ])  # fmt: skip
    return markdown(header, cells)


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Milliseconds of all layers at each of `SHARES`, interpolated where a grid is too coarse."""
    curves = {name: np.zeros(len(SHARES)) for name in ("native", *_XLA, "dense", "ideal")}
    for shape in dict.fromkeys(r["shape"] for r in rows):
        mine = [r for r in rows if r["shape"] == shape]
        activity, calls = [r["activity"] for r in mine], mine[0]["calls"]
        for name in ("native", *_XLA, "dense"):
            curves[name] += calls * np.interp(SHARES, activity, [r[name][0] for r in mine])
        full = mine[-1]
        best = min(full["dense"][0], full["native"][0])
        curves["ideal"] += calls * best * np.asarray(SHARES)
    return {name: [float(v) for v in values] for name, values in curves.items()}


def chart(curves: dict[str, list[float]], path: Path) -> None:
    """Line chart of time against activity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, values in curves.items():
        style = {"ideal": "k:", "dense": "--"}.get(name, "o-")
        axis.plot([100 * s for s in SHARES], values, style, label=name)
    axis.set_xlabel("blocks that fire, %")
    axis.set_ylabel("ms, all 293 convolutions of HRNet-w32")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.legend()
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def main() -> None:
    """Parses arguments, measures, prints, writes JSON and chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=int, help="only so many shapes, the most expensive first")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for conv, calls in shapes(args.size)[: args.limit]:
        rows += measure(conv, calls, args.repeats, SHARES)
    curves = totals(rows)
    print(table(rows), "\n")
    sums = [[name, *(f"{v:.2f}" for v in values)] for name, values in curves.items()]
    print(markdown(["all layers, ms", *(f"{s:.1%}" for s in SHARES)], sums))
    if args.json:
        whole_files.write_text(
            args.json, json.dumps({"rows": rows, "totals": curves}, indent=1) + "\n"
        )
    if args.chart:
        chart(curves, args.chart)


if __name__ == "__main__":
    main()
