"""Prints the multiply-accumulates of every convolution of a configuration's network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from skipconv_jax import config, tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes it as JSON if asked; returns the exit code."""
    parser = argparse.ArgumentParser("skipconv macs", description=__doc__)
    parser.add_argument("--config", required=True, help="configs/x.py or configs/x.py:argument")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    try:
        table = tasks.build(config.load(options.config)).table()
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(table.to_json() + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0
