"""How frames are placed on the input of a network that is brought, and what is drawn on them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from skipconv_jax.tasks.detection.view import BoxView
from skipconv_jax.tasks.pose.view import PoseView
from skipconv_jax.viz import draw


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


@dataclasses.dataclass(frozen=True)
class Keypoints(PoseView):
    """Keypoints of one person, in a crop around `box` or in the whole frame."""

    limbs: tuple[tuple[int, int], ...]

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """Keypoints, and lines between them where the preset has limbs."""
        joints, scores = np.asarray(row["joints"]), np.asarray(row["scores"])
        return draw.draw_pose(image, joints, scores, self.limbs, self.min_score)


@dataclasses.dataclass(frozen=True)
class ClassMap(RawView):
    """Whole frames, stretched; every pixel has a class."""

    names: tuple[str, ...]

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`shares` of the frame by class, and `map`: its height and width, and runs of classes.

        Runs go row by row: `lengths` pixels of `classes` each.
        """
        flat = seen.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=-1))
        lengths = np.diff(starts, append=len(flat))
        found, counts = np.unique(flat, return_counts=True)
        return {
            "shares": {
                self._name(c): round(float(n / len(flat)), 6)
                for c, n in zip(found, counts, strict=True)
            },
            "map": {
                "size": list(seen.shape),
                "classes": flat[starts].tolist(),
                "lengths": lengths.tolist(),
            },
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """Classes as colours; class 0 is bare unless the preset names it other than background."""
        runs = row["map"]
        classes = np.repeat(runs["classes"], runs["lengths"]).reshape(runs["size"])
        # From pixels of the frame to those of the map, which covers the input.
        height, width = classes.shape
        scale = np.array([[width / self.size[1]], [height / self.size[0]]])
        affine = self.affine(image) * scale
        affine[:, 2:] += scale / 2 - 0.5
        placed = cv2.warpAffine(
            classes.astype(np.uint16),
            affine,
            (image.shape[1], image.shape[0]),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        bare = 0 if not self.names or self.names[0] == "background" else None
        return draw.overlay_classes(image, placed, bare)

    def _name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)
