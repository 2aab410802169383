"""Draws the road and its vehicles, by day and by night, with OpenCV."""

import cv2
import numpy as np

from skipconv_jax.data.scenery import random_background
from skipconv_jax.data.traffic import FAR, LANES, Camera, Vehicle, corners
from skipconv_jax.data.ua_detrac_folder import VEHICLES

_SHIFT = 4
Color = tuple[float, float, float]


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(np.clip(points, -4000, 6000) * (1 << _SHIFT)).astype(np.int32)


def _fill(image: np.ndarray, points: np.ndarray, color: Color | int) -> None:
    line = cv2.LINE_AA if image.ndim == 3 else cv2.LINE_8
    value = color if isinstance(color, int) else tuple(float(c) for c in color)
    cv2.fillConvexPoly(image, _fixed(points), value, line, _SHIFT)


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (float(min(255.0, c * factor)) for c in color)
    return red, green, blue


def draw_scene(
    height: int, width: int, camera: Camera, night: bool, rng: np.random.Generator
) -> np.ndarray:
    """Everything that does not move: `(height, width, 3)` uint8."""
    scene = random_background(height, width, rng)
    horizon = int(np.clip(camera.horizon, 0, height - 1))
    sky = np.linspace(225, 175, max(horizon, 1))[:, None, None] * np.array([0.86, 0.94, 1.0])
    scene[:horizon] = (0.75 * sky + 0.25 * scene[:horizon]).astype(np.uint8)[:horizon]
    for _ in range(int(rng.integers(6, 14))):  # houses along the horizon
        x, w = int(rng.uniform(-0.05, 1) * width), int(rng.uniform(0.04, 0.14) * width)
        top = int(horizon - rng.uniform(0.1, 0.8) * horizon)
        gray = rng.uniform(70, 190)
        color = tuple(float(c) for c in gray + rng.uniform(-18, 18, 3))
        cv2.rectangle(scene, (x, top), (x + w, horizon), color, -1)
        for row in range(top + 4, horizon - 3, 9):
            for column in range(x + 4, x + w - 4, 10):
                cv2.rectangle(scene, (column, row), (column + 4, row + 4), (60.0, 65.0, 80.0), -1)
    _draw_road(scene, camera)
    if night:
        scene = (scene * np.array([0.24, 0.25, 0.31])).astype(np.uint8)
    return scene


def _strip(camera: Camera, left: float, right: float, near: float, far: float) -> np.ndarray:
    ends = [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]
    return camera.project(np.array(ends))


def _draw_road(scene: np.ndarray, camera: Camera) -> None:
    edge = LANES[-1] + 2.2
    far = 400.0
    grain = scene.astype(np.float32)
    _fill(scene, _strip(camera, -edge - 2, edge + 2, 2.5, far), (128, 126, 120))
    _fill(scene, _strip(camera, -edge, edge, 2.5, far), (92, 92, 96))
    for x in (-edge + 0.2, edge - 0.2, -0.12, 0.22):
        _fill(scene, _strip(camera, x, x + 0.15, 2.5, far), (205, 205, 200))
    for x in (-3.65, 3.65):
        for z in np.arange(3, 160, 9.0):
            _fill(scene, _strip(camera, x, x + 0.15, z, z + 4), (205, 205, 200))
    # A little of the ground's own texture: a flat road would make every residual vanish.
    scene[:] = (0.88 * scene + 0.12 * grain).astype(np.uint8)


