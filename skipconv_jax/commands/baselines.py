"""The video detectors of the paper's Figure 4, evaluated as the skipped network is."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.video_net import make_video_streamer
from skipconv_jax.commands import common
from skipconv_jax.commands.evaluate import Result, Streamed, evaluate_streamed
from skipconv_jax.experiment import Experiment
from skipconv_jax.experiment.detection import FLOW, DetectionExperiment


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
      experiment: of a detector.
      dense: weights of the dense detector.
      folder: of the run, whose phase `flow` holds the trained flow network.
      clips: as `experiment.clips` gives them.
      name: one of `experiment.detection.BASELINES`.
      interval: frames from one key frame to the next.
      length: frames of a piece, each of which begins with a key frame.

    Raises:
      ValueError: another task than detection, or an unknown baseline.
    """
    if not isinstance(experiment, DetectionExperiment):
        raise ValueError(
            f"`baseline` (={name!r}) must be left out for the task {experiment.config.task!r}: "
            "these baselines are detectors."
        )
    variables = dense["model"]
    if name == "feature_flow":
        _, weights = common.load_weights(experiment, folder / FLOW)
        variables = weights["model"]
    net = experiment.baseline(name, interval)
    streams = experiment.config.eval.batch
    frame = experiment.frame(streams)
    params, state = net.init(variables, frame)

    def fresh() -> Any:
        # A copy: running donates it.
        return jax.tree.map(jnp.copy, state)

    run, dense_macs = make_video_streamer(net, experiment.read), net.dense_macs(variables, frame)
    ready = Streamed(run, params, fresh, dense_macs)
    return evaluate_streamed(experiment, ready, clips, f"{name}/{interval}", length)
