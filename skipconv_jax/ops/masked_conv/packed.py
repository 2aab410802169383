"""Masked convolution in plain XLA over packed tiles, for GPUs: one large library convolution.

The fired blocks of all streams are gathered, halo included, into a buffer of one of a few static
capacities; one convolution of the whole buffer runs on the library's tensor-core kernels, and its
blocks are scattered into the output in place. More blocks than the largest capacity: the dense
convolution. The choice is made on the device (`lax.switch`), so nothing waits for the host program
and overflow is never lossy.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax.ops.geometry import Conv, block_upsample
from skipconv_jax.ops.masked_conv import sparse
from skipconv_jax.ops.masked_conv.epilogue import finish
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem, negative_padding

# Shares of all blocks for which a packed convolution is compiled; above the last, dense.
CAPACITIES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# A buffer of a few tiles fills no tensor core: no capacity below this, so small maps get fewer.
_SMALLEST_CAPACITY = 8


def capacities(blocks: int) -> tuple[int, ...]:
    """Static capacities, in tiles, compiled for `blocks` blocks of all streams; may be empty."""
    rounded = {math.ceil(share * blocks) for share in CAPACITIES}
    return tuple(sorted({max(c, min(_SMALLEST_CAPACITY, blocks // 2)) for c in rounded} - {0}))


def _gather(
    array: jax.Array, stream: jax.Array, starts: list[jax.Array], extent: tuple[int, ...]
) -> jax.Array:
    """Windows `(K, *extent, C)` of `(B, *spatial, C)`; zeros outside the frame."""
    rank, index = len(extent), [stream.reshape((-1,) + (1,) * len(extent))]
    for axis, (start, n) in enumerate(zip(starts, extent, strict=True)):
        shape = [1] * (rank + 1)
        shape[0], shape[1 + axis] = -1, n
        at = start[:, None] + jnp.arange(n, dtype=start.dtype)[None, :]
        # A negative index would count from the end; past the end it reads the fill value.
        at = jnp.where(at < 0, array.shape[1 + axis], at)
        index.append(at.reshape(shape))
    return array.at[tuple(index)].get(mode="fill", fill_value=0)


def tensor_core_conv(conv: Conv, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv(x, kernel)` in float32, with bfloat16 products wherever they lose nothing.

    bfloat16 operands go to the tensor cores as they are. A float32 residual of bfloat16 frames with
    a bfloat16 kernel is split into two bfloat16 halves, r = hi + lo up to 2^-16 |r|.
    """
    if kernel.dtype != jnp.bfloat16 or x.dtype not in (jnp.bfloat16, jnp.float32):
        return conv(x, kernel)
    letters = {1: "W", 2: "HW", 3: "DHW"}[conv.rank]
    product = functools.partial(
        lax.conv_general_dilated,
        window_strides=conv.strides,
        padding=conv.padding,
        rhs_dilation=conv.dilation,
        feature_group_count=conv.groups,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        preferred_element_type=jnp.float32,
    )
    if x.dtype == jnp.bfloat16:
        return product(x, kernel)
    high, low = halves(x)
    return product(high, kernel) + product(low, kernel)


def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A float32 array as the sum of two bfloat16 ones, exact to 2^-16 of its magnitude."""
    # reduce_precision, unlike a cast there and back, is never simplified away.
    rounded = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return rounded.astype(jnp.bfloat16), (x - rounded).astype(jnp.bfloat16)


def _packed(capacity: int, problem: Problem, arrays: Arrays) -> jax.Array:
    operand, kernel, bias, base, mask, epilogue = arrays
    conv, b, rank = problem.conv, problem.block, problem.conv.rank
    # Slots past the last fired block address streams past the last: they gather zeros and their
    # writes are dropped. They differ from each other, so that indices stay unique and sorted.
    active = jnp.flatnonzero(mask > 0, size=capacity, fill_value=0).astype(jnp.int32)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    per_stream = math.prod(mask.shape[1:])
    count = jnp.count_nonzero(mask > 0).astype(jnp.int32)
    active = jnp.where(slot < count, active, mask.size + slot * per_stream)
    stream, within = active // per_stream, active % per_stream
    at = jnp.unravel_index(within, mask.shape[1:])

    starts = [
        p * b * s - low for p, s, (low, _) in zip(at, conv.strides, conv.padding, strict=True)
    ]
    tiles = _gather(operand, stream, starts, conv.tile(b))
    inside = dataclasses.replace(conv, in_spatial=conv.tile(b), padding=((0, 0),) * rank)
    update = tensor_core_conv(inside, tiles, kernel).astype(base.dtype)
    if problem.recompute:
        if bias is not None:
            update = update + bias.astype(base.dtype).reshape((1,) * (update.ndim - 1) + (-1,))
        if epilogue is not None:
            corner = [p * b for p in at]
            residual = epilogue.residual
            if residual is not None:
                residual = _gather(residual, stream, corner, (b,) * rank)
            update = finish(update, epilogue.scale, epilogue.shift, residual, epilogue.activation)
    return _scatter(problem, update, base, stream, at)


def _scatter(
    problem: Problem,
    update: jax.Array,
    base: jax.Array,
    stream: jax.Array,
    at: tuple[jax.Array, ...],
) -> jax.Array:
    """Writes blocks `(K, b, ..., Co)` into (or adds them to) the output, in place where b fits."""
    conv, b, rank = problem.conv, problem.block, problem.conv.rank
    grid = conv.grid(b)
    pads = [(0, n * b - size, 0) for n, size in zip(grid, conv.out_spatial, strict=True)]
    zero = jnp.zeros((), base.dtype)
    blocked = lax.pad(base, zero, [(0, 0, 0), *pads, (0, 0, 0)])
    shape = blocked.shape
    blocked = blocked.reshape(shape[0], *(d for n in grid for d in (n, b)), shape[-1])
    index: list[jax.Array | slice] = [stream]
    for p in at:
        index += [p, slice(None)]
    target = blocked.at[tuple(index)]
    write = target.set if problem.recompute else target.add
    out = write(update, mode="drop", unique_indices=True)
    return lax.slice(out.reshape(shape), (0,) * (rank + 2), base.shape)


def _forward(problem: Problem, arrays: Arrays) -> jax.Array:
    mask = arrays.mask
    sizes = capacities(mask.size)
    count = jnp.count_nonzero(mask > 0)
    branches = [lambda arrays: arrays.base]
    branches += [functools.partial(_packed, size, problem) for size in sizes]
    branches.append(functools.partial(_dense, problem))
    limits = jnp.asarray((0, *sizes), count.dtype)
    which = (count > limits).sum()
    return lax.switch(which, branches, arrays)


def _dense(problem: Problem, arrays: Arrays) -> jax.Array:
    operand, kernel, bias, base, mask, epilogue = arrays
    conv = problem.conv
    z = tensor_core_conv(conv, operand, kernel).astype(base.dtype)
    fired = block_upsample(mask, problem.block, conv.out_spatial)[..., None] > 0
    if not problem.recompute:
        return jnp.where(fired, base + z, base)
    if bias is not None:
        z = z + bias.astype(z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
    if epilogue is not None:
        z = finish(z, epilogue.scale, epilogue.shift, epilogue.residual, epilogue.activation)
    return jnp.where(fired, z, base)


supports = negative_padding
masked_conv = sparse.differentiable(_forward)
