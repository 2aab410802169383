"""Evaluates nodes on bytes in JAX, by the functions that define them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from skipconv_jax.ops import quantised as q
from skipconv_jax.program.fold.nodes import Node
from skipconv_jax.program.fold.quantised.nodes import (
    DequantizeNode,
    QConvNode,
    QMeanNode,
    QMulNode,
    QSumNode,
    QTableNode,
    QuantizeNode,
)


def execute_quantised(node: Node, x: Sequence[jax.Array]) -> jax.Array:
    """What a node of this package makes of its inputs."""
    match node:
        case QuantizeNode():
            return q.quantize(x[0], node.grid)
        case DequantizeNode():
            return q.dequantize(x[0], node.grid)
        case QConvNode():
            return finish_conv(node, accumulate(node, x[0]))
        case QTableNode():
            return q.lookup(x[0], node.table)
        case QSumNode():
            return q.summed(x, node.tables, node.finish)
        case QMulNode():
            return q.product(x[0], x[1], node.zeros, node.multiplier, node.finish)
        case QMeanNode():
            steps = x[0].astype(jnp.int32) - node.zero
            total = q.window_sum(steps, node.window, node.strides, node.padding)
            return q.scaled(total, node.multiplier[..., None], node.finish)
    raise AssertionError(f"{type(node).__name__} has no rule")


def accumulate(node: QConvNode, x: jax.Array) -> jax.Array:
    """sum w (x - zero) + bias, int32."""
    steps = x.astype(jnp.int32) - node.grid.zero
    products = q.int_conv(steps, node.kernel, node.conv)
    return products + q.last_axes(node.bias, products)


def finish_conv(node: QConvNode, acc: jax.Array) -> jax.Array:
    """What is stored for an accumulator."""
    return q.scaled(acc, node.multiplier, node.finish)
