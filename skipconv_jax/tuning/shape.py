r"""Thresholds per layer from what the engine measures end to end, under the policy that will run.

Predictions from dense inputs (`sensitivity`) leave out what decides on a deep network: a layer that
does not fire leaves nothing to compute behind it, and errors meet again. So the shape of the
thresholds, t_l = s p_l, is improved by runs of the skipped network alone. With the curve of uniform
thresholds measured first, a setting's gain is

    G = log(MACs a uniform threshold needs at the same loss) - log(its own MACs).

Layers are grouped by depth, first into few groups, then into more. A round runs N settings in which
every group's threshold is raised or lowered by the rows of a Hadamard matrix, so that all N runs
tell of every group and the noise of a single run is divided by N; then it follows the slope as
far as G rises, at the loss of the operating point.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Measure = Callable[[np.ndarray], tuple[float, float]]
"""Log thresholds of all layers to (cost, loss)."""

# Share of the dense cost between which uniform thresholds are swept, in steps of a factor.
_SWEEP, _STEP, _MOST = (0.85, 0.02), 1.8, 14
# (runs, factor a group is raised and lowered by) of each round; one group fewer than runs.
ROUNDS = ((8, 1.6), (16, 1.6), (32, 1.5))
# How far to follow the slope: factors on the threshold of the group it is steepest for.
_FOLLOW = (1.5, 2.0, 4.0, 16.0)
# Loss is met within so much (of its logarithm), in at most so many more runs.
_NEAR, _TRIES = 0.1, 2
_LEAST = 1e-9


class Point(NamedTuple):
    """A setting and what it gave."""

    thresholds: np.ndarray
    cost: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Cost over loss of uniform thresholds, by rising threshold.

    Attributes:
      points: measured.
    """

    points: tuple[Point, ...]

    def _logs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log threshold, cost and loss; loss made to rise strictly, so that it can be inverted."""
        at = np.asarray([p.thresholds[0] for p in self.points])
        cost = np.log([max(p.cost, _LEAST) for p in self.points])
        loss = np.log([max(p.loss, _LEAST) for p in self.points])
        return at, cost, np.maximum.accumulate(loss) + 1e-6 * np.arange(len(loss))

    def threshold(self, loss: float) -> float:
        """Log of the uniform threshold at which the loss is that, the ends' beyond them."""
        at, _, losses = self._logs()
        return float(np.interp(math.log(max(loss, _LEAST)), losses, at))

    def at(self, threshold: float) -> tuple[float, float]:
        """Cost and loss at the log of a uniform threshold."""
        at, cost, loss = self._logs()
        return math.exp(np.interp(threshold, at, cost)), math.exp(np.interp(threshold, at, loss))

    def for_cost(self, cost: float) -> float:
        """Log of the uniform threshold at which the cost is that."""
        at, costs, _ = self._logs()
        falling = np.minimum.accumulate(costs) - 1e-6 * np.arange(len(costs))
        return float(np.interp(-math.log(cost), -falling, at))

    def gain(self, point: Point) -> float:
        """Log of how many times the cost a uniform threshold needs at the point's loss."""
        return math.log(self.at(self.threshold(point.loss))[0] / max(point.cost, _LEAST))

    def slope(self, threshold: float) -> float:
        """Growth of log loss with the log threshold there, over a factor of 2 both ways."""
        low, high = (self.at(threshold + d)[1] for d in (-math.log(2), math.log(2)))
        return max(math.log(high / low) / math.log(4), 0.2)


def sweep(measure: Measure, layers: int, start: float) -> Curve:
    """Uniform thresholds from where nearly all is computed to where nearly nothing is.

    Args:
      measure: runs a setting; its cost is a share of the dense network's.
      layers: number of thresholds.
      start: a threshold somewhere in the middle.
    """
    high, low = _SWEEP

    def run(step: int) -> Point:
        at = np.full(layers, math.log(start) + step * math.log(_STEP))
        return Point(at, *measure(at))

    points = [run(0)]
    step = 0
    while points[0].cost < high and -step < _MOST // 2:
        step -= 1
        points.insert(0, run(step))
    step = 0
    while points[-1].cost > low and step < _MOST // 2:
        step += 1
        points.append(run(step))
    return Curve(tuple(points))


