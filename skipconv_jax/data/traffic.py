"""A stretch of road: lanes, vehicles that follow each other and stop, and a camera above them.

Metres and seconds. Ground coordinates: x to the right of the camera, z away from it.
"""

import dataclasses

import numpy as np

from skipconv_jax.data.ua_detrac_folder import VEHICLES

FPS = 25
LANES = (-5.4, -1.9, 1.9, 5.4)
"""Middle of each lane; the left two come towards the camera."""

NEAR, FAR = 9.0, 95.0
_SIZES = {  # length, width, height
    "car": (4.4, 1.8, 1.45),
    "bus": (11.0, 2.55, 3.1),
    "van": (5.2, 2.0, 2.2),
    "others": (7.5, 2.4, 2.9),
}
_SHARES = (0.66, 0.1, 0.14, 0.1)


@dataclasses.dataclass
class Vehicle:
    """A vehicle; `travelled` is how far its front has come along its lane."""

    number: int
    kind: int
    lane: int
    size: tuple[float, float, float]
    travelled: float
    speed: float
    wanted: float
    color: tuple[int, int, int]
    offset: float

    @property
    def oncoming(self) -> bool:
        """Whether it comes towards the camera."""
        return LANES[self.lane] < 0

    @property
    def span(self) -> tuple[float, float]:
        """Nearest and farthest z."""
        front = FAR - self.travelled if self.oncoming else NEAR - 16 + self.travelled
        return (front, front + self.size[0]) if self.oncoming else (front - self.size[0], front)

    @property
    def x(self) -> float:
        """Middle of the vehicle."""
        return LANES[self.lane] + self.offset


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole above the road, looking along it.

    Attributes:
      focal: pixels.
      height: above the road, metres.
      horizon: row of the horizon, pixels.
      centre: column straight ahead, pixels.
      x: metres to the right of the road's middle.
    """

    focal: float
    height: float
    horizon: float
    centre: float
    x: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """`(..., 3)` metres (x, height above the road, z) to `(..., 2)` pixels."""
        x, up, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        z = np.maximum(z, 2.0)
        return np.stack(
            [
                self.centre + self.focal * (x - self.x) / z,
                self.horizon + self.focal * (self.height - up) / z,
            ],
            axis=-1,
        )


def corners(vehicle: Vehicle) -> np.ndarray:
    """`(2, 2, 2, 3)` corners in metres: near/far, left/right, bottom/top."""
    near, far = vehicle.span
    half, height = vehicle.size[1] / 2, vehicle.size[2]
    grid = np.empty((2, 2, 2, 3))
    for i, z in enumerate((near, far)):
        for j, x in enumerate((vehicle.x - half, vehicle.x + half)):
            for k, up in enumerate((0.15, height)):
                grid[i, j, k] = x, up, z
    return grid


class Road:
    """Vehicles on all lanes, simulated step by step.

    Args:
      rng: where all chance comes from.
      density: vehicles that want to enter each lane per second.
      stop: seconds (from, to) during which the traffic light is red.
    """

    def __init__(self, rng: np.random.Generator, density: float, stop: tuple[float, float]) -> None:
        self.vehicles: list[Vehicle] = []
        self._rng, self._density, self._stop = rng, density, stop
        self._count = 0

    def step(self, time: float) -> None:
        """Moves everything by one frame."""
        red = self._stop[0] <= time < self._stop[1]
        for lane in range(len(LANES)):
            self._enter(lane)
            ahead = np.inf
            row = [v for v in self.vehicles if v.lane == lane]
            for vehicle in sorted(row, key=lambda v: -v.travelled):
                self._drive(vehicle, ahead, red)
                ahead = vehicle.travelled - vehicle.size[0]
        self.vehicles = [v for v in self.vehicles if v.travelled < FAR - NEAR + 34]

    def _enter(self, lane: int) -> None:
        wants = self._rng.random() < self._density / FPS
        chosen = int(self._rng.choice(len(VEHICLES), p=_SHARES))
        scale, pace, shade, side = self._rng.uniform(size=4)
        tint = self._rng.uniform(-25, 25, 3)
        last = min((v.travelled - v.size[0] for v in self.vehicles if v.lane == lane), default=99.0)
        if not wants or last < 6:
            return
        self._count += 1
        length, width, height = _SIZES[VEHICLES[chosen]]
        factor = 0.92 + 0.16 * scale
        red, green, blue = (int(v) for v in np.clip(30 + 210 * shade + tint, 0, 255))
        wanted = 7 + 8 * pace
        self.vehicles.append(
            Vehicle(
                number=self._count,
                kind=chosen,
                lane=lane,
                size=(length * factor, width, height * factor),
                travelled=0.0,
                speed=wanted,
                wanted=wanted,
                color=(red, green, blue),
                offset=0.5 * side - 0.25,
            )
        )

    def _drive(self, vehicle: Vehicle, ahead: float, red: bool) -> None:
        line = 58.0  # the stop line, as far along every lane
        gap = ahead - vehicle.travelled - 2.0
        if red and vehicle.travelled < line:
            gap = min(gap, line - vehicle.travelled)
        # The speed from which it can still stop within the gap at 4 m/s^2.
        allowed = min(vehicle.wanted, np.sqrt(8.0 * max(gap, 0.0)))
        change = np.clip(allowed - vehicle.speed, -6.0 / FPS, 2.5 / FPS)
        vehicle.speed = 0.0 if gap < 0.3 else max(vehicle.speed + float(change), 0.0)
        if vehicle.speed < 0.25 and gap < 1.0:
            vehicle.speed = 0.0  # stands, does not creep
        vehicle.travelled += vehicle.speed / FPS
