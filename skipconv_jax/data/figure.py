"""An articulated figure of 15 joints: its proportions, and how it moves in bouts.

The body is a small 3-D model seen orthographically, so that limbs foreshorten, the near arm hides
the far one, and a person seen from behind has the right hand on the right of the picture. Lengths
are in units of the body's height. Body axes: x to the person's left, y up, z forward.
"""

import dataclasses

import numpy as np

from skipconv_jax.data.skeleton import JOINTS

ACTIONS = ("squat", "stand", "walk", "wave")
"""Classes of synthetic clips; each prefers some kinds of bouts."""

_BOUTS = ("still", "arms", "walk", "squat")
_PREFERENCE = {  # probability of each kind of bout
    "squat": (0.30, 0.10, 0.00, 0.60),
    "stand": (0.75, 0.25, 0.00, 0.00),
    "walk": (0.25, 0.10, 0.65, 0.00),
    "wave": (0.30, 0.70, 0.00, 0.00),
}
_J = {name: index for index, name in enumerate(JOINTS)}

# What a pose is made of. Arms and legs are (right, left); angles in radians.
_ANGLES = 14
_ARM_SWING, _ARM_RAISE, _ELBOW, _ELBOW_OUT = slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)
_CROUCH, _GAIT, _TRAVEL, _LEAN, _HEAD, _YAW = 8, 9, 10, 11, 12, 13


@dataclasses.dataclass(frozen=True)
class Motion:
    """A clip of poses, all relative to the figure's height and the ground below its start.

    Attributes:
      joints: `(T, 15, 3)`: right in the picture, down in the picture, away from the camera.
      toes: `(T, 2, 3)` tips of the right and left foot.
      nose: `(T, 3)` a point ahead of the face.
      facing: `(T,)` cosine of the turn: 1 towards the camera, -1 away from it.
      bouts: `(T,)` index into the kinds of bouts, 0 where the figure stands still.
    """

    joints: np.ndarray
    toes: np.ndarray
    nose: np.ndarray
    facing: np.ndarray
    bouts: np.ndarray


def _ease(n: int) -> np.ndarray:
    """n steps from just above 0 to 1, slow at both ends."""
    return 0.5 - 0.5 * np.cos(np.pi * np.arange(1, n + 1) / n)


