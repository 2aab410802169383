"""Prints the multiply-accumulates of every convolution of a configuration's network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from skipconv_jax import config, macs, tasks, whole_files
from skipconv_jax.tasks.given.experiment import configuration, from_function, from_onnx, given


def _table(options: argparse.Namespace) -> macs.Table:
    if options.config:
        return tasks.build(config.load(options.config)).table()
    size = options.size and tuple(options.size)
    network = from_onnx(options.onnx, size) if options.onnx else from_function(options.fn, size)
    return given(network, "raw", None, configuration(network)).table()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes it as JSON if asked; returns the exit code."""
    parser = argparse.ArgumentParser("skipconv macs", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="configs/x.py or configs/x.py:argument")
    which.add_argument("--onnx", help="an ONNX file with one image as input")
    which.add_argument("--fn", help="module:function that returns (variables, fn)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="where it is free")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    try:
        table = _table(options)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            whole_files.write_text(options.json, table.to_json() + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0