def draw_vehicle(
    image: np.ndarray, owner: np.ndarray, vehicle: Vehicle, camera: Camera, night: bool
) -> np.ndarray:
    """Draws a vehicle into an RGB image and its number into `owner` `(H, W)` int32.

    Returns:
      `(4,)` x1, y1, x2, y2 of all of it in pixels, inside the image or not.
    """
    points = camera.project(corners(vehicle))
    dim = 0.38 if night else 1.0
    color = _shade(vehicle.color, dim)
    if not night:
        near, far = vehicle.span
        half = vehicle.size[1] / 2 + 0.35
        _fill(image, _strip(camera, vehicle.x - half, vehicle.x + half, near - 0.3, far + 0.3),
              (45, 45, 50))  # fmt: skip
    side = 1 if vehicle.x < camera.x else 0  # the side that faces the camera
    flank = points[[0, 0, 1, 1], side][[0, 1, 2, 3], [0, 1, 1, 0]]
    roof = points[:, :, 1][[0, 0, 1, 1], [0, 1, 1, 0]]
    end = points[0][[0, 1, 1, 0], [0, 0, 1, 1]]
    for face, light in ((flank, 0.72), (roof, 1.18), (end, 0.92)):
        _fill(image, face, _shade(color, light))
        _fill(owner, face, vehicle.number)
    _details(image, vehicle, end, flank, dim)
    if night:
        _lights(image, vehicle, end)
    flat = points.reshape(-1, 2)
    return np.concatenate([flat.min(axis=0), flat.max(axis=0)])


def _part(face: np.ndarray, left: float, right: float, low: float, high: float) -> np.ndarray:
    """A rectangle in a face's own coordinates; corners are bottom left, bottom right, top, top."""

    def at(u: float, v: float) -> np.ndarray:
        bottom, top = face[0] + u * (face[1] - face[0]), face[3] + u * (face[2] - face[3])
        return bottom + v * (top - bottom)

    return np.array([at(left, low), at(right, low), at(right, high), at(left, high)])


def _details(
    image: np.ndarray, vehicle: Vehicle, end: np.ndarray, flank: np.ndarray, dim: float
) -> None:
    glass = _shade((60, 70, 85), dim)
    kind = VEHICLES[vehicle.kind]
    top = {"car": (0.55, 0.93), "bus": (0.4, 0.9), "van": (0.55, 0.9), "others": (0.3, 0.6)}[kind]
    if kind != "others" or vehicle.oncoming:
        _fill(image, _part(end, 0.1, 0.9, *top), glass)
    # The flank's corners run bottom, top, top, bottom; put them into the order of `_part`.
    wall = flank[[0, 3, 2, 1]]
    windows = {"car": 3, "bus": 7, "van": 2, "others": 1}[kind]
    first = 0.12 if kind in ("car", "bus") else 0.05
    reach = {"car": 0.88, "bus": 0.96, "van": 0.6, "others": 0.3}[kind]
    step = (reach - first) / windows
    for i in range(windows):
        u = first + i * step
        _fill(image, _part(wall, u, u + 0.8 * step, 0.55, 0.9), glass)
    for u in (0.12, 0.72):
        _fill(image, _part(wall, u, u + 0.14, -0.06, 0.22), (25, 25, 28))
    _fill(image, _part(end, 0.3, 0.7, 0.12, 0.26), _shade((225, 225, 190), dim))


def _lights(image: np.ndarray, vehicle: Vehicle, end: np.ndarray) -> None:
    color = (255.0, 250.0, 215.0) if vehicle.oncoming else (235.0, 40.0, 30.0)
    size = float(np.linalg.norm(end[1] - end[0]))
    for u in (0.16, 0.84):
        x, y = _part(end, u, u, 0.32, 0.32)[0]
        centre = (int(x * 16), int(y * 16))
        reach = int(max(size * (0.4 if vehicle.oncoming else 0.15), 1) * 16)
        glow = image.copy()
        cv2.circle(glow, centre, reach, color, -1, cv2.LINE_AA, _SHIFT)
        cv2.addWeighted(glow, 0.25, image, 0.75, 0, dst=image)
        cv2.circle(image, centre, max(reach // 4, 8), color, -1, cv2.LINE_AA, _SHIFT)


def far_region(camera: Camera, height: int, width: int) -> np.ndarray:
    """`(4,)` box around the far end of the road, where vehicles are too small to annotate."""
    edge = LANES[-1] + 2.5
    near_left, near_right = camera.project(np.array([(-edge, 0, 0.6 * FAR), (edge, 0, 0.6 * FAR)]))
    top = camera.project(np.array([0, 5.0, 0.6 * FAR]))[1]
    box = np.array([near_left[0], min(top, camera.horizon), near_right[0], near_left[1]])
    return box.clip(0, [width, height, width, height])
