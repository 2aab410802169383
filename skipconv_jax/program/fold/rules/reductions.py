"""Over windows, positions or channels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    laid,
    reshape,
    whole,
)


def _pool(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, p = values[0], eqn.params
    if len(x.dims) != 4 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    roles = reader.roles(x)
    window, strides, padding, base, dilation = (
        [tuple(p[name][i]) if name == "padding" else p[name][i] for i in roles]
        for name in (
            "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation",
        )
    )  # fmt: skip
    outer = [window[0], window[3], strides[0], strides[3], *base, *dilation]
    if set(outer) != {1} or (padding[0], padding[3]) != ((0, 0), (0, 0)):
        return None
    if any(lo < 0 or hi < 0 for lo, hi in padding[1:3]):
        return None
    fn = "max" if eqn.primitive.name == "reduce_window_max" else "sum"
    pads = tuple((int(lo), int(hi)) for lo, hi in padding[1:3])
    (kh, kw), (sh, sw) = map(_pair, (window[1:3], strides[1:3]))
    ref = reader.map(x, roles)
    shape = [eqn.outvars[0].aval.shape[i] for i in roles]
    made = reader.make(lambda o: g.PoolNode((ref,), o, fn, (kh, kw), (sh, sw), pads), shape)
    return laid(made, shape, roles)


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _reduce(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """Over all positions `(B, C)`, or over all channels."""
    (x,), axes = values[:1], set(eqn.params["axes"])
    if len(x.dims) == 2 and axes == {1} and eqn.outvars[0].aval.dtype == np.float32:
        ref = reader.map(x.as_position(), (0, 1, 2, 3))
        return _over_channels(reader, eqn, ref, (0, 1, 2, 3), [0])
    if len(x.dims) not in (3, 4) or eqn.outvars[0].aval.dtype != np.float32:
        return None
    if len(x.dims) == 4 and len(reader.shape(x.ref)) == 2:
        roles = reader.roles(x)
        ref = reader.map(x, roles)
        x = laid(ref, reader.shape(ref), roles)
    stored = reader.shape(x.ref)
    if len(stored) != 4:
        return None
    reduced = {a.axis for i in axes for a in x.dims[i]}
    maximum = eqn.primitive.name == "reduce_max"
    left = [i for i in range(len(x.dims)) if i not in axes]
    if len(x.dims) == 3:
        # Rows and columns as one axis.
        view = reshape(x.transpose([*left, *axes]), (*[x.shape[i] for i in left], *stored[1:3]))
        if view is None or len(axes) != 1 or reduced != {1, 2}:
            return None
        x, axes, left = view, {2, 3}, [0, 1]
    roles = reader.roles(x)
    ref = reader.map(x, roles)
    shape = reader.shape(ref)
    if axes == {roles[1], roles[2]}:
        node = g.SpatialMaxNode if maximum else g.SpatialSumNode
        made = reader.make(lambda o: node((ref,), o), (shape[0], shape[3]))
        return whole(made, (shape[0], shape[3]), [0 if i == roles[0] else 1 for i in left])
    return _over_channels(reader, eqn, ref, roles, left) if axes == {roles[3]} else None


def _over_channels(
    reader: Reader, eqn: Any, ref: Ref, roles: Sequence[int], left: Sequence[int]
) -> View:
    """A map of one channel, of which the axes `left` of the array are kept."""
    fn = "max" if eqn.primitive.name == "reduce_max" else "sum"
    shape = (*reader.shape(ref)[:3], 1)
    made = reader.make(lambda o: g.ReduceNode((ref,), o, fn), shape)
    kept = whole(made, shape)
    return View(made, tuple(kept.dims[list(roles).index(i)] for i in left), kept.offsets)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), _pool),
    **dict.fromkeys(("reduce_sum", "reduce_max"), _reduce),
}
