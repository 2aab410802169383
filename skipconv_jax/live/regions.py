"""Regions of a picture: pixels to ignore, zones to count in. Polygons in shares of the frame."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

Polygon = Sequence[Sequence[float]]  # x, y in [0, 1]


def _pixels(polygon: Polygon, shape: Sequence[int]) -> np.ndarray:
    """Corners in pixels, pixel centres at whole numbers."""
    scale = np.asarray([shape[1], shape[0]], np.float64)
    return np.asarray(polygon, np.float64) * scale - 0.5


class Ignore:
    """Pixels of one stream that may change without waking anything.

    On the network's input they are replaced by what they were at the stream's last reference frame,
    before the plan sees the frame. So the network sees

        x~_t = x_t outside, x_r inside,    r: the last reference frame

    and inside x~_t - x~_{t-1} = 0 to the bit: a block of the first layer whose window lies inside
    never fires, and what the network says is what it says of x~_t, within the bounds of its policy.
    A masked input pixel is one that mixes any ignored pixel of the frame; where resizing spreads a
    pixel, the mask spreads with it.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        self._polygons = polygons
        self._for: tuple[Any, ...] = ()
        self._mask: np.ndarray | None = None
        self._reference: np.ndarray | None = None

    def __call__(
        self, x: np.ndarray, affine: np.ndarray, shape: Sequence[int], fresh: bool
    ) -> np.ndarray:
        """The input `(1, H, W, 3)` that the plan may see.

        Args:
          x: the network's input.
          affine: `(2, 3)`, frame pixels to input pixels.
          shape: of the frame.
          fresh: it is a reference frame, whose pixels are kept.
        """
        if not self._polygons:
            return x
        made_for = (*shape[:2], *x.shape, *affine.ravel())
        if made_for != self._for or self._mask is None:
            self._for, self._mask = made_for, self._masked(affine, shape, x.shape[1:3])
            fresh = True
        if fresh or self._reference is None:
            self._reference = x[:, self._mask].copy()
            return x
        x = x.copy()
        x[:, self._mask] = self._reference
        return x

    def _masked(self, affine: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
        ignored = np.zeros(shape[:2], np.uint8)
        for polygon in self._polygons:
            corners = np.rint(_pixels(polygon, shape)).astype(np.int32)
            cv2.fillPoly(ignored, [corners], 1)
        # As the frame is resized, so that a pixel's weight is above 0 exactly where it is mixed in.
        mixed = cv2.warpAffine(ignored.astype(np.float32), affine, (size[1], size[0]))
        return mixed > 0


@dataclasses.dataclass(frozen=True)
class Zones:
    """Named polygons: which boxes stand in which.

    Attributes:
      polygons: by name.
    """

    polygons: Mapping[str, Polygon]

    def of(self, boxes: Sequence[Sequence[float]], shape: Sequence[int]) -> list[list[str]]:
        """For each box x1, y1, x2, y2 the zones in which the middle of its lower edge lies."""
        corners = {
            name: (_pixels(polygon, shape) + 0.5).astype(np.float32)
            for name, polygon in self.polygons.items()
        }
        return [
            [
                name
                for name, polygon in corners.items()
                if cv2.pointPolygonTest(polygon, ((x1 + x2) / 2, y2), False) >= 0
            ]
            for x1, _, x2, y2 in boxes
        ]
