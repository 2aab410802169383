"""Calibration of an experiment's network: which frames, which score, and the report."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skipconv_jax import macs
from skipconv_jax.ops import POLICIES
from skipconv_jax.streaming.sources import Source, is_video
from skipconv_jax.tasks import Experiment
from skipconv_jax.tuning import Budget, GatePlan, calibrate
from skipconv_jax.tuning.gate_plan import GATES
from skipconv_jax.tuning.measured import Material, calibrate_measured
from skipconv_jax.viz.charts import sweep_chart


@dataclasses.dataclass(frozen=True)
class Settings:
    """What calibrate.py was asked for.

    Attributes:
      budget: to keep.
      clip: video, folder of images or data set like the config's, None for the config's own.
      policy: name of the policy the gates are to run under.
      norm: name of the gate whose thresholds are sought.
      blocks: sizes to choose from, per layer.
      frames: to calibrate on, and to check on.
      streams: clips of the data set to take.
      labels: measure the drop against labels, not against the dense network.
      engine: that the skipped network runs on.
      method: one of `METHODS`.
      margin: share of the budget that 'measured' leaves unused.
      start: first frame of a video.
      seed: of 'measured'.
    """

    budget: Budget
    clip: str | None
    policy: str
    norm: str
    blocks: tuple[int, ...]
    frames: int
    streams: int
    labels: bool
    engine: str = "auto"
    method: str = "predicted"
    margin: float = 0.0
    start: int = 0
    seed: int = 0


METHODS = ("measured", "predicted")
"""Runs of the skipped network alone, or sensitivities of the dense one and a few runs."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames `(T, B, H, W, 3)` uint8 and their labels, if there are any."""

    images: np.ndarray
    labels: dict[str, np.ndarray] | None


def find_gate_plan(
    experiment: Experiment,
    variables: Any,
    settings: Settings,
    progress: Callable[[str], None] = lambda line: None,
) -> GatePlan:
    """The gate plan for a network and a budget.

    Args:
      experiment: the network.
      variables: its own.
      settings: what was asked for.
      progress: told a line now and then.

    Raises:
      ValueError: too few frames, labels where there are none, or a budget that can't be kept.
    """
    clip, held_out = _frames(experiment, settings)
    if settings.labels and clip.labels is None:
        raise ValueError("`labels` (=True) must come with a data set; a video has none.")
    if settings.method == "measured":
        return _measured(experiment, variables, settings, (clip, held_out), progress)
    return calibrate(
        experiment.predict,
        variables,
        list(clip.images),
        list(held_out.images),
        settings.budget,
        policy=POLICIES[settings.policy](),
        gates=lambda threshold, block: GATES[settings.norm](threshold=threshold, block=block),
        blocks=settings.blocks,
        score=_score(experiment, clip, settings.labels),
        held_out_score=_score(experiment, held_out, settings.labels),
        implementation=None if settings.budget.kind == "ms" else "dense",
        engine=settings.engine,
    )


def _measured(
    experiment: Experiment,
    variables: Any,
    settings: Settings,
    frames: tuple[Frames, Frames],
    progress: Callable[[str], None],
) -> GatePlan:
    scored = settings.labels or experiment.answers_for_labels
    first, later = (
        read_score(experiment, part.labels if settings.labels else None) if scored else None
        for part in frames
    )
    material = Material(
        experiment.predict,
        variables,
        frames[0].images,
        frames[1].images,
        experiment.disagreement,
        experiment.read if scored else None,
        first,
        later,
        settings.engine,
    )
    return calibrate_measured(
        material,
        settings.budget,
        policy=POLICIES[settings.policy](),
        gates=lambda threshold, block: GATES[settings.norm](threshold=threshold, block=block),
        blocks=settings.blocks,
        margin=settings.margin,
        seed=settings.seed,
        progress=progress,
    )


def read_score(
    experiment: Experiment, labels: Mapping[str, np.ndarray] | None = None
) -> Callable[[Any, Any], float]:
    """The headline figure of what was read, against labels or the dense network's answers."""

    def score(seen: Any, dense: Any) -> float:
        return judge(experiment, seen, experiment.answers(dense) if labels is None else labels)

    return score


def _frames(experiment: Experiment, settings: Settings) -> tuple[Frames, Frames]:
    """Frames to calibrate on and later or other ones to check on."""
    count, clip = settings.frames, settings.clip
    if clip is not None:
        if is_video(Path(clip)):
            return _halves(clip, experiment, count, settings.start)
        experiment = _with_data(experiment, clip)
    train, test = (
        first_frames(experiment, part, count, settings.streams) for part in ("train", "test")
    )
    return train, test


def _halves(clip: str, experiment: Experiment, count: int, start: int) -> tuple[Frames, Frames]:
    """The first and the second half of at most `2 count` frames of a video from `start` on."""
    images: list[np.ndarray] = []
    for frame in Source(clip):
        if frame.index >= start and frame.image is not None:
            images.append(experiment.fit(frame.image))
        if len(images) == 2 * count:
            break
    if len(images) < 4:
        raise ValueError(f"`clip` (={clip}) must have at least 4 frames.")
    whole = np.stack(images)[:, None]
    half = len(images) // 2
    return Frames(whole[:half], None), Frames(whole[half:], None)


