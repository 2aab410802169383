"""JHMDB's person: the order of its joints, what is left and right, and its files' pixels.

Joints are `(x, y)` in pixels, 0-based, the centre of the top left pixel at (0, 0). JHMDB's files
count from 1; only `from_matlab` and `to_matlab` know of that.
"""

import numpy as np

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


def from_matlab(joints: np.ndarray) -> np.ndarray:
    """1-based pixels of JHMDB's `.mat` files to 0-based ones."""
    return joints - 1


def to_matlab(joints: np.ndarray) -> np.ndarray:
    """0-based pixels to the 1-based ones of JHMDB's `.mat` files."""
    return joints + 1
