"""Masked convolution in plain XLA that only touches fired blocks.

A loop with a dynamic trip count runs over the list of fired blocks: slice the input tile with its
halo, convolve it without padding, write the block. Time falls with the active share on every
platform, best on CPUs; one iteration costs a few microseconds. The backward pass is the dense one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax.ops.masked_conv import sparse
from skipconv_jax.ops.masked_conv.epilogue import finish
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem, negative_padding


def _pad_input(problem: Problem, operand: jax.Array) -> jax.Array:
    """Zeros around the input, so that the tile of every block is whole."""
    conv, b = problem.conv, problem.block
    pads = [(0, 0, 0)]
    for blocks, stride, tile, (low, _), n in zip(
        conv.grid(b), conv.strides, conv.tile(b), conv.padding, conv.in_spatial, strict=True
    ):
        pads.append((low, (blocks - 1) * b * stride + tile - low - n, 0))
    return lax.pad(operand, jnp.zeros((), operand.dtype), [*pads, (0, 0, 0)])


def _pad_output(problem: Problem, array: jax.Array) -> jax.Array:
    """Zeros below an array of outputs, so that every block is whole."""
    conv, b = problem.conv, problem.block
    pads = [(0, n * b - size, 0) for n, size in zip(conv.grid(b), conv.out_spatial, strict=True)]
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _forward(problem: Problem, arrays: Arrays) -> jax.Array:
    operand, kernel, bias, base, mask, epilogue = arrays
    conv, b = problem.conv, problem.block
    tile_conv = dataclasses.replace(conv, in_spatial=conv.tile(b), padding=((0, 0),) * conv.rank)
    padded, old = _pad_input(problem, operand), _pad_output(problem, base)
    residual = None if epilogue is None else epilogue.residual
    if residual is not None:
        residual = _pad_output(problem, residual)
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
        if epilogue is not None:
            add = None
            if residual is not None:
                add = lax.dynamic_slice(residual, block_start, block_shape)
            update = finish(update, epilogue.scale, epilogue.shift, add, epilogue.activation)
        return lax.dynamic_update_slice(out, update, block_start)

    count = jnp.count_nonzero(mask > 0).astype(active.dtype)
    out = lax.fori_loop(jnp.zeros_like(count), count, compute, old)
    return lax.slice(out, (0,) * out.ndim, base.shape)


supports = negative_padding
masked_conv = sparse.differentiable(_forward)
