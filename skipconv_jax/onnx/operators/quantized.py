"""QuantizeLinear and DequantizeLinear, each one named call so that a later pass can find them.

In the jaxpr of the function they are `jit[name=quantize_linear]` and `jit[name=dequantize_linear]`
with operands (x, scale, zero_point) and the arithmetic as body. `OnnxFunction.quantisation` has the
same numbers by the file's names.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.onnx.nodes import Node, always, operator, positive
from skipconv_jax.onnx.operators.arithmetic import cast, dtype_of

WEIGHT_TYPES = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32")


def spread(parameter: Any, shape: tuple[int, ...], axis: int, block: int) -> Any:
    """A scale or zero point laid out against an array: one number, one per channel, or blocked."""
    if parameter.size == 1 and not block:
        return parameter.reshape((1,) * len(shape))
    axis = positive(axis, len(shape))
    if block:
        return jnp.repeat(parameter, block, axis)[
            tuple(slice(n) if a == axis else slice(None) for a, n in enumerate(shape))
        ]
    wide = [1] * len(shape)
    wide[axis] = -1
    return parameter.reshape(wide)


@partial(jax.jit, static_argnames=("axis", "block", "dtype", "saturate"))
def quantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any,
    *,
    axis: int = 1,
    block: int = 0,
    dtype: Any = np.uint8,
    saturate: bool = True,
) -> Any:
    """saturate(round_half_to_even(x / scale) + zero_point)."""
    steps = x.astype(scale.dtype) / spread(scale, x.shape, axis, block)
    zero = None if zero_point is None else spread(zero_point, x.shape, axis, block)
    if not jnp.issubdtype(dtype, jnp.integer):
        shifted = steps if zero is None else steps + zero.astype(steps.dtype)
        return cast(shifted, dtype, saturate)
    info = jnp.iinfo(dtype)
    steps = jnp.round(steps.astype(jnp.float32))
    # The sum is exact: 16-bit types and their zero points lie within float32's integers.
    steps = steps if zero is None else steps + zero.astype(jnp.float32)
    return jnp.clip(steps, int(info.min), int(info.max)).astype(dtype)


@partial(jax.jit, static_argnames=("axis", "block", "dtype"))
def dequantize_linear(
    q: Any, scale: Any, zero_point: Any, *, axis: int = 1, block: int = 0, dtype: Any = np.float32
) -> Any:
    """(q - zero_point) scale."""
    wide = spread(scale, q.shape, axis, block)
    if not jnp.issubdtype(q.dtype, jnp.integer):
        return (q.astype(dtype) * wide.astype(dtype)).astype(dtype)
    steps = q.astype(jnp.int32)
    if zero_point is not None:
        steps = steps - spread(zero_point, q.shape, axis, block).astype(jnp.int32)
    return (steps.astype(jnp.float32) * wide.astype(jnp.float32)).astype(dtype)


@operator("QuantizeLinear", 10, static=(1, 2), rowwise=always)
def _quantize(node: Node, x: Any, scale: Any, zero_point: Any = None) -> Any:
    return quantize_linear(
        jnp.asarray(x),
        scale,
        zero_point,
        axis=node.get("axis", 1),
        block=node.get("block_size", 0),
        dtype=quantised_dtype(node, zero_point),
        saturate=bool(node.get("saturate", 1)),
    )


def quantised_dtype(node: Node, zero_point: Any) -> Any:
    """uint8 unless the zero point or `output_dtype` says otherwise."""
    if zero_point is not None:
        return zero_point.dtype
    return node.get("output_dtype") or np.dtype(np.uint8)


@operator("DequantizeLinear", 10, static=(1, 2), rowwise=always)
def _dequantize(node: Node, q: Any, scale: Any, zero_point: Any = None) -> Any:
    dtype = node.get("output_dtype") or scale.dtype
    return dequantize_linear(
        jnp.asarray(q),
        scale,
        zero_point,
        axis=node.get("axis", 1),
        block=node.get("block_size", 0),
        dtype=dtype_of(dtype),
    )
