"""Many streams on one machine: one call for all of them against a process each.

    python -m benchmarks.streams NET.onnx --preset yolox --video VIDEO [--streams 1 2 4 8] [--out F]

Every stream plays the clip from another frame on, at the threshold that saves `--target` of the
multiply-accumulates. `one call` is a plan of B streams; `a call each` B states stepped in turn;
`processes` B processes of one thread each, all at once: the frames they do within the same
`--seconds`. At real-time priority take a round-robin one (`chrt -r`), or they run one by one.
"""

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pages import published
from benchmarks.real_networks import Contest, arguments, frames_of
from skipconv_jax import ClosedLoop, InputNormGate, compile_plan, native, onnx, skip
from skipconv_jax.viz.tables import markdown


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds per frame of one stream, by how `streams` of them were run."""

    streams: int
    one_call: float
    a_call_each: float
    processes: float


def plan_of(args: argparse.Namespace, frame: jax.Array) -> Any:
    """The network's native plan for as many streams as the frame has."""
    variables, fn = onnx.load(args.network)
    net = skip(fn, gate=InputNormGate(1e-3, block=args.block), policy=ClosedLoop())
    params = {"model": variables, "gates": net.init_gates(variables, frame)}
    return compile_plan(net, params, frame, engine="native")


def shifted(clip: Sequence[jax.Array], streams: int) -> list[jax.Array]:
    """Frames of that many streams, each of which is another part of the clip at a time."""
    n, apart = len(clip), max(1, len(clip) // streams)
    return [jnp.concatenate([clip[(t + s * apart) % n] for s in range(streams)]) for t in range(n)]


def _played(plan: Any, constants: Any, states: list[Any], frames: Sequence[Any]) -> float:
    """Seconds for the frames, one of every state in turn."""
    start = time.perf_counter()
    for frame in frames:
        for i, state in enumerate(states):
            y, states[i], _ = plan.step(state, frame, constants)
            jax.block_until_ready((y, states[i]))
    return time.perf_counter() - start


def in_one_process(
    plan: Any, constants: Any, clip: Sequence[jax.Array], streams: int, rounds: int
) -> tuple[float, float]:
    """Milliseconds per frame of one stream: in one call, and in a call each."""
    together, single = shifted(clip, streams), list(clip)
    one, each = [plan.init_state(streams)], [plan.init_state(1) for _ in range(streams)]
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):  # the first computes everything, and compiles
        a = _played(plan, constants, one, together)
        b = _played(plan, constants, each, single)
        times.append((a, b))
    a, b = np.median(np.asarray(times[1:]), 0) * 1e3 / (len(clip) * streams)
    return float(a), float(b)


def _work(
    args: argparse.Namespace, threshold: float, clip: Any, ready: Any, end: Any, counts: Any
) -> None:
    frames = [jnp.asarray(f) for f in clip]
    plan = plan_of(args, frames[0])
    contest = Contest(plan)
    constants = contest.at(threshold)
    contest.play(constants, frames)
    ready.wait()  # the parent is the last: it has set the end
    done = 0
    while time.monotonic() < end.value:
        y, contest.state, _ = plan.step(contest.state, frames[done % len(frames)], constants)
        jax.block_until_ready((y, contest.state))
        done += 1
        os.sched_yield()  # a frame of every stream in turn, as cameras give them
    counts.put(done)


def in_processes(
    args: argparse.Namespace, threshold: float, clip: Sequence[jax.Array], streams: int
) -> float:
    """Milliseconds per frame of one stream where each has a process of one thread."""
    context = multiprocessing.get_context("spawn")
    ready, counts, end = context.Barrier(streams + 1), context.Queue(), context.Value("d")
    before = os.environ.get("SKIPCONV_JAX_NUM_THREADS")
    os.environ["SKIPCONV_JAX_NUM_THREADS"] = "1"
    try:
        frames = [np.asarray(f) for f in clip]
        workers = [
            context.Process(target=_work, args=(args, threshold, frames, ready, end, counts))
            for _ in range(streams)
        ]
        for worker in workers:
            worker.start()
        while ready.n_waiting < streams:
            time.sleep(0.05)
        end.value = time.monotonic() + args.seconds
        ready.wait()
        frames_done = sum(counts.get(timeout=600) for _ in workers)
        for worker in workers:
            worker.join()
    finally:
        if before is None:
            del os.environ["SKIPCONV_JAX_NUM_THREADS"]
        else:
            os.environ["SKIPCONV_JAX_NUM_THREADS"] = before
    return 1e3 * args.seconds / frames_done


def measure(args: argparse.Namespace) -> list[Row]:
    """A row per number of streams."""
    clip = frames_of(args)
    plan = plan_of(args, clip[0])
    contest = Contest(plan)
    constants, threshold = contest.searched(clip, args.target)
    rows = []
    for streams in args.streams:
        one, each = in_one_process(plan, constants, clip, streams, args.rounds)
        rows.append(Row(streams, one, each, in_processes(args, threshold, clip, streams)))
    return rows


def table(args: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The table as text."""
    cells = [
        [str(r.streams), *(f"{v:.2f}" for v in (r.one_call, r.a_call_each, r.processes))]
        for r in rows
    ]
    head = ["streams", "one call, ms/frame", "a call each", "processes"]
    return (
        f"{args.network.name}, {args.target:g}x fewer multiply-accumulates, float32, closed loop, "
        f"{native.num_threads()} threads (processes: 1), {native.isa()}; milliseconds of the "
        f"machine per frame of one stream\n\n{markdown(head, cells)}\n"
    )


def main() -> None:
    """Parses arguments, measures, prints and writes the table."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="*", default=(1, 2, 4, 8))
    parser.add_argument("--target", type=float, default=4.3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    text = table(args, measure(args))
    published(text, args.out)


if __name__ == "__main__":
    main()
