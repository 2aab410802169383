"""Skipping under a moving camera, with and without warped residuals: MACs and output error.

    python -m benchmarks.warp --checkpoint runs/demo/dense --jhmdb ../shared/data/jhmdb \\
        --video ../shared/data/video/dashcam_moving.mp4

Sources: a scene panned at several speeds, a clip of a JHMDB folder, videos; one stream of a batch
each. All runs have the same thresholds. Without a warp the motion is zero, which is the same state,
bit by bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.policy_data import arguments, labelled, network, save, table, video
from skipconv_jax import macs, skip
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.warp import (
    Flow,
    Motion,
    Translation,
    Warp,
    dis_flow,
    phase_correlation,
    phase_correlation_macs,
    tracked_homography,
)

_SPEEDS = (1, 2, 4, 8)


def _still(previous: Any, current: Any) -> Motion:
    del current
    return Translation(jnp.zeros((len(previous), 2), jnp.float32))


def _whole(previous: Any, current: Any) -> Motion:
    return phase_correlation(previous, current).rounded()


_ESTIMATORS: dict[str, Callable[[Any, Any], Motion]] = {
    "none": _still,
    "translation": _whole,
    "homography": tracked_homography,
    "flow": dis_flow,
}


def _as_flow(motion: Motion, size: tuple[int, int]) -> Flow:
    """Any motion as a field, so that one compiled step serves all."""
    rows, columns = (np.arange(n, dtype=np.float32) for n in size)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return Flow(motion.source(size, size) - jnp.asarray(grid)[None])


def pan(picture: np.ndarray, size: tuple[int, int], speed: int, frames: int) -> np.ndarray:
    """`(T, 1, H, W, 3)`: a window that moves `speed` pixels a frame, turning at the edge."""
    height, width = size
    room = picture.shape[1] - width
    places = [abs((speed * t + room) % (2 * room) - room) for t in range(frames)]
    return np.stack([picture[:height, at : at + width] for at in places])[:, None]


def _make_step(experiment: Any, variables: Any, net: Any, frame: Any) -> tuple[Any, Any]:
    counts, warp = net.table(variables, frame), Warp.make(net, variables, frame)

    @jax.jit
    def step(state: Any, threshold: jax.Array, x: jax.Array, motion: Flow) -> Any:
        gates = {row.name: {"threshold": threshold} for row in counts.skipped()}
        state, cost = warp(state, motion), warp.macs(motion)
        y, state = net.apply({"model": variables, "gates": gates}, state, x)
        dense = experiment.predict(variables, x)
        error, size = (jnp.square(h).sum(axis=(1, 2, 3)) for h in (y - dense, dense))
        joints, theirs = (experiment.task.predict(h)[0] for h in (y, dense))
        near = jnp.linalg.norm(joints - theirs, axis=-1) <= 0.05 * max(experiment.size)
        agree = near.astype(jnp.float32).mean(axis=1)
        return state, (error, size, agree, macs.spent_total(counts, state), cost)

    return step, counts


def _run(
    step: Any, state: Any, threshold: float, clip: np.ndarray, estimate: Any
) -> list[np.ndarray]:
    """Figures `(T - 1, B)`, the reference frame left out."""
    size, seen = clip.shape[2:4], []
    for t, x in enumerate(clip):
        motion = _as_flow(estimate(clip[max(t - 1, 0)], x), size)
        state, figures = step(state, jnp.float32(threshold), x, motion)
        seen.append(jax.device_get(figures))
    return [np.stack(part)[1:].astype(np.float64) for part in zip(*seen, strict=True)]


def _sources(args: Any, experiment: Any) -> dict[str, np.ndarray]:
    size, frames = experiment.size, args.frames
    sources: dict[str, np.ndarray] = {}
    if args.video:
        picture = video(args.video[0], (size[0], 2 * size[1]), 1).frames[0, 0]
        picture = cv2.GaussianBlur(picture, (3, 3), 0)
        sources = {f"pan, {v} px a frame": pan(picture, size, v, frames) for v in _SPEEDS}
    if args.jhmdb:
        sources["JHMDB clip"] = labelled(experiment, args.jhmdb, frames, 1).frames
    for path in args.video:
        sources[path.stem] = video(path, size, frames).frames
    return sources


def main() -> None:
    """Prints and writes the table and its figures."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--jhmdb", type=Path)
    parser.add_argument("--video", type=Path, nargs="*", default=[])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.05, 0.15])
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--policies", nargs="*", default=["accumulate", "previous"])
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint)
    sources = _sources(args, experiment)
    clip = np.concatenate(list(sources.values()), axis=1)
    points: list[dict[str, Any]] = []
    for policy in args.policies:
        net = skip(
            experiment.predict,
            gate=InputNormGate(block=args.block),
            policy=POLICIES[policy](),
            implementation="reference",
        )
        step, counts = _make_step(experiment, variables, net, clip[0])
        runs = [(t, *way) for t in args.thresholds for way in _ESTIMATORS.items()]
        for threshold, how, estimate in runs:
            state = jax.jit(lambda net=net: net.init(variables, clip[0])[1])()
            error, size, agree, spent, cost = _run(step, state, threshold, clip, estimate)
            own = phase_correlation_macs(*experiment.size) if how == "translation" else 0.0
            for i, source in enumerate(sources):
                points.append(
                    {
                        "source": source,
                        "policy": policy,
                        "threshold": threshold,
                        "warp by": how,
                        "macs": float(spent[:, i].mean() / counts.macs),
                        "warp": float((cost[:, i].mean() + own) / counts.macs),
                        "error": float(np.sqrt(error[:, i].sum() / size[:, i].sum())),
                        "agreement": float(agree[:, i].mean()),
                    }
                )
            save(args.out, "warp", _table(points), points)


def _table(points: list[dict[str, Any]]) -> str:
    rows = [
        [
            p["source"],
            f"`{p['policy']}`",
            f"{p['threshold']:g}",
            p["warp by"],
            f"{100 * p['macs']:.1f} %",
            f"{100 * p['warp']:.1f} %",
            f"{p['error']:.3f}",
            f"{100 * p['agreement']:.1f}",
        ]
        for p in sorted(points, key=lambda p: (p["source"], p["policy"], p["threshold"]))
    ]
    header = [
        "source",
        "policy",
        "threshold",
        "warp by",
        "MACs",
        "of the warp",
        "error",
        "joints agree, %",
    ]
    return table(header, rows)


if __name__ == "__main__":
    main()
