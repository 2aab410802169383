"""How frames are placed on the input of a network that is brought, and what is drawn on them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from skipconv_jax.tasks.detection.view import BoxView


def _stretched(shape: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The whole frame over the whole input; centres of pixels at half numbers."""
    sx, sy = size[1] / shape[1], size[0] / shape[0]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2]])


@dataclasses.dataclass(frozen=True)
class PlacedBoxes(BoxView):
    """Boxes of objects; the frame stretched, or at the upper left over a grey level."""

    stretch: bool
    pad: tuple[int, int, int]

    def affine(self, image: np.ndarray) -> np.ndarray:
        """Where the frame's pixels lie on the input."""
        return _stretched(image.shape, self.size) if self.stretch else super().affine(image)

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Whole frames."""
        size = (self.size[1], self.size[0])
        return np.stack([cv2.warpAffine(i, affine, size, borderValue=self.pad) for i in images])


@dataclasses.dataclass(frozen=True)
class RawView:
    """Whole frames, stretched; of the outputs, their means and ranges are reported."""

    size: tuple[int, int]

    def affine(self, image: np.ndarray) -> np.ndarray:
        """Where the frame's pixels lie on the input."""
        return _stretched(image.shape, self.size)

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Whole frames."""
        size = (self.size[1], self.size[0])
        return np.stack([cv2.warpAffine(image, affine, size) for image in images])

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """Mean and range of every output."""
        outputs = seen if isinstance(seen, dict) else {"output": seen}
        return {
            name: {
                "mean": float(np.mean(value)),
                "min": float(np.min(value)),
                "max": float(np.max(value)),
            }
            for name, value in outputs.items()
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The frame as it is."""
        return image
