"""Activations, as `jax.nn` or in the plain forms that the folded graph knows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.onnx.nodes import Node, align, always, operator, positive
from skipconv_jax.onnx.operators.arithmetic import leading


@operator("Relu", rowwise=always)
def _relu(node: Node, x: Any) -> Any:
    return jax.nn.relu(x)


@operator("LeakyRelu", rowwise=always)
def _leaky_relu(node: Node, x: Any) -> Any:
    return jax.nn.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu", rowwise=leading)
def _prelu(node: Node, x: Any, slope: Any) -> Any:
    x, slope = align(x, slope)
    return jnp.where(x >= 0, x, slope * x)


def clip(x: Any, low: Any, high: Any) -> Any:
    """`x` held between two scalars, either of which may be None."""
    if low is not None and high is not None and x.dtype == low.dtype == high.dtype:
        return lax.clamp(low, x, high)
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


@operator("Clip", 6, rowwise=always)
def _clip_attributes(node: Node, x: Any) -> Any:
    low, high = node.get("min"), node.get("max")
    return clip(
        x,
        None if low is None else np.asarray(low, x.dtype),
        None if high is None else np.asarray(high, x.dtype),
    )


@operator("Clip", 11, static=(1, 2), rowwise=always)
def _clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    def scalar(bound: Any) -> Any:
        return None if bound is None else np.asarray(bound, x.dtype).reshape(())

    return clip(x, scalar(low), scalar(high))


@operator("Sigmoid", rowwise=always)
def _sigmoid(node: Node, x: Any) -> Any:
    return jax.nn.sigmoid(x)


def hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    """clip(alpha x + beta, 0, 1)."""
    return jnp.clip(x * alpha + beta, 0, 1)


@operator("HardSigmoid", rowwise=always)
def _hard_sigmoid(node: Node, x: Any) -> Any:
    return hard_sigmoid(x, node.get("alpha", 0.2), node.get("beta", 0.5))


@operator("HardSwish", 14, rowwise=always)
def _hard_swish(node: Node, x: Any) -> Any:
    return jax.nn.hard_swish(x)


@operator("Swish", 24, rowwise=always)
def _swish(node: Node, x: Any) -> Any:
    alpha = node.get("alpha", 1.0)
    return x * jax.nn.sigmoid(x if alpha == 1 else x * alpha)


@operator("Elu", rowwise=always)
def _elu(node: Node, x: Any) -> Any:
    return jax.nn.elu(x, node.get("alpha", 1.0))


@operator("Celu", 12, rowwise=always)
def _celu(node: Node, x: Any) -> Any:
    return jax.nn.celu(x, node.get("alpha", 1.0))


@operator("Selu", 6, rowwise=always)
def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.6732631921768188), node.get("gamma", 1.0507010221481323)
    return gamma * jnp.where(x > 0, x, alpha * jnp.expm1(x))


@operator("Gelu", 20, rowwise=always)
def _gelu(node: Node, x: Any) -> Any:
    return jax.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh")


@operator("Mish", 18, rowwise=always)
def _mish(node: Node, x: Any) -> Any:
    return jax.nn.mish(x)


@operator("Softplus", rowwise=always)
def _softplus(node: Node, x: Any) -> Any:
    return jax.nn.softplus(x)


@operator("Softsign", rowwise=always)
def _softsign(node: Node, x: Any) -> Any:
    return jax.nn.soft_sign(x)


@operator("Tanh", rowwise=always)
def _tanh(node: Node, x: Any) -> Any:
    return jnp.tanh(x)


@operator("ThresholdedRelu", 10, rowwise=always)
def _thresholded_relu(node: Node, x: Any) -> Any:
    return jnp.where(x > node.get("alpha", 1.0), x, 0)


def not_leading(default: int) -> Any:
    """Rowwise where the operator's axis isn't the leading one."""

    def rowwise(node: Node, shapes: Any, constant: Any) -> bool:
        return positive(node.get("axis", default), len(shapes[0])) > 0

    return rowwise


def _over_trailing(fn: Any, node: Node, x: Any) -> Any:
    """Before opset 13: over all axes from `axis` on, taken as one."""
    axis = positive(node.get("axis", 1), x.ndim)
    over = [a for a in range(axis, x.ndim) if x.shape[a] != 1]
    if len(over) <= 1:
        return fn(x, axis=over[0] if over else axis)
    return fn(x.reshape(*x.shape[:axis], -1), axis=axis).reshape(x.shape)


@operator("Softmax", rowwise=not_leading(1))
def _softmax_trailing(node: Node, x: Any) -> Any:
    return _over_trailing(jax.nn.softmax, node, x)


@operator("Softmax", 13, rowwise=not_leading(-1))
def _softmax(node: Node, x: Any) -> Any:
    return jax.nn.softmax(x, axis=node.get("axis", -1))


@operator("LogSoftmax", rowwise=not_leading(1))
def _log_softmax_trailing(node: Node, x: Any) -> Any:
    return _over_trailing(jax.nn.log_softmax, node, x)


@operator("LogSoftmax", 13, rowwise=not_leading(-1))
def _log_softmax(node: Node, x: Any) -> Any:
    return jax.nn.log_softmax(x, axis=node.get("axis", -1))
