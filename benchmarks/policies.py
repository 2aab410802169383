"""Policies over 8, 64 and 512 frames, with and without reset: accuracy and error against MACs.

    python -m benchmarks.policies --checkpoint runs/demo/dense --data data/synthetic_long \\
        --video ../shared/data/video/one-by-one-person-detection.mp4
    python -m benchmarks.policies --config configs/efficientdet_synthetic.py \\
        --checkpoint runs/efficientdet_synthetic/dense --name traffic \\
        --video ../shared/data/video/car-detection.mp4

Every source is one stream of a batch. One run without reset gives all horizons: its first 8, 64 and
512 frames. Labelled clips are scored by their labels, videos by the dense network's answers.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from benchmarks.policy_data import (
    Clip,
    arguments,
    headline,
    labelled,
    left_dense,
    network,
    quality,
    relative,
    save,
    squares,
    video,
)
from skipconv_jax import macs, skip, whole_files
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.viz.tables import markdown

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_HORIZONS = (8, 64, 512)
_PIECE = 8


def _runner(net: Any, experiment: Any, variables: Any, frame: Any) -> Any:
    """Jitted piece: state, threshold, frames and reset flags to figures per frame and stream."""
    counts = net.table(variables, frame)

    def step(variables: Any, state: Any, threshold: jax.Array, x: Any, flag: jax.Array) -> Any:
        gates = {row.name: {"threshold": threshold} for row in counts.skipped()}
        state = net.reset(state, jnp.broadcast_to(flag, x.shape[:1]))
        y, state = net.apply({"model": variables, "gates": gates}, state, x)
        dense = experiment.predict(variables, x)
        error, size = squares(jax.tree.map(jnp.subtract, y, dense)), squares(dense)
        read = experiment.read(y), experiment.read(dense)
        return state, (error, size, macs.spent_total(counts, state), read)

    def piece(variables: Any, state: Any, threshold: jax.Array, frames: Any, flags: Any) -> Any:
        one = lambda s, xs: step(variables, s, threshold, *xs)  # noqa: E731
        return jax.lax.scan(one, state, (frames, flags))

    # Weights are arguments: as constants they would be folded at length.
    return functools.partial(jax.jit(piece, donate_argnums=1), variables), counts


def _run(piece: Any, state: Any, threshold: float, frames: np.ndarray, reset: int) -> Any:
    found = []
    for start in range(0, len(frames), _PIECE):
        times = np.arange(start, start + _PIECE)
        flags = jnp.asarray((times % reset == 0) if reset else np.zeros(_PIECE, bool))
        state, seen = piece(state, jnp.float32(threshold), frames[start : start + _PIECE], flags)
        found.append(jax.device_get(seen))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _sources(args: Any, experiment: Any, length: int) -> dict[str, Clip]:
    """Clips that end early turn round, so that nothing jumps."""

    def turned(a: np.ndarray) -> np.ndarray:
        back = [(0, length - len(a)), *((0, 0),) * (a.ndim - 1)]
        return np.pad(a, back, mode="reflect")

    clips = {experiment.config.task: labelled(experiment, args.part, length, 1)}
    for path in args.video:
        clips[path.stem] = video(path, experiment.size, length)
    return {name: Clip(*jax.tree.map(turned, tuple(clip))) for name, clip in clips.items()}


def _points(
    experiment: Any, figures: Any, sources: dict[str, Clip], dense: int, horizons: Any, **said: Any
) -> list[dict[str, Any]]:
    error, size, spent, (seen, theirs) = figures
    points = []
    for i, (source, clip) in enumerate(sources.items()):
        for horizon in horizons:
            part = lambda tree, i=i, n=horizon: jax.tree.map(lambda a: a[:n, i : i + 1], tree)  # noqa: E731
            labels = clip.labels and {key: value[:horizon] for key, value in clip.labels.items()}
            points.append(
                {
                    "source": source,
                    **said,
                    "frames": horizon,
                    "macs": float(spent[:horizon, i].mean() / dense),
                    "error": relative(error[:horizon, i], size[:horizon, i]),
                    "last": relative(error[horizon - 1, i], size[horizon - 1, i]),
                    "quality": quality(experiment, part(seen), part(theirs), labels),
                    "dense": quality(experiment, part(theirs), part(theirs), labels),
                    "labelled": labels is not None,
                }
            )
    return points


def main() -> None:
    """Prints and writes the table, its figures and the plot."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, default=None, help="default: the config's")
    parser.add_argument("--part", default="test", choices=["train", "test"])
    parser.add_argument("--name", default="frames", help="of the files: policies_<name>")
    parser.add_argument("--video", type=Path, nargs="*", default=[])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.05, 0.15])
    parser.add_argument("--reset", type=int, default=8)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--frames", type=int, default=max(_HORIZONS), help="the longest horizon")
    parser.add_argument("--policies", nargs="*", default=sorted(POLICIES))
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint, args.data)
    horizons = tuple(h for h in _HORIZONS if h <= args.frames)
    sources = _sources(args, experiment, max(horizons))
    batch = np.concatenate([clip.frames for clip in sources.values()], axis=1)
    points: list[dict[str, Any]] = []
    for name in args.policies:
        net = skip(
            experiment.predict,
            left_dense(experiment),
            gate=InputNormGate(block=args.block),
            policy=POLICIES[name](),
            implementation="dense",
        )
        piece, counts = _runner(net, experiment, variables, batch[0])
        start = jax.jit(lambda net=net: net.init(variables, batch[0])[1])
        runs = [(t, 0) for t in args.thresholds] + [(args.thresholds[-1], args.reset)]
        for threshold, reset in runs:
            figures = _run(piece, start(), threshold, batch, reset)
            said = {"policy": name, "threshold": threshold, "reset": reset}
            points += _points(experiment, figures, sources, counts.macs, horizons, **said)
            print(name, threshold, reset, points[-1], flush=True)
    save(args.out, f"policies_{args.name}", _tables(points, headline(experiment)), points)
    _plot(points, headline(experiment), args.out / f"policies_{args.name}.png")


