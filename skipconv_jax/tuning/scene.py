"""What a clip itself says of skipping: does the camera move, how strong is the noise."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

# Longer side of the grey pictures that motion is measured on; finer detail is noise there.
_SIDE = 160
# Side of the blocks whose change is compared with the noise.
_BLOCK = 8
# A block changed where it differs by so many times the noise, and by so many levels at least.
_TIMES, _LEVELS = 3.0, 3.0


class Scene(NamedTuple):
    """Figures of consecutive frames.

    Attributes:
      shift: median over pairs of the whole picture's movement, in per cent of its longer side.
      noise: standard deviation of one frame's noise in grey levels (of 255), from the differences
        of the quieter half of the picture.
      changed: mean share of blocks that differ by clearly more than that noise.
    """

    shift: float
    noise: float
    changed: float

    def why_not(self) -> str:
        """What stands against skipping, in words; empty where nothing does."""
        found = []
        if self.shift > _MOVES:
            found.append(f"the camera moves ({self.shift:.2f} % of the picture per frame)")
        if self.noise > _NOISY:
            found.append(f"the picture is noisy ({self.noise:.1f} of 255 levels)")
        if self.changed > _BUSY and not found:
            found.append(f"{100 * self.changed:.0f} % of the picture change at every frame")
        return " and ".join(found)


# Where `Scene.why_not` speaks: a tenth of a per cent is a pixel of 1000.
_MOVES, _NOISY, _BUSY = 0.1, 2.0, 0.5


def scene(images: Sequence[np.ndarray]) -> Scene:
    """Figures of frames `(H, W, 3)` uint8 that follow each other.

    Args:
      images: two or more, of one size.

    Raises:
      ValueError: fewer.
    """
    if len(images) < 2:
        raise ValueError(f"`images` (={len(images)}) must be at least two frames.")
    grey = [_grey(image) for image in images]
    window = cv2.createHanningWindow(grey[0].shape[::-1], cv2.CV_32F)
    shifts, noises, changes = [], [], []
    for before, now in itertools.pairwise(grey):
        (dx, dy), _ = cv2.phaseCorrelate(before, now, window)
        shifts.append(100 * float(np.hypot(dx, dy)) / max(now.shape))
    for before, now in itertools.pairwise(images):
        levels = _block_levels(before, now)
        # The difference of two frames has the noise of both.
        noise = float(np.median(levels)) / np.sqrt(2)
        noises.append(noise)
        changes.append(float((levels > max(_TIMES * noise, _LEVELS)).mean()))
    return Scene(float(np.median(shifts)), float(np.median(noises)), float(np.mean(changes)))


def _grey(image: np.ndarray) -> np.ndarray:
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    grey: np.ndarray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey


def _block_levels(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Root mean square difference of every block of the grey pictures."""
    a, b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (before, now))
    square = np.square(b - a)
    size = (max(1, a.shape[1] // _BLOCK), max(1, a.shape[0] // _BLOCK))
    return np.sqrt(cv2.resize(square, size, interpolation=cv2.INTER_AREA))
