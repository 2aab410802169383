"""Anchors: where they lie, which object each one answers for, and boxes relative to them.

Boxes are (x1, y1, x2, y2), edges in pixels of the network's input. Box codes are (ty, tx, th, tw)
in the order of the public EfficientDet checkpoints.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

MIN_LEVEL = 3  # the finest pyramid level has stride 2^3
OCTAVES = (0.0, 1 / 3, 2 / 3)
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # factors on width and height
_Carry = tuple[jax.Array, jax.Array, jax.Array]  # scores left, indices taken, their number


@functools.lru_cache(maxsize=32)
def make_anchors(size: tuple[int, int], levels: int = 5, scale: float = 4.0) -> np.ndarray:
    """Anchors of all pyramid levels (N, 4), ordered by level, row, column, octave and aspect.

    A level halves the one before, rounded up, so strides are (H / H_l, W / W_l). Around the centre
    of every position lie 9 boxes of base size `scale` x stride, 2^octave times that, and its
    aspects.

    Args:
      size: height and width of the input.
      levels: of the pyramid, from stride 8 on.
      scale: base size of an anchor in strides.

    Returns:
      float32, read-only (it is cached). Anchors reach past the image's edges.

    Raises:
      ValueError: a size, `levels` or `scale` that is not positive.
    """
    if min(size) < 1 or levels < 1 or scale <= 0:
        raise ValueError(
            f"`size` (={size}), `levels` (={levels}) and `scale` (={scale}) must be positive; use "
            "e.g. (512, 512), 5 and 4.0"
        )
    rows = []
    shapes = np.array([[2.0**o * w, 2.0**o * h] for o in OCTAVES for w, h in ASPECTS])
    for level in range(MIN_LEVEL, MIN_LEVEL + levels):
        height, width = (math.ceil(length / 2**level) for length in size)
        strides = np.array([size[1] / width, size[0] / height])  # x, y
        x = (np.arange(width) + 0.5) * strides[0]
        y = (np.arange(height) + 0.5) * strides[1]
        centres = np.stack(np.meshgrid(x, y), axis=-1)[:, :, None]  # (H_l, W_l, 1, 2)
        halves = scale * strides * shapes / 2  # (9, 2)
        rows.append(np.concatenate([centres - halves, centres + halves], axis=-1).reshape(-1, 4))
    anchors = np.concatenate(rows).astype(np.float32)
    anchors.setflags(write=False)
    return anchors


def areas(boxes: jax.Array) -> jax.Array:
    """Areas (...) of `boxes` (..., 4); 0 where a side is not positive."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def intersections(a: jax.Array, b: jax.Array) -> jax.Array:
    """Areas (M, N) that boxes `a` (M, 4) and `b` (N, 4) share."""
    a, b = a[:, None, :], b[None, :, :]
    shape = (a.shape[0], b.shape[1])
    sides = []
    for i in range(2):
        high = jnp.minimum(a[..., i + 2], b[..., i + 2])
        low = jnp.maximum(a[..., i], b[..., i])
        sides.append(jnp.maximum(high - low, 0.0).reshape(shape))
    return sides[0] * sides[1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union (M, N) of boxes `a` (M, 4) and `b` (N, 4); 0 for empty boxes."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1.0), 0.0)


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Codes ((yc - ya) / ha, (xc - xa) / wa, log(h / ha), log(w / wa)) of `boxes` (..., 4)."""
    centre, side = _centre_and_side(boxes)
    anchor_centre, anchor_side = _centre_and_side(anchors)
    shift = (centre - anchor_centre) / anchor_side
    growth = jnp.log(side / anchor_side)
    return jnp.stack([shift[..., 1], shift[..., 0], growth[..., 1], growth[..., 0]], axis=-1)


def decode(codes: jax.Array, anchors: jax.Array) -> jax.Array:
    """The boxes (..., 4) that `codes` (..., 4) stand for: the inverse of `encode`."""
    anchor_centre, anchor_side = _centre_and_side(anchors)
    centre = jnp.stack([codes[..., 1], codes[..., 0]], axis=-1) * anchor_side + anchor_centre
    half = jnp.exp(jnp.stack([codes[..., 3], codes[..., 2]], axis=-1)) * anchor_side / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _centre_and_side(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def match(
    anchors: jax.Array, boxes: jax.Array, valid: jax.Array, threshold: float = 0.5
) -> jax.Array:
    """For every anchor the object it answers for: index (N,) int32, or -1 for none.

    That is the object of highest IoU where this reaches `threshold`. Besides, every object gets the
    anchor that covers it best, whatever the IoU; where two want the same, the first has it.

    Args:
      anchors: (N, 4).
      boxes: (M, 4), padded.
      valid: (M,) bool, False on padding.
      threshold: IoU from which an anchor answers for an object.
    """
    count = boxes.shape[0]
    if count == 0:
        return jnp.full(anchors.shape[0], -1, jnp.int32)
    overlap = jnp.where(valid[:, None], iou(boxes, anchors), -1.0)
    best = jnp.argmax(overlap, axis=0).astype(jnp.int32)
    matched = jnp.where(jnp.max(overlap, axis=0) >= threshold, best, -1)
    # An object outside the image covers no anchor: it gets none, instead of an arbitrary one.
    wanted = jnp.where(jnp.max(overlap, axis=1) > 0, jnp.argmax(overlap, axis=1), anchors.shape[0])
    forced = jnp.full(anchors.shape[0], count, jnp.int32)
    forced = forced.at[wanted].min(jnp.arange(count, dtype=jnp.int32), mode="drop")
    return jnp.where(forced < count, forced, matched)


def non_maximum_suppression(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    threshold: float = 0.5,
    keep: int = 100,
    floor: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Greedy: takes the highest score, drops boxes of its class with IoU > threshold, repeats.

    Args:
      boxes: (N, 4).
      scores: (N,); entries at or below `floor` are never taken.
      labels: (N,) classes, which do not suppress each other.
      threshold: IoU above which a box repeats another.
      keep: boxes to take at most, a static number.
      floor: at least 0. Boxes that are taken do not depend on those below them, and the loop ends
        with the last of them: a frame of few objects costs few rounds.

    Returns:
      Indices (keep,) int32 by falling score, and whether each is a box (keep,) bool.
    """

    def more(carry: _Carry) -> jax.Array:
        left, _, count = carry
        return (count < keep) & (left.max() > floor)

    def take(carry: _Carry) -> _Carry:
        left, indices, count = carry
        index = jnp.argmax(left).astype(jnp.int32)
        repeats = iou(boxes[index][None], boxes)[0] > threshold
        dropped = (repeats & (labels == labels[index])).at[index].set(True)
        return jnp.where(dropped, 0.0, left), indices.at[count].set(index), count + 1

    start: _Carry = scores, jnp.zeros(keep, jnp.int32), jnp.int32(0)
    _, indices, count = jax.lax.while_loop(more, take, start)
    return indices, jnp.arange(keep) < count
