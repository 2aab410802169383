"""Products with constant matrices."""

from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    View,
    laid,
)


def _dot(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """A constant matrix along a spatial axis: resampling, as `jax.image.resize` writes it."""
    ((left, right), batch) = eqn.params["dimension_numbers"]
    if batch != ((), ()) or len(left) != 1 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    x, matrix = values
    flipped = isinstance(x, Known)
    axis, inner = (right[0], left[0]) if flipped else (left[0], right[0])
    x, matrix = (matrix, x) if flipped else (x, matrix)
    if isinstance(x, Known) or not isinstance(matrix, Known) or matrix.array.ndim != 2:
        return None
    if len(x.dims) != 4:
        return None
    roles = reader.roles(x)
    ref, at = reader.map(x, roles), list(roles).index(axis)
    if at not in (1, 2):
        return None
    weights = matrix.array if inner == 1 else matrix.array.T  # (out, in)
    taps = int((weights != 0).sum(1).max())
    if taps > 16:
        return None
    index = np.argsort(weights == 0, axis=1, kind="stable")[:, :taps]
    shape = list(reader.shape(ref))
    shape[at] = len(weights)
    table = g.axis_taps(reader.shape(ref), at, index, np.take_along_axis(weights, index, 1))
    made = reader.make(lambda o: g.ResizeNode((ref,), o, table), shape)
    # The resampled axis comes last, or first where the matrix was on the left.
    current = laid(made, shape, roles)
    free = [i for i in range(4) if i != axis]
    return current.transpose([axis, *free] if flipped else [*free, axis])


RULES: dict[str, Rule] = {"dot_general": _dot}
