"""The search for thresholds per layer, on functions whose best answer is known; no network."""

import math

import numpy as np
import pytest

from skipconv_jax.tuning.shape import Point, shape, sweep

LAYERS = 12
# What a layer costs and what its threshold spoils; half of them are worth a hundred of the others.
COSTS = np.full(LAYERS, 1 / LAYERS)
HARMS = np.where(np.arange(LAYERS) < 6, 1.0, 100.0)


def _measure(logs, noise=0.0, rng=None):
    """Cost falls as 1 / (1 + t), loss grows as t: the best shape is in proportion to HARMS^-1/2."""
    t = np.exp(np.asarray(logs))
    cost, loss = (COSTS / (1 + t)).sum(), 1e-3 * (HARMS * t).sum()
    if rng is not None:
        loss *= math.exp(noise * rng.normal())
    return float(cost), float(loss)


def test_the_sweep_brackets():
    curve = sweep(_measure, LAYERS, 1.0)
    shares = [p.cost for p in curve.points]
    assert shares[0] >= 0.85
    assert shares[-1] <= 0.02
    assert (np.diff(shares) < 0).all()
    at = math.log(0.5)
    assert curve.at(at) == pytest.approx(_measure(np.full(LAYERS, at)), rel=0.03)
    assert curve.threshold(_measure(np.full(LAYERS, at))[1]) == pytest.approx(at, abs=0.02)
    assert curve.for_cost(curve.at(at)[0]) == pytest.approx(at, abs=0.01)
    uniform = Point(np.full(LAYERS, at), *_measure(np.full(LAYERS, at)))
    assert curve.gain(uniform) == pytest.approx(0, abs=0.05)


def _best(loss):
    """The least cost at a loss, of thresholds a for the first half and b for the second."""
    a = np.geomspace(1e-2, 1e4, 20001)
    b = (loss / 1e-3 / 6 - a) / 100
    a, b = a[b > 0], b[b > 0]
    return (6 * COSTS[0] * (1 / (1 + a) + 1 / (1 + b))).min()


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_most_of_what_there_is_to_gain_is_found(noise):
    rng = np.random.default_rng(0)

    def measure(logs):
        return _measure(logs, noise, rng if noise else None)

    curve = sweep(measure, LAYERS, 1.0)
    operating = math.log(2.0)
    found = shape(measure, curve, operating, seed=3)
    wanted = curve.at(operating)
    assert found.point.loss == pytest.approx(wanted[1], rel=0.2)
    possible = wanted[0] / _best(wanted[1])
    assert possible > 1.3
    real = _measure(found.point.thresholds)
    reached = math.exp(curve.gain(Point(found.point.thresholds, *real)))
    assert reached > 1 + 0.5 * (possible - 1)
    assert found.gain == pytest.approx(reached, rel=0.15)
    low, high = found.point.thresholds[6:], found.point.thresholds[:6]
    assert low.max() < high.min()
    assert [groups for groups, _ in found.rounds] == [7, 12]


def test_uniform_thresholds_stay_where_nothing_is_to_gain():
    def alike(logs):
        t = np.exp(np.asarray(logs))
        return float((COSTS / (1 + t)).sum()), float(1e-3 * t.sum())

    curve = sweep(alike, LAYERS, 1.0)
    found = shape(alike, curve, 0.0)
    assert found.gain == pytest.approx(1, abs=0.05)


def test_the_same_seed_says_the_same():
    curve = sweep(_measure, LAYERS, 1.0)
    first, again = (shape(_measure, curve, 0.0, seed=1, rounds=((8, 1.6),)) for _ in range(2))
    np.testing.assert_array_equal(first.point.thresholds, again.point.thresholds)
    lines = []
    shape(_measure, curve, 0.0, rounds=((8, 1.6),), progress=lines.append)
    assert "7 groups" in lines[0]


def test_rounds_are_powers_of_two():
    with pytest.raises(ValueError, match="powers of two"):
        shape(_measure, sweep(_measure, LAYERS, 1.0), 0.0, rounds=((12, 1.5),))
