"""Recorded videos through one network: `skipconv batch VIDEOS... --onnx FILE --out FOLDER`.

Writes FOLDER/NAME.jsonl for each video, a row per frame. Killed, it goes on where it was when it is
called again: every frame has one row, and the rows are those of a run that nobody killed.
"""

import argparse
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from skipconv_jax.extras import MissingExtra, require, required


def main(arguments: Sequence[str]) -> int:
    """Runs all videos; returns 0, or 1 where one of them failed."""
    given = _parser().parse_args(arguments)
    try:
        return _batch(given)
    except (ValueError, OSError, MissingExtra) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "skipconv batch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("videos", nargs="+", help="files, folders of images or module:object")
    parser.add_argument("--out", required=True, type=Path, help="folder of the rows")
    parser.add_argument("--onnx", default="", help="file of a trained network")
    parser.add_argument("--fn", default="", help="or module:function that returns (variables, fn)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width of the input of --fn")
    parser.add_argument("--preset", default="", help="what its input and outputs mean")
    parser.add_argument("--gate_plan", default="", help="thresholds, of `skipconv calibrate`")
    parser.add_argument("--threshold", type=float, help="of all layers, without a gate plan")
    parser.add_argument("--block", type=int, help="side of the blocks that fire together")
    parser.add_argument("--min_score", type=float, default=0.3, help="of what is written")
    parser.add_argument("--engine", default="auto")
    parser.add_argument(
        "--reset_every", type=int, default=1000,
        help="frames between reference frames; as many, at most, are computed again after a kill",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, help="at once; 0 for as many as cores")
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="workers are actors of a Ray cluster, which sees the same files; without an address\n"
        "one is started here",
    )  # fmt: skip
    return parser


def make_engine(network: Any) -> Any:
    """The network, in a worker."""
    with required():
        from skipconv_jax.commands.evaluate import with_gates
        from skipconv_jax.live import serve
    serve.one_thread_each()
    return serve.network_engine(network, with_gates, fired=False)


def _settings(given: argparse.Namespace, network: Any) -> dict[str, Any]:
    """What rows depend on."""
    made: dict[str, Any] = msgspec.to_builtins(network)
    if given.onnx:
        with open(given.onnx, "rb") as file:
            made["onnx"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {**made, "reset_every": given.reset_every}


def _batch(given: argparse.Namespace) -> int:
    require("onnx", *(["ray"] if given.ray is not None else []))
    with required():
        from skipconv_jax.live import batch
        from skipconv_jax.live.config import Network
    network = msgspec.convert(
        {
            key: getattr(given, key)
            for key in (
                "onnx",
                "fn",
                "size",
                "preset",
                "gate_plan",
                "threshold",
                "block",
                "min_score",
                "engine",
            )
        },
        Network,
    )
    if bool(given.onnx) == bool(given.fn):
        raise ValueError(f"one of `onnx` (={given.onnx!r}) and `fn` (={given.fn!r}) must be given.")
    if given.reset_every < 0:
        raise ValueError(f"`reset_every` (={given.reset_every}) must be 0 or more frames.")
    given.out.mkdir(parents=True, exist_ok=True)
    batch.same_run(given.out, _settings(given, network))
    # Relative paths are of this folder, wherever a worker is.
    if network.onnx:
        network = msgspec.structs.replace(network, onnx=os.path.abspath(network.onnx))
    videos = [os.path.abspath(v) if Path(v).exists() else v for v in given.videos]
    making = functools.partial(make_engine, network)
    rules = batch.Rules(given.reset_every)
    outcomes = _run(given, videos, (batch.VideoWorker, making, rules))
    for outcome in outcomes:
        died = f", {outcome.died} worker(s) died on it" if outcome.died else ""
        text = outcome.error or f"{outcome.rows} rows, {outcome.share:.1%} of the dense cost"
        print(f"{outcome.video}: {text}{died}", file=sys.stderr)
    return int(any(outcome.error for outcome in outcomes))


def _run(given: argparse.Namespace, videos: Sequence[str], made: tuple[Any, ...]) -> Any:
    from skipconv_jax.live import batch
    from skipconv_jax.live.workers import Local

    here = given.workers or len(os.sched_getaffinity(0))
    if given.ray is None:
        return batch.run(videos, given.out.resolve(), _maker(Local, made), here)
    with required():
        from skipconv_jax.live.on_ray import OnRay, cluster
    with cluster(given.ray, here if not given.ray else None) as cores:
        workers = given.workers or cores
        return batch.run(videos, given.out.resolve(), _maker(OnRay, made), workers)


def _maker(kind: Callable[..., Any], made: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: kind(*made)
