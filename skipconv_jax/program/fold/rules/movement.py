"""What moves elements: axes, slices, gathers, borders."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    View,
    broadcast,
    laid,
    reshape,
    slice_axis,
)


def _broadcast(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    if len(values) != 1:
        return None
    return broadcast(values[0], eqn.params["shape"], eqn.params["broadcast_dimensions"])


def _reshape(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    return None if len(values) != 1 else reshape(values[0], eqn.outvars[0].aval.shape)


def _transpose(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    return values[0].transpose(eqn.params["permutation"])


def _identity(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """`copy`, and conversions to the same type."""
    same = eqn.outvars[0].aval.dtype == reader.avals[values[0].ref].dtype
    return values[0] if same else None


def _slice(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    view, p = values[0], eqn.params
    strides = p["strides"] or (1,) * len(view.dims)
    cut = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return _cut(
        reader, view, [(start, -(-(stop - start) // step), step) for start, stop, step in cut]
    )


def _split(reader: Reader, eqn: Any, values: list[Any]) -> list[View] | None:
    """`jnp.split`: one slice behind the other."""
    (x,), axis, at = values, eqn.params["axis"], 0
    parts: list[View] = []
    for size in eqn.params["sizes"]:
        cut = [(0, n, 1) for n in x.shape]
        cut[axis] = (at, size, 1)
        part = _cut(reader, x, cut)
        if part is None:
            return None
        parts.append(part)
        at += size
    return parts


def _cut(reader: Reader, view: View, cuts: Sequence[tuple[int, int, int]]) -> View | None:
    cut: View | None = view
    for axis, (start, size, step) in enumerate(cuts):
        cut = None if cut is None else slice_axis(cut, axis, start, size, step)
    if cut is not None or len(view.dims) != 4:
        return cut
    # An axis that was put together: written out, then cut.
    roles = reader.roles(view)
    ref = reader.map(view, roles)
    fresh = laid(ref, reader.shape(ref), roles)
    for axis, (start, size, step) in enumerate(cuts):
        made = slice_axis(fresh, axis, start, size, step)
        if made is None:
            return None
        fresh = made
    return fresh


def _gather(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """Constant indices along one axis: `x[:, [2, 0, 1]]`, `jnp.take`, `x[:, 1]`."""
    x, start = values
    p = eqn.params
    numbers = p["dimension_numbers"]
    if isinstance(x, Known) or not isinstance(start, Known) or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    sizes, index = list(p["slice_sizes"]), start.array[..., 0]
    full = all(n == m for i, (n, m) in enumerate(zip(sizes, x.shape, strict=True)) if i != axis)
    if getattr(numbers, "operand_batching_dims", ()) or not full:
        return None
    limit = x.shape[axis] - sizes[axis]
    if index.size == 0 or index.min() < -x.shape[axis] or index.max() > limit:
        return None
    if index.ndim == 0:
        cut = [(0, n, 1) for n in x.shape]
        cut[axis] = (int(index), sizes[axis], 1)
        view = _cut(reader, x, cut)
        if view is None or axis not in numbers.collapsed_slice_dims:
            return view
        return reshape(view, eqn.outvars[0].aval.shape)
    if index.ndim != 1 or sizes[axis] != 1 or numbers.collapsed_slice_dims != (axis,):
        return None
    kept = [i for i in range(len(x.dims)) if i != axis]
    places = [i for i in range(len(x.dims)) if i not in numbers.offset_dims]
    picked = _pick(reader, x, axis, index)
    if picked is None or len(places) != 1:
        return None
    order = list(kept)
    order.insert(places[0], axis)
    return picked.transpose(order)


def _pick(reader: Reader, x: View, axis: int, index: np.ndarray) -> View | None:
    """Elements `index` of one axis, which is one of a map's."""
    steps = np.diff(index)
    if len(index) == 1 or ((steps == steps[0]).all() and steps[0] > 0):
        cut = [(0, n, 1) for n in x.shape]
        cut[axis] = (int(index[0]), len(index), int(steps[0]) if len(index) > 1 else 1)
        return _cut(reader, x, cut)
    if len(x.dims) != 4:
        return None
    roles = reader.roles(x)
    ref = reader.map(x, roles)
    at = list(roles).index(axis)
    shape = list(reader.shape(ref))
    shape[at] = len(index)
    if at == 3:
        picked = tuple(int(i) for i in index)
        made = reader.make(lambda o: g.ChannelsNode((ref,), o, picked), shape)
    elif at in (1, 2):
        made = reader.make(
            lambda o: g.ResizeNode((ref,), o, g.axis_taps(reader.shape(ref), at, index)), shape
        )
    else:
        return None
    return laid(made, shape, roles)


def _pad(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, value = values
    if isinstance(x, Known) or not isinstance(value, Known) or len(x.dims) != 4:
        return None
    config = eqn.params["padding_config"]
    if any(inner for _, _, inner in config) or any(min(lo, hi) < 0 for lo, hi, _ in config):
        return None
    if reader.avals[x.ref].dtype != np.float32:
        return None
    roles = reader.roles(x)
    pads = [config[i][:2] for i in roles]
    if pads[0] != (0, 0) or pads[3] != (0, 0):
        return None
    ref = reader.map(x, roles)
    shape = [n + sum(p) for n, p in zip(reader.shape(ref), pads, strict=True)]
    border = float(value.array)
    made = reader.make(lambda o: g.PadNode((ref,), o, (pads[1], pads[2]), border), shape)
    return laid(made, shape, roles)


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _transpose,
    **dict.fromkeys(("copy", "copy_p", "convert_element_type", "stop_gradient"), _identity),
    "slice": _slice,
    "split": _split,
    "gather": _gather,
    "pad": _pad,
}
