"""PCK, the share of joints found, and the columns that published tables show of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax import checks
from skipconv_jax.data.skeleton import JOINTS

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

CONVENTIONS = ("extent", "pixels")
"""The two published readings of PCK: see `Pck`."""


class Pck:
    """Percentage of correct keypoints: `|y - t| <= alpha max(w, h)`, box of the frame's mask.

    Two conventions are in print. `extent`: width x2 - x1, hit where distance <= limit. `pixels`:
    width x2 - x1 + 1, hit where distance < limit.

    Args:
      threshold: alpha; the paper takes .2.
      convention: one of `CONVENTIONS`.
      names: of the J joints; the 15 of JHMDB by default.

    Raises:
      ValueError: `convention` is unknown or `threshold` is not positive.
    """

    def __init__(
        self, threshold: float = 0.2, convention: str = "extent", names: Sequence[str] = JOINTS
    ) -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"`convention` (={convention!r}) must be one of {CONVENTIONS}.")
        if not (checks.is_finite(threshold) and threshold > 0):
            raise ValueError(f"`threshold` (={threshold!r}) must be positive; the paper takes 0.2.")
        self.threshold = threshold
        self.convention = convention
        self.names = tuple(names)
        self.hits = np.zeros(len(names), np.int64)
        self.counts = np.zeros(len(names), np.int64)

    def update(
        self, predicted: Any, joints: Any, size: Any, visible: Any = None, scale: Any = 1.0
    ) -> None:
        """Adds frames.

        Args:
          predicted: `(..., J, 2)`.
          joints: ground truth `(..., J, 2)`, in the same pixels.
          size: `(...)`, max(x2 - x1, y2 - y1) of the person's box in the same pixels.
          visible: `(..., J)` bool, joints that count; all by default.
          scale: `(...)` or number, length of a pixel of the original image in these pixels: what
            the convention `pixels` adds to `size`.

        Raises:
          ValueError: shapes do not fit each other, or a size is no positive number.
        """
        predicted, joints = np.asarray(predicted, np.float64), np.asarray(joints, np.float64)
        if predicted.shape != joints.shape or joints.shape[-2:] != (len(self.names), 2):
            raise ValueError(
                f"`predicted` (of shape {predicted.shape}) and `joints` (of shape {joints.shape}) "
                f"must both have shape (..., {len(self.names)}, 2)."
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
        """PCK in [0, 1]: joints, and of JHMDB's 15 the 7 groups and the means that tables show.

        A joint that was never visible is NaN and left out of the means.

        Returns:
          Keys: the joints' names, and `mean`; of the 15 `JOINTS` instead of that `group/<name>`
          for `GROUPS`, `mean15`, `mean13` (without neck and belly) and `mean7` (of the groups).
        """
        joint = np.full(len(self.names), np.nan)
        np.divide(self.hits, self.counts, out=joint, where=self.counts > 0)
        if self.names != tuple(JOINTS):
            return {**dict(zip(self.names, joint.tolist(), strict=True)), "mean": _mean(joint)}
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
