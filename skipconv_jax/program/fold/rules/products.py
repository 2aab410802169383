"""Products with constant matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    indices,
    laid,
    whole,
)


def _dot(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """A constant matrix along one axis.

    Along a spatial one: resampling, as `jax.image.resize` writes it. Along the channels, or along
    all that a stream holds (a classifier's head): a convolution without a gate, 1x1 or of the map's
    size.
    """
    ((left, right), batch) = eqn.params["dimension_numbers"]
    if batch != ((), ()) or len(left) != 1 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    x, matrix = values
    flipped = isinstance(x, Known)
    axis, inner = (right[0], left[0]) if flipped else (left[0], right[0])
    x, matrix = (matrix, x) if flipped else (x, matrix)
    if isinstance(x, Known) or not isinstance(matrix, Known) or matrix.array.ndim != 2:
        return None
    weights = matrix.array if inner == 1 else matrix.array.T  # (out, in)
    free = [i for i in range(len(x.dims)) if i != axis]
    order = [axis, *free] if flipped else [*free, axis]
    if len(x.dims) == 2 and axis == 1:
        head = _head(reader, x, weights)
        return None if head is None else head.transpose(order)
    if len(x.dims) != 4:
        return None
    roles = reader.roles(x)
    ref, at = reader.map(x, roles), list(roles).index(axis)
    if at == 0 or weights.dtype != np.float32:
        return None
    if at == 3:
        made_ref = _pointwise(reader, ref, weights.T[None, None])
        return laid(made_ref, reader.shape(made_ref), roles).transpose(order)
    taps = int((weights != 0).sum(1).max())
    if taps > 16:
        return None
    index = np.argsort(weights == 0, axis=1, kind="stable")[:, :taps]
    shape = list(reader.shape(ref))
    shape[at] = len(weights)
    table = g.axis_taps(reader.shape(ref), at, index, np.take_along_axis(weights, index, 1))
    made = reader.make(lambda o: g.ResizeNode((ref,), o, table), shape)
    # The resampled axis comes last, or first where the matrix was on the left.
    return laid(made, shape, roles).transpose(order)


def _head(reader: Reader, x: View, weights: np.ndarray) -> View | None:
    """`(B, N)` of `(B, K)`, K all that a stream's tensor holds, in whichever order."""
    shape = reader.shape(x.ref)
    if any(x.offsets) or x.dims[0] != whole(x.ref, shape).dims[0] or weights.dtype != np.float32:
        return None
    if len(shape) not in (2, 4) or any(a.axis in (None, 0) for a in x.dims[1]):
        return None
    size = (1, 1, shape[1]) if len(shape) == 2 else shape[1:]
    strides = {1: 1} if len(shape) == 2 else {1: size[1] * size[2], 2: size[2], 3: 1}
    places = indices(x.dims[1], strides)
    if len(places) != np.prod(size) or sorted(places) != list(range(len(places))):
        return None
    kernel = np.empty((len(places), len(weights)), np.float32)
    kernel[places] = weights.T
    ref = x.ref if len(shape) == 4 else _reshaped(reader, x.ref, (shape[0], *size))
    made = _pointwise(reader, ref, kernel.reshape(*size, len(weights)))
    out = (shape[0], len(weights))
    return whole(_reshaped(reader, made, out), out)


def _reshaped(reader: Reader, ref: Ref, shape: Sequence[int]) -> Ref:
    return reader.make(lambda o: g.ReshapeNode((ref,), o), shape)


def _pointwise(reader: Reader, ref: Ref, kernel: np.ndarray) -> Ref:
    """A product as a convolution that no gate skips: it has no name."""
    conv = Conv.make(reader.shape(ref), kernel.shape, padding="VALID")
    shape = (reader.shape(ref)[0], *conv.out_spatial, kernel.shape[3])
    size = np.abs(kernel)
    means = float(size.mean()), float(size.sum())
    return reader.make(lambda o: g.ConvNode((ref,), o, "", conv, kernel, None, *means), shape)


RULES: dict[str, Rule] = {"dot_general": _dot}
