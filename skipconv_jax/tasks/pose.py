"""Single-person pose estimation: heatmap targets, loss, decoding and PCK.

Pixels: joints are `(x, y)` in pixels of the network's input, 0-based, the centre of the top left
pixel at (0, 0). JHMDB's files count from 1; only `from_matlab` and `to_matlab` know of that.
Heatmap position `p` stands for input position `stride * p`, as in the public HRNet code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops import checks

JOINTS = (
    "neck",
    "belly",
    "face",
    "right_shoulder",
    "left_shoulder",
    "right_hip",
    "left_hip",
    "right_elbow",
    "left_elbow",
    "right_knee",
    "left_knee",
    "right_wrist",
    "left_wrist",
    "right_ankle",
    "left_ankle",
)
"""JHMDB's joints, in the order of its files."""

MIRROR = (0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13)
"""`joints[MIRROR]` are the joints of the mirrored person."""

BONES = (
    (2, 0),
    (0, 1),
    (0, 3),
    (0, 4),
    (3, 7),
    (7, 11),
    (4, 8),
    (8, 12),
    (1, 5),
    (1, 6),
    (5, 9),
    (9, 13),
    (6, 10),
    (10, 14),
)
"""Pairs of joints to connect in pictures."""

GROUPS = {
    "head": (2,),
    "shoulder": (3, 4),
    "elbow": (7, 8),
    "wrist": (11, 12),
    "hip": (5, 6),
    "knee": (9, 10),
    "ankle": (13, 14),
}
"""The seven columns of the published JHMDB tables."""

WITHOUT_TORSO = tuple(j for j in range(len(JOINTS)) if JOINTS[j] not in ("neck", "belly"))
"""The 13 joints of the published tables that leave out neck and belly."""


def from_matlab(joints: np.ndarray) -> np.ndarray:
    """1-based pixels of JHMDB's `.mat` files to 0-based ones."""
    return joints - 1


def to_matlab(joints: np.ndarray) -> np.ndarray:
    """0-based pixels to the 1-based ones of JHMDB's `.mat` files."""
    return joints + 1


