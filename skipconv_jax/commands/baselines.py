"""Video networks to compare with (the paper's Figure 4), evaluated as the skipped network is."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.video_net import make_video_streamer
from skipconv_jax.commands import common
from skipconv_jax.commands.evaluate import Result, Streamed, evaluate_streamed
from skipconv_jax.tasks import DENSE, Experiment


def evaluate_baseline(
    experiment: Experiment,
    dense: dict[str, Any],
    folder: Path,
    clips: Any,
    name: str,
    interval: int,
    length: int | None = None,
) -> Result:
    """A baseline on the test videos.

    Args:
      experiment: of a task with baselines.
      dense: weights of the dense network.
      folder: of the run, whose phases hold what a baseline has trained.
      clips: as `experiment.clips` gives them.
      name: one of `experiment.baselines`.
      interval: frames from one key frame to the next.
      length: frames of a piece, each of which begins with a key frame.

    Raises:
      ValueError: a baseline that the task has not.
    """
    net = experiment.baseline(name, interval)
    variables, phase = dense["model"], experiment.baseline_phase(name)
    if phase != DENSE:
        variables = common.load_weights(experiment, folder / phase)[1]["model"]
    streams = experiment.config.eval.batch
    frame = experiment.frame(streams)
    params, state = net.init(variables, frame)

    def fresh() -> Any:
        # A copy: running donates it.
        return jax.tree.map(jnp.copy, state)

    run, dense_macs = make_video_streamer(net, experiment.read), net.dense_macs(variables, frame)
    ready = Streamed(run, params, fresh, dense_macs)
    return evaluate_streamed(experiment, ready, clips, f"{name}/{interval}", length)
