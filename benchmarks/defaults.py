"""Which policy, threshold and block are safe by default: two real detectors on real videos.

    python -m benchmarks.defaults --models ../shared/models --videos ../shared/data/video

Every setting runs over the same frames without a reset. Its detections are scored against those of
the dense network (AP of the skipped detections against the dense ones that are sure: a score of 0.3
for YOLOX, 0.65 for FastestDet), beside the reduction of multiply-accumulates; nothing is timed.
Thresholds are absolute, one number for all layers, or relative: that number times a layer's own
mean |input| on the first frame. Each finished setting is kept in `--work`, so that a run goes on
where it was stopped; the page and its picture are `--out`.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from skipconv_jax import macs, skip, whole_files
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.program.walk import Site, Visitor, evaluate
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import (
    GivenExperiment,
    configuration,
    from_onnx,
    given,
)
from skipconv_jax.viz.tables import markdown

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NETWORKS = {"FastestDet": "fastestdet", "yolox_nano": "yolox"}
VIDEOS = {"one-by-one-person-detection": 380, "car-detection": 0}
"""Names, and the first frame: there somebody is on the scene."""
SETTINGS = (
    ("closed_loop", 4), ("previous", 4), ("closed_loop", 8), ("accumulate", 4), ("previous", 8),
    ("keyframe", 4),
)  # fmt: skip
ABSOLUTE = (1e-3, 3e-3, 1e-2, 3e-2)
RELATIVE = (0.005, 0.01, 0.02, 0.05)


@dataclasses.dataclass(frozen=True)
class Row:
    """One network on one video under one setting."""

    network: str
    video: str
    policy: str
    block: int
    kind: str
    threshold: float
    ap: float
    error: float
    reduction: float
    frames: int


def scales(experiment: GivenExperiment, frame: np.ndarray) -> dict[str, jax.Array]:
    """Mean |input| of every convolution on a frame."""

    class Look(Visitor):
        def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> None:
            self.made[site.name] = jnp.abs(x).mean()

    def run(variables: Any, x: Any) -> Any:
        look = Look()
        evaluate(experiment.predict, variables, x, (), look)
        return look.made

    found: dict[str, jax.Array] = jax.jit(run)(experiment.model.variables, frame)
    return found


def frames_of(experiment: GivenExperiment, path: Path, start: int, count: int) -> np.ndarray:
    """`(T, 1, H, W, 3)` frames as the network takes them."""
    view, images = experiment.view(None, 0.0), []
    for frame in Source(str(path)):
        if frame.index >= start and frame.image is not None:
            images.append(frame.image)
        if len(images) == count:
            break
    return view.inputs(images, view.affine(images[0]))[:, None]


class Sweep:
    """One network under one policy and block, all thresholds side by side."""

    def __init__(self, experiment: GivenExperiment, policy: str, block: int) -> None:
        self.experiment = experiment
        gate = InputNormGate(1e-2, block=block)
        net = skip(experiment.predict, gate=gate, policy=POLICIES[policy](), implementation="dense")
        self.table = net.table(experiment.model.variables, experiment.frame())
        self.params, self.state = net.init(experiment.model.variables, experiment.frame())

        def step(gates: Any, state: Any, x: Any) -> Any:
            y, state = net.apply({"model": experiment.model.variables, "gates": gates}, state, x)
            return state, (y, experiment.read(y), macs.spent_total(self.table, state))

        def frame(gates: Any, state: Any, x: Any) -> Any:
            y = experiment.predict(experiment.model.variables, x)
            state, (ys, read, spent) = jax.vmap(step, (0, 0, None))(gates, state, x)
            axes = tuple(range(1, ys.ndim))
            error = jnp.sqrt(((ys - y[None]) ** 2).sum(axes) / (y**2).sum())
            return state, (read, experiment.read(y), spent, error)

        self.frame = jax.jit(for_this_backend(frame), donate_argnums=1)

    def run(self, frames: np.ndarray, thresholds: Sequence[dict[str, jax.Array]]) -> Any:
        """(AP, error, reduction) per setting of thresholds."""
        names = list(self.params["gates"])
        gates = {n: {"threshold": jnp.stack([t[n] for t in thresholds])} for n in names}
        count = len(thresholds)
        state = jax.tree.map(lambda s: jnp.stack([s] * count), self.state)
        scorers = [self.experiment.scorer() for _ in range(count)]
        spent, error = np.zeros(count), np.zeros(count)
        for x in frames:
            state, seen = self.frame(gates, state, x)
            read, dense, cost, wrong = jax.device_get(seen)
            spent, error = spent + cost[:, 0], error + wrong
            truth = self.experiment.answers(jax.tree.map(lambda leaf: leaf[None], dense))
            for k, scorer in enumerate(scorers):
                scorer.update(jax.tree.map(lambda leaf, k=k: leaf[k][None], read), truth)
        total = self.table.macs * len(frames)
        return [
            (s.result()["ap"], float(e) / len(frames), float(total / c))
            for s, e, c in zip(scorers, error, spent, strict=True)
        ]


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Every setting not yet in `--work`."""
    known = {(r.network, r.policy, r.block) for r in load(options.work)}
    for policy, block in SETTINGS:
        for name, preset in NETWORKS.items():
            if (name, policy, block) in known:
                continue
            network = from_onnx(str(Path(options.models) / f"{name}.onnx"))
            experiment = given(network, "detection", preset, configuration(network))
            sweep = Sweep(experiment, policy, block)
            for video, start in VIDEOS.items():
                path = Path(options.videos) / f"{video}.mp4"
                frames = frames_of(experiment, path, start, options.frames)
                scale = scales(experiment, frames[0])
                one = dict.fromkeys(scale, jnp.float32(1.0))
                kinds = [("absolute", t, one) for t in ABSOLUTE]
                kinds += [("relative", t, scale) for t in RELATIVE]
                asked = [{n: t * s for n, s in of.items()} for _, t, of in kinds]
                for (kind, t, _), found in zip(kinds, sweep.run(frames, asked), strict=True):
                    ap, error, reduction = found
                    yield Row(
                        name, video, policy, block, kind, t, ap, error, reduction, len(frames)
                    )


