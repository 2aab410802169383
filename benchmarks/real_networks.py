"""A trained detector on a CPU: skipped without drift against dense runtimes, in one process.

    python -m benchmarks.real_networks NET.onnx --preset yolox --video VIDEO [--out F]

Frames of the video are played in turns with the dense peers on the same ONNX file. A threshold per
MAC reduction is searched on the clip itself; `all fire` plays noise at threshold 0, `still` one
frame over and over. A frame's time is the median over rounds, a clip's the mean over its frames;
the first, dense frame is left out of times and MACs.
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.onnx_files import openvino_request
from benchmarks.pages import published
from skipconv_jax import (
    ClosedLoop,
    InputNormGate,
    compile_plan,
    macs,
    native,
    onnx,
    skip,
)
from skipconv_jax.plans import Plan
from skipconv_jax.presets import PRESETS
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import configuration, from_onnx, given
from skipconv_jax.viz.tables import markdown


def frames_of(args: argparse.Namespace) -> list[jax.Array]:
    """Frames as the network takes them, batch 1."""
    network = from_onnx(str(args.network))
    experiment = given(network, "detection", args.preset, configuration(network))
    prepare = jax.jit(PRESETS[args.preset].prepare)
    found: list[jax.Array] = []
    for frame in Source(args.video):
        if frame.index >= args.start and frame.image is not None:
            found.append(prepare(jnp.asarray(experiment.fit(frame.image)[None])))
        if len(found) == args.frames:
            break
    return found


class Contest:
    """A plan, its state, and what its masks cost."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.state = plan, plan.init_state()
        self._reset = jax.jit(plan.reset, donate_argnums=0)
        self._share = jax.jit(lambda masks: macs.spent_total(plan.table, plan.fired(masks)))

    def play(self, constants: Any, frames: Sequence[jax.Array]) -> tuple[list[float], float]:
        """Milliseconds of every frame after the first, and their mean MACs."""
        self.state = self._reset(self.state)
        times, masks = [], []
        for frame in frames:
            jax.block_until_ready((self.state, frame))
            start = time.perf_counter()
            y, self.state, fired = self.plan.step(self.state, frame, constants)
            jax.block_until_ready((y, self.state))
            times.append(1e3 * (time.perf_counter() - start))
            masks.append(fired)
        spent = [float(self._share(m)[0]) for m in masks[1:]]
        return times[1:], float(np.mean(spent))

    def at(self, threshold: float) -> Any:
        """Constants with one threshold for all layers."""
        names = [row.name for row in self.plan.table.skipped()]
        return self.plan.with_gates({n: {"threshold": jnp.float32(threshold)} for n in names})

    def search(self, frames: Sequence[jax.Array], reduction: float) -> Any:
        """Constants whose MAC reduction on the clip is about that."""
        return self.searched(frames, reduction)[0]

    def searched(self, frames: Sequence[jax.Array], reduction: float) -> tuple[Any, float]:
        """The same, and their threshold."""
        low, high = 1e-5, 10.0
        for _ in range(14):
            middle = float(np.sqrt(low * high))
            _, spent = self.play(self.at(middle), frames)
            low, high = (
                (middle, high) if self.plan.table.macs / spent < reduction else (low, middle)
            )
        return self.at(high), high


def arguments(description: str) -> argparse.ArgumentParser:
    """The parser of what is measured."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("network", type=pathlib.Path)
    parser.add_argument("--preset", required=True, choices=sorted(PRESETS))
    parser.add_argument("--video", required=True)
    parser.add_argument("--start", type=int, default=380)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--targets", type=float, nargs="*", default=(2.5, 4.3, 8.0))
    return parser


def main() -> None:
    """Parses arguments, measures, prints and writes the table."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    published(table(args, measure(args)), args.out)


def peers(network: pathlib.Path, frame: jax.Array, threads: int) -> dict[str, Callable[[], Any]]:
    """Dense runtimes on the file as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(network), options, ["CPUExecutionProvider"])
    x = np.asarray(frame)
    name = session.get_inputs()[0].name
    infer, _ = openvino_request(str(network), threads)
    return {"onnxruntime": lambda: session.run(None, {name: x}), "OpenVINO f32": lambda: infer(x)}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Milliseconds a frame by what ran, the plan's MACs by setting, and what they are of.

    Attributes:
      ms: by runtime or setting, in the order of the table.
      peers: which of them are dense runtimes.
      spent: mean MACs of a setting.
      dense: MACs of the dense network.
      state: bytes of state per stream.
    """

    ms: Mapping[str, float]
    peers: Sequence[str]
    spent: Mapping[str, float]
    dense: float
    state: int

    def reduction(self, name: str) -> float:
        """MACs of the dense network over those of a setting."""
        return self.dense / max(self.spent[name], 1.0)

    def gain(self, name: str) -> float:
        """How many times faster than the fastest dense runtime of the run."""
        return min(self.ms[peer] for peer in self.peers) / self.ms[name]


def measure(args: argparse.Namespace) -> Measured:
    """Plays the clip on every runtime and setting, in turns."""
    variables, fn = onnx.load(args.network)
    clip = frames_of(args)
    net = skip(fn, gate=InputNormGate(1e-3, block=args.block), policy=ClosedLoop())
    params = {"model": variables, "gates": net.init_gates(variables, clip[0])}
    plan = compile_plan(net, params, clip[0], engine="native")
    contest = Contest(plan)
    rng = np.random.default_rng(0)
    top = float(jnp.max(clip[0]))
    noise = [jnp.asarray(rng.uniform(0, top, clip[0].shape), jnp.float32) for _ in clip]
    settings = {"all fire": (contest.at(0.0), noise), "still": (contest.at(1e-3), clip[:1] * 16)}
    for target in args.targets:
        settings[f"video, {target:g}x"] = (contest.search(clip, target), clip)
    others = peers(args.network, clip[0], native.num_threads())
    times: dict[str, list[Any]] = {name: [] for name in (*others, *settings)}
    spent = {}
    for _ in range(args.rounds):
        for name, run in others.items():
            start = time.perf_counter()
            for _ in clip:
                run()
            times[name].append([1e3 * (time.perf_counter() - start) / len(clip)])
        for name, (constants, frames) in settings.items():
            taken, spent[name] = contest.play(constants, frames)
            times[name].append(taken)
    ms = {name: float(np.median(np.asarray(t), 0).mean()) for name, t in times.items()}
    return Measured(ms, tuple(others), spent, float(plan.table.macs), plan.state_bytes())


def rows(found: Measured, prefix: str = "") -> str:
    """The rows in Markdown; `prefix` goes before the names of settings."""
    cells = [
        [name, f"{found.ms[name]:.2f}", "", f"{found.gain(name):.2f}x", ""] for name in found.peers
    ]
    for name in found.spent:
        reduction, gain = found.reduction(name), found.gain(name)
        shown = f"{reduction:.2f}x" if name != "still" else ""
        ratio = f"{gain / reduction:.2f}" if name.startswith("video") else ""
        cells.append([f"{prefix}{name}", f"{found.ms[name]:.2f}", shown, f"{gain:.2f}x", ratio])
    return markdown(["", "ms/frame", "MAC reduction", "time reduction", "time / MACs"], cells)


def table(args: argparse.Namespace, found: Measured) -> str:
    """The table as text."""
    return (
        f"{args.network.name}, batch 1, float32, closed loop, block {args.block}, "
        f"{native.num_threads()} threads, {native.isa()}, {args.rounds} rounds of {args.frames} "
        f"frames; state {found.state / 1e6:.0f} MB per stream\n\n{rows(found)}\n"
    )


if __name__ == "__main__":
    main()
