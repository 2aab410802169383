"""Trains the phases of a configuration: dense first, then the gated network from the dense one."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from skipconv_jax.config import check_unchanged
from skipconv_jax.tasks import DENSE, GATED, build
from skipconv_jax.training import processes
from skipconv_jax.training.loop import Options, run
from skipconv_jax.training.run_lock import run_lock

PHASES = (DENSE, GATED)
# Parts of a configuration that may differ between a run and its resumption: they change no result.
_FREE = (
    "eval",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "data.root",
    "data.cache",
    "data.fetch",
)


def train(
    config: ConfigDict,
    workdir: Path,
    phases: Sequence[str] = PHASES,
    resume: bool = False,
    newest_whole: bool = False,
) -> None:
    """Trains `phases` one after the other into `<workdir>/<phase>/`.

    Raises:
      ValueError: the data is missing, the folder holds a run and `resume` is False, or the
        configuration is not the one the run was started with.
      TrainingDiverged: something is not finite.
      ProcessLost: another process of this run is gone.
    """
    experiment = build(config)
    options = Options(
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        tensorboard=config.tensorboard,
        resume=resume,
        newest_whole=newest_whole,
    )
    for name in phases:
        phase = experiment.phase(name, workdir)
        folder = workdir / name
        # The configuration's file belongs to who trains, too: to the first of several processes.
        with run_lock(folder) if processes.first() else contextlib.nullcontext():
            if processes.first():
                if not any((folder / "checkpoints").glob("[0-9]*")):
                    # Nothing was trained yet: a first try that failed must not bind the next one.
                    (folder / "config.json").unlink(missing_ok=True)
                check_unchanged(config, folder / "config.json", _FREE)
            run(phase, workdir, config.seed, options)