def _cell(point: dict[str, Any]) -> str:
    return f"{100 * point['macs']:.1f} % / {point['error']:.3f} / {100 * point['quality']:.1f}"


def _tables(points: list[dict[str, Any]], figure: str) -> str:
    parts = []
    for source in dict.fromkeys(p["source"] for p in points):
        rows = []
        ours = [p for p in points if p["source"] == source]
        horizons = sorted({p["frames"] for p in ours})
        for key in sorted({(p["threshold"], p["reset"], p["policy"]) for p in ours}):
            some = {
                p["frames"]: p for p in ours if (p["threshold"], p["reset"], p["policy"]) == key
            }
            cells = [_cell(some[horizon]) for horizon in horizons]
            rows.append([f"{key[0]:g}", str(key[1] or "never"), f"`{key[2]}`", *cells])
        header = ["threshold", "reset", "policy", *(f"{h} frames" for h in horizons)]
        dense = ", ".join(f"{100 * p['dense']:.1f}" for p in ours[: len(horizons)])
        scored = (
            f"{figure} (dense {dense})"
            if ours[0]["labelled"]
            else f"{figure} against the dense network's answers"
        )
        parts.append(
            f"### {source}\n\nMACs / relative output error / {scored}\n\n" + markdown(header, rows)
        )
    return "\n\n".join(parts)


def _plot(points: list[dict[str, Any]], figure: str, path: Path) -> None:
    """Error, quality and MACs over the frames so far, at the largest threshold."""
    largest = max(p["threshold"] for p in points)
    sources = list(dict.fromkeys(p["source"] for p in points))
    shown, axes = plt.subplots(
        3, len(sources), figsize=(3.6 * len(sources), 7.5), layout="constrained", squeeze=False
    )
    for column, source in enumerate(sources):
        some = [p for p in points if p["source"] == source and p["threshold"] == largest]
        for policy in sorted({p["policy"] for p in some}):
            for reset, style in ((0, "o-"), (max(p["reset"] for p in some), "o--")):
                line = [p for p in some if (p["policy"], p["reset"]) == (policy, reset)]
                name = policy if not reset else f"{policy}, reset every {reset}"
                for row, key, scale in ((0, "error", 1), (1, "quality", 100), (2, "macs", 100)):
                    axes[row, column].plot(
                        [p["frames"] for p in line],
                        [scale * p[key] for p in line],
                        style,
                        color=f"C{sorted(POLICIES).index(policy)}",
                        markersize=3,
                        label=name,
                    )
        axes[0, column].set(title=source, xscale="log", yscale="log", ylabel="relative error")
        axes[1, column].set(xscale="log", ylabel=figure)
        axes[2, column].set(xscale="log", xlabel="frames", ylabel="MACs, % of dense")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[1, 0].legend(fontsize=7)
    with whole_files.writing(path) as partial:
        shown.savefig(partial, dpi=110)


if __name__ == "__main__":
    main()
