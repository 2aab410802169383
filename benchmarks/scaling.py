"""How the native plan scales: threads, streams in a batch, block size, resolution. One table.

    python -m benchmarks.scaling --video PATH [--model hrnet_w32] [--json PATH]

One threshold throughout: the one that spends `1 / target` of the dense MACs at the defaults (the
network's own size, one stream, blocks of 8). Streams show the same clip from different moments.
onnxruntime runs the streams of a batch in one call, with as many threads.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import clips
from benchmarks.cpu import SIZES, Contest, make_model, make_variables, time_peer
from benchmarks.peers import onnxruntime_runner, without_flattening
from skipconv_jax import native, skip, whole_files
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.native import NativePlan
from skipconv_jax.viz.tables import markdown


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the table."""

    axis: str
    size: int
    threads: int
    streams: int = 1
    block: int = 8


def settings(size: int, threads: int) -> Iterator[Setting]:
    """The defaults, then one axis after the other."""
    yield Setting("default", size, threads)
    for count in range(1, threads):
        yield Setting("threads", size, count)
    for streams in (2, 4, 8):
        yield Setting("streams", size, threads, streams=streams)
    for block in (4, 6, 12, 16):
        yield Setting("block", size, threads, block=block)
    for side in (128, 256, 384, 512):
        if side != size:
            yield Setting("resolution", side, threads)


class Bench:
    """Measures settings of one network on one video."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.model = args, make_model(args.model)
        real = clips.normalise(clips.video_crop(args.video, SIZES[args.model], args.frames))
        self.variables = make_variables(
            self.model, jnp.asarray(real[:: max(1, len(real) // 4)][:4])
        )
        self.threshold = 0.0

    def contest(self, s: Setting) -> Contest:
        """A plan of this setting."""
        gate = InputNormGate(1e-2, block=s.block)
        policy = POLICIES[self.args.policy]()
        net = skip(lambda v, x: self.model.apply(v, x), gate=gate, policy=policy)
        frame = jnp.zeros((s.streams, s.size, s.size, 3), jnp.float32)
        params, _ = net.init(self.variables, frame)
        plan = compile_plan(net, params, frame)
        if not isinstance(plan, NativePlan):
            raise SystemExit(native.status())
        return Contest(plan, list(params["gates"]), plan.init_state(), s.threads)

    def run(self, s: Setting) -> dict[str, Any]:
        """Times, MACs and memory of one setting, rounds in turns with onnxruntime."""
        args, contest = self.args, self.contest(s)
        clip = clips.normalise(clips.video_crop(args.video, s.size, args.frames))
        video = [
            jnp.asarray(np.stack([clip[(t + 2 * k) % len(clip)] for k in range(s.streams)]))
            for t in range(len(clip))
        ]
        if not self.threshold:
            self.threshold = contest.search(args.target, video)
        rng = np.random.default_rng(0)
        noise = [jnp.asarray(rng.normal(size=video[0].shape), jnp.float32) for _ in range(4)]
        cases = {
            "all fire": (contest.at(0.0), noise),
            "video": (contest.at(self.threshold), video),
            "still": (contest.at(self.threshold), video[:1] * 4),
        }
        # The graph is that of a batch, so the peer runs the batch in one call.
        dense = onnxruntime_runner(without_flattening(contest.plan.graph), s.threads)
        times: dict[str, list[np.ndarray]] = {name: [] for name in (*cases, "onnxruntime")}
        macs = {}
        for _ in range(args.rounds):
            for name, (constants, frames) in cases.items():
                seconds, macs[name] = contest.play(constants, frames)
                times[name].append(seconds)
            times["onnxruntime"].append(time_peer(dense, [np.asarray(f) for f in video[:3]])[1:])
        row: dict[str, Any] = dataclasses.asdict(s)
        for name, rounds in times.items():
            means = [r.mean() * 1e3 for r in rounds]
            middle = np.median(np.stack(rounds), axis=0).mean() * 1e3
            row[name] = [float(middle), *(float(v) for v in np.percentile(means, [10, 90]))]
        row["reduction"] = contest.dense * s.streams / macs["video"]
        row["gmac"] = macs["video"] / 1e9
        row["state_mb"] = contest.plan.state_bytes() * s.streams / 1e6
        return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians, and 10-90 % of rounds for the video."""
    header = [
        "axis", "size", "threads", "streams", "block", "onnxruntime ms", "all fire ms", "still ms",
        "video ms (10-90 %)", "GMAC", "MAC reduction", "time reduction", "state MB",
    ]  # fmt: skip
    cells = []
    for r in rows:
        mid, low, high = r["video"]
        cells.append([
            r["axis"], *(str(r[name]) for name in ("size", "threads", "streams", "block")),
            f"{r['onnxruntime'][0]:.1f}", f"{r['all fire'][0]:.1f}", f"{r['still'][0]:.2f}",
            f"{mid:.2f} ({low:.2f}-{high:.2f})", f"{r['gmac']:.3f}", f"{r['reduction']:.2f}",
            f"{r['onnxruntime'][0] / mid:.2f}", f"{r['state_mb']:.0f}",
        ])  # fmt: skip
    return markdown(header, cells)


def main() -> None:
    """Parses arguments, measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--video", required=True, type=pathlib.Path)
    parser.add_argument("--model", default="hrnet_w32", choices=sorted(SIZES))
    parser.add_argument("--policy", default="previous", choices=("previous", "closed_loop"))
    parser.add_argument("--target", type=float, default=4.33)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--axes", nargs="*", help="only these; default: all")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    bench = Bench(args)
    rows = [
        bench.run(s)
        for s in settings(SIZES[args.model], native.num_threads())
        if s.axis == "default" or not args.axes or s.axis in args.axes
    ]
    print(f"{args.model}, policy {args.policy}, {native.isa()}\n\n{table(rows)}")
    if args.json:
        whole_files.write_text(args.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
