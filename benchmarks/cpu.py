"""A network on a CPU: skipped against the dense runtimes a user could take, in one process.

    python -m benchmarks.cpu --video PATH [--model efficientdet_d0] [--policy closed_loop] [--out F]

Thresholds are searched for each MAC reduction on the clip itself; frames are then timed in turns,
clip by clip, next to the dense peers. A frame's time is the median over rounds, a clip's the mean
over its frames; the first, dense frame of a clip is left out of both times and MACs.
"""

import argparse
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clips
from benchmarks.pages import published
from benchmarks.peers import RUNNERS, Runner, without_flattening
from skipconv_jax import native, skip
from skipconv_jax.models import efficientdet, hrnet_w32, init_variables
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.native import Constants, NativePlan, PlanState
from skipconv_jax.program import fold as g
from skipconv_jax.viz.tables import markdown

TARGETS = (2.51, 4.33, 7.92)
SIZES = {"hrnet_w32": 256, "efficientdet_d0": 512}


def make_model(name: str) -> Any:
    """HRNet-w32 for 15 joints, or EfficientDet-D0 for 90 classes."""
    return hrnet_w32(joints=15) if name == "hrnet_w32" else efficientdet("d0")


def make_variables(model: Any, frames: jax.Array) -> Any:
    """Random weights with the batch statistics of real frames: activations of order 1."""
    variables = init_variables(model, jax.random.key(0), frames[:1])
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1])

    def step(stats: Any) -> Any:
        return train({**variables, "batch_stats": stats}, frames)["batch_stats"]

    # A step moves a statistic a share of the way, which differs from layer to layer: two steps from
    # two starts tell where to.
    zero = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    one = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    stats = jax.tree.map(lambda a, b: a / (1 - (b - a)), step(zero), step(one))
    return {**variables, "batch_stats": stats}


@dataclasses.dataclass
class Contest:
    """A plan on one clip, and what its masks cost."""

    plan: NativePlan
    names: Sequence[str]
    state: PlanState
    threads: int = 0

    def __post_init__(self) -> None:
        # In place, as the stream of a camera stays: a new state would be in other pages.
        self.reset = jax.jit(self.plan.reset, donate_argnums=0)
        self.costs = [np.zeros(p.mask_size) for p in self.plan.programs]
        convs = {n.name: n.conv for n in self.plan.graph.nodes if isinstance(n, g.ConvNode)}
        for program, cost in zip(self.plan.programs, self.costs, strict=True):
            for name, slot in program.masks.items():
                block = self.plan.layers[name].gate.block
                sizes = convs[name].block_sizes(block).ravel()
                cost[slot.offset : slot.offset + sizes.size] = sizes * convs[name].macs_per_position
        self.dense = float(sum(c.sum() for c in self.costs))

    def at(self, threshold: float) -> Constants:
        """Constants with one threshold for all layers."""
        return self.plan.with_gates(
            {name: {"threshold": jnp.float32(threshold)} for name in self.names}
        )

    def play(self, constants: Constants, frames: Sequence[jax.Array]) -> tuple[np.ndarray, float]:
        """Seconds per frame after the first, and mean MACs of those frames, of all streams."""
        self.state = self.reset(self.state)
        seconds, fired = [], []
        for frame in frames:
            start = time.perf_counter()
            y, self.state, masks = self.plan.step(
                self.state, frame, constants, threads=self.threads
            )
            jax.block_until_ready(y)
            seconds.append(time.perf_counter() - start)
            fired.append(masks)
        # After the last frame: NumPy's threads wait for more work by spinning, on our cores.
        spent = [self._spent(masks) for masks in fired[1:]]
        return np.array(seconds[1:]), float(np.mean(spent))

    def _spent(self, masks: Sequence[jax.Array]) -> float:
        pairs = zip(masks, self.costs, strict=True)
        return sum(float((np.asarray(m) @ cost).sum()) for m, cost in pairs)

    def search(self, target: float, frames: Sequence[jax.Array]) -> float:
        """Threshold whose MACs on the clip come nearest to `1 / target` of the dense network's."""
        low, high = 1e-4, 4.0
        tried = []
        for _ in range(14):
            middle = (low * high) ** 0.5
            reduction = self.dense / max(self.play(self.at(middle), frames)[1], 1.0)
            tried.append((abs(np.log(reduction / target)), middle))
            low, high = (middle, high) if reduction < target else (low, middle)
        return min(tried)[1]


