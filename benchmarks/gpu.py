"""Skipped networks against XLA's dense ones on an accelerator, with the roofline: one table.

    python -m benchmarks.gpu     # everything; on a CPU a tiny form that only shows that it runs
    python -m benchmarks.gpu --implementation packed --streams 8 32 --json gpu.json

HRNet-w32 at 256x256 and EfficientDet-D0 at 512x512, 1, 8 and 32 streams, 5 to 100 % of the blocks
fired, float32 and bfloat16. The fired blocks are drawn at random, the same in all layers of one
resolution; neighbours fire together no more often than by chance, so the halo is paid in full.
Gates score every frame as in service; their verdict is then replaced. The skipped step is a
server's, with a reset flag per stream; the timed runs set none. Dense and skipped steps alternate
in one run, and the median counts. `of promise` is the speed-up over the reduction in
MACs: 1 means that every MAC saved is time saved; gates, residuals, batch norm and activations keep
it below.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import macs, skip, whole_files
from skipconv_jax.models.efficientdet import efficientdet
from skipconv_jax.models.hrnet import hrnet_small, hrnet_w32
from skipconv_jax.models.initialize import init_variables
from skipconv_jax.ops import InputNormGate

GIGA = 1e9
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HEADER = (
    "network", "dtype", "streams", "fired", "dense ms", "skip ms", "speed-up", "MACs / dense",
    "of promise", "GMAC/s", "of matmul", "GB/s", "of copy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ShareGate(InputNormGate):
    """Scores like an Input-Norm gate, then fires a random `share` of the blocks instead.

    The share is a parameter of the compiled step, so that a sweep compiles once.
    """

    def init(self, key: jax.Array | None, conv: Any) -> dict[str, jax.Array]:
        """`{'share': ()}`, all blocks."""
        del key, conv
        return {"share": jnp.ones((), jnp.float32)}

    def fire(
        self, params: dict[str, jax.Array], scores: jax.Array, rng: jax.Array | None
    ) -> jax.Array:
        """1 for the blocks whose lot is below the share; the scores only have to be finite."""
        del rng
        lots = np.random.default_rng(scores.size).random(scores.shape)
        drawn = jnp.asarray(lots, scores.dtype) < params["share"].astype(scores.dtype)
        return (drawn & (scores < jnp.inf)).astype(scores.dtype)


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and the side of its square frames."""

    build: Callable[[Any], Any]
    side: int
    block: int = 8


NETWORKS = {
    "hrnet_w32": Network(lambda dtype: hrnet_w32(dtype=dtype), 256),
    "efficientdet_d0": Network(lambda dtype: efficientdet("d0", dtype=dtype), 512),
    "hrnet_small": Network(lambda dtype: hrnet_small(dtype=dtype), 64),
}


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """What this device reaches in this run: a large matrix product, and a copy."""

    macs: float  # a second
    bytes: float  # a second


