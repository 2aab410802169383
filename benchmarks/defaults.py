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
from skipconv_jax.plans import compile_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.program.walk import Site, Visitor, evaluate
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import (
    GivenExperiment,
    configuration,
    from_onnx,
    given,
)
from skipconv_jax.transform import SAFE_GATE
from skipconv_jax.viz.tables import markdown

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NETWORKS = {"FastestDet": "fastestdet", "yolox_nano": "yolox"}
VIDEOS = {"one-by-one-person-detection": 380, "car-detection": 0}
"""Names, and the first frame: there somebody is on the scene."""
SETTINGS = (
    ("closed_loop", 8), ("closed_loop", 4), ("previous", 8), ("previous", 4), ("accumulate", 8),
    ("keyframe", 8),
)  # fmt: skip
ABSOLUTE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RELATIVE = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
# No kernel of the native engine: run by XLA, at fewer settings.
SLOW = ("keyframe",)


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
    ap50: float
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


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames, what the dense network says of them, and the scale of every layer's input."""

    video: str
    frames: np.ndarray
    outputs: list[np.ndarray]
    truth: list[Any]
    scale: dict[str, jax.Array]

    @classmethod
    def make(cls, experiment: GivenExperiment, path: Path, start: int, count: int) -> "Clip":
        """The dense network on `count` frames from `start` on."""
        frames = frames_of(experiment, path, start, count)
        variables = experiment.model.variables
        dense = jax.jit(for_this_backend(lambda x: experiment.predict(variables, x)))
        outputs = [np.asarray(dense(x)) for x in frames]
        read = jax.jit(experiment.read)
        truth = [
            experiment.answers(jax.tree.map(lambda leaf: np.asarray(leaf)[None], read(y)))
            for y in outputs
        ]
        return cls(path.stem, frames, outputs, truth, scales(experiment, frames[0]))


class Sweep:
    """One network under one policy and block; a threshold is a parameter of its plan."""

    def __init__(self, experiment: GivenExperiment, policy: str, block: int) -> None:
        self.experiment = experiment
        gate = InputNormGate(1e-2, block=block)
        net = skip(experiment.predict, gate=gate, policy=POLICIES[policy]())
        self.params, _ = net.init(experiment.model.variables, experiment.frame())
        self.plan = compile_plan(net, self.params, experiment.frame())
        self.read = jax.jit(experiment.read)

    def run(self, clip: Clip, thresholds: dict[str, jax.Array]) -> dict[str, float]:
        """AP, AP at an overlap of a half, error of the outputs, and reduction."""
        gates = {name: {"threshold": thresholds[name]} for name in self.params["gates"]}
        constants, state = self.plan.with_gates(gates), self.plan.init_state()
        scorer, spent, error = self.experiment.scorer(), 0.0, 0.0
        for x, wanted, truth in zip(clip.frames, clip.outputs, clip.truth, strict=True):
            y, state, masks = self.plan.step(state, x, constants)
            spent += float(macs.spent_total(self.plan.table, self.plan.fired(masks))[0])
            error += float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))
            scorer.update(jax.tree.map(lambda leaf: np.asarray(leaf)[None], self.read(y)), truth)
        found = scorer.result()
        count = len(clip.frames)
        reduction = self.plan.table.macs * count / spent
        return {
            "ap": found["ap"],
            "ap50": found["ap50"],
            "error": error / count,
            "reduction": reduction,
        }


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Every setting not yet in `--work`."""
    known = {(r.network, r.policy, r.block) for r in load(options.work)}
    for name, preset in NETWORKS.items():
        network = from_onnx(str(Path(options.models) / f"{name}.onnx"))
        experiment = given(network, "detection", preset, configuration(network))
        clips = [
            Clip.make(experiment, Path(options.videos) / f"{video}.mp4", start, options.frames)
            for video, start in VIDEOS.items()
        ]
        for policy, block in SETTINGS:
            if (name, policy, block) in known:
                continue
            sweep, every = Sweep(experiment, policy, block), 2 if policy in SLOW else 1
            rows = []
            for clip in clips:
                one = dict.fromkeys(clip.scale, jnp.float32(1.0))
                kinds = [("absolute", t, one) for t in ABSOLUTE[::every]]
                kinds += [("relative", t, clip.scale) for t in RELATIVE[::every]]
                for kind, t, of in kinds:
                    found = sweep.run(clip, {n: t * s for n, s in of.items()})
                    frames = len(clip.frames)
                    rows.append(
                        Row(name, clip.video, policy, block, kind, t, frames=frames, **found)
                    )
            # All of a setting at once: what is in the file is whole.
            yield from rows


def load(path: Path) -> list[Row]:
    """Rows that were measured before."""
    if not path.is_file():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def chosen(rows: Sequence[Row]) -> str:
    """What `skip(fn)` takes, and what it and the same gate under Eq. 3 did here."""
    gate, said = SAFE_GATE, []
    for policy in ("closed_loop", "previous"):
        setting = (policy, gate.block, "absolute", gate.threshold)
        found = [r for r in rows if (r.policy, r.block, r.kind, r.threshold) == setting]
        worst, gains = min(100 * r.ap for r in found), [f"{r.reduction:.2f}x" for r in found]
        said.append(f"under `{policy}` at least {worst:.1f} of AP at {', '.join(gains)}")
    return (
        f"`skip(fn)` takes thresholds of {gate.threshold:g} in blocks of {gate.block}: "
        + "; ".join(said)
        + ". More is to be had where the camera stands still: raise the threshold, and look where "
        "the curve falls."
    )


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
        "multiply-accumulates; empty where a setting was not run.\n\n"
        f"![AP agreement against MAC reduction](defaults.png)\n\n{chosen(rows)}\n\n"
        + markdown(header, body, left=3)
    )
    whole_files.write_text(out.with_suffix(".md"), text + "\n")
    chart(rows, cases, out.with_suffix(".png"))


def chart(rows: Sequence[Row], cases: Sequence[tuple[str, str]], out: Path) -> None:
    """A panel per network and video: a colour per policy and block, dots where thresholds are
    absolute."""
    settings = sorted({(r.policy, r.block) for r in rows})
    colours = {key: f"C{i}" for i, key in enumerate(settings)}
    figure, axes = plt.subplots(
        1, len(cases), figsize=(4 * len(cases), 4.4), squeeze=False, sharey=True
    )
    for axis, (network, video) in zip(axes[0], cases, strict=True):
        lines: dict[tuple[str, int, str], list[Row]] = {}
        for row in rows:
            if (row.network, row.video) == (network, video):
                lines.setdefault((row.policy, row.block, row.kind), []).append(row)
        for (policy, block, kind), found in sorted(lines.items()):
            found.sort(key=lambda r: r.threshold)
            axis.plot(
                [r.reduction for r in found], [100 * r.ap for r in found], marker=".",
                linestyle="-" if kind == "relative" else ":", color=colours[policy, block],
            )  # fmt: skip
        axis.set(title=f"{network}\n{video}", xlabel="MAC reduction", xscale="log", xlim=(1, 40))
        axis.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("AP agreement with dense")
    for (policy, block), colour in colours.items():
        axes[0][0].plot([], [], color=colour, label=f"{policy}, blocks of {block}")
    axes[0][0].plot([], [], color="black", linestyle=":", label="absolute thresholds")
    axes[0][0].plot([], [], color="black", label="relative thresholds")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    with whole_files.writing(out) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measures what is missing, and writes the page after every network and setting."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", required=True)
    parser.add_argument("--videos", required=True)
    parser.add_argument("--frames", type=int, default=120)
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