def time_peer(run: Runner, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Seconds of each frame."""
    seconds = []
    for frame in frames:
        start = time.perf_counter()
        run(frame)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


@dataclasses.dataclass
class Row:
    """One line of the table."""

    name: str
    play: Callable[[], tuple[np.ndarray, float]]
    rounds: list[np.ndarray] = dataclasses.field(default_factory=list)
    macs: float = 0.0

    def run(self) -> None:
        """One more round."""
        seconds, self.macs = self.play()
        self.rounds.append(seconds)

    def milliseconds(self) -> float:
        """Mean over frames of the median over rounds."""
        return float(np.median(np.stack(self.rounds), axis=0).mean() * 1e3)

    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile of the rounds' means."""
        low, high = np.percentile([r.mean() * 1e3 for r in self.rounds], [10, 90])
        return float(low), float(high)


def table(rows: Sequence[Row], dense_macs: float) -> str:
    """Markdown: time, MACs and both reductions against the fastest dense peer."""
    best = min(r.milliseconds() for r in rows if r.name in RUNNERS)
    header = [
        "run", "ms/frame", "10-90 % of rounds", "GMAC", "MAC reduction", "time reduction",
        "of the promise",
    ]  # fmt: skip
    cells = []
    for row in rows:
        ms, (low, high) = row.milliseconds(), row.spread()
        promise = dense_macs / row.macs if row.macs else float("inf")
        share = "" if row.name in RUNNERS or not row.macs else f"{best / ms / promise:.2f}"
        cells.append([
            row.name, f"{ms:.2f}", f"{low:.2f}-{high:.2f}", f"{row.macs / 1e9:.3f}",
            f"{promise:.2f}", f"{best / ms:.2f}", share,
        ])  # fmt: skip
    return markdown(header, cells)


def motion_rows(
    contest: Contest, label: str, clip: np.ndarray, targets: Sequence[float]
) -> list[Row]:
    """A row per MAC reduction on one clip."""
    frames = [jnp.asarray(f[None]) for f in clips.normalise(clip)]
    rows = []
    for target in targets:
        constants = contest.at(contest.search(target, frames))
        rows.append(
            Row(f"{label}, aim {target}", functools.partial(contest.play, constants, frames))
        )
    return rows


def peer_rows(
    plan: NativePlan, expected: Sequence[np.ndarray], frames: Sequence[np.ndarray], macs: float
) -> list[Row]:
    """A row per dense runtime, each checked on the first frame."""
    graph, rows = without_flattening(plan.graph), []
    for name, make in RUNNERS.items():
        run = make(graph, native.num_threads())
        made = [np.asarray(m) for m in run(frames[0])]
        maps = [m if name == "XLA dense" else m.transpose(0, 2, 3, 1) for m in made]
        flat = np.concatenate([m.ravel() for m in maps])
        wanted = np.concatenate([e.ravel() for e in expected])
        np.testing.assert_allclose(flat, wanted, atol=2e-3 * float(np.abs(wanted).max()), rtol=0)
        rows.append(Row(name, functools.partial(_timed_peer, run, frames, macs)))
    return rows


def _timed_peer(run: Runner, frames: Sequence[np.ndarray], macs: float) -> tuple[np.ndarray, float]:
    return time_peer(run, frames), macs


def make_contest(args: argparse.Namespace, real: np.ndarray) -> tuple[Contest, float, list[Any]]:
    """The plan of the network asked for, seconds until its first frame is out, dense outputs."""
    model = make_model(args.model)
    variables = make_variables(model, jnp.asarray(real[:: max(1, len(real) // 4)][:4]))
    net = skip(
        lambda v, x: model.apply(v, x),
        gate=InputNormGate(1e-2, block=args.block),
        policy=POLICIES[args.policy](),
    )
    frame = jnp.asarray(real[:1])
    params = {"model": variables, "gates": net.init_gates(variables, frame)}
    start = time.perf_counter()
    plan = compile_plan(net, params, frame, keep_outputs=True)
    if not isinstance(plan, NativePlan):
        raise SystemExit(native.status())
    contest = Contest(plan, list(params["gates"]), plan.init_state())
    contest.play(plan.constants, [frame, frame])
    compiled = time.perf_counter() - start
    expected = jax.tree.leaves(jax.jit(model.apply)(variables, frame))
    return contest, compiled, [np.asarray(e) for e in expected]


def plan_rows(contest: Contest, args: argparse.Namespace, video: np.ndarray) -> list[Row]:
    """All fire, nothing changes, and a row per kind of motion and MAC reduction."""
    rng = np.random.default_rng(0)
    shape = (1, args.size, args.size, 3)
    noise = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(args.frames)]
    still = noise[:1] * args.frames
    everything, nothing = contest.at(0.0), contest.at(1e-2)
    rows = [
        Row("all fire", lambda: contest.play(everything, noise)),
        Row("nothing changes", lambda: contest.play(nothing, still)),
    ]
    rows += motion_rows(contest, "video", video, args.targets)
    square = clips.moving_square(args.size, args.frames, args.size // 3)
    rows += motion_rows(contest, "moving square", square, args.targets)
    blocks = clips.random_blocks(args.size, args.frames, 0.05)
    return rows + motion_rows(contest, "random blocks", blocks, args.targets)


def main() -> None:
    """Parses arguments, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--video", required=True, type=pathlib.Path)
    parser.add_argument("--model", default="hrnet_w32", choices=sorted(SIZES))
    parser.add_argument("--policy", default="previous", choices=("previous", "closed_loop"))
    parser.add_argument("--targets", type=float, nargs="*", default=TARGETS)
    parser.add_argument("--size", type=int, help="side of the frame; default: the network's own")
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    args.size = args.size or SIZES[args.model]

    video = clips.video_crop(args.video, args.size, args.frames)
    real = clips.normalise(video)
    contest, compiled, expected = make_contest(args, real)
    rows = plan_rows(contest, args, video)
    peers = peer_rows(contest.plan, expected, np.split(real[:6], 6), contest.dense)
    for _ in range(args.rounds):
        for row in [*peers, *rows]:
            row.run()
    weights = sum(p.weights.nbytes for p in contest.plan.programs) / 1e6
    text = (
        f"{args.model} {args.size}x{args.size}, batch 1, float32, block {args.block}, policy "
        f"{args.policy}, {native.num_threads()} threads, {native.isa()}, {args.rounds} rounds of "
        f"{args.frames} frames\n\n{table([*peers, *rows], contest.dense)}\n\n"
        f"State {contest.plan.state_bytes() / 1e6:.0f} MB per stream, packed weights "
        f"{weights:.0f} MB; plan and first call {compiled:.1f} s.\n"
    )
    published(text, args.out)


if __name__ == "__main__":
    main()
