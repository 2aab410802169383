"""Where a frame goes in a detector's input: resized until it fits, padded below or to the right."""

import dataclasses

import numpy as np

from skipconv_jax.data.augment import IMAGENET_MEAN

MEAN_COLOR = tuple(float(v) for v in np.round(IMAGENET_MEAN * 255))


@dataclasses.dataclass(frozen=True)
class DetectionView:
    """How a clip is seen; the default is the whole frame as large as it fits.

    Attributes:
      mirrored: left and right exchanged.
      scale: factor on the size that fits.
      place: which part is shown where the frame is larger than the output, 0 to 1 in x and y.
    """

    mirrored: bool = False
    scale: float = 1.0
    place: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where source pixels go: `x' = sx x + tx`, `y' = sy y + ty` for edges of pixels."""

    sx: float
    sy: float
    tx: float
    ty: float

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes `(N, 4)` in output pixels; a mirrored box has its sides in order again."""
        x = boxes[:, [0, 2]] * self.sx + self.tx
        y = boxes[:, [1, 3]] * self.sy + self.ty
        x.sort(axis=1)
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)

    def matrix(self) -> np.ndarray:
        """The same map for the centres of pixels, which lie half a pixel from their edges."""
        shift_x = self.sx * 0.5 + self.tx - 0.5
        shift_y = self.sy * 0.5 + self.ty - 0.5
        return np.array([[self.sx, 0, shift_x], [0, self.sy, shift_y]])


def place(source: tuple[int, int], size: tuple[int, int], view: DetectionView) -> Placement:
    """Resize and pad (or cut) a frame of `source` (height, width) to `size`."""
    scale = min(size[0] / source[0], size[1] / source[1]) * view.scale
    height, width = source[0] * scale, source[1] * scale
    tx = -max(width - size[1], 0) * view.place[0]
    ty = -max(height - size[0], 0) * view.place[1]
    if view.mirrored:
        return Placement(-scale, scale, tx + width, ty)
    return Placement(scale, scale, tx, ty)
