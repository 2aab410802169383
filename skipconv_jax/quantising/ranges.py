"""From what a tensor held over a clip to the grid it is rounded to."""

from collections.abc import Callable

import numpy as np

from skipconv_jax.ops.quantised import Grid

_SHRINKS = np.linspace(1.0, 0.3, 57)


def min_max(values: np.ndarray) -> tuple[float, float]:
    """All of it: nothing saturates on the clip."""
    return float(values.min()), float(values.max())


def percentile(values: np.ndarray) -> tuple[float, float]:
    """All but one number in 10,000 at either end."""
    low, high = np.percentile(values, (0.01, 99.99))
    return float(low), float(high)


def mean_square(values: np.ndarray) -> tuple[float, float]:
    """The range of the least mean square error of rounding and saturating.

    Either end is shrunk for itself: what makes the long end cheap to cut (few large numbers) says
    nothing of the other (the dip of a smooth activation, where most numbers are).
    """
    low, high = min_max(values)
    for ends in ((1, 1), (1, 0), (0, 1)):
        shrunk = [(low * (s if ends[0] else 1), high * (s if ends[1] else 1)) for s in _SHRINKS]
        low, high = min(shrunk, key=lambda ends: _error(values, grid_of(*ends)))
    return low, high


RANGES: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {
    "min_max": min_max,
    "percentile": percentile,
    "mean_square": mean_square,
}


def grid_of(low: float, high: float) -> Grid:
    """uint8 over a range that is made to hold 0, which is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny) * 2**24)
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)), "uint8")


def _error(values: np.ndarray, grid: Grid) -> float:
    steps = np.clip(np.rint(values / np.float32(grid.scale)) + grid.zero, 0, 255) - grid.zero
    return float(np.square(steps * np.float32(grid.scale) - values).mean(dtype=np.float64))
