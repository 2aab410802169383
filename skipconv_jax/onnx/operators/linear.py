"""Matrix products."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from skipconv_jax.onnx.nodes import Node, operator


def _rows(node: Node, shapes: Any, constant: Any) -> bool:
    """Rowwise: both with the frame and a leading batch, or the left one with a constant matrix."""
    left, right = shapes[0], shapes[1]
    if constant[0]:
        return False
    if constant[1]:
        return len(left) >= 2 and (len(right) <= 2 or (len(right) <= len(left) and right[0] == 1))
    return len(left) == len(right) >= 3


@operator("MatMul", rowwise=_rows)
def _matmul(node: Node, a: Any, b: Any) -> Any:
    if a.ndim > 2 and b.ndim > 2 and a.ndim != b.ndim:
        rank = max(a.ndim, b.ndim)
        a, b = (m.reshape((1,) * (rank - m.ndim) + m.shape) for m in (a, b))
    return jnp.matmul(a, b)


def _gemm_rows(node: Node, shapes: Any, constant: Any) -> bool:
    bias = shapes[2] if len(shapes) > 2 else None
    fixed = constant[1] and (bias is None or (constant[2] and (len(bias) < 2 or bias[0] == 1)))
    return fixed and not node.get("transA", 0)


@operator("Gemm", 7, rowwise=_gemm_rows)
def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
    left, right = (0 if node.get("transA", 0) else 1), (1 if node.get("transB", 0) else 0)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = lax.dot_general(jnp.asarray(a), jnp.asarray(b), (((left,), (right,)), ((), ())))
    y = y if alpha == 1 else (alpha * y).astype(y.dtype)
    if c is None:
        return y
    c = c if beta == 1 else (beta * c).astype(y.dtype)
    return y + c.reshape((1,) * (2 - c.ndim) + c.shape)


@operator("Einsum", 12)
def _einsum(node: Node, *inputs: Any) -> Any:
    return jnp.einsum(node.get("equation").replace(" ", ""), *inputs)