def load(path: Path) -> list[Row]:
    """Rows that were measured before."""
    if not path.is_file():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def page(rows: Sequence[Row], out: Path) -> None:
    """The table and its picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, int, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.policy, row.block, row.kind, row.threshold), []).append(row)
    cases = sorted({(r.network, r.video) for r in rows})
    body = []
    for key, found in sorted(groups.items()):
        at = {(r.network, r.video): r for r in found}
        worst = min(r.ap for r in found)
        cells = [
            f"{100 * at[c].ap:.1f} at {at[c].reduction:.1f}x" if c in at else "" for c in cases
        ]
        body.append([key[0], str(key[1]), key[2], f"{key[3]:g}", f"{100 * worst:.1f}", *cells])
    header = ["policy", "block", "kind", "threshold", "worst", *(f"{n}, {v}" for n, v in cases)]
    frames = rows[0].frames
    text = (
        "# Safe defaults\n\n"
        f"{' '.join(str(__doc__).split(chr(10) * 2)[2].split())}\n\n"
        "    python -m benchmarks.defaults --models ../shared/models "
        "--videos ../shared/data/video\n\n"
        f"{frames} frames a video. Cells: AP agreement with the dense network, at the reduction of "
        f"multiply-accumulates.\n\n![AP agreement against MAC reduction](defaults.png)\n\n"
        + markdown(header, body, left=3)
    )
    whole_files.write_text(out.with_suffix(".md"), text + "\n")
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 4), squeeze=False)
    for axis, (network, video) in zip(axes[0], cases, strict=True):
        lines: dict[tuple[str, int, str], list[Row]] = {}
        for row in rows:
            if (row.network, row.video) == (network, video):
                lines.setdefault((row.policy, row.block, row.kind), []).append(row)
        for (policy, block, kind), found in sorted(lines.items()):
            found.sort(key=lambda r: r.threshold)
            axis.plot(
                [r.reduction for r in found], [100 * r.ap for r in found], marker=".",
                linestyle="-" if kind == "relative" else ":", label=f"{policy} {block} {kind}",
            )  # fmt: skip
        axis.set(title=f"{network}\n{video}", xlabel="MAC reduction", xscale="log")
    axes[0][0].set_ylabel("AP agreement with dense")
    axes[0][-1].legend(fontsize=6)
    figure.tight_layout()
    with whole_files.writing(out.with_suffix(".png")) as partial:
        figure.savefig(partial, dpi=110)


def main() -> None:
    """Measures what is missing, and writes the page after every network and setting."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", required=True)
    parser.add_argument("--videos", required=True)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("runs/defaults.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/defaults"))
    options = parser.parse_args()
    options.work.parent.mkdir(parents=True, exist_ok=True)
    for row in measure(options):
        with options.work.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        print(row, flush=True)
    page(load(options.work), options.out)


if __name__ == "__main__":
    main()
