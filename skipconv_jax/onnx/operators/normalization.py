"""Normalisations, with the statistics of the file or of the map itself."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from skipconv_jax.onnx.nodes import Node, first_only, operator, positive


def _per_channel(array: Any, rank: int) -> Any:
    return array.reshape(1, -1, *(1,) * (rank - 2))


def _inference(node: Node, shapes: Any, constant: Any) -> bool:
    return first_only(node, shapes, constant) and not node.get("training_mode", 0)


@operator("BatchNormalization", 7, rowwise=_inference)
def _batch_norm(node: Node, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    """y = x s + (bias - mean s), s = scale / sqrt(var + epsilon): one affine map per channel."""
    if not node.get("training_mode", 0):
        s = scale * lax.rsqrt(var + node.get("epsilon", 1e-5))
        return x * _per_channel(s, x.ndim) + _per_channel(bias - mean * s, x.ndim)
    axes, momentum = (0, *range(2, x.ndim)), node.get("momentum", 0.9)
    now, spread = x.mean(axes), x.var(axes)
    s = scale * lax.rsqrt(spread + node.get("epsilon", 1e-5))
    y = x * _per_channel(s, x.ndim) + _per_channel(bias - now * s, x.ndim)
    running = (mean * momentum + now * (1 - momentum), var * momentum + spread * (1 - momentum))
    return (y, *running)


def _standardise(x: Any, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt((centred * centred).mean(axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


@operator("InstanceNormalization", 6, rowwise=first_only)
def _instance_norm(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    y, *_ = _standardise(x, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    return y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


def _axis_behind(node: Node, shapes: Any, constant: Any) -> bool:
    return first_only(node, shapes, constant) and positive(node.get("axis", -1), len(shapes[0])) > 0


@operator("LayerNormalization", 17, rowwise=_axis_behind)
def _layer_norm(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    axis = positive(node.get("axis", -1), x.ndim)
    y, mean, inverse = _standardise(
        x.astype(jnp.float32), tuple(range(axis, x.ndim)), node.get("epsilon", 1e-5)
    )

    def fit(parameter: Any) -> Any:
        return parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)

    y = y.astype(x.dtype) * fit(scale)
    y = y if bias is None else y + fit(bias)
    return (y, mean, inverse)[: max(len(node.outputs), 1)] if node.wants(1) else y


@operator("RMSNormalization", 23, rowwise=_axis_behind)
def _rms_norm(node: Node, x: Any, scale: Any) -> Any:
    axes = tuple(range(positive(node.get("axis", -1), x.ndim), x.ndim))
    wide = x.astype(jnp.float32)
    y = wide * lax.rsqrt((wide * wide).mean(axes, keepdims=True) + node.get("epsilon", 1e-5))
    return y.astype(x.dtype) * scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)


def _group_norm(node: Node, x: Any, groups: int) -> Any:
    n, c = x.shape[:2]
    grouped = x.reshape(n, groups, c // groups * math.prod(x.shape[2:]))
    return _standardise(grouped, (2,), node.get("epsilon", 1e-5))[0]


@operator("GroupNormalization", 18, rowwise=first_only)
def _group_norm_per_group(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    groups = node.get("num_groups")
    y = _group_norm(node, x, groups)
    return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


@operator("GroupNormalization", 21, rowwise=first_only)
def _group_norm_per_channel(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    y = _group_norm(node, x, node.get("num_groups")).reshape(x.shape)
    return y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@operator(
    "LpNormalization",
    rowwise=lambda node, shapes, _: positive(node.get("axis", -1), len(shapes[0])) > 0,
)
def _lp_norm(node: Node, x: Any) -> Any:
    axis = node.get("axis", -1)
    if node.get("p", 2) == 1:
        norm = jnp.sum(jnp.abs(x), axis, keepdims=True)
    else:
        norm = jnp.sqrt(jnp.sum(x * x, axis, keepdims=True))
    return jnp.where(norm == 0, 0, x / jnp.where(norm == 0, 1, norm))
