"""One node of a graph in plain XLA: for what an engine has no operation for."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.quantised.execute import execute_quantised
from skipconv_jax.program.fold.views import Atom, View, indices
from skipconv_jax.program.jaxprs import bind

_UNARY: dict[str, Callable[..., jax.Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "swish": jax.nn.swish,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "abs": jnp.abs,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "expm1": jnp.expm1,
    "log1p": jnp.log1p,
    "erfc": lax.erfc,
    "sign": jnp.sign,
    "square": jnp.square,
    "log": jnp.log,
    "erf": lax.erf,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "hard_swish": lambda x: x * jax.nn.relu6(x + 3) / 6,
    "clip": lambda x, low, high: jnp.clip(x, low, high),
    "leaky_relu": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "elu": lambda x, alpha: jax.nn.elu(x, alpha),
    "hard_sigmoid": lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1),
}
_BINARY: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
}


def execute_node(node: g.Node, values: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """What a node makes of its inputs' values.

    Args:
      node: of a graph.
      values: per entry of `node.inputs`.
      shape: of the output.
    """
    if isinstance(node, g.OtherNode):
        given = dict(zip(node.inputs, values, strict=True))
        operands = [given[o] if isinstance(o, int) else jnp.asarray(o) for o in node.operands]
        return bind(node.eqn, operands)
    return [_execute(node, values, shape)]


def _execute(node: g.Node, x: Sequence[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    match node:
        case g.ConvNode():
            return _conv(node, x)
        case g.SumNode():
            parts = [
                _upsample(a, f) if w == 1 else _upsample(a * w, f)
                for a, (_, f, w) in zip(x, node.terms, strict=True)
            ]
            return _UNARY[node.act](sum(parts[1:], parts[0]), *node.params)
        case g.AffineNode():
            return x[0] * _channels(node.scale, x[0]) + _channels(node.shift, x[0])
        case g.UnaryNode():
            power = node.fn == "integer_pow"
            if power:
                return lax.integer_pow(x[0], node.power)
            return _UNARY[node.fn](x[0], *node.params)
        case g.PReluNode():
            return jnp.where(x[0] >= 0, x[0], _channels(node.slope, x[0]) * x[0])
        case g.BinaryNode():
            return _BINARY[node.fn](x[0], x[1])
        case g.UpsampleNode():
            return _upsample(x[0], node.factor)
        case g.PoolNode():
            start, fn = (_least(x[0].dtype), lax.max) if node.fn == "max" else (0.0, lax.add)
            window, strides = (1, *node.window, 1), (1, *node.strides, 1)
            padding = ((0, 0), *node.padding, (0, 0))
            pooled = lax.reduce_window(x[0], start, fn, window, strides, padding)
            if node.fn == "mean":
                return pooled / float(np.prod(node.window))
            if node.fn != "mean_valid":
                return pooled
            inside = jnp.ones_like(x[0])
            return pooled / lax.reduce_window(inside, start, fn, window, strides, padding)
        case g.SpatialSumNode():
            return x[0].sum(axis=tuple(range(1, x[0].ndim - 1)))
        case g.SpatialMaxNode():
            return x[0].max(axis=tuple(range(1, x[0].ndim - 1))).reshape(shape)
        case g.ConcatNode():
            return jnp.concatenate(x, axis=-1)
        case g.ChannelsNode():
            index = np.array(node.index)
            picked = jnp.concatenate(x, axis=-1)[..., index]
            return jnp.where(index >= 0, picked, jnp.zeros((), picked.dtype))
        case g.PadNode():
            pads = ((0, 0), *node.padding, (0, 0))
            return jnp.pad(x[0], pads, constant_values=node.value)
        case g.CropNode():
            cut = zip(node.starts, node.sizes, node.strides, strict=True)
            return x[0][:, *(slice(s, s + (n - 1) * d + 1, d) for s, n, d in cut)]
        case g.ResizeNode():
            return _resize(node, x[0])
        case g.DepthToSpaceNode():
            b, h, w, c = x[0].shape
            s = node.block
            phases = (c // (s * s), s, s) if node.interleaved else (s, s, c // (s * s))
            order = (0, 1, 4, 2, 5, 3) if node.interleaved else (0, 1, 3, 2, 4, 5)
            return x[0].reshape(b, h, w, *phases).transpose(order).reshape(shape)
        case g.SpaceToDepthNode():
            b, h, w, c = x[0].shape
            s = node.block
            order = (0, 1, 3, 5, 2, 4) if node.interleaved else (0, 1, 3, 2, 4, 5)
            return x[0].reshape(b, h // s, s, w // s, s, c).transpose(order).reshape(shape)
        case g.SoftmaxNode():
            return jax.nn.softmax(x[0], axis=-1)
        case g.ReduceNode():
            return _REDUCE[node.fn](x[0], axis=-1, keepdims=True)
        case g.CompareNode():
            if node.fn == "ne":
                return jnp.isnan(x[0])
            return _COMPARE[node.fn](x[0], node.value)
        case g.SelectNode():
            given = dict(zip(node.inputs, x, strict=True))
            which, no, yes = (given[o] if isinstance(o, int) else o for o in node.operands)
            return jnp.where(which, yes, no)
        case g.LayoutNode():
            return _layout(node.view, x[0])
        case g.ReshapeNode():
            return x[0].reshape(shape)
        case g.FlattenNode():
            return jnp.concatenate([a.reshape(a.shape[0], -1, shape[-1]) for a in x], axis=1)
    return execute_quantised(node, x)


def _least(dtype: Any) -> Any:
    """What never is a maximum."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return -jnp.inf if floating else np.asarray(jnp.iinfo(dtype).min, dtype)


