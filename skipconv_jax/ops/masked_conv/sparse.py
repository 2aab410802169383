"""What every sparse implementation shares: the dense gradient, and mapped streams as more streams.

A sparse forward pass is written once, as a function of a `Problem` and arrays; `differentiable`
gives it the gradients of the dense convolution and a batching rule that makes `vmap` over streams a
larger batch: a branch or a loop bound then stays a scalar instead of turning into a select.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from skipconv_jax.ops.masked_conv import reference
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Problem

Forward = Callable[..., jax.Array]


def dense(
    problem: Problem,
    operand: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    base: jax.Array,
    mask: jax.Array,
    epilogue: Epilogue | None = None,
) -> jax.Array:
    """The dense implementation, with an epilogue where one is given."""
    z = reference.masked_conv(problem, operand, kernel, bias, base, mask)
    return z if epilogue is None else epilogue.where_fired(z, base, mask, problem.block)


def differentiable(forward: Forward) -> Forward:
    """`forward(problem, operand, kernel, bias, base, mask, epilogue)` with dense gradients.

    The backward pass is plain XLA; `vmap` over any of the arrays works.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def call(problem: Problem, *arrays: Any) -> jax.Array:
        return _mapped(functools.partial(forward, problem))(*arrays)

    def call_forward(problem: Problem, *arrays: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        return call(problem, *arrays), arrays

    def call_backward(
        problem: Problem, arrays: tuple[Any, ...], cotangent: jax.Array
    ) -> tuple[Any, ...]:
        _, pullback = jax.vjp(functools.partial(dense, problem), *arrays)
        return pullback(cotangent)

    call.defvjp(call_forward, call_backward)

    def masked_conv(
        problem: Problem,
        operand: jax.Array,
        kernel: jax.Array,
        bias: jax.Array | None,
        base: jax.Array,
        mask: jax.Array,
        epilogue: Epilogue | None = None,
    ) -> jax.Array:
        return call(problem, operand, kernel, bias, base, mask, epilogue)

    return masked_conv


def _mapped(forward: Forward) -> Forward:
    """`forward` whose mapped axis, under `vmap`, joins the axis of streams."""

    @jax.custom_batching.custom_vmap
    def call(*arrays: Any) -> jax.Array:
        return forward(*arrays)

    @call.def_vmap
    def rule(axis_size: int, in_batched: Any, *arrays: Any) -> tuple[jax.Array, bool]:
        if any(jax.tree.leaves(_weights(in_batched))):
            # One set of weights per mapped element can't share a batch: one after the other.
            return _one_by_one(call, in_batched, arrays), True
        batched, values = _per_stream(in_batched), _per_stream(arrays)
        folded = jax.tree.map(functools.partial(_fold, axis_size), batched, values)
        out = call(*_with_streams(arrays, folded))
        return out.reshape(axis_size, -1, *out.shape[1:]), True

    return call


def _weights(arrays: Any) -> Any:
    _, kernel, bias, _, _, epilogue = arrays
    return kernel, bias, None if epilogue is None else (epilogue.scale, epilogue.shift)


def _per_stream(arrays: Any) -> Any:
    operand, _, _, base, mask, epilogue = arrays
    return operand, base, mask, None if epilogue is None else epilogue.residual


def _with_streams(arrays: Any, folded: Any) -> tuple[Any, ...]:
    _, kernel, bias, _, _, epilogue = arrays
    operand, base, mask, residual = folded
    if epilogue is not None:
        epilogue = Epilogue(epilogue.scale, epilogue.shift, residual, epilogue.activation)
    return operand, kernel, bias, base, mask, epilogue


def _fold(axis_size: int, batched: bool, array: jax.Array) -> jax.Array:
    """`(V, B, ...)`, or `(B, ...)` shared by all V, as `(V B, ...)`."""
    if not batched:
        array = lax.broadcast(array, (axis_size,))
    return array.reshape(-1, *array.shape[2:])


def _one_by_one(call: Forward, in_batched: Any, arrays: Any) -> jax.Array:
    leaves, tree = jax.tree.flatten(arrays)
    flags = jax.tree.leaves(in_batched)
    mapped = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

    def one(values: list[jax.Array]) -> jax.Array:
        given = iter(values)
        chosen = [next(given) if f else leaf for leaf, f in zip(leaves, flags, strict=True)]
        return call(*jax.tree.unflatten(tree, chosen))

    return lax.map(one, mapped)