def _random_arms(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """A new goal for one arm or both: hanging, forward, or up."""
    goal = state.copy()
    sides = rng.choice(3)  # right, left, both
    for side in (0, 1) if sides == 2 else (sides,):
        goal[_ARM_SWING][side] = rng.uniform(-0.3, 1.2)
        goal[_ARM_RAISE][side] = rng.uniform(0.1, 2.4)
        goal[_ELBOW][side] = rng.uniform(0.0, 1.4)
        goal[_ELBOW_OUT][side] = rng.uniform(-0.3, 0.9)
    return goal


def _bout(kind: str, n: int, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(n, angles)` poses that follow `state`."""
    poses = np.tile(state, (n, 1))
    if kind == "walk":
        speed = rng.uniform(0.18, 0.34) * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 0.5
        poses[:, _GAIT] += np.cumsum(speed)
        # Travel that belongs to this stride: the foot on the ground about stands still.
        poses[:, _TRAVEL] += np.cumsum(speed) * 0.16
        return poses
    done = 0
    while kind != "still" and done < n:
        m = min(int(rng.integers(6, 13)), n - done)
        goal = _random_arms(rng, state) if kind == "arms" else state.copy()
        if kind == "squat":
            goal[_CROUCH] = rng.uniform(0.6, 1.2) if state[_CROUCH] < 0.4 else rng.uniform(0, 0.2)
            goal[_LEAN] = 0.35 * goal[_CROUCH]
            goal[_ARM_SWING] = 0.9 * goal[_CROUCH]
        goal[_HEAD] = rng.uniform(-0.25, 0.25)
        poses[done : done + m] = state + _ease(m)[:, None] * (goal - state)
        state, done = poses[done + m - 1].copy(), done + m
    return poses


def _direction(swing: np.ndarray, raised: np.ndarray) -> np.ndarray:
    """`(T, 2, 3)` unit vectors of limbs: straight down, swung forward, raised sideways."""
    side = np.array([-1.0, 1.0])  # the person's right is at negative x
    x = side * np.sin(raised)
    return np.stack([x, -np.cos(raised) * np.cos(swing), np.cos(raised) * np.sin(swing)], axis=-1)


def _skeleton(poses: np.ndarray, build: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body coordinates of joints `(T, 15, 3)`, toes `(T, 2, 3)` and nose `(T, 3)`; pelvis at 0."""
    shoulder, hip, arm, leg, head = build
    lean, tilt, gait, crouch = (poses[:, i] for i in (_LEAN, _HEAD, _GAIT, _CROUCH))
    across = np.array([[-1.0, 0, 0], [1.0, 0, 0]])
    up = np.stack([0 * lean, np.cos(lean), np.sin(lean)], axis=-1)
    joints = np.zeros((len(poses), len(JOINTS), 3))
    joints[:, _J["neck"]] = 0.33 * up
    joints[:, _J["belly"]] = 0.10 * up
    turn = np.stack([np.sin(tilt), np.cos(tilt) * np.cos(lean), np.cos(tilt) * np.sin(lean)], -1)
    joints[:, _J["face"]] = joints[:, _J["neck"]] + head * turn
    nose = joints[:, _J["face"]] + np.array([0, -0.01, 0.06])
    swing = np.stack([np.sin(gait), -np.sin(gait)], axis=-1)  # right and left leg in opposition
    walking = np.minimum(gait, 1)[:, None]  # a figure that has not walked yet stands upright
    shoulders = 0.30 * up[:, None] + shoulder * across
    raised, flexed = poses[:, _ARM_RAISE], poses[:, _ARM_SWING] - 0.5 * walking * swing
    elbows = shoulders + arm * _direction(flexed, raised)
    bend = flexed + poses[:, _ELBOW] + 0.25 * walking
    wrists = elbows + 0.95 * arm * _direction(bend, raised + poses[:, _ELBOW_OUT])
    hips = np.broadcast_to(hip * across, shoulders.shape)
    thigh = 0.55 * walking * swing + crouch[:, None]
    knees = hips + leg * _direction(thigh, np.full_like(thigh, 0.06))
    # The knee bends while its leg moves forward, half a step before the foot lands.
    ahead = np.stack([np.cos(gait), -np.cos(gait)], axis=-1)
    shin = thigh - walking * (0.15 + 0.7 * np.maximum(ahead, 0)) - 1.9 * crouch[:, None]
    ankles = knees + leg * _direction(shin, np.full_like(shin, 0.03))
    toes = ankles + np.array([0, -0.03, 0.08])
    for name, both in (
        ("shoulder", shoulders),
        ("elbow", elbows),
        ("wrist", wrists),
        ("hip", hips),
        ("knee", knees),
        ("ankle", ankles),
    ):
        joints[:, _J[f"right_{name}"]], joints[:, _J[f"left_{name}"]] = both[:, 0], both[:, 1]
    return joints, toes, nose


def _view(points: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Body to camera: right, down, away; `points` `(T, ..., 3)`, yaw 0 faces the camera."""
    yaw = yaw.reshape(-1, *(1,) * (points.ndim - 2))
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack(
        [x * np.cos(yaw) + z * np.sin(yaw), -y, x * np.sin(yaw) - z * np.cos(yaw)], axis=-1
    )


def random_motion(frames: int, action: str, rng: np.random.Generator) -> Motion:
    """Draws a figure's build, its heading and a sequence of bouts of 5 to 14 frames."""
    state = np.zeros(_ANGLES)
    state[_ARM_RAISE] = rng.uniform(0.08, 0.35, 2)
    state[_ELBOW] = rng.uniform(0.05, 0.5, 2)
    if rng.random() < 0.3:
        state = _random_arms(rng, state)
    state[_GAIT] = rng.uniform(1.0, 7.0) if action == "walk" else 0.0
    # Mostly towards the camera; walkers mostly to a side; some seen from behind.
    sideways = rng.uniform(0.5, 1.4) * rng.choice([-1, 1])
    yaw = sideways if action == "walk" else rng.uniform(-0.9, 0.9)
    state[_YAW] = yaw + (np.pi if rng.random() < 0.15 else 0)
    poses, bouts = np.empty((0, _ANGLES)), np.empty(0, np.int64)
    while len(poses) < frames:
        kind = int(rng.choice(len(_BOUTS), p=_PREFERENCE[action]))
        n = int(rng.integers(5, 15))
        poses = np.concatenate([poses, _bout(_BOUTS[kind], n, state, rng)])
        bouts = np.concatenate([bouts, np.full(n, kind)])
        state = poses[-1].copy()
    poses, bouts = poses[:frames], bouts[:frames]
    build = np.array([0.12, 0.075, 0.175, 0.24, 0.10]) * rng.uniform(0.9, 1.1, 5)
    joints, toes, nose = _skeleton(poses, build)
    yaw = poses[:, _YAW]
    joints, toes, nose = _view(joints, yaw), _view(toes, yaw), _view(nose, yaw)
    ankles = joints[:, [_J["right_ankle"], _J["left_ankle"]], 1]
    shift = np.zeros((frames, 3))
    shift[:, 0] = (poses[:, _TRAVEL] - poses[0, _TRAVEL]) * np.sin(yaw)
    shift[:, 1] = -ankles.max(axis=1)  # the lower foot stands on the ground
    return Motion(
        joints=joints + shift[:, None],
        toes=toes + shift[:, None],
        nose=nose + shift,
        facing=np.cos(yaw),
        bouts=bouts,
    )
