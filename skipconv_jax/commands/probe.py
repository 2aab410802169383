"""A look at a network on a video before any tuning: frames, trials, table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax import skip
from skipconv_jax.commands.calibrate import read_score
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.streaming.sources import FrameSource
from skipconv_jax.tasks import Experiment
from skipconv_jax.tuning.probe import Probe, probe
from skipconv_jax.tuning.scene import scene
from skipconv_jax.tuning.trials import Trials
from skipconv_jax.viz.tables import markdown


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `skipconv probe` was asked for.

    Attributes:
      frames: that are run, one after the other.
      start: first of them.
      thresholds: to try, for all layers.
      block: side of the blocks that fire together.
      policy: name of what residuals are taken against.
      engine: that runs the network.
    """

    frames: int
    start: int
    thresholds: Sequence[float]
    block: int
    policy: str
    engine: str = "auto"


def look(experiment: Experiment, variables: Any, source: FrameSource, settings: Settings) -> Probe:
    """What uniform thresholds cost on the video.

    Raises:
      ValueError: fewer than two frames.
    """
    images = []
    for frame in source:
        if frame.index >= settings.start and frame.image is not None:
            images.append(frame.image)
        if len(images) == settings.frames:
            break
    if len(images) < 2:
        raise ValueError(
            f"`video` (={source.path}) must have at least two frames from {settings.start} on."
        )
    clip = np.stack([experiment.fit(image) for image in images])[:, None]
    net = skip(
        experiment.predict,
        gate=InputNormGate(block=settings.block),
        policy=POLICIES[settings.policy](),
    )
    scored = experiment.answers_for_labels
    trials = Trials(
        net,
        variables,
        clip,
        experiment.disagreement,
        read=experiment.read if scored else None,
        engine=settings.engine,
    )
    return probe(
        trials,
        scene(images),
        agreement=read_score(experiment) if scored else None,
        tried=settings.thresholds,
    )


def report(found: Probe) -> str:
    """The table and the verdict."""
    rows = [
        [
            "everything computed" if row is found.dense else f"{row.threshold:g}",
            f"{100 * row.macs:.1f} %",
            f"{1 / max(row.macs, 1e-6):.2f}x",
            f"{row.ms:.2f}",
            f"{found.dense.ms / row.ms:.2f}x",
            f"{row.loss:.4f}",
            "" if row.agreement != row.agreement else f"{100 * row.agreement:.1f} %",
        ]
        for row in (found.dense, *found.rows)
    ]
    seen = found.scene
    header = ["threshold", "MACs", "fewer", "ms/frame", "speed", "disagreement", "agreement"]
    return "\n".join(
        [
            markdown(header, rows, left=1),
            "",
            f"scene: shift {seen.shift:.2f} % of the picture per frame, noise {seen.noise:.2f} of "
            f"255 levels, {100 * seen.changed:.0f} % of it changing; engine: {found.engine}",
            found.verdict(),
        ]
    )
