"""One affine per clip: the same crop, scale, rotation and flip for all its frames and joints."""

import dataclasses
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.skeleton import MIRROR

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclasses.dataclass(frozen=True)
class PoseAugmentation:
    """Ranges of the random affine; the defaults are the paper's (section 4.2).

    Attributes:
      scale: smallest and largest factor on the person's size.
      rotation: largest angle to either side, degrees.
      flip: probability of mirroring, which also swaps left and right joints.
      brightness: largest change of all pixels to either side, as a share of 255; 0 in the paper.
      contrast: largest relative change of contrast to either side; 0 in the paper.
    """

    scale: tuple[float, float] = (0.6, 1.4)
    rotation: float = 40.0
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, tuple | list) and len(self.scale) == 2) or not (
            0 < self.scale[0] <= self.scale[1] < np.inf
        ):
            raise ValueError(
                f"`scale` (={self.scale}) must be two positive factors, smallest first."
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"`rotation` (={self.rotation}) must be 0 to 180 degrees.")
        for name in ("flip", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must lie in [0, 1].")

    def draw(self, rng: np.random.Generator) -> "View":
        """One random view. The number of draws does not depend on the settings."""
        scale, angle, mirror, light, gain = rng.uniform(size=5)
        low, high = self.scale
        return View(
            scale=low + (high - low) * scale,
            rotation=self.rotation * (2 * angle - 1),
            mirrored=bool(mirror < self.flip),
            brightness=self.brightness * (2 * light - 1) * 255,
            contrast=1 + self.contrast * (2 * gain - 1),
        )


@dataclasses.dataclass(frozen=True)
class View:
    """How a clip is seen: a draw of `PoseAugmentation`; the default shows the box as it is.

    Attributes:
      scale: factor on the person's size.
      rotation: degrees, counter-clockwise as seen.
      mirrored: left and right exchanged.
      brightness: added to every pixel value.
      contrast: factor on every pixel value's distance from mid-grey.
    """

    scale: float = 1.0
    rotation: float = 0.0
    mirrored: bool = False
    brightness: float = 0.0
    contrast: float = 1.0


def crop_affine(
    box: np.ndarray, height: int, width: int, view: View = View(), margin: float = 1.25
) -> np.ndarray:
    """Affine from source to crop pixels: the box, `margin` larger, centred and as large as it fits.

    Args:
      box: `(4,)` x1, y1, x2, y2 in source pixels.
      height: of the crop.
      width: of the crop.
      view: scale, rotation and flip about the centre of the box.
      margin: factor on the box; 1.25 leaves a tenth of the crop free on each side.

    Returns:
      `(2, 3)` float32 matrix M with `crop = M @ (x, y, 1)`.
    """
    centre = (box[:2] + box[2:]) / 2
    sides = np.maximum(box[2:] - box[:2] + 1, 1)
    zoom = view.scale * min(width / sides[0], height / sides[1]) / margin
    angle = np.deg2rad(view.rotation)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    # Rows grow downwards, so a counter-clockwise turn has its signs exchanged.
    linear = np.array([[cos, sin], [-sin, cos]])
    if view.mirrored:
        linear[0] *= -1
    target = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.column_stack([linear, target - linear @ centre]).astype(np.float32)


def warp_frames(frames: np.ndarray, affine: np.ndarray, height: int, width: int) -> np.ndarray:
    """Applies one affine to `(T, H, W, 3)` uint8 frames, zeros outside: `(T, height, width, 3)`."""
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for source, target in zip(frames, out, strict=True):
        cv2.warpAffine(source, affine, (width, height), dst=target, flags=cv2.INTER_LINEAR)
    return out


def warp_joints(joints: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Applies one affine to joints `(..., 2)`."""
    return joints @ affine[:, :2].T + affine[:, 2]


def mirror_joints(joints: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchanges left and right in joints `(..., 15, 2)` and `visible` `(..., 15)`."""
    order = list(MIRROR)
    return joints[..., order, :], visible[..., order]


def change_light(frames: np.ndarray, view: View) -> np.ndarray:
    """Brightness and contrast of uint8 frames, the same for the whole clip."""
    if view.brightness == 0 and view.contrast == 1:
        return frames
    levels = (np.arange(256) - 127.5) * view.contrast + 127.5 + view.brightness
    return cv2.LUT(frames.reshape(-1, 3), levels.clip(0, 255).astype(np.uint8)).reshape(
        frames.shape
    )


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """`(2, 3)` affine from crop back to source pixels."""
    return cv2.invertAffineTransform(affine).astype(np.float32)


def normalize(frames: Any) -> Any:
    """`(x / 255 - mean) / std` with ImageNet's figures: uint8 RGB to float32.

    Works on NumPy and on JAX arrays (in a compiled function too); the last axis is RGB.
    """
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        # A table of 256 rows gives the same numbers 8 times faster.
        return cv2.LUT(frames.reshape(-1, frames.shape[-2], 3), _TABLE).reshape(frames.shape)
    return _normalize(frames)


def _normalize(frames: Any) -> Any:
    scale = 1 / (255 * IMAGENET_STD)
    shift = IMAGENET_MEAN / IMAGENET_STD
    shape = (1,) * (frames.ndim - 1) + (3,)
    return frames.astype(np.float32) * scale.reshape(shape) - shift.reshape(shape)


_TABLE = _normalize(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 1, 3))


def denormalize(frames: Any) -> np.ndarray:
    """Inverse of `normalize` for pictures: float32 to uint8 RGB."""
    pixels = (np.asarray(frames) * IMAGENET_STD + IMAGENET_MEAN) * 255
    return pixels.round().clip(0, 255).astype(np.uint8)
