"""Ways to spend less on a video with a trained detector, on frames none of them was tuned on.

    skipconv calibrate --onnx FastestDet.onnx --preset fastestdet --clip person.mp4 \\
        --clip_start 384 --frames 48 --budget drop=0.02 --out runs/plans/calibrated.json
    python -m benchmarks.tuning FastestDet.onnx --preset fastestdet --clips person.mp4@800 \\
        car.mp4@72 --plans runs/plans/calibrated.json --name fastestdet

Uniform thresholds of Input- and Output-Norm gates, multiples of calibrated thresholds, trained
gates, the dense network's outputs copied for n - 1 of n frames, and a motion gate (the dense
network runs where more than a share of pixels changed since it last ran; else its outputs are
copied). Disagreement and AP are against the dense network, the first frame left out; milliseconds
are the engine's (copies: its time for a whole frame times the share of frames it ran).
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skipconv_jax import skip, whole_files
from skipconv_jax.commands.calibrate import read_score
from skipconv_jax.commands.fit import frames_of
from skipconv_jax.ops import ClosedLoop, InputNormGate, OutputNormGate
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import GivenExperiment, configuration, from_onnx, given
from skipconv_jax.tuning import GatePlan
from skipconv_jax.tuning.trials import Trials, thresholds
from skipconv_jax.viz.charts import sweep_chart
from skipconv_jax.viz.tables import markdown

UNIFORM = {
    "input norm": (InputNormGate, np.geomspace(7e-4, 3e-2, 9)),
    "output norm": (OutputNormGate, np.geomspace(3e-5, 1.3e-3, 9)),
}
FACTORS = (0.25, 0.4, 0.63, 0.8, 1.0, 1.25, 1.6, 2.5)
EVERY = (2, 3, 4, 6)
# Shares of pixels that must differ by more than `LEVELS` for the motion gate to open.
MOVED, LEVELS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2), 15


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting on one clip."""

    clip: str
    how: str
    setting: str
    share: float
    loss: float
    ap: float
    ms: float


class Ground:
    """A network with one clip at a time, and what the dense network says of it."""

    def __init__(self, experiment: GivenExperiment, first: np.ndarray) -> None:
        self.experiment, self.score = experiment, read_score(experiment)
        self._first = first
        self._trials: dict[str, Trials] = {}
        self.variables = experiment.model.variables

    def trials(self, key: str, make: Callable[[], Any]) -> Trials:
        """Compiled once per network of gates."""
        if key not in self._trials:
            self._trials[key] = Trials(
                make(), self.variables, self._first, self.experiment.disagreement,
                read=self.experiment.read,
            )  # fmt: skip
        return self._trials[key]

    def uniform(self, gate: Any, block: int) -> Trials:
        """A network under one kind of norm gate."""
        return self.trials(
            f"{gate.__name__}{block}",
            lambda: skip(self.experiment.predict, gate=gate(block=block), policy=ClosedLoop()),
        )

    def plan(self, path: Path) -> Trials:
        """A network under a gate plan."""
        return self.trials(str(path), lambda: skip(self.experiment.predict, GatePlan.load(path)))


def rows(ground: Ground, name: str, clip: np.ndarray, args: argparse.Namespace) -> Iterator[Row]:
    """Every way on one clip."""

    def row(how: str, setting: str, trials: Trials, gates: Any) -> Row:
        seen, read = trials.read(gates)
        ap = ground.score(read, trials.dense())
        ms = trials.milliseconds(gates, args.rounds) if args.rounds else math.nan
        return Row(name, how, setting, seen.macs / trials.dense_macs, seen.loss, ap, ms)

    for how, (gate, tried) in UNIFORM.items():
        for block in args.blocks:
            trials = ground.uniform(gate, block).on(clip)
            for t in tried:
                yield row(f"{how}, {block}", f"{t:.4g}", trials, thresholds(trials.names, t))
    for path in args.plans:
        plan, trials = GatePlan.load(path), ground.plan(path).on(clip)
        for factor in FACTORS if plan.note("beta") is None else (1.0,):
            gates = plan.params()
            if plan.note("beta") is None:
                gates = {n: {"threshold": factor * g["threshold"]} for n, g in gates.items()}
            how = "calibrated" if plan.note("beta") is None else f"fit, {path.parent.name}"
            yield row(how, f"{path.stem} x{factor:g}", trials, gates)
    yield from copies(ground, name, clip, args)


