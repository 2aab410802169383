"""Masked convolution in plain XLA that only touches fired blocks.

A loop with a dynamic trip count runs over the list of fired blocks: slice the input tile with its
halo, convolve it without padding, write the block. Time falls with the active share on every
platform, best on CPUs; one iteration costs a few microseconds. The backward pass is the dense one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax.ops.conv import reference
from skipconv_jax.ops.conv.problem import Problem


def _pad_to_blocks(
    problem: Problem, operand: jax.Array, base: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Zeros around the input and below the output, so that every block is whole."""
    conv, b = problem.conv, problem.block
    input_pads, output_pads = [(0, 0, 0)], [(0, 0, 0)]
    for axis in range(conv.rank):
        blocks = conv.grid(b)[axis]
        needed = (blocks - 1) * b * conv.strides[axis] + conv.tile(b)[axis]
        low = conv.padding[axis][0]
        input_pads.append((low, needed - low - conv.in_spatial[axis], 0))
        output_pads.append((0, blocks * b - conv.out_spatial[axis], 0))
    zero = jnp.zeros((), operand.dtype)
    operand = lax.pad(operand, zero, [*input_pads, (0, 0, 0)])
    return operand, lax.pad(base, jnp.zeros((), base.dtype), [*output_pads, (0, 0, 0)])


def _forward(
    problem: Problem,
    operand: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    base: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    conv, b = problem.conv, problem.block
    tile_conv = dataclasses.replace(conv, in_spatial=conv.tile(b), padding=((0, 0),) * conv.rank)
    padded, old = _pad_to_blocks(problem, operand, base)
    active = jnp.flatnonzero(mask > 0, size=mask.size, fill_value=0)
    tile_shape = (1, *conv.tile(b), conv.in_channels)
    block_shape = (1, *(b,) * conv.rank, conv.out_channels)

    def compute(i: jax.Array, out: jax.Array) -> jax.Array:
        stream, *at = jnp.unravel_index(active[i], mask.shape)
        zero = jnp.zeros_like(stream)
        corner = [p * b for p in at]
        tile_start = [stream, *(c * s for c, s in zip(corner, conv.strides, strict=True)), zero]
        update = tile_conv(lax.dynamic_slice(padded, tile_start, tile_shape), kernel)
        update = update.astype(out.dtype)
        block_start = [stream, *corner, zero]
        if not problem.recompute:
            # Reading the untouched `old`, not the carry, lets XLA update the carry in place.
            update = lax.dynamic_slice(old, block_start, block_shape) + update
        elif bias is not None:
            update = update + bias.astype(out.dtype).reshape((1,) * (out.ndim - 1) + (-1,))
        return lax.dynamic_update_slice(out, update, block_start)

    count = jnp.count_nonzero(mask > 0).astype(active.dtype)
    out = lax.fori_loop(jnp.zeros_like(count), count, compute, old)
    return lax.slice(out, (0,) * out.ndim, base.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _masked_conv(
    problem: Problem,
    operand: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    base: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    return _forward(problem, operand, kernel, bias, base, mask)


def _vjp_forward(problem: Problem, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _masked_conv(problem, *arrays), arrays


def _vjp_backward(
    problem: Problem, arrays: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    _, pullback = jax.vjp(functools.partial(reference.masked_conv, problem), *arrays)
    return pullback(cotangent)


_masked_conv.defvjp(_vjp_forward, _vjp_backward)


def masked_conv(
    problem: Problem,
    operand: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    base: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """See `skipconv_jax.ops.conv`.

    Raises:
      NotImplementedError: negative padding, which would cut tiles out of the frame.
    """
    if any(p < 0 for pair in problem.conv.padding for p in pair):
        raise NotImplementedError(f"blocks: negative padding {problem.conv.padding}")
    return _masked_conv(problem, operand, kernel, bias, base, mask)
