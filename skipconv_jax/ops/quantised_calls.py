"""Rounding to a grid as named calls, which whoever reads a traced network finds again.

In a jaxpr they are `jit[name=quantize_linear]` and `jit[name=dequantize_linear]` with operands (x,
scale, zero point), as a quantised ONNX file's nodes are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid, last_axes


@partial(jax.jit, static_argnames="dtype")
def quantize_linear(x: Any, scale: Any, zero: Any, *, dtype: str) -> jax.Array:
    """clamp(rint(x / scale) + zero)."""
    info = jnp.iinfo(dtype)
    steps = jnp.round(x / scale) + zero.astype(jnp.float32)
    return jnp.clip(steps, float(info.min), float(info.max)).astype(dtype)


@jax.jit
def dequantize_linear(q: Any, scale: Any, zero: Any) -> jax.Array:
    """(q - zero) scale; scale and zero of the last axis, or ()."""
    steps = q.astype(jnp.int32) - last_axes(zero, q).astype(jnp.int32)
    return steps.astype(jnp.float32) * last_axes(scale, q)


def rounded(x: jax.Array, grid: Grid) -> jax.Array:
    """x on a grid, in float32: quantised and dequantised."""
    scale, zero = jnp.float32(grid.scale), jnp.asarray(np.asarray(grid.zero, grid.dtype))
    return dequantize_linear(quantize_linear(x, scale, zero, dtype=grid.dtype), scale, zero)
