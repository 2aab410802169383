"""Skipping under a moving camera, with and without warped residuals, compared at equal error.

    python -m benchmarks.warp --checkpoint runs/demo/dense --jhmdb ../shared/data/jhmdb \\
        --video ../shared/data/video/dashcam_moving.mp4

Sources: a synthetic figure under a camera that pans at several speeds, a clip of a JHMDB folder,
videos; one stream of a batch each. Every way is run at a sweep of thresholds, so that curves of
error against MACs are compared and not single points. Without a warp the motion is zero, which is
the same state, bit by bit.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from benchmarks.policy_data import Clip, arguments, network, save, video
from skipconv_jax import macs, skip, whole_files
from skipconv_jax.data.clips import mask_boxes
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.synthetic_pose import Scene, render_clip
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.tasks.pose import Pck
from skipconv_jax.viz.tables import markdown
from skipconv_jax.warp import (
    Carried,
    Flow,
    Motion,
    Translation,
    Warp,
    dis_flow,
    phase_correlation,
    phase_correlation_macs,
    tracked_homography,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SPEEDS = (1, 2, 4, 8)
_ERRORS = (0.02, 0.05, 0.1, 0.2)


def _still(previous: Any, current: Any) -> Translation:
    del current
    return Translation(jnp.zeros((len(previous), 2), jnp.float32))


def _whole(previous: Any, current: Any) -> Translation:
    return phase_correlation(previous, current).rounded()


# Policy, estimator, and whether strides carry the remainder of a translation over.
_WAYS: dict[str, tuple[str, Callable[[Any, Any], Motion], bool]] = {
    "closed_loop": ("closed_loop", _still, False),
    "accumulate": ("accumulate", _still, False),
    "carried": ("accumulate", phase_correlation, True),
    "translation": ("accumulate", _whole, False),
    "homography": ("accumulate", tracked_homography, False),
    "flow": ("accumulate", dis_flow, False),
}


def _as_flow(motion: Motion, size: tuple[int, int]) -> Flow:
    """Any motion as a field, so that one compiled step serves all."""
    rows, columns = (np.arange(n, dtype=np.float32) for n in size)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return Flow(motion.source(size, size) - jnp.asarray(grid)[None])


def pan(size: tuple[int, int], speed: int, frames: int, seed: int = 3) -> Clip:
    """A synthetic figure that moves, seen by a camera that moves `speed` pixels a frame.

    The camera turns before it loses the figure; whoever leaves the window does not count.
    """
    height, width = size
    scene = Scene(height=height, width=3 * width, frames=frames, distractors=0, noise=2.0, pan=0.0)
    world = render_clip(scene, seed, 0)
    room = width // 2
    centre = int(np.clip(world.joints[..., 0].mean(), width, 2 * width))
    path = [abs((speed * t + room // 2) % (2 * room) - room) for t in range(frames)]
    left = centre - width // 2 - room // 2 + np.asarray(path)
    cut = [slice(at, at + width) for at in left]
    images = np.stack([image[:, at] for image, at in zip(world.frames, cut, strict=True)])
    joints = world.joints - np.stack([left, np.zeros_like(left)], axis=-1)[:, None]
    seen = ((joints >= 0) & (joints < np.array([width, height]))).all(axis=-1)
    boxes = mask_boxes(world.masks)
    labels = {
        "joints": joints,
        "visible": seen,
        "size": np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]),
    }
    return Clip(images[:, None], {key: value[:, None] for key, value in labels.items()})


def _make_step(experiment: Any, variables: Any, net: Any, frame: Any, warped: bool) -> Any:
    counts = net.table(variables, frame)
    warp = Warp.make(net, variables, frame) if warped else None

    @jax.jit
    def step(state: Any, threshold: jax.Array, x: jax.Array, motion: Any) -> Any:
        gates = {row.name: {"threshold": threshold} for row in counts.skipped()}
        cost = jnp.zeros((), jnp.float32)
        if warp is not None:
            state, cost = warp(state, motion), warp.macs(motion)
        y, state = net.apply({"model": variables, "gates": gates}, state, x)
        dense = experiment.predict(variables, x)
        error, size = (jnp.square(h).sum(axis=(1, 2, 3)) for h in (y - dense, dense))
        joints, theirs = (experiment.task.predict(h)[0] for h in (y, dense))
        near = jnp.linalg.norm(joints - theirs, axis=-1) <= 0.05 * max(experiment.size)
        agree = near.astype(jnp.float32).mean(axis=1)
        spent = macs.spent_total(counts, state)
        return state, (error, size, agree, spent, jnp.broadcast_to(cost, spent.shape), joints)

    return step


def _run(step: Any, state: Any, threshold: float, clip: np.ndarray, way: str) -> list[np.ndarray]:
    """Figures `(T - 1, B, ...)`, the reference frame left out."""
    _, estimate, carries = _WAYS[way]
    size, seen, path = clip.shape[2:4], [], Carried.start(clip.shape[1])
    for t, x in enumerate(clip):
        moved = estimate(clip[max(t - 1, 0)], x)
        if carries and isinstance(moved, Translation):
            motion: Motion = (path := path.moved(moved))
        else:
            motion = _as_flow(moved, size)
        state, figures = step(state, jnp.float32(threshold), x, motion)
        seen.append(jax.device_get(figures))
    return [np.stack(part)[1:].astype(np.float64) for part in zip(*seen, strict=True)]


def _sources(args: Any, experiment: Any) -> dict[str, Clip]:
    size, frames = experiment.size, args.frames
    sources = {f"pan, {v} px a frame": pan(size, v, frames) for v in _SPEEDS}
    if args.jhmdb:
        found = JhmdbFolder(args.jhmdb)
        clips, _ = found.clips(found.names()[:1])
        piece = next(experiment.test_batches(clips, frames))
        shown = {key: np.swapaxes(np.asarray(value)[:1], 0, 1) for key, value in piece.items()}
        sources["JHMDB clip"] = Clip(shown.pop("frames"), shown)
    for path in args.video:
        sources[path.stem] = video(path, size, frames)
    return sources


def _pck(clip: Clip, joints: np.ndarray) -> float | None:
    if clip.labels is None:
        return None
    pck, part = Pck(), {key: value[1:] for key, value in clip.labels.items()}
    counted = part["visible"] & part.get("valid", np.ones(1, bool))[..., None]
    pck.update(joints, part["joints"], part["size"], counted, part.get("scale", 1.0))
    return pck.result()["mean15"]


def main() -> None:
    """Prints and writes the table, its figures and the plot."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--jhmdb", type=Path)
    parser.add_argument("--video", type=Path, nargs="*", default=[])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--ways", nargs="*", default=list(_WAYS), choices=_WAYS)
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint)
    sources = _sources(args, experiment)
    clip = np.concatenate([source.frames for source in sources.values()], axis=1)
    points: list[dict[str, Any]] = []
    steps: dict[Any, Any] = {}
    for way in args.ways:
        policy, _, carries = _WAYS[way]
        net = skip(
            experiment.predict,
            gate=InputNormGate(block=args.block),
            policy=POLICIES[policy](),
            implementation="dense",
        )
        key = policy, carries
        if key not in steps:
            warped = policy != "closed_loop"
            steps[key] = _make_step(experiment, variables, net, clip[0], warped)
        dense = net.table(variables, clip[0]).macs
        start = jax.jit(lambda net=net: net.init(variables, clip[0])[1])
        own = phase_correlation_macs(*experiment.size) if way in ("carried", "translation") else 0.0
        for threshold in args.thresholds:
            figures = _run(steps[key], start(), threshold, clip, way)
            error, size, agree, spent, cost, joints = figures
            for i, (source, labels) in enumerate(sources.items()):
                points.append(
                    {
                        "source": source,
                        "way": way,
                        "threshold": threshold,
                        "macs": float((spent[:, i].mean() + cost[:, i].mean() + own) / dense),
                        "warp": float((cost[:, i].mean() + own) / dense),
                        "error": float(np.sqrt(error[:, i].sum() / size[:, i].sum())),
                        "agreement": float(agree[:, i].mean()),
                        "pck": _pck(labels, joints[:, i : i + 1]),
                    }
                )
            print(way, threshold, flush=True)
    save(args.out, "warp", _tables(points), points)
    _plot(points, args.out / "warp.png")


