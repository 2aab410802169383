"""A quantised detector on a CPU: int8 with skipping against dense int8 and float32 runtimes.

    python -m benchmarks.int8 FLOAT.onnx --preset yolox --video VIDEO [--out F]
    python -m benchmarks.int8 FLOAT.onnx --preset yolox --video VIDEO --lossless 100000

The float file is quantised by onnxruntime's static quantiser (QDQ, uint8 activations, int8 weights
per channel) on frames of the video; onnxruntime and OpenVINO run that file and the float one, in
turns with ours, in one process. `threshold 0` computes what changed by a quantisation step: its
results are those of the dense int8 network. `--lossless N` plays N frames of a looped noisy stream
with resets and compares every result with the dense one.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pages import published
from benchmarks.quantised import write_qdq
from benchmarks.real_networks import Contest, Measured, arguments, frames_of, peers, rows
from skipconv_jax import (
    ClosedLoop,
    InputNormGate,
    compile_plan,
    macs,
    native,
    onnx,
    skip,
)
from skipconv_jax.native import library
from skipconv_jax.plans import Plan


def compiled(path: pathlib.Path, frame: jax.Array, block: int, precision: str) -> Plan:
    """The file as a native plan in closed loop."""
    variables, fn = onnx.load(path)
    net = skip(fn, gate=InputNormGate(0.0, block=block), policy=ClosedLoop())
    params = {"model": variables, "gates": net.init_gates(variables, frame)}
    return compile_plan(net, params, frame, engine="native", precision=precision)


def measure(args: argparse.Namespace, clip: Sequence[jax.Array], path: pathlib.Path) -> str:
    """The table as text."""
    plan = compiled(path, clip[0], args.block, "int8")
    wide = compiled(args.network, clip[0], args.block, "float32").state_bytes()
    contest = Contest(plan)
    rng = np.random.default_rng(0)
    top = float(jnp.max(clip[0]))
    noise = [jnp.asarray(rng.uniform(0, top, clip[0].shape), jnp.float32) for _ in clip]
    lossless = contest.at(0.0)
    settings = {
        "all fire": (lossless, noise),
        "video, threshold 0": (lossless, clip),
        "still": (lossless, [*clip[:1]] * 16),
    }
    for target in args.targets:
        settings[f"video, {target:g}x"] = (contest.search(clip, target), clip)
    threads = native.num_threads()
    others = {f"{n}, float32 file": run for n, run in peers(args.network, clip[0], threads).items()}
    others |= {f"{n}, int8 file": run for n, run in peers(path, clip[0], threads).items()}
    times: dict[str, list[Any]] = {name: [] for name in (*others, *settings)}
    spent = {}
    for _ in range(args.rounds):
        for name, run in others.items():
            taken = []
            for _ in range(6):
                start = time.perf_counter()
                run()
                taken.append(1e3 * (time.perf_counter() - start))
            times[name].append([float(np.median(taken))])
        for name, (constants, frames) in settings.items():
            taken, spent[name] = contest.play(constants, frames)
            times[name].append(taken)
    ms = {name: float(np.median(np.asarray(t), 0).mean()) for name, t in times.items()}
    state = plan.state_bytes()
    found = Measured(ms, tuple(others), spent, float(plan.table.macs), state)
    return (
        f"{args.network.name}, batch 1, closed loop, block {args.block}, {threads} threads, "
        f"{library.int8_isa()}, {args.rounds} rounds of {len(clip)} frames; state "
        f"{state / 1e6:.1f} MB per stream, {state / wide:.2f} of float32's\n\n"
        f"{rows(found, 'int8, ')}\n"
    )


def lossless(plan: Plan, clip: Sequence[jax.Array], frames: int) -> int:
    """Frames that differ from the dense int8 network, of a looped noisy stream with resets.

    A frame of the clip is held for four; sensor noise covers another part of it each time, so that
    some blocks fire and others don't. The dense network is the same program on a fresh state, which
    computes everything. Noise comes from a pool, shifted: drawing it would take most of the time.
    """
    rng = np.random.default_rng(0)
    height, width = clip[0].shape[-2:]
    step = float(jnp.max(clip[0])) / 255
    pool = [jnp.asarray(rng.normal(size=clip[0].shape) * step, jnp.float32) for _ in range(16)]

    @jax.jit
    def noisy(x: jax.Array, noise: jax.Array, shift: jax.Array, box: jax.Array) -> jax.Array:
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (rows >= box[0]) & (rows < box[1]) & (columns >= box[2]) & (columns < box[3])
        return x + jnp.where(inside, jnp.roll(noise, shift, axis=(-2, -1)), 0)

    def compare(state: Any, fresh: Any, x: Any, constants: Any) -> Any:
        y, state, masks = plan.apply(state, x, constants)
        dense, fresh, _ = plan.apply(plan.reset(fresh), x, constants)
        pairs = zip(jax.tree.leaves(y), jax.tree.leaves(dense), strict=True)
        same = jnp.stack([(a == b).all() for a, b in pairs]).all()
        return same, state, fresh, macs.spent_total(plan.table, plan.fired(masks))[0]

    compared = jax.jit(compare, donate_argnums=(0, 1))
    reset = jax.jit(plan.reset, donate_argnums=0)
    state, fresh = plan.init_state(), plan.init_state()
    differ, resets, spent = 0, 0, 0.0
    for t in range(frames):
        rows, columns = np.sort(rng.integers(0, height, 2)), np.sort(rng.integers(0, width, 2))
        box, shift = np.concatenate([rows, columns]), rng.integers(0, 64, 2)
        x = noisy(clip[t // 4 % len(clip)], pool[rng.integers(len(pool))], shift, box)
        if rng.random() < 0.01:
            state, resets = reset(state), resets + 1
        same, state, fresh, now = compared(state, fresh, x, plan.constants)
        differ += not bool(same)
        spent += float(now)
        if (t + 1) % 1000 == 0:
            fewer = float(plan.table.macs) * (t + 1) / spent
            said = f"{t + 1} frames, {differ} differ, {resets} resets, {fewer:.2f}x fewer MACs"
            print(said, flush=True)
    return differ


def main() -> None:
    """Parses arguments, measures, prints and writes the table."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--lossless", type=int, metavar="N")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    clip = frames_of(args)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "quantised.onnx")
        write_qdq(args.network, path, clip[:: max(1, len(clip) // 8)])
        if args.lossless:
            differ = lossless(compiled(path, clip[0], args.block, "int8"), clip, args.lossless)
            print(f"{differ} of {args.lossless} frames differ from the dense int8 network")
            sys.exit(bool(differ))
        text = measure(args, clip, path)
    published(text, args.out)


if __name__ == "__main__":
    main()
