"""Detections of static shape, read off a network's outputs: suppressed, padded, and unpadded."""

from typing import Any, NamedTuple

import jax
import numpy as np

from skipconv_jax.tasks.detection.metrics import Detections


class Predictions(NamedTuple):
    """Detections of frames, by falling score, padded to a static number.

    Attributes:
      boxes: (..., keep, 4) float32: x1, y1, x2, y2 in pixels of the network's input.
      scores: (..., keep) float32 in (0, 1), 0 on padding.
      labels: (..., keep) int32, -1 on padding.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array


def unpack(predictions: Predictions, threshold: float = 0.0) -> Any:
    """Detections without padding, nested as the leading axes: (B, T, ...) gives [B][T].

    A box of which an edge is NaN is nowhere, and left out.

    Args:
      predictions: of frames.
      threshold: scores at or below it are left out.
    """
    boxes, scores, labels = (np.asarray(part) for part in predictions)
    if scores.ndim > 1:
        return [
            unpack(Predictions(*row), threshold) for row in zip(boxes, scores, labels, strict=True)
        ]
    kept = (scores > threshold) & ~np.isnan(boxes).any(axis=-1)
    return Detections(boxes[kept], scores[kept], labels[kept])
