"""What the commands share: exit codes, flags, and finding the weights a user means."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from skipconv_jax import config as configs
from skipconv_jax.extras import MissingExtra, required
from skipconv_jax.tasks import DENSE, GATED, Experiment

Tree = Any
CONFIG = configs.flag()
# With `flags.adopt_module_key_flags(common)` in a command, its --help shows these flags too.
flags.declare_key_flag("config")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of checkpoints and results (default runs/<name of the config>)"
)
GATE = flags.DEFINE_enum(
    "gate", None, sorted(configs.GATES), "gate of all convolutions, instead of the config's"
)
THRESHOLD = flags.DEFINE_float("threshold", None, "threshold of a norm gate", lower_bound=0)
NEWEST_WHOLE = flags.DEFINE_bool(
    "newest_whole", False, "where the newest checkpoint is damaged, take the newest whole one"
)
BLOCK = flags.DEFINE_integer("block", None, "side of the blocks that fire together", lower_bound=1)
SPLITS = flags.DEFINE_list("splits", None, "splits of the data, one run each, e.g. 1,2,3")


def splits() -> list[int]:
    """`--splits` as numbers; none by default.

    Raises:
      ValueError: something that is no split.
    """
    given = SPLITS.value or []
    if any(split not in ("1", "2", "3") for split in given):
        raise ValueError(f"`splits` (={','.join(given)}) must be some of 1,2,3.")
    return [int(split) for split in given]


def of_split(config: ConfigDict, split: int) -> ConfigDict:
    """A copy of the configuration for another split of its data."""
    config = config.copy_and_resolve_references()
    config.data.split = split
    return config


def gate_flags() -> tuple[str | None, float | None, int | None]:
    """`--gate`, `--threshold` and `--block`."""
    return GATE.value, THRESHOLD.value, BLOCK.value


def no_arguments(argv: Sequence[str]) -> None:
    """Refuses what is no flag.

    Raises:
      ValueError: there is any.
    """
    if len(argv) > 1:
        known = argv[1] in flags.FLAGS
        hint = f"did you mean --{argv[1]}?" if known else "see --help."
        raise ValueError(f"`arguments` (={argv[1:]}) must be flags; {hint}")


def one_source(argv: Sequence[str]) -> str:
    """The one video or folder of images of a command line.

    Raises:
      ValueError: none, or several.
    """
    if len(argv) != 2:
        raise ValueError(
            f"`arguments` (={list(argv[1:])}) must be one video file or folder of images."
        )
    return argv[1]


def numbers(name: str, texts: Sequence[str]) -> tuple[float, ...]:
    """A flag's list as numbers.

    Raises:
      ValueError: one of them is none.
    """
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"`{name}` (={list(texts)}) must be numbers.") from error


def run(command: ModuleType, arguments: Sequence[str], program: str) -> int:
    """Runs a command with flags: bad input is one line on stderr and code 1.

    Args:
      command: a module of `commands.entry`: `main`, `USAGE`, a docstring for `--help`, and perhaps
        `ERRORS`, more exceptions that are messages for users.
      arguments: of the command line.
      program: what the user typed before them.

    Returns:
      The exit code.
    """
    usage = f"usage: {program} {command.USAGE}"
    messages = (ValueError, OSError, MissingExtra, *getattr(command, "ERRORS", ()))

    def guarded(argv: Sequence[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            # Warnings of libraries would break into the progress line; ours are errors or output.
            logging.set_verbosity(logging.ERROR)
        # Commands that take a trained network instead say so by importing its flags.
        instead = getattr(command, "brought", None)
        if CONFIG.value is None and not (instead and instead.named()):
            print(f"error: --config is missing\n{usage}", file=sys.stderr)
            return 2
        try:
            code: int = command.main(argv)
        except messages as error:
            # A message for users, who can act on it; `-v=1` shows developers where it came from.
            if logging.get_verbosity() > 0:
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1
        return code

    def parse(argv: Sequence[str]) -> list[str]:
        if {"-h", "--help", "-help"} & set(argv[1:]):
            print(f"{command.__doc__}\n{usage}\n{flags.FLAGS.module_help(command.__name__)}")
            sys.exit(0)
        try:
            return flags.FLAGS([argv[0], *configs.locate_flag(argv[1:])])
        except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
            print(f"error: {error}\n{usage}", file=sys.stderr)
            sys.exit(2)

    try:
        app.run(guarded, argv=[program, *arguments], flags_parser=parse)
    except SystemExit as end:
        return int(end.code or 0)


def workdir() -> Path:
    """`--workdir`, or runs/<name of the config file>, with `-<argument>` where it has one."""
    if WORKDIR.value:
        return Path(WORKDIR.value)
    name, _, argument = configs.filename().partition(":")
    return Path("runs") / "-".join(filter(None, (Path(name).stem, argument)))


def load_weights(experiment: Experiment, spec: str | Path) -> tuple[str, dict[str, Tree]]:
    """Weights from a run's phase folder, or from a checkpoint of the public PyTorch layout.

    Args:
      experiment: whose network the weights must fit.
      spec: a folder `<workdir>/<phase>`, or a `.pth`, `.pt` or `.safetensors` file.

    Returns:
      A label, and `{'model': variables, 'gates': {...}}`, gates empty where none were trained.

    Raises:
      ValueError: nothing is there, or it does not fit.
    """
    path = Path(spec)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        from skipconv_jax.models.convert import from_torch, load_state

        return path.stem, {
            "model": from_torch(load_state(path), experiment.variables()),
            "gates": {},
        }
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if not folder.is_dir():
        raise ValueError(
            f"`checkpoint` (={str(path)!r}) must be a folder of a training phase, such as "
            "runs/hrnet_synthetic/gated, or a .pth or .safetensors file; train first with "
            "`python train.py --config ...`."
        )
    with required():
        from skipconv_jax.training.checkpoints import Checkpoints
    # Also called from Python, where no command line was read.
    whole = flags.FLAGS.is_parsed() and bool(NEWEST_WHOLE.value)
    checkpoints = Checkpoints(folder, newest_whole=whole)
    step, weights = checkpoints.weights()
    checkpoints.close()
    return f"{folder.parent.name}@{step}", weights


def newest_phase(folder: Path) -> Path:
    """The newest phase of a run that has checkpoints: gated before dense.

    Raises:
      ValueError: none has.
    """
    for phase in (GATED, DENSE):
        if (folder / phase / "checkpoints").is_dir():
            return folder / phase
    raise ValueError(
        f"`workdir` (={str(folder)!r}) must hold a trained phase; run train.py first, or pass "
        "--checkpoint."
    )
