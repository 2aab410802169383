"""Masked convolution, dense: convolve everything, then mask. Differentiable; what training uses.

It takes every case, and the others are tested against it.
"""

import jax
import jax.numpy as jnp

from skipconv_jax.ops.geometry import block_upsample
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem


@jax.custom_jvp
def _add_where(mask: jax.Array, base: jax.Array, update: jax.Array) -> jax.Array:
    """base + mask * update for a mask in {0, 1}; bitwise `base` where the mask is 0."""
    return jnp.where(mask > 0, base + update, base)


@_add_where.defjvp
def _add_where_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    mask, base, update = primals
    d_mask, d_base, d_update = tangents
    return _add_where(mask, base, update), d_base + mask * d_update + d_mask * update


@jax.custom_jvp
def _replace_where(mask: jax.Array, base: jax.Array, fresh: jax.Array) -> jax.Array:
    """base + mask * (fresh - base) for a mask in {0, 1}, without rounding."""
    return jnp.where(mask > 0, fresh, base)


@_replace_where.defjvp
def _replace_where_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    mask, base, fresh = primals
    d_mask, d_base, d_fresh = tangents
    tangent = (1 - mask) * d_base + mask * d_fresh + d_mask * (fresh - base)
    return _replace_where(mask, base, fresh), tangent


def supports(problem: Problem) -> str | None:
    """Every case."""
    del problem
    return None


def masked_conv(problem: Problem, arrays: Arrays) -> jax.Array:
    """See `skipconv_jax.ops.masked_conv`."""
    operand, kernel, bias, base, mask, epilogue = arrays
    z = problem.conv(operand, kernel).astype(base.dtype)
    per_position = block_upsample(mask, problem.block, problem.conv.out_spatial)[..., None]
    per_position = per_position.astype(base.dtype)
    if not problem.recompute:
        return _add_where(per_position, base, z)
    if bias is not None:
        z = z + bias.astype(z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
    z = _replace_where(per_position, base, z)
    return z if epilogue is None else epilogue.where_fired(z, base, mask, problem.block)
