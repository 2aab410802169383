"""One node of a graph in plain XLA: for what an engine has no operation for."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax.program.fold.nodes import (
    AffineNode,
    BinaryNode,
    ConcatNode,
    ConvNode,
    FlattenNode,
    Node,
    OtherNode,
    PoolNode,
    ReshapeNode,
    SpatialSumNode,
    SumNode,
    UnaryNode,
    UpsampleNode,
)
from skipconv_jax.program.jaxprs import bind

_UNARY: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "swish": jax.nn.swish,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "abs": jnp.abs,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
}
_BINARY: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
}


def execute_node(node: Node, values: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """What a node makes of its inputs' values.

    Args:
      node: of a graph.
      values: per entry of `node.inputs`.
      shape: of the output.
    """
    if isinstance(node, OtherNode):
        given = dict(zip(node.inputs, values, strict=True))
        operands = [given[o] if isinstance(o, int) else jnp.asarray(o) for o in node.operands]
        return bind(node.eqn, operands)
    return [_execute(node, values, shape)]


def _execute(node: Node, x: Sequence[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    match node:
        case ConvNode():
            return _conv(node, x)
        case SumNode():
            parts = [
                _upsample(a, f) if w == 1 else _upsample(a * w, f)
                for a, (_, f, w) in zip(x, node.terms, strict=True)
            ]
            return _UNARY[node.act](sum(parts[1:], parts[0]))
        case AffineNode():
            return x[0] * _channels(node.scale, x[0]) + _channels(node.shift, x[0])
        case UnaryNode():
            power = node.fn == "integer_pow"
            return lax.integer_pow(x[0], node.power) if power else _UNARY[node.fn](x[0])
        case BinaryNode():
            return _BINARY[node.fn](x[0], x[1])
        case UpsampleNode():
            return _upsample(x[0], node.factor)
        case PoolNode():
            start, fn = (-jnp.inf, lax.max) if node.fn == "max" else (0.0, lax.add)
            window, strides = (1, *node.window, 1), (1, *node.strides, 1)
            padding = ((0, 0), *node.padding, (0, 0))
            return lax.reduce_window(x[0], start, fn, window, strides, padding)
        case SpatialSumNode():
            return x[0].sum(axis=tuple(range(1, x[0].ndim - 1)))
        case ConcatNode():
            return jnp.concatenate(x, axis=-1)
        case ReshapeNode():
            return x[0].reshape(shape)
        case FlattenNode():
            return jnp.concatenate([a.reshape(a.shape[0], -1, shape[-1]) for a in x], axis=1)
    raise AssertionError(f"{type(node).__name__} has no rule")


def _conv(node: ConvNode, x: Sequence[jax.Array]) -> jax.Array:
    z = node.conv(x[0], jnp.asarray(node.kernel))
    if node.bias is not None:
        z = z + _channels(node.bias, z)
    return _UNARY[node.act](z if node.residual is None else z + x[1])


def _channels(values: Any, like: jax.Array) -> jax.Array:
    array = jnp.asarray(values)
    return array if array.ndim == 0 else array.reshape((1,) * (like.ndim - 1) + array.shape)


def _upsample(x: jax.Array, factor: int) -> jax.Array:
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, factor, axis=axis)
    return x
