"""How pose estimation looks at a stream: a crop around the person, joints, a skeleton."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.data.augment import crop_affine, invert_affine, warp_frames, warp_joints
from skipconv_jax.tasks.base import Box
from skipconv_jax.viz import draw


@dataclasses.dataclass(frozen=True)
class PoseView:
    """Joints of one person, in a crop around `box` or in the whole frame."""

    size: tuple[int, int]
    box: Box | None
    min_score: float

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The crop around the person, a quarter larger."""
        height, width = image.shape[:2]
        box = self.box or (0, 0, width - 1, height - 1)
        margin = 1.25 if self.box else 1.0
        return crop_affine(np.asarray(box, np.float32), *self.size, margin=margin)

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Crops."""
        return warp_frames(np.stack(images), affine, *self.size)

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`joints` `(15, 2)` and `scores` `(15,)`."""
        del shape
        joints, scores = seen
        return {
            "joints": np.round(warp_joints(joints, invert_affine(affine)), 2).tolist(),
            "scores": np.round(scores, 4).tolist(),
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The skeleton."""
        joints, scores = np.asarray(row["joints"]), np.asarray(row["scores"])
        return draw.draw_pose(image, joints, scores, minimum=self.min_score)