@dataclasses.dataclass(frozen=True)
class Shaped:
    """Thresholds per layer.

    Attributes:
      point: the setting, at about the loss it was asked for.
      gain: how many times the cost a uniform threshold needs for the same loss, on the same clip.
      runs: of the network.
      rounds: (groups, gain after them).
    """

    point: Point
    gain: float
    runs: int
    rounds: tuple[tuple[int, float], ...]


def shape(
    measure: Measure,
    curve: Curve,
    operating: float,
    *,
    rounds: Sequence[tuple[int, float]] = ROUNDS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Shaped:
    """Improves thresholds from a uniform one on.

    Args:
      measure: runs a setting.
      curve: of uniform thresholds, by `sweep`.
      operating: log of the uniform threshold at whose loss the gain is sought.
      rounds: (runs, a power of two; factor) of every round, coarse groups first.
      seed: of which row of the matrix is whose group.
      progress: told a line after every round.

    Raises:
      ValueError: runs that are no power of two.
    """
    search = _Search(measure, curve, operating)
    rng = np.random.default_rng(seed)
    layers = len(curve.points[0].thresholds)
    best = search.at_loss(np.full(layers, operating))
    gain, told = max(curve.gain(best), 0.0), []
    for runs, factor in rounds:
        if runs < 2 or runs & (runs - 1):
            raise ValueError(f"`rounds` (runs={runs}) must be powers of two.")
        groups = min(runs - 1, layers)
        of = np.arange(layers) * groups // layers
        signs = _hadamard(runs)[:, 1:][:, rng.permutation(runs - 1)[:groups]]
        settings = best.thresholds + math.log(factor) * signs[:, of]
        gains = np.asarray([curve.gain(search.run(setting)) for setting in settings])
        slope = (signs * gains[:, None]).mean(axis=0)
        found, better = search.follow(best.thresholds, (slope / _largest(slope))[of])
        if better > gain:
            best, gain = found, better
        told.append((groups, math.exp(gain)))
        progress(
            f"{groups} groups of layers: {math.exp(gain):.2f}x fewer than uniform, {search.runs} "
            "runs"
        )
        if groups == layers:
            break
    return Shaped(best, math.exp(gain), search.runs, tuple(told))


def _hadamard(size: int) -> np.ndarray:
    """Signs whose columns are orthogonal, Sylvester's; the first column is all 1."""
    signs: np.ndarray = np.ones((1, 1))
    while len(signs) < size:
        signs = np.kron(signs, [[1, 1], [1, -1]])
    return signs


def _largest(slope: np.ndarray) -> float:
    return max(float(np.abs(slope).max()), _LEAST)


class _Search:
    """Runs settings and counts them."""

    def __init__(self, measure: Measure, curve: Curve, operating: float) -> None:
        self._measure, self._curve, self.runs = measure, curve, 0
        self._loss = max(curve.at(operating)[1], _LEAST)
        self._slope = curve.slope(operating)

    def run(self, thresholds: np.ndarray) -> Point:
        self.runs += 1
        return Point(thresholds, *self._measure(thresholds))

    def at_loss(self, thresholds: np.ndarray) -> Point:
        """The setting, all thresholds moved alike until the loss is that of the operating point.

        Gains are compared there alone: where the loss is large already, nothing more is lost by
        computing nothing at all.
        """
        point = self.run(thresholds)
        for _ in range(_TRIES):
            off = math.log(max(point.loss, _LEAST) / self._loss)
            if abs(off) <= _NEAR:
                break
            point = self.run(point.thresholds - min(max(off / self._slope, -1.0), 1.0))
        return point

    def follow(self, start: np.ndarray, direction: np.ndarray) -> tuple[Point, float]:
        """The best setting along a direction: further as long as the gain rises."""
        best, gain = None, -math.inf
        for factor in _FOLLOW:
            point = self.at_loss(start + math.log(factor) * direction)
            found = self._curve.gain(point)
            if found <= gain:
                break
            best, gain = point, found
        assert best is not None
        return best, gain