def heatmap_targets(
    joints: jax.Array,
    visible: jax.Array,
    height: int,
    width: int,
    stride: int = 4,
    sigma: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """`exp(-|p - c|^2 / (2 sigma^2))` where |p - c| <= 3 sigma, c = int(x / stride + .5).

    Args:
      joints: `(..., J, 2)` float, x and y in input pixels, 0-based.
      visible: `(..., J)` bool, joints that are annotated.
      height: heatmap rows.
      width: heatmap columns.
      stride: input pixels per heatmap pixel.
      sigma: standard deviation in heatmap pixels.

    Returns:
      Heatmaps `(..., height, width, J)` float32 with peak 1, and weights `(..., J)` float32: 1
      where the joint is annotated and its window touches the heatmap, else 0, as the heatmap.

    Raises:
      ValueError: shapes do not fit, or `stride` or `sigma` is not positive.
    """
    if joints.ndim < 2 or joints.shape[-1] != 2 or joints.shape[:-1] != visible.shape:
        raise ValueError(
            f"`joints` (of shape {joints.shape}) and `visible` (of shape {visible.shape}) must "
            "have shapes (..., J, 2) and (..., J)."
        )
    if stride <= 0 or sigma <= 0:
        raise ValueError(f"`stride` (={stride}) and `sigma` (={sigma}) must be positive.")
    radius = int(3 * sigma)
    # A joint without annotation may hold any number, NaN included: keep it out of the arithmetic.
    known = jnp.where(visible[..., None], joints.astype(jnp.float32), 0.0)
    centre = jnp.trunc(known / stride + 0.5)
    dx = _offsets(width, centre[..., 0])
    dy = _offsets(height, centre[..., 1])
    row = jnp.where(jnp.abs(dy) <= radius, jnp.exp(-(dy**2) / (2 * sigma**2)), 0.0)
    column = jnp.where(jnp.abs(dx) <= radius, jnp.exp(-(dx**2) / (2 * sigma**2)), 0.0)
    weights = visible & jnp.any(row > 0, axis=-1) & jnp.any(column > 0, axis=-1)
    weights = weights.astype(jnp.float32)
    heatmaps = jnp.einsum("...jh,...jw,...j->...hwj", row, column, weights)
    return heatmaps, weights


def _offsets(length: int, centre: jax.Array) -> jax.Array:
    positions = jnp.arange(length, dtype=jnp.float32).reshape((1,) * centre.ndim + (length,))
    return positions - centre[..., None]


def heatmap_loss(heatmaps: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """`mean_j 1/2 mean_{b, p} w_bj^2 (y_bpj - t_bpj)^2`, a float32 scalar.

    Args:
      heatmaps: predictions `(..., h, w, J)`.
      targets: `(..., h, w, J)`.
      weights: `(..., J)`, 0 or 1; a joint of weight 0 costs nothing and still counts in the mean.

    Raises:
      ValueError: shapes differ.
    """
    if heatmaps.shape != targets.shape:
        raise ValueError(
            f"`heatmaps` (of shape {heatmaps.shape}) must have the shape of `targets` "
            f"({targets.shape}); check the stride and the number of joints."
        )
    if weights.shape != (*heatmaps.shape[:-3], heatmaps.shape[-1]):
        raise ValueError(
            f"`weights` (of shape {weights.shape}) must have shape (..., J), here "
            f"{(*heatmaps.shape[:-3], heatmaps.shape[-1])}."
        )
    error = (heatmaps.astype(jnp.float32) - targets) * weights[..., None, None, :]
    return 0.5 * jnp.mean(error**2)


def decode(heatmaps: jax.Array, stride: int = 4) -> tuple[jax.Array, jax.Array]:
    """Joints at the heatmaps' maxima, moved a quarter heatmap pixel towards the higher neighbour.

    Args:
      heatmaps: `(..., h, w, J)`.
      stride: input pixels per heatmap pixel.

    Returns:
      Joints `(..., J, 2)` float32 in input pixels, x then y, 0-based; confidence `(..., J)`
      float32, the value at the maximum.

    Raises:
      ValueError: `heatmaps` has fewer than 3 axes or an empty one.
    """
    if heatmaps.ndim < 3 or 0 in heatmaps.shape:
        raise ValueError(f"`heatmaps` (of shape {heatmaps.shape}) must be (..., h, w, J).")
    maps = jnp.moveaxis(heatmaps.astype(jnp.float32), -1, -3)
    height, width = maps.shape[-2:]
    flat = maps.reshape(*maps.shape[:-2], height * width)
    peak = jnp.argmax(flat, axis=-1)
    y, x = peak // width, peak % width

    def value(row: jax.Array, column: jax.Array) -> jax.Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.take_along_axis(flat, index[..., None], axis=-1)[..., 0]

    # At the border one neighbour is missing: the clipped index would compare the peak with itself.
    dx = jnp.where((x > 0) & (x < width - 1), jnp.sign(value(y, x + 1) - value(y, x - 1)), 0.0)
    dy = jnp.where((y > 0) & (y < height - 1), jnp.sign(value(y + 1, x) - value(y - 1, x)), 0.0)
    position = jnp.stack([x, y], axis=-1).astype(jnp.float32) + 0.25 * jnp.stack([dx, dy], axis=-1)
    return position * stride, value(y, x)


@dataclasses.dataclass(frozen=True)
class PoseTask:
    """What training asks of a task; targets are made on the device, from joints.

    Attributes:
      stride: input pixels per heatmap pixel.
      sigma: standard deviation of the target Gaussian in heatmap pixels.
    """

    stride: int = 4
    sigma: float = 2.0

    def losses(self, outputs: jax.Array, targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """`{'heatmap': scalar}` from heatmaps `(..., h, w, J)` and targets `joints`, `visible`."""
        height, width = outputs.shape[-3:-1]
        maps, weights = heatmap_targets(
            targets["joints"], targets["visible"], height, width, self.stride, self.sigma
        )
        return {"heatmap": heatmap_loss(outputs, maps, weights)}

    def predict(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Joints `(..., J, 2)` in input pixels and confidence `(..., J)`."""
        return decode(outputs, self.stride)


CONVENTIONS = ("extent", "pixels")
"""The two published readings of PCK: see `Pck`."""


class Pck:
    """Percentage of correct keypoints: `|y - t| <= alpha max(w, h)`, box of the frame's mask.

    Two conventions are in print. `extent`: width x2 - x1, hit where distance <= limit. `pixels`:
    width x2 - x1 + 1, hit where distance < limit.

    Args:
      threshold: alpha; the paper takes .2.
      convention: one of `CONVENTIONS`.

    Raises:
      ValueError: `convention` is unknown or `threshold` is not positive.
    """

    def __init__(self, threshold: float = 0.2, convention: str = "extent") -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"`convention` (={convention!r}) must be one of {CONVENTIONS}.")
        if not (checks.is_finite(threshold) and threshold > 0):
            raise ValueError(f"`threshold` (={threshold!r}) must be positive; the paper takes 0.2.")
        self.threshold = threshold
        self.convention = convention
        self.hits = np.zeros(len(JOINTS), np.int64)
        self.counts = np.zeros(len(JOINTS), np.int64)

    def update(
        self, predicted: Any, joints: Any, size: Any, visible: Any = None, scale: Any = 1.0
    ) -> None:
        """Adds frames.

        Args:
          predicted: `(..., 15, 2)`.
          joints: ground truth `(..., 15, 2)`, in the same pixels.
          size: `(...)`, max(x2 - x1, y2 - y1) of the person's box in the same pixels.
          visible: `(..., 15)` bool, joints that count; all by default.
          scale: `(...)` or number, length of a pixel of the original image in these pixels: what
            the convention `pixels` adds to `size`.

        Raises:
          ValueError: shapes do not fit each other, or a size is no positive number.
        """
        predicted, joints = np.asarray(predicted, np.float64), np.asarray(joints, np.float64)
        if predicted.shape != joints.shape or joints.shape[-2:] != (len(JOINTS), 2):
            raise ValueError(
                f"`predicted` (of shape {predicted.shape}) and `joints` (of shape {joints.shape}) "
                f"must both have shape (..., {len(JOINTS)}, 2)."
            )
        counted = np.ones(joints.shape[:-1], bool) if visible is None else np.asarray(visible, bool)
        if counted.shape != joints.shape[:-1]:
            raise ValueError(
                f"`visible` (of shape {counted.shape}) must have shape {joints.shape[:-1]}."
            )
        size = np.asarray(size, np.float64)
        if size.shape not in ((), joints.shape[:-2]) or not (size >= 0).all():
            raise ValueError(
                f"`size` (={size.tolist()}) must hold the length of a box's longer side for each "
                f"frame, of shape {joints.shape[:-2]}."
            )
        size = np.broadcast_to(size, joints.shape[:-2])
        inclusive = self.convention == "pixels"
        limit = self.threshold * (size + np.asarray(scale, np.float64) * inclusive)[..., None]
        distance = np.linalg.norm(np.where(counted[..., None], predicted - joints, 0.0), axis=-1)
        # A prediction that is not a number is a miss, not an error and not a hit.
        hit = (distance < limit) if inclusive else (distance <= limit)
        axes = tuple(range(counted.ndim - 1))
        self.hits += (hit & counted).sum(axes)
        self.counts += counted.sum(axes)

    def result(self) -> dict[str, float]:
        """PCK in [0, 1]: joints, the 7 groups, and the means over 15 joints, 13 joints, 7 groups.

        A joint that was never visible is NaN and left out of the means.

        Returns:
          Keys: the names of `JOINTS`; `group/<name>` for `GROUPS`; `mean15`, `mean13`, `mean7`.
        """
        joint = np.full(len(JOINTS), np.nan)
        np.divide(self.hits, self.counts, out=joint, where=self.counts > 0)
        groups = {name: _mean(joint[list(members)]) for name, members in GROUPS.items()}
        return {
            **dict(zip(JOINTS, joint.tolist(), strict=True)),
            **{f"group/{name}": value for name, value in groups.items()},
            "mean15": _mean(joint),
            "mean13": _mean(joint[list(WITHOUT_TORSO)]),
            "mean7": _mean(np.array(list(groups.values()))),
        }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
