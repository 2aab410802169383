"""Concatenation: of channels, and of maps one behind the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    indices,
    is_whole,
    laid,
    reshape,
    whole,
)


def _concatenate(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    axis = eqn.params["dimension"]
    if any(isinstance(v, Known) for v in values) or eqn.outvars[0].aval.dtype != np.float32:
        return None
    flat = _flatten(reader, values, axis)
    if flat is not None or len(values[0].dims) != 4:
        return flat
    roles = reader.roles(*values)
    if roles[3] != axis:
        return None
    pieces = [_channels_of(reader, v, roles) for v in values]
    index, at = [], 0
    for ref, part in pieces:
        index += [at + int(i) for i in part]
        at += reader.shape(ref)[3]
    refs = tuple(ref for ref, _ in pieces)
    shape = (*reader.shape(refs[0])[:3], len(index))
    plain = index == list(range(at))
    made = reader.make(
        lambda o: g.ConcatNode(refs, o) if plain else g.ChannelsNode(refs, o, tuple(index)), shape
    )
    return laid(made, shape, roles)


def _channels_of(reader: Reader, view: View, roles: Sequence[int]) -> tuple[Ref, np.ndarray]:
    """A map and which of its channels the view is; written out where it is more than that."""
    shape = reader.shape(view.ref)
    wanted = view.transpose(roles)
    if len(shape) == 4 and not any(view.offsets[:3]):
        full = whole(view.ref, shape)
        channels = wanted.dims[3]
        if wanted.dims[:3] == full.dims[:3] and all(a.axis == 3 for a in channels):
            return view.ref, indices(channels, {3: 1}, view.offsets[3])
    ref = reader.map(view, roles)
    return ref, np.arange(reader.shape(ref)[3])


def _flatten(reader: Reader, values: Sequence[View], axis: int) -> View | None:
    """Maps one behind the other, as detectors' heads return them: `(B, n, k)` in either order."""
    if len(values[0].dims) != 3 or axis == 0:
        return None
    order = (0, axis, 3 - axis)
    for view in values:
        shape = reader.shape(view.ref)
        moved = view.transpose(order)
        line = reshape(moved, shape) if len(shape) == 4 else None
        if line is None or is_whole(line, shape) != (0, 1, 2, 3):
            return None
    refs = tuple(v.ref for v in values)
    first = values[0].shape
    shape = (first[0], sum(v.shape[axis] for v in values), first[3 - axis])
    made = reader.make(lambda o: g.FlattenNode(refs, o), shape)
    return whole(made, shape, [order.index(i) for i in range(3)])


RULES: dict[str, Rule] = {"concatenate": _concatenate}
