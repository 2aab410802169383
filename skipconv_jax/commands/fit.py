"""Gates of a trained network from unlabelled video: frames, training, a table of what they do."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from skipconv_jax import skip
from skipconv_jax.commands.calibrate import read_score
from skipconv_jax.ops import POLICIES
from skipconv_jax.streaming.sources import FrameSource
from skipconv_jax.tasks import Experiment
from skipconv_jax.training.loop import Options
from skipconv_jax.tuning.fit import Fitted, Recipe, fit
from skipconv_jax.tuning.trials import Trials
from skipconv_jax.viz.tables import markdown


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `skipconv fit` was asked for.

    Attributes:
      frames: to train on; the memory they take is theirs alone, a byte a value.
      start: first of them.
      held_out: frames after them, to check on.
      policy: name of what the gates are to run under.
      resume: continue what was stopped.
      engine: that checks them.
    """

    frames: int
    start: int
    held_out: int
    policy: str
    resume: bool = False
    engine: str = "auto"


@dataclasses.dataclass(frozen=True)
class Row:
    """What the gates of one beta do on the held-out frames, reference frame left out.

    Attributes:
      beta: weight of the cost.
      share: of the dense multiply-accumulates, gates not counted.
      gates: what the gates themselves spend, as a share too.
      loss: disagreement.
      agreement: in [0, 1]; None for a task without a score.
      ms: per frame.
      path: of the gate plan.
    """

    beta: float
    share: float
    gates: float
    loss: float
    agreement: float | None
    ms: float
    path: Path


def frames_of(experiment: Experiment, source: FrameSource, start: int, count: int) -> np.ndarray:
    """`(N, H, W, 3)` frames of a video as the network takes them.

    Raises:
      ValueError: too few.
    """
    found: list[np.ndarray] = []
    for frame in source:
        if frame.index >= start and frame.image is not None:
            found.append(experiment.fit(frame.image))
        if len(found) == count:
            break
    if len(found) < count:
        raise ValueError(
            f"`video` (={source.path}) must have {count} frames from {start} on, and has "
            f"{len(found)}; take fewer to train or check on."
        )
    return np.stack(found)


def run(
    experiment: Experiment,
    variables: Any,
    source: FrameSource,
    recipe: Recipe,
    settings: Settings,
    workdir: Path,
) -> tuple[list[Row], float]:
    """Trains, writes a gate plan per beta, and checks each; the seconds it took.

    Raises:
      ValueError: too few frames, or a joint recipe, whose network no gate plan can hold.
    """
    if recipe.joint:
        raise ValueError(
            f"`joint` (={recipe.joint}) must be 0 here, since a gate plan holds no network; call "
            "`skipconv_jax.tuning.fit.fit`, which returns its variables."
        )
    images = frames_of(experiment, source, settings.start, settings.frames + settings.held_out)
    began = time.monotonic()
    found = fit(
        experiment.predict,
        variables,
        [images[: settings.frames]],
        experiment.disagreement,
        recipe,
        workdir,
        policy=POLICIES[settings.policy](),
        options=Options(log_every=5, checkpoint_every=25, resume=settings.resume),
    )
    seconds = time.monotonic() - began
    later = images[settings.frames :][:, None]
    rows = [check(experiment, fitted, later, workdir, settings.engine) for fitted in found]
    return rows, seconds


def check(
    experiment: Experiment, fitted: Fitted, clip: np.ndarray, workdir: Path, engine: str
) -> Row:
    """Writes a gate plan and runs it."""
    path = workdir / f"beta{fitted.beta:g}.json"
    fitted.gate_plan.save(path)
    scored = experiment.answers_for_labels
    trials = Trials(
        skip(experiment.predict, fitted.gate_plan),
        fitted.variables,
        clip,
        experiment.disagreement,
        read=experiment.read if scored else None,
        engine=engine,
    )
    gates = fitted.gate_plan.params()
    seen, read = trials.read(gates)
    dense = trials.dense_macs
    return Row(
        fitted.beta,
        seen.macs / dense,
        trials.plan.table.gate_macs / dense,
        seen.loss,
        read_score(experiment)(read, trials.dense()) if scored else None,
        trials.milliseconds(gates),
        path,
    )


def report(rows: list[Row], seconds: float) -> str:
    """The trade-off."""
    cells = [
        [
            f"{row.beta:g}",
            f"{100 * row.share:.1f} %",
            f"{100 * row.gates:.1f} %",
            f"{row.loss:.4f}",
            "" if row.agreement is None else f"{100 * row.agreement:.1f} %",
            f"{row.ms:.2f}",
            str(row.path),
        ]
        for row in rows
    ]
    header = ["beta", "MACs", "of gates", "disagreement", "agreement", "ms/frame", "gate plan"]
    return f"{markdown(header, cells)}\n\ntrained in {seconds:.0f} s; held-out frames"