def _with_data(experiment: Experiment, root: str) -> Experiment:
    """The experiment on another data set."""
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.root = root
    return dataclasses.replace(experiment, config=config)


def first_frames(
    experiment: Experiment, part: str, frames: int, streams: int, skip: int = 0
) -> Frames:
    """The first frames of clips of a data set, cut to the shortest of them.

    Args:
      experiment: whose data.
      part: 'train' or 'test'.
      frames: of each clip, at most.
      streams: clips, at most.
      skip: clips that are left out before.
    """
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.batch = 1
    single = dataclasses.replace(experiment, config=config)
    clips = single.first(single.clips(part), skip + streams)
    found = [
        {key: np.asarray(value)[0] for key, value in piece.items()}
        for piece in single.test_batches(clips, frames)
        if piece["valid"][0, 0] and not piece["time"][0, 0]
    ][skip:]
    if not found:
        raise ValueError(f"`skip` (={skip}) must leave clips of the {len(clips)} in {part!r}.")
    shortest = min(int(clip["valid"].sum()) for clip in found)
    stacked = {key: np.stack([c[key][:shortest] for c in found], axis=1) for key in found[0]}
    return Frames(stacked.pop("frames"), stacked)


def _score(
    experiment: Experiment, frames: Frames, labelled: bool
) -> Callable[[Any, Any], float] | None:
    if labelled and frames.labels is not None:
        return accuracy(experiment, frames.labels)
    return agreement(experiment)


def _reader(experiment: Experiment) -> Callable[[Any], Any]:
    """What is read of outputs `(T, B, ...)`; `Experiment.read` takes those of one frame."""
    reader: Callable[[Any], Any] = jax.jit(jax.vmap(experiment.read))
    return reader


def accuracy(
    experiment: Experiment, labels: Mapping[str, np.ndarray]
) -> Callable[[Any, Any], float]:
    """The experiment's headline figure of outputs `(T, B, ...)`, against labels `(T, B, ...)`."""
    read = _reader(experiment)

    def score(outputs: Any, dense: Any) -> float:
        del dense
        return judge(experiment, read(outputs), labels)

    return score


def agreement(experiment: Experiment) -> Callable[[Any, Any], float] | None:
    """The same figure, the dense network's answers taken for the truth; None where it has none."""
    if not experiment.answers_for_labels:
        return None
    read = _reader(experiment)

    def score(outputs: Any, dense: Any) -> float:
        return judge(experiment, read(outputs), experiment.answers(read(dense)))

    return score


def judge(experiment: Experiment, seen: Any, labels: Mapping[str, np.ndarray]) -> float:
    """The headline figure of what was read off, `(T, B, ...)`, against labels alike."""
    scorer = experiment.scorer()
    scorer.update(jax.device_get(seen), dict(labels))
    return scorer.result()[experiment.figures[-1][0]]


def report(gate_plan: GatePlan) -> str:
    """What was found, in a few lines."""
    budget, dense = gate_plan.note("budget"), gate_plan.note("dense_macs")
    gates = [layer.gate for _, layer in gate_plan.layers]
    lines = [
        f"budget {budget['kind']} <= {budget['limit']:.6g}, policy {gate_plan.policy}; "
        f"{len(gates)} convolutions, {sum(gate is None for gate in gates)} dense; "
        f"{gate_plan.note('dense_passes')} dense passes, "
        f"{gate_plan.note('skipped_runs')} skipped runs"
    ]
    for part, name in (("calibration", "calibrated on"), ("held_out", "held out")):
        seen = gate_plan.note(part)
        time = "" if seen["ms"] is None else f", {seen['ms']:.2f} ms"
        lines.append(
            f"{name:13}  {seen['macs'] / macs.GIGA:.4f} GMAC ({100 * seen['macs'] / dense:.1f} % of"
            f" dense), drop {seen['drop']:.4f}, output error {seen['error']:.4f}{time}"
        )
    if gate_plan.note("gain") is not None:
        lines.append(
            f"{gate_plan.note('gain'):.2f}x fewer multiply-accumulates than one threshold for all "
            f"layers at the same loss on the calibration frames"
        )
    if not gate_plan.note("held_out")["kept"]:
        lines.append("The held-out frames do NOT keep the budget: calibrate on more of them.")
    return "\n".join(lines)


def picture(gate_plan: GatePlan, path: Path) -> None:
    """Drop over cost on held-out frames: where the cliff is, and how near the gate plan stands.

    Raises:
      ValueError: a gate plan without a sweep, which 'measured' makes.
    """
    sweep = gate_plan.note("sweep")
    if sweep is None:
        raise ValueError("`gate plan` must be made with --method measured to have a sweep.")
    budget, seen = gate_plan.note("budget"), gate_plan.note("held_out")
    drop = budget["kind"] != "error"
    lines = {
        name: [(100 * row["share"], row["drop" if drop else "loss"]) for row in rows]
        for name, rows in sweep.items()
    }
    lost = seen["drop" if drop else "error"]
    chosen = (100 * seen["macs"] / gate_plan.note("dense_macs"), lost)
    title = f"held-out frames; budget {budget['kind']} <= {budget['limit']:.4g}"
    sweep_chart(lines, chosen, path, title, "drop" if drop else "disagreement")