def copies(ground: Ground, name: str, clip: np.ndarray, args: argparse.Namespace) -> Iterator[Row]:
    """The dense network's outputs, copied between the frames it runs on."""
    experiment = ground.experiment
    trials = ground.uniform(InputNormGate, args.blocks[0]).on(clip)
    whole = trials.whole_milliseconds() if args.rounds else math.nan
    outputs, read = trials.dense_outputs, trials.dense()
    loss = jax.jit(experiment.disagreement)

    def frame(t: int) -> Any:
        return jax.tree.map(lambda a: a[t], outputs)

    def row(how: str, setting: str, keys: np.ndarray) -> Row:
        """`keys[t]` is the frame whose outputs stand at t."""
        pairs = [loss(frame(int(k)), frame(t)) for t, k in enumerate(keys)]
        error, scale = np.asarray(pairs, np.float64)[1:, :, 0].sum(axis=0)
        ap = ground.score(jax.tree.map(lambda a: np.asarray(a)[keys], read), read)
        share = float((keys == np.arange(len(keys)))[1:].mean())
        return Row(name, how, setting, share, float(error / scale), ap, whole * share)

    at = np.arange(len(clip))
    for every in EVERY:
        yield row("copied", f"every {every}th", at - at % every)
    pixels = clip[:, 0].astype(np.int16).max(axis=-1)
    for moved in MOVED:
        keys = [0]
        for t in range(1, len(clip)):
            changed = (np.abs(pixels[t] - pixels[keys[-1]]) > LEVELS).mean()
            keys.append(t if changed > moved else keys[-1])
        yield row("motion gate", f"{moved:g} of the pixels", np.asarray(keys))


def at_agreement(found: list[Row], lost: float) -> float:
    """Least share of the MACs at which a way loses at most so much AP.

    Between two settings the straight line of the trade-off; NaN where every setting loses more.
    """
    best = math.nan
    hull = sorted((1 - r.ap, r.share) for r in found)
    least: list[tuple[float, float]] = []
    for drop, share in hull:
        if not least or share < least[-1][1]:
            least.append((drop, share))
    if least and least[0][0] <= lost:
        drops, shares = zip(*least, strict=True)
        best = float(np.exp(np.interp(lost, drops, np.log(shares))))
    return best


def page(found: list[Row], args: argparse.Namespace) -> str:
    """Tables: MACs at equal agreement, and all points."""
    parts = []
    clips = list(dict.fromkeys(r.clip for r in found))
    for clip in clips:
        ways = list(dict.fromkeys(r.how for r in found if r.clip == clip))
        cells = [
            [how, *(_share(at_agreement([r for r in found if (r.clip, r.how) == (clip, how)], lost))
                    for lost in args.lost)]
            for how in ways
        ]  # fmt: skip
        header = ["least MACs, % of dense, at", *(f"{100 * n:g} AP lost" for n in args.lost)]
        parts += [f"## {clip}", markdown(header, cells, left=1)]
        parts.append(f"![AP lost over MACs](tuning_{args.name}_{clips.index(clip)}.png)")
    body = [
        [r.clip, r.how, r.setting, f"{100 * r.share:.1f}", f"{r.loss:.4f}", f"{100 * r.ap:.2f}",
         "" if math.isnan(r.ms) else f"{r.ms:.2f}"]
        for r in found
    ]  # fmt: skip
    header = ["clip", "how", "setting", "MACs, %", "disagreement", "AP", "ms"]
    parts += ["## All settings", markdown(header, body, left=3)]
    return "\n\n".join(parts)


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def draw(found: list[Row], args: argparse.Namespace) -> None:
    """A picture per clip."""
    for index, clip in enumerate(dict.fromkeys(r.clip for r in found)):
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in found:
            if r.clip == clip and r.share > 0:
                lines.setdefault(r.how, []).append((100 * r.share, 100 * (1 - r.ap)))
        path = args.out / f"tuning_{args.name}_{index}.png"
        sweep_chart(lines, None, path, f"{args.name}, {clip}", "AP points lost")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--clips", nargs="+", required=True, help="VIDEO@FIRST_FRAME")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--plans", type=Path, nargs="*", default=[])
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--lost", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.03])
    parser.add_argument("--rounds", type=int, default=1, help="of timing; 0 times nothing")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    network = from_onnx(str(args.network))
    experiment = given(network, "detection", args.preset, configuration(network))
    clips = {}
    for text in args.clips:
        path, _, start = text.partition("@")
        name = f"{Path(path).stem}@{start or 0}"
        clips[name] = frames_of(experiment, Source(path), int(start or 0), args.frames)[:, None]
    ground = Ground(experiment, next(iter(clips.values())))
    found = []
    for name, clip in clips.items():
        for row in rows(ground, name, clip, args):
            print(row, flush=True)
            found.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    data = json.dumps([dataclasses.asdict(r) for r in found], indent=1).replace("NaN", "null")
    whole_files.write_text(args.out / f"tuning_{args.name}.json", data + "\n")
    whole_files.write_text(args.out / f"tuning_{args.name}.md", page(found, args) + "\n")
    draw(found, args)


if __name__ == "__main__":
    main()
