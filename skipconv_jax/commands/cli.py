"""`skipconv COMMAND ...`: the commands by name, each loaded only when it is asked for.

`train.py`, `eval.py`, `stream.py` and `calibrate.py` beside the package call the same code.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from skipconv_jax.extras import MissingExtra


class Command(NamedTuple):
    """A command: its module and what it does, in a line.

    The module has `main(arguments) -> exit code`. One with absl flags has `USAGE` too; its flags
    are parsed by `commands.common.run`, which hands `main` what is left.
    """

    module: str
    does: str


COMMANDS = {
    "train": Command("skipconv_jax.commands.entry.train", "train a skipped network"),
    "eval": Command("skipconv_jax.commands.entry.eval", "accuracy and cost on the test data"),
    "stream": Command("skipconv_jax.commands.entry.stream", "run a video through a network"),
    "serve": Command("skipconv_jax.commands.entry.serve", "live cameras through one network"),
    "batch": Command("skipconv_jax.commands.entry.batch", "recorded videos by several workers"),
    "probe": Command("skipconv_jax.commands.entry.probe", "does skipping pay on this video"),
    "calibrate": Command("skipconv_jax.commands.entry.calibrate", "thresholds for a budget"),
    "fit": Command("skipconv_jax.commands.entry.fit", "gates that learn from unlabelled video"),
    "macs": Command("skipconv_jax.commands.entry.macs", "multiply-accumulates of every layer"),
    "profile": Command("skipconv_jax.commands.entry.profile", "time of every operation"),
    "demo": Command("skipconv_jax.demo", "all of it on synthetic clips, in ten minutes"),
    "prepare": Command("skipconv_jax.data.prepare", "a downloaded data set as records"),
    "synthetic_pose": Command("skipconv_jax.data.synthetic_pose", "write clips of a figure"),
    "synthetic_traffic": Command("skipconv_jax.data.synthetic_traffic", "write videos of a road"),
}


def overview() -> str:
    """The commands, one a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: skipconv COMMAND ...", "", *lines, "", "skipconv COMMAND --help"])


def main(arguments: Sequence[str] | None = None, program: str = "") -> int:
    """Runs a command and returns its exit code: 0, 1 for bad input, 2 for a bad command line.

    Args:
      arguments: the command's name and its arguments; those of the process by default.
      program: how the user called it, for its usage line; `skipconv COMMAND` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name in ("", "-h", "--help"):
        print(overview(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: `command` (={name!r}) must be one of {known}", file=sys.stderr)
        return 2
    try:
        return _run(name, rest, program or f"skipconv {name}")
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(name: str, arguments: list[str], program: str) -> int:
    module = importlib.import_module(COMMANDS[name].module)
    if hasattr(module, "USAGE"):
        from skipconv_jax.commands import common

        return common.run(module, arguments, program)
    code: int | None = module.main(arguments)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