_REDUCE: dict[str, Callable[..., jax.Array]] = {
    "sum": jnp.sum,
    "mean": jnp.mean,
    "max": jnp.max,
    "min": jnp.min,
}
_COMPARE = {"gt": jnp.greater, "ge": jnp.greater_equal, "lt": jnp.less, "le": jnp.less_equal}


def _resize(node: g.ResizeNode, x: jax.Array) -> jax.Array:
    for axis, (index, weight) in enumerate(node.taps, start=1):
        along = (1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1)
        parts = [
            jnp.take(x, index[:, k], axis=axis) * weight[:, k].reshape(along)
            if (weight[:, k] != 1).any()
            else jnp.take(x, index[:, k], axis=axis)
            for k in range(index.shape[1])
        ]
        x = sum(parts[1:], parts[0])
    return x


def _for_streams(view: View, streams: int) -> View:
    """The view for another number of streams than it was traced with."""
    batch = [a for dim in view.dims for a in dim if a.axis == 0]
    if len(batch) != 1 or batch[0].size == streams:
        return view
    dims = tuple(
        tuple(Atom(0, streams, 1) if a is batch[0] else a for a in dim) for dim in view.dims
    )
    return View(view.ref, dims, view.offsets)


def _layout(view: View, x: jax.Array) -> jax.Array:
    """Gathers along every stored axis, splits it into its atoms, and puts those in order."""
    view = _for_streams(view, x.shape[0])
    axes: dict[int, list[Atom]] = {}
    for dim in view.dims:
        for atom in dim:
            if atom.axis is not None:
                axes.setdefault(atom.axis, []).append(atom)
    split: list[tuple[Atom | None, int]] = []
    for axis in range(x.ndim):
        atoms = sorted(axes.get(axis, []), key=lambda a: -a.stride)
        index = indices(atoms, {axis: 1}, view.offsets[axis])
        if len(index) != x.shape[axis] or (index != np.arange(len(index))).any():
            x = jnp.take(x, index, axis=axis)
        split += [(a, a.size) for a in atoms] or [(None, 1)]
    x = x.reshape([size for _, size in split])
    places = {id(a): i for i, (a, _) in enumerate(split) if a is not None}
    found = [a for dim in view.dims for a in dim]
    order = [places[id(a)] for a in found if a.axis is not None]
    rest = [i for i in range(x.ndim) if i not in order]
    x = x.transpose([*order, *rest]).reshape([x.shape[i] for i in order])
    sizes = [1 if a.axis is None else a.size for a in found]
    x = jnp.broadcast_to(x.reshape(sizes), [a.size for a in found])
    return x.reshape(view.shape)


def _conv(node: g.ConvNode, x: Sequence[jax.Array]) -> jax.Array:
    z = node.conv(x[0], jnp.asarray(node.kernel))
    if node.bias is not None:
        z = z + _channels(node.bias, z)
    z = z if node.residual is None else z + x[1]
    if node.act == "prelu":
        return jnp.where(z >= 0, z, _channels(node.slope, z) * z)
    return _UNARY[node.act](z, *node.params)


def _channels(values: Any, like: jax.Array) -> jax.Array:
    array = jnp.asarray(values)
    return array if array.ndim == 0 else array.reshape((1,) * (like.ndim - 1) + array.shape)


def _upsample(x: jax.Array, factor: int) -> jax.Array:
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, factor, axis=axis)
    return x
