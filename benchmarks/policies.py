"""Policies over 8, 64 and 512 frames, with and without reset: accuracy and error against MACs.

    python -m benchmarks.policies --checkpoint runs/demo/dense --data data/synthetic_long \
        --video ../shared/data/video/one-by-one-person-detection.mp4

Every source is one stream of a batch. One run without reset gives all horizons: its first 8, 64 and
512 frames.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.policy_data import Clip, arguments, labelled, network, save, table, video
from skipconv_jax import macs, skip
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.tasks.pose import Pck

_HORIZONS = (8, 64, 512)
_PIECE = 32


def _runner(net: Any, experiment: Any, variables: Any, frame: Any) -> Any:
    """Jitted piece: state, threshold, frames and reset flags to scalars per frame and stream."""
    counts = net.table(variables, frame)

    def step(state: Any, threshold: jax.Array, x: jax.Array, flag: jax.Array) -> Any:
        gates = {row.name: {"threshold": threshold} for row in counts.skipped()}
        state = net.reset(state, jnp.broadcast_to(flag, x.shape[:1]))
        y, state = net.apply({"model": variables, "gates": gates}, state, x)
        dense = experiment.predict(variables, x)
        error = jnp.square(y - dense).sum(axis=(1, 2, 3))
        size = jnp.square(dense).sum(axis=(1, 2, 3))
        joints, theirs = (experiment.task.predict(h)[0] for h in (y, dense))
        near = jnp.linalg.norm(joints - theirs, axis=-1) <= 0.05 * max(experiment.size)
        agree = near.astype(jnp.float32).mean(axis=1)
        return state, (error, size, agree, joints, macs.spent_total(counts, state))

    def piece(state: Any, threshold: jax.Array, frames: jax.Array, flags: jax.Array) -> Any:
        return jax.lax.scan(lambda s, xs: step(s, threshold, *xs), state, (frames, flags))

    return jax.jit(piece, donate_argnums=0), counts


def _run(piece: Any, state: Any, threshold: float, frames: np.ndarray, reset: int) -> list[Any]:
    found = []
    for start in range(0, len(frames), _PIECE):
        times = np.arange(start, start + _PIECE)
        flags = jnp.asarray((times % reset == 0) if reset else np.zeros(_PIECE, bool))
        state, seen = piece(state, jnp.float32(threshold), frames[start : start + _PIECE], flags)
        found.append(jax.device_get(seen))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _pck(clip: Clip, joints: np.ndarray, horizon: int) -> float:
    labels, pck = clip.labels or {}, Pck()
    part = {key: value[:horizon] for key, value in labels.items()}
    counted = part["visible"] & part["valid"][..., None]
    pck.update(joints[:horizon], part["joints"], part["size"], counted, part["scale"])
    return pck.result()["mean15"]


def main() -> None:
    """Prints and writes the table and its figures."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--video", type=Path, nargs="*", default=[])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.05, 0.15])
    parser.add_argument("--reset", type=int, default=8)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--policies", nargs="*", default=sorted(POLICIES))
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint)
    length = max(_HORIZONS)
    clip = labelled(experiment, args.data, length, 1)
    sources = {"synthetic pose": clip.frames}
    for path in args.video:
        frames = video(path, experiment.size, length).frames
        # A video that ends early turns round, so that nothing jumps.
        turns = np.pad(frames, ((0, length - len(frames)), *((0, 0),) * 4), mode="reflect")
        sources[path.stem] = turns
    batch = np.concatenate(list(sources.values()), axis=1)
    points: list[dict[str, Any]] = []
    for name in args.policies:
        net = skip(
            experiment.predict,
            gate=InputNormGate(block=args.block),
            policy=POLICIES[name](),
            implementation="reference",
        )
        piece, counts = _runner(net, experiment, variables, batch[0])
        start = jax.jit(lambda net=net: net.init(variables, batch[0])[1])
        runs = [(t, 0) for t in args.thresholds] + [(args.thresholds[-1], args.reset)]
        for threshold, reset in runs:
            error, size, agree, joints, spent = _run(piece, start(), threshold, batch, reset)
            for i, source in enumerate(sources):
                for horizon in _HORIZONS:
                    pck = _pck(clip, joints[:, i : i + 1], horizon) if i == 0 else None
                    points.append(
                        {
                            "source": source,
                            "policy": name,
                            "threshold": threshold,
                            "reset": reset,
                            "frames": horizon,
                            "macs": float(spent[:horizon, i].mean() / counts.macs),
                            "error": float(
                                np.sqrt(error[:horizon, i].sum() / size[:horizon, i].sum())
                            ),
                            "last": float(
                                np.sqrt(error[horizon - 1, i] / max(size[horizon - 1, i], 1e-12))
                            ),
                            "agreement": float(agree[:horizon, i].mean()),
                            "pck": pck,
                        }
                    )
            print(name, threshold, reset, points[-1], flush=True)
            save(args.out, "policies_frames", _tables(points, sources), points)


def _cell(point: dict[str, Any]) -> str:
    quality = point["agreement"] if point["pck"] is None else point["pck"]
    return f"{100 * point['macs']:.1f} % / {point['error']:.3f} / {100 * quality:.1f}"


def _tables(points: list[dict[str, Any]], sources: Any) -> str:
    parts = []
    for source in sources:
        rows = []
        ours = [p for p in points if p["source"] == source]
        for key in sorted({(p["threshold"], p["reset"], p["policy"]) for p in ours}):
            some = {
                p["frames"]: p for p in ours if (p["threshold"], p["reset"], p["policy"]) == key
            }
            cells = [_cell(some[horizon]) for horizon in _HORIZONS]
            rows.append([f"{key[0]:g}", str(key[1] or "never"), f"`{key[2]}`", *cells])
        header = ["threshold", "reset", "policy", *(f"{h} frames" for h in _HORIZONS)]
        quality = "PCK@.2" if ours and ours[0]["pck"] is not None else "joints agreeing with dense"
        parts.append(
            f"### {source}\n\nMACs / relative output error / {quality}\n\n" + table(header, rows)
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
