"""Trains a skipped network: `python train.py --config configs/hrnet_synthetic.py [--resume]`.

The dense network first, then gates and network jointly; `--config.key=value` changes one value.
"""

from collections.abc import Sequence

from absl import flags

from skipconv_jax.commands import common
from skipconv_jax.commands.train import PHASES, train

_PHASE = flags.DEFINE_enum("phase", "all", ["all", *PHASES], "phase to train")
_RESUME = flags.DEFINE_bool("resume", False, "continue from the newest checkpoints of the workdir")


def main(argv: Sequence[str]) -> int:
    """Trains and returns the exit code."""
    common.no_arguments(argv)
    phases = PHASES if _PHASE.value == "all" else (_PHASE.value,)
    train(common.CONFIG.value, common.workdir(), phases, _RESUME.value)
    return 0


if __name__ == "__main__":
    common.run(main, "python train.py --config FILE [--workdir DIR] [--resume]")
