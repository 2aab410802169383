"""What a preset is."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from skipconv_jax.entries import find


class Boxes(NamedTuple):
    """What a detector says of B frames, before repeats of an object are dropped.

    Attributes:
      corners: (B, N, 4) x1, y1, x2, y2 in pixels of the network's input.
      scores: (B, N) in [0, 1].
      labels: (B, N) int32 numbers of classes.
    """

    corners: jax.Array
    scores: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Preset:
    """Pre- and post-processing of a detector.

    Attributes:
      classes: names that a label indexes.
      stretch: frames are stretched over the input; else resized by one factor, at the upper left.
      pad: grey level (RGB) of the input where no frame is.
      prepare: RGB uint8 frames `(B, H, W, 3)` of the input's size to what the network takes.
      decode: the network's outputs, and the input's (height, width), to `Boxes`.
      sure: score from which a box counts as seen, where networks are compared without labels.
      overlap: IoU above which a box of the same class is a repeat.
    """

    classes: tuple[str, ...]
    stretch: bool
    pad: tuple[int, int, int]
    prepare: Callable[[jax.Array], Any]
    decode: Callable[[Any, tuple[int, int]], Boxes]
    sure: float = 0.3
    overlap: float = 0.45


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How a network that is no detector sees a frame; what its outputs mean, the task says.

    Attributes:
      prepare: RGB uint8 frames `(B, H, W, 3)` of the input's size to what the network takes.
      classes: names of a segmentation network's classes, in the order of its channels; numbers
        where there are none.
      output: name of the output that is meant, where the network has several.
      sure: confidence from which a keypoint counts as seen, where networks are compared without
        labels.
      limbs: pairs of keypoints that a line joins on pictures.
    """

    prepare: Callable[[jax.Array], Any]
    classes: tuple[str, ...] = ()
    output: str | None = None
    sure: float = 0.2
    limbs: tuple[tuple[int, int], ...] = ()


def preset(name: str) -> Preset | Pixels:
    """A preset by name, or `module:object` of anybody's.

    Raises:
      ValueError: neither of these.
    """
    from skipconv_jax.presets import PRESETS

    if name in PRESETS:
        return PRESETS[name]
    if ":" not in name:
        raise ValueError(
            f"`preset` (={name!r}) must be one of {', '.join(sorted(PRESETS))}, or `module:object` "
            "of your own."
        )
    found = find(name, "preset")
    if not isinstance(found, Preset | Pixels):
        raise ValueError(
            f"`preset` (={name!r}) must name a skipconv_jax.presets.Preset or Pixels, not a "
            f"{type(found).__name__}."
        )
    return found
