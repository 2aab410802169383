"""Float nodes between bytes as nodes that compute in integers; outputs are named by who adds them.

Each function takes the float node, what one unit of its result v is worth (`unit`), how v is stored
(`finish`), and gives the node, or None where integers can't say the same.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from skipconv_jax.ops.quantised import Finish, Grid
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.quantised.expressions import Expressions
from skipconv_jax.program.fold.quantised.nodes import QConvNode, QMeanNode, QMulNode, QSumNode
from skipconv_jax.program.fold.views import Ref

Real = Mapping[Ref, tuple[Ref, Grid]]
"""Float tensors that are tensors of bytes, dequantised."""
_LARGEST = 2**30
# What an accumulator step is worth where the kernel says nothing: a channel that is its bias.
_CONSTANT = 2.0**-16


def convolution(
    node: g.ConvNode, source: tuple[Ref, Grid], unit: np.float32, finish: Finish
) -> QConvNode | None:
    """A convolution of quantised weights, what was folded into them in its multiplier and bias."""
    if node.levels is None or node.residual is not None or node.taps is not None:
        return None
    ref, grid = source
    channels = (node.conv.out_channels,)
    kernel, steps = node.levels.steps, np.broadcast_to(node.levels.scale, channels)
    folded = np.ones(channels) if node.scale is None else np.broadcast_to(node.scale, channels)
    scale = np.float32(grid.scale) * (steps * folded).astype(np.float32)
    bias = np.zeros(channels) if node.bias is None else node.bias.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        whole = np.rint(bias / scale.astype(np.float64))
    # Where an accumulator can't hold the bias the products are nothing beside it, or nothing.
    dead = ~(np.abs(whole) < _LARGEST) | (np.abs(scale) < np.finfo(np.float32).tiny)
    if dead.any():
        if (255 * 127 * math.prod(kernel.shape[:-1]) * np.abs(scale[dead]) > unit / 8).any():
            return None
        kernel = np.where(dead, np.int8(0), kernel)
        scale = np.where(dead, np.float32(unit * _CONSTANT), scale)
        whole = np.clip(np.rint(bias / scale.astype(np.float64)), -_LARGEST, _LARGEST)
    sizes = 255 * np.abs(kernel.astype(np.int64)).sum(axis=tuple(range(kernel.ndim - 1)))
    if (sizes + np.abs(whole) >= 2**31).any():
        return None
    return QConvNode(
        (ref,),
        -1,
        node.conv,
        grid,
        np.ascontiguousarray(kernel),
        whole.astype(np.int32),
        (scale / unit).astype(np.float32),
        finish,
        node.weights_mean,
        node.weights_sum,
        steps.astype(np.float32),
        node.name,
    )


def total(
    terms: Sequence[tuple[Ref, float]], expressions: Expressions, unit: np.float32, finish: Finish
) -> QSumNode | None:
    """A sum of functions of one quantised tensor each; (float tensor, weight)."""
    leaves = [expressions.leaf(r) for r, _ in terms]
    if not all(leaf.quantised for leaf in leaves):
        return None
    tables = [
        (expressions.table(r, leaf) * np.float32(weight) / unit).astype(np.float32)
        for (r, weight), leaf in zip(terms, leaves, strict=True)
    ]
    return QSumNode(tuple(leaf.ref for leaf in leaves), -1, np.stack(tables), finish)


def product(node: g.BinaryNode, real: Real, unit: np.float32, finish: Finish) -> QMulNode | None:
    """A product of two quantised tensors."""
    if any(r not in real for r in node.inputs):
        return None
    (a, left), (b, right) = (real[r] for r in node.inputs)
    multiplier = np.float32(left.scale) * np.float32(right.scale) / unit
    return QMulNode((a, b), -1, (left.zero, right.zero), float(multiplier), finish)


def mean(
    node: g.PoolNode | g.SpatialSumNode,
    real: Real,
    size: tuple[int, ...],
    unit: np.float32,
    finish: Finish,
) -> QMeanNode | None:
    """A mean over windows or over space; `size` of the input's map."""
    if node.inputs[0] not in real:
        return None
    ref, grid = real[node.inputs[0]]
    gain = np.float64(grid.scale) / np.float64(unit)
    if isinstance(node, g.SpatialSumNode):
        still = ((0, 0),) * len(size)
        multiplier = np.asarray(gain, np.float32)
        return QMeanNode((ref,), -1, grid.zero, size, size, still, multiplier, finish)
    count: np.ndarray | float = 1.0
    if node.fn == "mean":
        count = float(math.prod(node.window))
    elif node.fn == "mean_valid":
        axes = zip(size, node.window, node.strides, node.padding, strict=True)
        rows, cols = (_inside(*axis) for axis in axes)
        count = rows[:, None] * cols[None, :]
    elif node.fn != "sum":
        return None
    multiplier = np.asarray(gain / count, np.float32)
    return QMeanNode(
        (ref,), -1, grid.zero, node.window, node.strides, node.padding, multiplier, finish
    )


def _inside(n: int, window: int, stride: int, padding: tuple[int, int]) -> np.ndarray:
    """How many positions of each window lie inside the map."""
    low, high = padding
    starts = np.arange((n + low + high - window) // stride + 1) * stride - low
    return np.minimum(starts + window, n) - np.maximum(starts, 0)
