"""Pools over windows and over whole maps."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.onnx.nodes import Node, always, operator
from skipconv_jax.onnx.operators.convolutions import Pads, pads_of, window_of


def _geometry(node: Node, x: Any) -> tuple[list[int], list[int], list[int], Pads, Pads]:
    """Window, strides, dilations, the file's pads, and pads with what `ceil_mode` adds."""
    window = list(node.get("kernel_shape"))
    strides, dilations = window_of(node, window)
    spatial = x.shape[2:]
    pads = pads_of(node, spatial, window, strides, dilations)
    if not node.get("ceil_mode", 0):
        return window, strides, dilations, pads, pads
    widened = []
    for n, k, s, d, (lo, hi) in zip(spatial, window, strides, dilations, pads, strict=True):
        reach = (k - 1) * d + 1
        steps = -(-(n + lo + hi - reach) // s)
        # The last window must start on the map or its first pad.
        if steps * s >= n + lo:
            steps -= 1
        widened.append((lo, max(steps * s + reach - n - lo, hi)))
    return window, strides, dilations, pads, widened


def _reduce(
    x: Any, start: Any, fn: Any, window: Any, strides: Any, dilations: Any, pads: Pads
) -> Any:
    return lax.reduce_window(
        x,
        start,
        fn,
        window_dimensions=(1, 1, *window),
        window_strides=(1, 1, *strides),
        padding=((0, 0), (0, 0), *pads),
        window_dilation=(1, 1, *dilations),
    )


def _lowest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf, dtype)
    return np.asarray(jnp.iinfo(dtype).min, dtype)


def _pairs(x: Any, node: Node, geometry: Sequence[Any]) -> tuple[Any, Any]:
    """Maxima and where each lies in the whole flattened input, the first where several do."""
    order = list(range(x.ndim))
    if node.get("storage_order", 0):
        order = [0, 1, *reversed(range(2, x.ndim))]
    strides = np.cumprod([1] + [x.shape[a] for a in reversed(order)])[:-1][::-1]
    index = np.zeros(x.shape, np.int32)
    for axis, stride in zip(order, strides, strict=True):
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        index = index + (np.arange(x.shape[axis], dtype=np.int32) * int(stride)).reshape(shape)

    def better(a: Any, b: Any) -> Any:
        take = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return jnp.where(take, a[0], b[0]), jnp.where(take, a[1], b[1])

    none = np.asarray(np.iinfo(np.int32).max, np.int32)
    start = (_lowest(x.dtype), none)
    return _reduce((x, jnp.asarray(index, jnp.int32)), start, better, *geometry)


def _one_output(node: Node, shapes: Any, constant: Any) -> bool:
    return not node.wants(1)


@operator("MaxPool", rowwise=_one_output)
def _max_pool(node: Node, x: Any) -> Any:
    window, strides, dilations, _, pads = _geometry(node, x)
    if node.wants(1):
        return _pairs(x, node, (window, strides, dilations, pads))
    return _reduce(x, _lowest(x.dtype), lax.max, window, strides, dilations, pads)


@operator("AveragePool", rowwise=always)
def _average_pool(node: Node, x: Any) -> Any:
    window, strides, dilations, pads, widened = _geometry(node, x)
    total = _reduce(x, np.zeros((), x.dtype), lax.add, window, strides, dilations, widened)
    counted = pads if node.get("count_include_pad", 0) else [(0, 0)] * len(window)
    if widened == counted:
        return total / math.prod(window)
    return total / _counts(
        x.shape[2:], total.shape[2:], (window, strides, dilations, pads, counted)
    )


def _counts(spatial: Sequence[int], out: Sequence[int], geometry: Sequence[Any]) -> Any:
    """How many positions each window averages over, (1, 1, *out)."""
    counts = np.ones((1, 1, *(1 for _ in out)), np.float32)
    for axis, (n, m, k, s, d, (lo, _), (clo, chi)) in enumerate(
        zip(spatial, out, *geometry, strict=True)
    ):
        at = np.arange(m)[:, None] * s - lo + np.arange(k)[None] * d
        inside = ((at >= -clo) & (at < n + chi)).sum(1).astype(np.float32)
        shape = [1] * (len(out) + 2)
        shape[axis + 2] = m
        counts = counts * inside.reshape(shape)
    return counts


@operator("GlobalAveragePool", rowwise=always)
def _global_average(node: Node, x: Any) -> Any:
    return x.mean(tuple(range(2, x.ndim)), keepdims=True)


@operator("GlobalMaxPool", rowwise=always)
def _global_max(node: Node, x: Any) -> Any:
    return x.max(tuple(range(2, x.ndim)), keepdims=True)
