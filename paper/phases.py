"""Phases of training that an experiment shares with the commands, trained once and kept."""

import dataclasses
from pathlib import Path
from typing import Any

from paper.setting import Setting
from skipconv_jax.tasks import Experiment
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import Options, run


def trained_weights(
    where: Setting, experiment: Experiment, name: str, folder: Path, seed: int, saved_as: str
) -> dict[str, Any]:
    """Weights of a finished phase; trains what is missing of it.

    Args:
      where: options of the run.
      experiment: whose phase it is.
      name: of the phase.
      folder: of the run; the phase starts from what it finds there.
      seed: of the run.
      saved_as: name of the phase's own folder, for several trainings of one phase.
    """
    phase = dataclasses.replace(experiment.phase(name, folder), name=saved_as)
    checkpoints = Checkpoints(folder / saved_as / "checkpoints")
    done = checkpoints.latest == phase.steps
    checkpoints.close()
    if not done:
        where.check_computes(f"{folder.name}/{saved_as}")
        run(phase, folder, seed, Options(log_every=50, checkpoint_every=100, resume=True))
    return experiment.trained(folder / saved_as)
