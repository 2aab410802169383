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

    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """Boxes."""
        return int((labels["labels"] >= 0).sum())


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
