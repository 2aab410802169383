"""Backgrounds, distractors and sensor noise for synthetic clips."""

import dataclasses

import cv2
import numpy as np


def random_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A textured picture, `(height, width, 3)` uint8: noise of several scales, shapes, a ground."""
    # Pale colours: saturated ones belong to the figure.
    tone = rng.uniform(60, 180) + rng.uniform(-22, 22, 3)
    picture = np.zeros((height, width, 3), np.float32) + tone.astype(np.float32)
    for cells, strength in ((3, 45), (9, 28), (28, 18), (80, 12)):
        grid = rng.normal(size=(cells, cells * width // height + 1, 3)).astype(np.float32)
        grid = 1.5 * grid.mean(axis=2, keepdims=True) + 0.15 * grid
        picture += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = picture.clip(0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(4, 12))):
        _random_shape(picture, rng)
    ground = int(height * rng.uniform(0.72, 0.9))
    tint = rng.uniform(0.6, 1.1, 3)
    picture[ground:] = (picture[ground:] * tint).clip(0, 255).astype(np.uint8)
    return picture


def _random_shape(picture: np.ndarray, rng: np.random.Generator) -> None:
    height, width = picture.shape[:2]
    x, y = int(rng.integers(width)), int(rng.integers(height))
    w, h = (int(v) for v in rng.integers(height // 16, height // 3, 2))
    gray = rng.uniform(30, 220)
    color = tuple(float(v) for v in np.clip(gray + rng.uniform(-30, 30, 3), 0, 255))
    kind = rng.integers(3)
    if kind == 0:
        cv2.rectangle(picture, (x, y), (x + w, y + h), color, -1)
    elif kind == 1:
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(picture, (x, y), (w // 2, h // 2), angle, 0, 360, color, -1, cv2.LINE_AA)
    else:
        cv2.line(picture, (x, y), (x + 2 * w, y - h), color, int(rng.integers(1, 6)), cv2.LINE_AA)


@dataclasses.dataclass(frozen=True)
class Distractor:
    """A ball, box or bar that crosses the background, bouncing off the picture's edges."""

    kind: int
    start: np.ndarray
    velocity: np.ndarray
    size: np.ndarray
    color: tuple[float, float, float]
    spin: float
    active: np.ndarray

    def draw(self, image: np.ndarray, t: int) -> None:
        """Draws it as it is at frame t; it moves only in its active frames."""
        height, width = image.shape[:2]
        moved = self.active[: t + 1].sum()
        span = np.array([width, height], np.float64)
        x, y = np.abs((self.start + moved * self.velocity + span) % (2 * span) - span)
        centre = (int(x * 16), int(y * 16))
        if self.kind == 0:
            radius = int(self.size[0] * 8)
            cv2.circle(image, centre, radius, self.color, -1, cv2.LINE_AA, 4)
            cv2.circle(image, centre, radius // 2, (30.0, 30.0, 30.0), 1, cv2.LINE_AA, 4)
            return
        sides = self.size if self.kind == 1 else self.size * np.array([2.5, 0.35])
        angle = float(self.spin * moved)
        corners = cv2.boxPoints(((float(x), float(y)), tuple(sides), angle))
        cv2.fillConvexPoly(image, (corners * 16).astype(np.int32), self.color, cv2.LINE_AA, 4)


def _distractor_color(rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = rng.uniform(50, 200) + rng.uniform(-50, 50, 3)
    return float(red), float(green), float(blue)


def random_distractors(
    number: int, frames: int, size: tuple[int, int], rng: np.random.Generator
) -> list[Distractor]:
    """Draws distractors, each of which moves in one stretch of the clip or all the time."""
    height, width = size
    made = []
    for _ in range(number):
        active = np.ones(frames, bool)
        if rng.random() < 0.5:
            begin, end = np.sort(rng.integers(0, frames + 1, 2))
            active[:begin] = active[end:] = False
        angle = rng.uniform(0, 2 * np.pi)
        speed = rng.uniform(0.004, 0.016) * width
        made.append(
            Distractor(
                kind=int(rng.integers(3)),
                start=rng.uniform([0, 0], [width, height * 0.8]),
                velocity=speed * np.array([np.cos(angle), 0.5 * np.sin(angle)]),
                size=rng.uniform(0.05, 0.15, 2) * height,
                color=_distractor_color(rng),
                spin=float(rng.uniform(-6, 6)),
                active=active,
            )
        )
    return made


class SensorNoise:
    """Gaussian noise, new in every frame: one large draw, read at random offsets."""

    def __init__(self, sigma: float, height: int, width: int, rng: np.random.Generator) -> None:
        self._spare = 61
        shape = (height + self._spare, width + self._spare, 3)
        # Drawn whatever sigma is: all else in the clip must not depend on it.
        self._noise = (sigma * rng.normal(size=shape)).round().astype(np.int16)
        self._rng = rng

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        y, x = self._rng.integers(self._spare, size=2)
        noise = self._noise[y : y + height, x : x + width]
        return cv2.add(image, noise, dtype=cv2.CV_8U)
