"""Reductions over axes, and where the extremes lie."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.onnx.nodes import Node, axes_of, operator, positive


def _reduction(name: str, fn: Callable[..., Any], input_since: int = 18) -> None:
    def run(node: Node, x: Any, axes: Any = None) -> Any:
        found = axes_of(node, x.ndim, input_since)
        if not found:
            if node.get("noop_with_empty_axes", 0):
                # Only the reducing is left out; |x|, x^2 and logarithms are not.
                return fn(x, (), True)
            found = list(range(x.ndim))
        return fn(x, tuple(found), bool(node.get("keepdims", 1)))

    def spares_leading(node: Node, shapes: Any, constant: Any) -> bool:
        found = axes_of(node, len(shapes[0]), input_since)
        return bool(found) and 0 not in (found or ())

    operator(name, static=(1,), rowwise=spares_leading)(run)


def _log_sum_exp(x: Any, axes: Any, keep: bool) -> Any:
    return jax.nn.logsumexp(x, axes, keepdims=keep)


_reduction("ReduceMean", lambda x, axes, keep: jnp.mean(x, axes, keepdims=keep))
_reduction("ReduceSum", lambda x, axes, keep: jnp.sum(x, axes, keepdims=keep), 13)
_reduction("ReduceProd", lambda x, axes, keep: jnp.prod(x, axes, keepdims=keep))
_reduction("ReduceL1", lambda x, axes, keep: jnp.sum(jnp.abs(x), axes, keepdims=keep))
_reduction("ReduceL2", lambda x, axes, keep: jnp.sqrt(jnp.sum(x * x, axes, keepdims=keep)))
_reduction("ReduceSumSquare", lambda x, axes, keep: jnp.sum(x * x, axes, keepdims=keep))
_reduction("ReduceLogSum", lambda x, axes, keep: jnp.log(jnp.sum(x, axes, keepdims=keep)))
_reduction("ReduceLogSumExp", _log_sum_exp)


def _extreme(name: str, fn: Callable[..., Any], empty: Callable[[Any], Any]) -> None:
    def reduce(x: Any, axes: Any, keep: bool) -> Any:
        return fn(x, axes, keepdims=keep, initial=empty(x.dtype) if 0 in x.shape else None)

    _reduction(name, reduce)


def _bounds(dtype: Any) -> tuple[Any, Any]:
    if dtype == jnp.bool_:
        return False, True
    if jnp.issubdtype(dtype, jnp.floating):
        return -jnp.inf, jnp.inf
    return jnp.iinfo(dtype).min, jnp.iinfo(dtype).max


_extreme("ReduceMax", jnp.max, lambda dtype: _bounds(dtype)[0])
_extreme("ReduceMin", jnp.min, lambda dtype: _bounds(dtype)[1])


def _arg(name: str, fn: Callable[..., Any]) -> None:
    def run(node: Node, x: Any) -> Any:
        axis, keep = positive(node.get("axis", 0), x.ndim), bool(node.get("keepdims", 1))
        if not node.get("select_last_index", 0):
            return fn(x, axis, keepdims=keep)
        return x.shape[axis] - 1 - fn(jnp.flip(x, axis), axis, keepdims=keep)

    operator(
        name, rowwise=lambda node, shapes, _: positive(node.get("axis", 0), len(shapes[0])) > 0
    )(run)


_arg("ArgMax", jnp.argmax)
_arg("ArgMin", jnp.argmin)