def median_seconds(steps: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """Median time of each step, the steps alternating."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(runs):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(step())
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def ceiling(dtype: Any, runs: int, size: int) -> Ceiling:
    """Measured on `size` x `size` matrices of the given type, float32 accumulation."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    large = jnp.zeros((size * size * 4,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    steps = [functools.partial(product, a), functools.partial(copy, large)]
    median_seconds(steps, 3)
    product_s, copy_s = median_seconds(steps, runs)
    return Ceiling(size**3 / product_s, 2 * large.nbytes / copy_s)


def least_bytes(table: macs.Table, share: float | None, itemsize: int) -> float:
    """Bytes one stream's convolutions must move per frame; `share` None is the dense network.

    A skipped one reads the frame and the last frame and keeps the frame, whatever fires; a fired
    block reads its tile, halo included, and reads and writes its float32 output.
    """
    total = 0.0
    for row in table.rows:
        inputs, outputs = (float(np.prod(s)) * row.calls for s in (row.in_shape, row.out_shape))
        if share is None or not row.skipped or row.conv is None or row.gate is None:
            total += (inputs + outputs) * itemsize
            continue
        b = row.gate.block
        halo = math.prod(
            t / (b * s) for t, s in zip(row.conv.tile(b), row.conv.strides, strict=True)
        )
        total += 3 * inputs * itemsize + share * (halo * inputs * itemsize + 2 * outputs * 4)
    weights = {
        row.name.rpartition("@")[0] or row.name: np.prod(row.kernel_shape) for row in table.rows
    }
    return total + float(sum(weights.values())) * itemsize / table.streams


class Bench:
    """One network in one dtype for one number of streams, compiled once."""

    def __init__(self, name: str, dtype: str, streams: int, implementation: str | None) -> None:
        network, self.itemsize = NETWORKS[name], jnp.dtype(DTYPES[dtype]).itemsize
        model = network.build(DTYPES[dtype])
        shape = (streams, network.side, network.side, 3)
        self.frames = jax.random.normal(jax.random.key(1), (2, *shape), DTYPES[dtype])
        variables = init_variables(model, jax.random.key(0), self.frames[0])

        def apply(variables: Any, x: jax.Array) -> Any:
            return model.apply(variables, x)

        net = skip(apply, gate=ShareGate(block=network.block), implementation=implementation)
        self.params, self.state = net.init(variables, self.frames[0])
        self.table = net.table(variables, self.frames[0])
        self._variables, self._dense = variables, jax.jit(apply)
        self._skip = jax.jit(
            lambda params, state, x, resets: net.apply(params, net.reset(state, resets), x),
            donate_argnums=1,
        )
        self._turn, self._none = 0, jnp.zeros((streams,), jnp.bool_)

    def dense(self) -> Any:
        """One dense step of all streams."""
        return self._dense(self._variables, self.frames[0])

    def skipped(self, resets: jax.Array | None = None) -> Any:
        """One skipped step; `resets` `(B,)` start streams anew, and successive frames differ."""
        self._turn += 1
        flags = self._none if resets is None else resets
        y, self.state = self._skip(self.params, self.state, self.frames[self._turn % 2], flags)
        return y, self.state

    def share(self, share: float) -> float:
        """Sets the share of blocks that fire; returns the MACs left, of the dense network's."""
        value = jnp.asarray(share, jnp.float32)
        self.params = self.params | {"gates": {n: {"share": value} for n in self.params["gates"]}}
        # The first frame of fresh streams computes everything; the one after it counts.
        for _ in range(2):
            jax.block_until_ready(self.skipped())
        left = float(macs.spent_total(self.table, self.state).mean())
        return left / self.table.macs


def measure(
    name: str, dtype: str, streams: int, shares: Sequence[float], args: Any, top: Ceiling
) -> list[dict[str, Any]]:
    """Rows of the table for one network, dtype and number of streams."""
    bench, rows = Bench(name, dtype, streams, args.implementation), []
    for share in shares:
        left = bench.share(share)
        median_seconds([bench.dense, bench.skipped], 2)
        dense_s, skip_s = median_seconds([bench.dense, bench.skipped], args.runs)
        rate = left * bench.table.macs * streams / skip_s
        traffic = least_bytes(bench.table, share, bench.itemsize) * streams / skip_s
        values = (
            name, dtype, streams, share, 1e3 * dense_s, 1e3 * skip_s, dense_s / skip_s, left,
            dense_s / skip_s * left, rate / GIGA, rate / top.macs, traffic / GIGA,
            traffic / top.bytes,
        )  # fmt: skip
        rows.append(dict(zip(HEADER, values, strict=True)))
        print("| " + " | ".join(_cell(v) for v in values) + " |", flush=True)
    return rows


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; a machine without an accelerator gets the tiny form unless told otherwise."""
    tiny = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=["hrnet_small"] if tiny else ["hrnet_w32", "efficientdet_d0"],
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["float32"] if tiny else list(DTYPES)
    )
    parser.add_argument("--streams", nargs="+", type=int, default=[2] if tiny else [1, 8, 32])
    parser.add_argument(
        "--activity",
        nargs="+",
        type=float,
        default=[0.1, 1.0] if tiny else [0.05, 0.1, 0.25, 0.5, 1.0],
    )
    parser.add_argument(
        "--implementation", default=None, help="of every convolution; default: best"
    )
    parser.add_argument("--runs", type=int, default=3 if tiny else 30)
    parser.add_argument(
        "--matrix",
        type=int,
        default=256 if tiny else 8192,
        help="side of the matrices the ceilings are measured on",
    )
    parser.add_argument("--json", type=Path, default=None, help="where to write the rows too")
    return parser.parse_args(argv)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    args = arguments(argv)
    device = jax.devices()[0]
    print(f"platform: {device.platform} ({device.device_kind}), jax {jax.__version__}")
    if device.platform == "gpu":
        print("float32: products are TF32, XLA's default here, dense and skipped alike")
    if device.platform == "tpu":
        print(
            "float32: products are one bfloat16 pass, XLA's default here, dense and skipped alike"
        )
    if device.platform == "cpu":
        print("no accelerator: these figures show that the benchmark runs, and nothing else")
    rows: list[dict[str, Any]] = []
    tops = {dtype: ceiling(DTYPES[dtype], args.runs, args.matrix) for dtype in args.dtypes}
    for dtype, top in tops.items():
        print(f"{dtype}: matmul {top.macs / GIGA:.0f} GMAC/s, copy {top.bytes / GIGA:.0f} GB/s")
    print("\n| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for name in args.networks:
        for dtype in args.dtypes:
            for streams in args.streams:
                rows += measure(name, dtype, streams, args.activity, args, tops[dtype])
    if args.json is not None:
        whole_files.write_text(
            args.json, json.dumps({"device": device.device_kind, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
