"""Calibration of a pose network: which frames, which score, and the report."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from skipconv_jax import macs
from skipconv_jax.calibration import Budget, Plan, calibrate
from skipconv_jax.calibration.plan import GATES
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.pipeline import make_eval_iterator
from skipconv_jax.experiment import Experiment
from skipconv_jax.ops import POLICIES
from skipconv_jax.tasks.pose import Pck
from skipconv_jax.video import Source

# Without labels a joint agrees that lies within this share of the frame's longer side.
_NEAR = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """What calibrate.py was asked for.

    Attributes:
      budget: to keep.
      clip: video or folder of images, None for the config's clips.
      policy: name of the policy the plan is to run under.
      norm: name of the gate whose thresholds are sought.
      blocks: sizes to choose from.
      frames: to calibrate on, and to check on.
      streams: clips of the data set to take.
      labels: measure the drop against labels, not against the dense network.
    """

    budget: Budget
    clip: str | None
    policy: str
    norm: str
    blocks: tuple[int, ...]
    frames: int
    streams: int
    labels: bool


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames `(T, B, H, W, 3)` uint8 and their labels, if there are any."""

    images: np.ndarray
    labels: dict[str, np.ndarray] | None


def find_plan(experiment: Experiment, variables: Any, settings: Settings) -> Plan:
    """The plan for a network and a budget.

    Raises:
      ValueError: too few frames, labels where there are none, or a budget that can't be kept.
    """
    clip, held_out = _frames(experiment, settings)
    if settings.labels and clip.labels is None:
        raise ValueError("`labels` (=True) must come with the config's clips; a video has none.")
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
        implementation=None if settings.budget.kind == "ms" else "reference",
    )


def _frames(experiment: Experiment, settings: Settings) -> tuple[Frames, Frames]:
    """Frames to calibrate on and later or other ones to check on."""
    count = settings.frames
    if settings.clip is None:
        return tuple(  # type: ignore[return-value]
            _labelled(experiment, experiment.clips(part), count, settings.streams)
            for part in ("train", "test")
        )
    height, width = experiment.size
    images: list[np.ndarray] = []
    for frame in Source(settings.clip):
        if frame.image is not None:
            images.append(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA))
        if len(images) == 2 * count:
            break
    if len(images) < 4:
        raise ValueError(f"`clip` (={settings.clip}) must have at least 4 frames.")
    whole = np.stack(images)[:, None]
    half = len(images) // 2
    return Frames(whole[:half], None), Frames(whole[half:], None)


def _labelled(
    experiment: Experiment, clips: Sequence[PoseClip], frames: int, streams: int
) -> Frames:
    """The first frames of up to `streams` clips, cut to the shortest of them."""
    pieces = make_eval_iterator(
        clips[:streams],
        batch=min(streams, len(clips)),
        size=experiment.size,
        margin=experiment.config.data.margin,
        normalized=False,
    )
    batch = next(pieces)
    shortest = int(min(frames, np.asarray(batch["valid"]).sum(axis=1).min()))
    first = jax.tree.map(lambda a: np.swapaxes(np.asarray(a), 0, 1)[:shortest], dict(batch))
    return Frames(first.pop("frames"), first)


def _score(experiment: Experiment, frames: Frames, labelled: bool) -> Callable[[Any, Any], float]:
    """PCK@.2 against labels, or the share of joints where the dense network has them."""

    def joints(outputs: Any) -> np.ndarray:
        return np.asarray(experiment.task.predict(outputs)[0])

    def accuracy(outputs: Any, dense: Any) -> float:
        del dense
        labels, pck = frames.labels or {}, Pck()
        counted = labels["visible"] & labels["valid"][..., None]
        pck.update(joints(outputs), labels["joints"], labels["size"], counted, labels["scale"])
        return pck.result()["mean15"]

    def agreement(outputs: Any, dense: Any) -> float:
        distance = np.linalg.norm(joints(outputs) - joints(dense), axis=-1)
        return float((distance <= _NEAR * max(experiment.size)).mean())

    return accuracy if labelled else agreement


def report(plan: Plan) -> str:
    """What was found, in a few lines."""
    budget, dense = plan.note("budget"), plan.note("dense_macs")
    gates = [layer.gate for _, layer in plan.layers]
    lines = [
        f"budget {budget['kind']} <= {budget['limit']:.6g}, policy {plan.policy}; "
        f"{len(gates)} convolutions, {sum(gate is None for gate in gates)} dense; "
        f"{plan.note('dense_passes')} dense passes, {plan.note('skipped_runs')} skipped runs"
    ]
    for part, name in (("calibration", "calibrated on"), ("held_out", "held out")):
        seen = plan.note(part)
        time = "" if seen["ms"] is None else f", {seen['ms']:.2f} ms"
        lines.append(
            f"{name:13}  {seen['macs'] / macs.GIGA:.4f} GMAC ({100 * seen['macs'] / dense:.1f} % of"
            f" dense), drop {seen['drop']:.4f}, output error {seen['error']:.4f}{time}"
        )
    if not plan.note("held_out")["kept"]:
        lines.append("The held-out frames do NOT keep the budget: calibrate on more of them.")
    return "\n".join(lines)
