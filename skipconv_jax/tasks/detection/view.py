"""How detection looks at a stream: whole frames, boxes with labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.augment import invert_affine, warp_joints
from skipconv_jax.data.labelled_videos import clip_boxes
from skipconv_jax.data.placement import MEAN_COLOR, DetectionView, place
from skipconv_jax.tasks.detection.predictions import Predictions, unpack
from skipconv_jax.viz import draw

_FAR = 1e6


@dataclasses.dataclass(frozen=True)
class BoxView:
    """Boxes of objects; frames are resized until they fit, and padded as in training."""

    size: tuple[int, int]
    names: tuple[str, ...]
    min_score: float

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The whole frame, in the upper left corner."""
        return place(image.shape[:2], self.size, DetectionView()).matrix()

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Whole frames."""
        size = (self.size[1], self.size[0])
        return np.stack(
            [cv2.warpAffine(image, affine, size, borderValue=MEAN_COLOR) for image in images]
        )

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`boxes` `(N, 4)` x1, y1, x2, y2, `scores` and `labels`, of the boxes sure enough."""
        found = unpack(Predictions(*seen), self.min_score)
        boxes = on_frame(found.boxes, affine, shape)
        return {
            "boxes": np.round(boxes, 1).tolist(),
            "scores": np.round(found.scores, 4).tolist(),
            "labels": [self.names[label] for label in found.labels],
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """Boxes with their labels and scores."""
        return draw.draw_boxes(image, row["boxes"], row["labels"], row["scores"])


def on_frame(boxes: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Boxes `(N, 4)` in pixels of the network's input as boxes in the frame, cut at its edges."""
    # Boxes count in edges of pixels, the affine in their centres: half a pixel apart.
    corners = np.asarray(boxes, np.float64).reshape(-1, 2) - 0.5
    # An edge at infinity (the exponential of a large output) is beyond the frame's.
    corners = np.clip(corners, -_FAR, _FAR)
    placed = (warp_joints(corners, invert_affine(affine)) + 0.5).reshape(-1, 4)
    # The input is padded beyond the frame's edges.
    return clip_boxes(placed, *shape[:2])
