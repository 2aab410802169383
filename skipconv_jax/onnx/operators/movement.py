"""Operators that take arrays apart, put them together and move their parts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.onnx.nodes import Node, operator, positive


def _not_leading(default: int = 0) -> Any:
    def rowwise(node: Node, shapes: Any, constant: Any) -> bool:
        return positive(node.get("axis", default), len(shapes[0])) > 0

    return rowwise


def _joins_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    return not any(constant) and positive(node.get("axis"), len(shapes[0])) > 0


@operator("Concat", 4, rowwise=_joins_trailing)
def _concat(node: Node, *inputs: Any) -> Any:
    return jnp.concatenate([jnp.asarray(x) for x in inputs], node.get("axis"))


def _parts(x: Any, axis: int, sizes: Sequence[int]) -> tuple[Any, ...]:
    at = np.cumsum([0, *sizes])
    return tuple(lax.slice_in_dim(x, a, b, axis=axis) for a, b in pairwise(at.tolist()))


def _split_sizes(node: Node, n: int, given: Any) -> list[int]:
    if given is not None:
        return list(np.asarray(given).tolist())
    count = node.get("num_outputs", len(node.outputs))
    size = -(-n // count)
    return [size] * (count - 1) + [n - size * (count - 1)]


@operator("Split", 2, rowwise=_not_leading())
def _split_attribute(node: Node, x: Any) -> Any:
    axis = positive(node.get("axis", 0), x.ndim)
    return _parts(x, axis, _split_sizes(node, x.shape[axis], node.get("split")))


@operator("Split", 13, static=(1,), rowwise=_not_leading())
def _split(node: Node, x: Any, sizes: Any = None) -> Any:
    axis = positive(node.get("axis", 0), x.ndim)
    return _parts(x, axis, _split_sizes(node, x.shape[axis], sizes))


def _cut(x: Any, axis: int, start: int, stop: int, step: int) -> Any:
    """x[start:stop:step] along an axis, Python's meaning of the three numbers."""
    n = x.shape[axis]
    if step > 0:
        low, high, step = slice(start, stop, step).indices(n)
        return lax.slice_in_dim(x, low, max(low, high), step, axis)
    # A stop before the first element can only be written by a large negative number.
    found = range(n)[slice(start, None if stop < -n else stop, step)]
    if not len(found):
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    return lax.rev(lax.slice_in_dim(x, found[-1], found[0] + 1, -step, axis), (axis,))


def _slice_all(x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _cut(x, positive(int(axis), x.ndim), int(start), int(end), int(step))
    return x


@operator("Slice", rowwise=lambda node, *_: 0 not in (node.get("axes") or [0]))
def _slice_attributes(node: Node, x: Any) -> Any:
    return _slice_all(x, node.get("starts"), node.get("ends"), node.get("axes"), None)


def _slices_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    axes = node.statics.get(3)
    return axes is not None and 0 not in [positive(int(a), len(shapes[0])) for a in axes]


@operator("Slice", 10, static=(1, 2, 3, 4), rowwise=_slices_trailing)
def _slice(node: Node, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    return _slice_all(x, starts, ends, axes, steps)


def take(x: Any, index: np.ndarray, axis: int) -> Any:
    """`x` at known places along an axis: as a slice where they lie evenly."""
    n = x.shape[axis]
    index = np.where(index < 0, index + n, index).astype(np.int32)
    if index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"`indices` (up to {index.max()}) must lie within the axis of size {n}.")
    if index.ndim == 0:
        return lax.index_in_dim(x, int(index), axis, keepdims=False)
    steps = np.unique(np.diff(index)) if index.ndim == 1 and index.size else np.zeros(2)
    if len(steps) <= 1 and (not len(steps) or steps[0] > 0):
        step = int(steps[0]) if len(steps) else 1
        return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, step, axis)
    return jnp.take(x, index, axis, mode="clip")


def _gathers_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    return constant[1] and positive(node.get("axis", 0), len(shapes[0])) > 0


@operator("Gather", rowwise=_gathers_trailing)
def _gather(node: Node, x: Any, index: Any) -> Any:
    axis = positive(node.get("axis", 0), x.ndim)
    if isinstance(index, np.ndarray):
        return take(x, index, axis)
    return jnp.take(x, jnp.where(index < 0, index + x.shape[axis], index), axis, mode="clip")


@operator("GatherElements", 11)
def _gather_elements(node: Node, x: Any, index: Any) -> Any:
    axis = positive(node.get("axis", 0), x.ndim)
    at = jnp.asarray(index)
    return jnp.take_along_axis(x, jnp.where(at < 0, at + x.shape[axis], at), axis, mode="clip")


def _pad_axes(x: Any, pads: Sequence[int], axes: Any) -> list[tuple[int, int]]:
    named = list(range(x.ndim)) if axes is None else [positive(int(a), x.ndim) for a in axes]
    result = [(0, 0)] * x.ndim
    for i, axis in enumerate(named):
        result[axis] = (int(pads[i]), int(pads[i + len(named)]))
    return result


def _pad_by(x: Any, mode: str, pads: list[tuple[int, int]], value: Any) -> Any:
    if mode == "constant":
        fill = np.asarray(0 if value is None else value, x.dtype).reshape(())
        return lax.pad(jnp.asarray(x), fill, [(lo, hi, 0) for lo, hi in pads])
    for axis, (lo, hi) in enumerate(pads):
        x = lax.slice_in_dim(x, max(-lo, 0), x.shape[axis] - max(-hi, 0), axis=axis)
    widths = [(max(lo, 0), max(hi, 0)) for lo, hi in pads]
    return jnp.pad(x, widths, mode={"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode])


@operator("Pad", 2, rowwise=lambda node, shapes, _: not any(node.get("pads")[:: len(shapes[0])]))
def _pad_attributes(node: Node, x: Any) -> Any:
    pads = _pad_axes(x, node.get("pads"), None)
    return _pad_by(x, node.get("mode", "constant"), pads, node.get("value", 0.0))


def _pads_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    rank, axes = len(shapes[0]), node.statics.get(3)
    named = range(rank) if axes is None else [positive(int(a), rank) for a in axes]
    pads = node.statics[1]
    count = len(named)
    return all(a or not (pads[i] or pads[i + count]) for i, a in enumerate(named))


@operator("Pad", 11, static=(1, 2, 3), rowwise=_pads_trailing)
def _pad(node: Node, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    return _pad_by(x, node.get("mode", "constant"), _pad_axes(x, pads, axes), value)


@operator("Dropout", rowwise=lambda node, *_: True)
def _dropout(node: Node, x: Any) -> Any:
    """Out of training: the identity, and a mask of ones where it is asked for."""
    dtype = bool if node.version >= 10 else x.dtype
    return (x, jnp.ones(x.shape, dtype)) if node.wants(1) else x


@operator("Dropout", 12, static=(1, 2), rowwise=lambda node, *_: True)
def _dropout_inputs(node: Node, x: Any, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and training.item() and (ratio is None or ratio.item()):
        raise ValueError(f"{node} trains; export the network for inference.")
    return _dropout(node, x)