def macs_at(points: list[dict[str, Any]], error: float) -> float:
    """Share of MACs at which a curve reaches an error (log error, linear between points)."""
    ordered = sorted(points, key=lambda p: p["error"])
    errors = [p["error"] for p in ordered]
    if not errors[0] <= error <= errors[-1]:
        return math.nan
    return float(np.interp(np.log(error), np.log(errors), [p["macs"] for p in ordered]))


def _curves(points: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for p in points:
        found.setdefault(p["source"], {}).setdefault(p["way"], []).append(p)
    return found


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _tables(points: list[dict[str, Any]]) -> str:
    rows = [
        [source, way, *(_percent(macs_at(curve, error)) for error in _ERRORS)]
        for source, ways in _curves(points).items()
        for way, curve in ways.items()
    ]
    header = ["source", "way", *(f"MACs at error {error:g}" for error in _ERRORS)]
    whole = [
        [p["source"], p["way"], f"{p['threshold']:g}", _percent(p["macs"]), _percent(p["warp"]),
         f"{p['error']:.3f}", _percent(p["agreement"]), _percent(p["pck"])]
        for p in points
    ]  # fmt: skip
    columns = [
        "source",
        "way",
        "threshold",
        "MACs",
        "of the warp",
        "error",
        "joints agree",
        "PCK@.2",
    ]
    return markdown(header, rows) + "\n\n" + markdown(columns, whole)


def _plot(points: list[dict[str, Any]], path: Path) -> None:
    curves = _curves(points)
    columns = 3
    shape = -(-len(curves) // columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(4 * columns, 3.2 * shape[0]), layout="constrained", squeeze=False
    )
    for panel, (source, ways) in zip(axes.flat, curves.items(), strict=False):
        for way, curve in ways.items():
            ordered = sorted(curve, key=lambda p: p["macs"])
            style = "o--" if way in ("closed_loop", "accumulate") else "o-"
            panel.plot(
                [100 * p["macs"] for p in ordered], [p["error"] for p in ordered], style,
                label=way, markersize=4,
            )  # fmt: skip
        panel.set(title=source, yscale="log", xlabel="MACs, % of dense", ylabel="relative error")
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(curves) :]:
        panel.set_axis_off()
    axes.flat[0].legend(fontsize=8)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)


if __name__ == "__main__":
    main()
