"""Trains a skipped network: `skipconv train --config hrnet_synthetic [--resume]`.

The dense network first, then gates and network jointly; `--config.key=value` changes one value,
`--splits=1,2,3` trains one network per split of the data. Several processes share each batch:
start the same command in all of them, with --coordinator, --processes and --process, or with
--distributed where the cluster says who is who.
"""

from collections.abc import Sequence

from absl import flags

from skipconv_jax.commands import common
from skipconv_jax.commands.train import PHASES, train
from skipconv_jax.training import processes
from skipconv_jax.training.loop import TrainingDiverged

USAGE = "--config FILE [--workdir DIR] [--resume]"
ERRORS = (TrainingDiverged,)

flags.adopt_module_key_flags(common)
_PHASE = flags.DEFINE_string(
    "phase", "all", "dense, gated, or one of the task's own (detection: flow, a baseline)"
)
_RESUME = flags.DEFINE_bool("resume", False, "continue from the newest checkpoints of the workdir")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "one of several processes, as Slurm, a TPU pod or Kubernetes says"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, of several")
_PROCESSES = flags.DEFINE_integer("processes", None, "how many processes train together")
_PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")


def main(argv: Sequence[str]) -> int:
    """Trains and returns the exit code."""
    common.no_arguments(argv)
    told = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if _DISTRIBUTED.value or any(value is not None for value in told):
        processes.begin(*told)
    try:
        return _train()
    except processes.ProcessLost as error:
        processes.leave(error)
        return 1


def _train() -> int:
    phases = PHASES if _PHASE.value == "all" else (_PHASE.value,)
    folder = common.workdir()
    for split in common.splits():
        config = common.of_split(common.CONFIG.value, split)
        train(config, folder / f"split{split}", phases, _RESUME.value, common.NEWEST_WHOLE.value)
    if not common.splits():
        train(common.CONFIG.value, folder, phases, _RESUME.value, common.NEWEST_WHOLE.value)
    return 0
