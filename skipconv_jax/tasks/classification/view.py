"""How classification looks at a stream: the centre crop, and what happens in it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.data.augment import warp_frames
from skipconv_jax.viz import draw


@dataclasses.dataclass(frozen=True)
class ActionView:
    """What happens in a frame, seen in its centre crop."""

    size: tuple[int, int]
    names: tuple[str, ...]

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The largest centre crop of the input's shape."""
        height, width = image.shape[:2]
        zoom = max(self.size[0] / height, self.size[1] / width)
        # Centres of pixels: the middle of the frame goes to the middle of the input.
        x, y = ((n - 1) / 2 for n in (width, height))
        to_x, to_y = ((n - 1) / 2 for n in (self.size[1], self.size[0]))
        return np.array([[zoom, 0, to_x - zoom * x], [0, zoom, to_y - zoom * y]])

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Crops."""
        return warp_frames(np.stack(images), affine.astype(np.float32), *self.size)

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`label` and its `score`, the softmax of this frame's logits."""
        del affine, shape
        chances = np.exp(seen - np.max(seen))
        best = int(np.argmax(chances))
        return {
            "label": self.names[best],
            "score": round(float(chances[best] / chances.sum()), 4),
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The label below the caption."""
        return draw.note(image, f"{row['label']} {row['score']:.2f}")
