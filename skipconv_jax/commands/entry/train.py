"""Trains a skipped network: `skipconv train --config hrnet_synthetic [--resume]`.

The dense network first, then gates and network jointly; `--config.key=value` changes one value,
`--splits=1,2,3` trains one network per split of the data.
"""

from collections.abc import Sequence

from absl import flags

from skipconv_jax.commands import common
from skipconv_jax.commands.train import PHASES, train
from skipconv_jax.training.loop import TrainingDiverged

USAGE = "--config FILE [--workdir DIR] [--resume]"
ERRORS = (TrainingDiverged,)

flags.adopt_module_key_flags(common)
_PHASE = flags.DEFINE_string(
    "phase", "all", "dense, gated, or one of the task's own (detection: flow, a baseline)"
)
_RESUME = flags.DEFINE_bool("resume", False, "continue from the newest checkpoints of the workdir")


def main(argv: Sequence[str]) -> int:
    """Trains and returns the exit code."""
    common.no_arguments(argv)
    phases = PHASES if _PHASE.value == "all" else (_PHASE.value,)
    folder = common.workdir()
    for split in common.splits():
        config = common.of_split(common.CONFIG.value, split)
        train(config, folder / f"split{split}", phases, _RESUME.value, common.NEWEST_WHOLE.value)
    if not common.splits():
        train(common.CONFIG.value, folder, phases, _RESUME.value, common.NEWEST_WHOLE.value)
    return 0
