"""What the anchors of frames should say: objects matched with anchors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.tasks.detection.anchors import areas, encode, intersections, match


class Targets(NamedTuple):
    """What the anchors of frames should say.

    Attributes:
      labels: (..., N) int32: a class, -1 for background, -2 where nothing is asked.
      codes: (..., N, 4) float32, 0 where `labels` is negative.
    """

    labels: jax.Array
    codes: jax.Array


def frame_targets(
    anchors: np.ndarray,
    boxes: jax.Array,
    labels: jax.Array,
    ignored: jax.Array,
    annotated: jax.Array,
    threshold: float = 0.5,
) -> Targets:
    """Matches the anchors of one frame with its objects.

    Args:
      anchors: (N, 4).
      boxes: (M, 4) in input pixels, M at least 1.
      labels: (M,), -1 on padding.
      ignored: (K, 4), regions whose background anchors are not asked.
      annotated: () bool, False where the frame asks nothing.
      threshold: IoU from which an anchor answers for an object.
    """
    every = jnp.asarray(anchors)
    boxes = boxes.astype(jnp.float32)
    matched = match(every, boxes, labels >= 0, threshold)
    positive = (matched >= 0) & annotated
    safe = jnp.maximum(matched, 0)
    wanted = jnp.where(positive, labels[safe].astype(jnp.int32), -1)
    if ignored.shape[0]:
        covered = intersections(ignored.astype(jnp.float32), every)
        hidden = jnp.any(covered >= 0.5 * areas(every)[None, :], axis=0)
        wanted = jnp.where(hidden & ~positive, -2, wanted)
    wanted = jnp.where(annotated, wanted, -2)
    # Unmatched anchors are encoded against themselves: no logarithm of an empty box.
    own = jnp.where(positive[:, None], boxes[safe], every)
    return Targets(wanted, encode(own, every))
