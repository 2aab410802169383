"""Elementwise arithmetic, comparisons and casts."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.onnx.nodes import Node, align, always, operator


def leading(node: Node, shapes: Sequence[tuple[int, ...] | None], constant: Sequence[bool]) -> bool:
    """Rowwise where no input with the frame is broadcast along new leading axes."""
    rank = max(len(s) for s in shapes if s is not None)
    for shape, fixed in zip(shapes, constant, strict=True):
        if shape is None or (fixed and (len(shape) < rank or shape[0] == 1)):
            continue
        if fixed or len(shape) != rank:
            return False
    return True


def dtype_of(name: Any) -> Any:
    """The dtype JAX computes in: 64-bit types become 32-bit ones."""
    return jax.dtypes.canonicalize_dtype(name)


_pointwise = partial(operator, literals=True, rowwise=leading)


def _register_unary(name: str, fn: Callable[..., Any], since: int = 1) -> None:
    operator(name, since, rowwise=always)(lambda node, x: fn(x))


for _name, _fn in (
    ("Abs", jnp.abs),
    ("Neg", lax.neg),
    ("Exp", lax.exp),
    ("Log", lax.log),
    ("Sqrt", lax.sqrt),
    ("Erf", lax.erf),
    ("Floor", lax.floor),
    ("Ceil", lax.ceil),
    ("Round", jnp.round),
    ("Sign", jnp.sign),
    ("Sin", lax.sin),
    ("Cos", lax.cos),
    ("Not", lax.bitwise_not),
    ("Reciprocal", lambda x: 1 / x),
    ("IsNaN", jnp.isnan),
):
    _register_unary(_name, _fn)


@operator("Identity", rowwise=always)
def _identity(node: Node, x: Any) -> Any:
    return x


def _binary(name: str, fn: Callable[..., Any], since: int = 1) -> None:
    def run(node: Node, a: Any, b: Any) -> Any:
        return fn(*align(a, b))

    _pointwise(name, since)(run)


def _division(a: Any, b: Any) -> Any:
    if jnp.issubdtype(a.dtype, jnp.integer):
        shape = np.broadcast_shapes(a.shape, b.shape)  # C's: towards zero
        return lax.div(jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape))
    return jnp.divide(a, b)


for _name, _two in (
    ("Add", jnp.add),
    ("Sub", jnp.subtract),
    ("Mul", jnp.multiply),
    ("Div", _division),
    ("Equal", jnp.equal),
    ("Greater", jnp.greater),
    ("Less", jnp.less),
    ("GreaterOrEqual", jnp.greater_equal),
    ("LessOrEqual", jnp.less_equal),
    ("And", jnp.logical_and),
    ("Or", jnp.logical_or),
    ("Xor", jnp.logical_xor),
):
    _binary(_name, _two, 7)


def _many(name: str, fn: Callable[..., Any]) -> None:
    def run(node: Node, *inputs: Any) -> Any:
        return reduce(fn, align(*inputs))

    _pointwise(name, 8)(run)


_many("Max", jnp.maximum)
_many("Min", jnp.minimum)
_many("Sum", jnp.add)


@_pointwise("Mean", 8)
def _mean(node: Node, *inputs: Any) -> Any:
    return reduce(jnp.add, align(*inputs)) / len(inputs)


@_pointwise("Pow", 7)
def _pow(node: Node, x: Any, y: Any) -> Any:
    if isinstance(y, np.ndarray) and y.size == 1 and float(y.item()).is_integer():
        # Squares and cubes of normalisations: products, not logarithms.
        shape = np.broadcast_shapes(x.shape, y.shape)
        power = int(y.item())
        if power >= 0 or jnp.issubdtype(x.dtype, jnp.floating):
            return lax.integer_pow(jnp.broadcast_to(jnp.asarray(x), shape), power)
    x, y = align(x, y)
    wide = x.dtype if x.dtype == y.dtype else jnp.float32
    return jnp.power(x.astype(wide), y.astype(wide)).astype(x.dtype)


@_pointwise("Mod", 10)
def _mod(node: Node, a: Any, b: Any) -> Any:
    return (jnp.fmod if node.get("fmod", 0) else jnp.mod)(*align(a, b))


@_pointwise("Where", 9)
def _where(node: Node, condition: Any, x: Any, y: Any) -> Any:
    return jnp.where(*align(condition, x, y))


def cast(x: Any, dtype: Any, saturate: bool = True) -> Any:
    """`x` as another dtype; the float8 types saturate or give NaN, as the file asks."""
    dtype = dtype_of(dtype)
    name = jnp.dtype(dtype).name
    if name.startswith("float8") and saturate and jnp.issubdtype(x.dtype, jnp.floating):
        limit = float(jnp.finfo(dtype).max)
        wide = x.astype(jnp.float32)
        return jnp.where(jnp.isnan(wide), wide, jnp.clip(wide, -limit, limit)).astype(dtype)
    if name in ("int2", "uint2", "int4", "uint4") and jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.int32)  # too large values wrap
    return jnp.asarray(x).astype(dtype)


@operator("Cast", 6, rowwise=always)
def _cast(node: Node, x: Any) -> Any:
    return cast(x, node.get("to"), bool(node.get("saturate", 1)))


@operator("CastLike", 15, rowwise=always)
def _cast_like(node: Node, x: Any, like: Any) -> Any:
    return cast(x, like.dtype, bool(node.get("saturate", 1)))
