"""What the commands share: exit codes, flags, and finding the weights a user means."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from skipconv_jax import config as configs
from skipconv_jax.experiment import DENSE, GATED, Experiment
from skipconv_jax.models.convert import from_torch, load_state
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import TrainingDiverged

Tree = Any
CONFIG = configs.flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of checkpoints and results (default runs/<name of the config>)"
)
GATE = flags.DEFINE_enum(
    "gate", None, sorted(configs.GATES), "gate of all convolutions, instead of the config's"
)
THRESHOLD = flags.DEFINE_float("threshold", None, "threshold of a norm gate", lower_bound=0)
BLOCK = flags.DEFINE_integer("block", None, "side of the blocks that fire together", lower_bound=1)


def gate_flags() -> tuple[str | None, float | None, int | None]:
    """`--gate`, `--threshold` and `--block`."""
    return GATE.value, THRESHOLD.value, BLOCK.value


def no_arguments(argv: Sequence[str]) -> None:
    """Refuses what is no flag.

    Raises:
      ValueError: there is any.
    """
    if len(argv) > 1:
        raise ValueError(f"`arguments` (={argv[1:]}) must be flags; did you mean --{argv[1]}?")


def run(main: Callable[[Sequence[str]], int], usage: str) -> None:
    """Runs a command: bad input and diverged training are one line on stderr and exit code 1."""

    def guarded(argv: Sequence[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if CONFIG.value is None:
            print(f"error: --config is missing\nusage: {usage}", file=sys.stderr)
            return 2
        try:
            return main(argv)
        except (ValueError, OSError, TrainingDiverged) as error:
            # A message for users, who can act on it; `-v=1` shows developers where it came from.
            if logging.get_verbosity() > 0:
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1

    app.run(guarded, flags_parser=lambda args: _parse(args, usage))


def _parse(args: Sequence[str], usage: str) -> list[str]:
    try:
        return flags.FLAGS(args)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        print(f"error: {error}\nusage: {usage}", file=sys.stderr)
        sys.exit(2)


def workdir() -> Path:
    """`--workdir`, or runs/<name of the config file>."""
    if WORKDIR.value:
        return Path(WORKDIR.value)
    return Path("runs") / Path(configs.filename().partition(":")[0]).stem


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
    checkpoints = Checkpoints(folder)
    step, weights = checkpoints.weights()
    checkpoints.close()
    return f"{folder.parent.name}@{step}", weights


def trained_phase(folder: Path) -> Path:
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
