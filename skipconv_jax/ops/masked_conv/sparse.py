"""What every sparse implementation shares: the dense gradient, and mapped streams as more streams.

A sparse forward pass is written once, as a function of a `Problem` and its `Arrays`;
`differentiable` gives it the gradients of the dense convolution and a batching rule that makes
`vmap` over streams a larger batch: a branch or a loop bound then stays a scalar instead of turning
into a select.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from skipconv_jax.ops.masked_conv import dense
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem

Forward = Callable[[Problem, Arrays], jax.Array]


def differentiable(forward: Forward) -> Forward:
    """`forward` with dense gradients.

    The backward pass is plain XLA; `vmap` over any of the arrays works.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def masked_conv(problem: Problem, arrays: Arrays) -> jax.Array:
        return _mapped(functools.partial(forward, problem))(arrays)

    def call_forward(problem: Problem, arrays: Arrays) -> tuple[jax.Array, Arrays]:
        return masked_conv(problem, arrays), arrays

    def call_backward(problem: Problem, arrays: Arrays, cotangent: jax.Array) -> tuple[Any]:
        _, pullback = jax.vjp(functools.partial(dense.masked_conv, problem), arrays)
        return pullback(cotangent)

    masked_conv.defvjp(call_forward, call_backward)
    return masked_conv


def _mapped(forward: Callable[[Arrays], jax.Array]) -> Callable[[Arrays], jax.Array]:
    """`forward` whose mapped axis, under `vmap`, joins the axis of streams."""

    @jax.custom_batching.custom_vmap
    def call(arrays: Arrays) -> jax.Array:
        return forward(arrays)

    @call.def_vmap
    def rule(axis_size: int, in_batched: Any, arrays: Arrays) -> tuple[jax.Array, bool]:
        (batched,) = in_batched
        if any(jax.tree.leaves(_weights(batched))):
            # One set of weights per mapped element can't share a batch: one after the other.
            return _one_by_one(call, batched, arrays), True
        fold = functools.partial(_fold, axis_size)
        folded = jax.tree.map(fold, _per_stream(batched), _per_stream(arrays))
        out = call(_with_streams(arrays, folded))
        return out.reshape(axis_size, -1, *out.shape[1:]), True

    return call


def _weights(arrays: Any) -> Any:
    epilogue = arrays.epilogue
    return (
        arrays.kernel,
        arrays.bias,
        None if epilogue is None else (epilogue.scale, epilogue.shift),
    )


def _per_stream(arrays: Any) -> Any:
    residual = None if arrays.epilogue is None else arrays.epilogue.residual
    return arrays.operand, arrays.base, arrays.mask, residual


def _with_streams(arrays: Arrays, folded: Any) -> Arrays:
    operand, base, mask, residual = folded
    epilogue = arrays.epilogue
    if epilogue is not None:
        epilogue = Epilogue(epilogue.scale, epilogue.shift, residual, epilogue.activation)
    return arrays._replace(operand=operand, base=base, mask=mask, epilogue=epilogue)


def _fold(axis_size: int, batched: bool, array: jax.Array) -> jax.Array:
    """`(V, B, ...)`, or `(B, ...)` shared by all V, as `(V B, ...)`."""
    if not batched:
        array = lax.broadcast(array, (axis_size,))
    return array.reshape(-1, *array.shape[2:])


def _one_by_one(call: Callable[[Arrays], jax.Array], batched: Any, arrays: Arrays) -> jax.Array:
    leaves, tree = jax.tree.flatten(arrays)
    flags = jax.tree.leaves(batched)
    mapped = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

    def one(values: list[jax.Array]) -> jax.Array:
        given = iter(values)
        chosen = [next(given) if f else leaf for leaf, f in zip(leaves, flags, strict=True)]
        return call(jax.tree.unflatten(tree, chosen))

    return lax.map(one, mapped)
