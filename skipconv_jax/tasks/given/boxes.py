"""Detection with a network that is brought: boxes of a preset's decoder, COCO AP."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets import Preset
from skipconv_jax.tasks.base import Box, Scorer, View, whole_frames
from skipconv_jax.tasks.detection.anchors import non_maximum_suppression
from skipconv_jax.tasks.detection.metrics import AveragePrecision
from skipconv_jax.tasks.detection.predictions import Predictions
from skipconv_jax.tasks.detection.scorer import DetectionScorer
from skipconv_jax.tasks.given.base import GivenExperiment
from skipconv_jax.tasks.given.view import PlacedBoxes

_CANDIDATES, _KEEP = 300, 100


@dataclasses.dataclass(frozen=True)
class DetectionGiven(GivenExperiment):
    """A detector.

    Attributes:
      floor: boxes with scores up to it are not looked for, which spares time where nobody wants
        them.
    """

    task: Preset
    floor: float = 0.0

    figures: ClassVar = (("ap50", "AP@.5"), ("ap", "AP@[.5:.95]"))
    answers_for_labels: ClassVar = True
    asks: ClassVar = "detections"

    def read(self, outputs: Any) -> Predictions:
        """Detections after suppression in input pixels."""
        return detections(self.task, outputs, self.size, self.floor)

    def scorer(self) -> Scorer:
        """COCO AP."""
        return DetectionScorer(AveragePrecision(self.task.classes, False, False))

    def view(self, box: Box | None, min_score: float) -> View:
        """Whole frames, placed as the preset says."""
        whole_frames(box)
        return PlacedBoxes(
            self.size, self.task.classes, min_score, self.task.stretch, self.task.pad
        )

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The detections that are sure enough, as boxes to be found."""
        boxes, scores, labels = map(np.asarray, seen)
        lead = scores.shape[:2]
        return {
            "boxes": boxes,
            "labels": np.where(scores > self.task.sure, labels, -1),
            "ignored": np.zeros((*lead, 0, 4), np.float32),
            "annotated": np.ones(lead, bool),
            "scale": np.ones(lead, np.float32),
            "valid": np.ones(lead, bool),
        }

    def disagreement(self, outputs: Any, dense: Any) -> tuple[jax.Array, jax.Array]:
        """Scores and boxes where either network sees something, see `box_error`."""
        return box_error(self.task, outputs, dense, self.size)

    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """Boxes."""
        return int((labels["labels"] >= 0).sum())


# Share of `Preset.sure` from which a box can matter to what is shown.
_NEAR = 1 / 3


def box_error(
    rule: Preset, outputs: Any, dense: Any, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """What a detector's skipped outputs change of what is read off them, `(B,)`, and its scale.

    Over the boxes before suppression with s~ or s above a third of `sure`: |s~ - s| + s (1 - IoU),
    and s + s~ where the class is another; relative to the sum of s. A detector's raw outputs are
    mostly background, whose error says nothing of what is found.

    Args:
      rule: decodes the outputs.
      outputs: of the skipped network.
      dense: of the dense network.
      size: height and width of the input.
    """
    got, wanted = rule.decode(outputs, size), rule.decode(dense, size)
    off = jnp.abs(got.scores - wanted.scores)
    off = jnp.where(got.labels == wanted.labels, off, got.scores + wanted.scores)
    error = off + wanted.scores * (1 - _overlap(got.corners, wanted.corners))
    near = _NEAR * rule.sure
    counts = jnp.maximum(got.scores, wanted.scores) > near
    scale = jnp.where(wanted.scores > near, wanted.scores, 0).sum(axis=1)
    return jnp.where(counts, error, 0).sum(axis=1), scale


def _overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU of boxes one by one, (..., 4) each."""
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    both = jnp.prod(jnp.maximum(inner, 0), axis=-1)
    whole = sum(jnp.prod(jnp.maximum(c[..., 2:] - c[..., :2], 0), axis=-1) for c in (a, b))
    return both / jnp.maximum(whole - both, 1e-6)


def detections(
    rule: Preset, outputs: Any, size: tuple[int, int], floor: float = 0.0
) -> Predictions:
    """Boxes by falling score without repeats, padded to a static number, (B, keep, ...)."""
    found = rule.decode(outputs, size)
    scores, at = jax.lax.top_k(found.scores, min(_CANDIDATES, found.scores.shape[1]))
    corners = jnp.take_along_axis(found.corners, at[..., None], 1)
    labels = jnp.take_along_axis(found.labels, at, 1)

    def one(corners: jax.Array, scores: jax.Array, labels: jax.Array) -> Predictions:
        keep = min(_KEEP, scores.shape[0])
        index, real = non_maximum_suppression(corners, scores, labels, rule.overlap, keep, floor)
        return Predictions(
            jnp.where(real[:, None], corners[index], 0),
            jnp.where(real, scores[index], 0),
            jnp.where(real, labels[index], -1),
        )

    return jax.vmap(one)(corners, scores, labels)
