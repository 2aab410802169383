"""Where a network's time goes on the native engine: a table of operations and a timeline."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipconv_jax import config
from skipconv_jax.commands import common
from skipconv_jax.commands.profile import draw, measure, table
from skipconv_jax.ops import POLICY_NAMES
from skipconv_jax.tasks import Experiment, build
from skipconv_jax.tasks.given.experiment import configuration, from_onnx, given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("skipconv profile", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="configs/x.py or configs/x.py:argument")
    which.add_argument("--onnx", help="an ONNX file with one image as input")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="where it is free")
    parser.add_argument("--preset", help="of --onnx: how frames become its input")
    parser.add_argument("--checkpoint", help="of --config: weights; fresh ones by default")
    parser.add_argument("--video", help="frames to play; noise, in which all fires, by default")
    parser.add_argument("--frames", type=int, default=20, help="after the first one")
    parser.add_argument("--gate", choices=sorted(config.GATES))
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--block", type=int)
    parser.add_argument("--policy", choices=POLICY_NAMES, default="closed_loop")
    parser.add_argument("--most", type=int, default=20, help="slowest operations that are listed")
    parser.add_argument("--out", type=Path, help="also write a timeline (PNG) to this file")
    return parser


def _network(options: argparse.Namespace) -> tuple[Experiment, dict[str, Any]]:
    gate = options.gate, options.threshold, options.block
    if options.onnx:
        network = from_onnx(options.onnx, options.size and tuple(options.size))
        task = "detection" if options.preset else "raw"
        settings = configuration(network, gate, options.policy)
        weights = {"model": network.variables, "gates": {}}
        return given(network, task, options.preset, settings), weights
    settings = config.set_gate(config.load(options.config), *gate)
    with settings.unlocked():
        settings.skip.policy = options.policy
    experiment = build(settings)
    if options.checkpoint:
        return experiment, common.load_weights(experiment, options.checkpoint)[1]
    return experiment, {"model": experiment.variables(), "gates": {}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, draws the timeline if asked; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.frames < 1:
            raise ValueError(f"`frames` (={options.frames}) must be at least 1.")
        experiment, weights = _network(options)
        found = measure(experiment, weights, options.video, options.frames)
        if options.out:
            draw(found, options.out, str(options.onnx or options.config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found, options.most))
    return 0
