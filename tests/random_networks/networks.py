"""Networks drawn at random, as data: lists of operations that can be shortened and still run.

An operation reads earlier tensors by index (0 is the frame). One that does not fit the shapes it
meets passes its first input on, so that any operation may be taken out of a network.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Attributes = Mapping[str, Any]
_WIDEST, _LARGEST = 48, 40  # channels and side of a tensor


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation: its kind, the tensors it reads, and what else it needs (hashable values)."""

    kind: str
    inputs: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.attributes)[name]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of one frame.

    Attributes:
      layout: of frame, tensors and kernels, "NHWC" or "NCHW".
      spatial: H and W of the frame.
      channels: of the frame.
      ops: in order; tensor i + 1 is what operation i makes.
      outputs: tensors that are returned.
      seed: of the weights.
      heads: whether outputs leave as a detector's heads do: (B, H * W, C), those of equally many
        channels one behind the other.
    """

    layout: str
    spatial: tuple[int, int]
    channels: int
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    seed: int
    heads: bool = False

    def frame_shape(self, streams: int) -> tuple[int, ...]:
        """Shape of a frame of so many streams."""
        if self.layout == "NHWC":
            return (streams, *self.spatial, self.channels)
        return (streams, self.channels, *self.spatial)

    def without(self, index: int) -> "Network":
        """The network without an operation; who read its tensor reads its first input."""
        gone, instead = index + 1, self.ops[index].inputs[0]

        def moved(tensor: int) -> int:
            tensor = instead if tensor == gone else tensor
            return tensor - (tensor > gone)

        ops = [
            dataclasses.replace(op, inputs=tuple(map(moved, op.inputs)))
            for i, op in enumerate(self.ops)
            if i != index
        ]
        outputs = tuple(dict.fromkeys(map(moved, self.outputs)))
        return dataclasses.replace(self, ops=tuple(ops), outputs=outputs)

    def alive(self) -> "Network":
        """The network without the operations that no output depends on."""
        network, index = self, len(self.ops) - 1
        while index >= 0:
            read = {*network.outputs, *(i for op in network.ops for i in op.inputs)}
            if index + 1 not in read and len(network.ops) > 1:
                network = network.without(index)
            index -= 1
        return network

    def pools(self) -> bool:
        """Whether a maximum is taken, which XLA's CPU backend takes of NaN as it pleases."""
        return any(op.kind in ("max_pool", "global_max", "softmax") for op in self.ops)

    def spreads(self) -> bool:
        """Whether folding multiplies by zeros that the network has not: a transposed convolution
        whose windows overlap is one convolution per phase, and their windows differ."""
        return any(op.kind == "transposed" and op["window"] > 2 for op in self.ops)


class _Scope:
    """Where operations find their parameters, or say what they need."""

    def __init__(self, layout: str, variables: Any) -> None:
        self.layout, self.variables = layout, variables
        self.needed: dict[str, dict[str, tuple[int, ...]]] = {}

    @property
    def channel_axis(self) -> int:
        return 3 if self.layout == "NHWC" else 1

    @property
    def spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.layout == "NHWC" else (2, 3)

    def channels(self, x: jax.Array) -> int:
        return x.shape[self.channel_axis]

    def spatial(self, x: jax.Array) -> tuple[int, int]:
        height, width = (x.shape[a] for a in self.spatial_axes)
        return height, width

    def parameter(self, layer: str, name: str, shape: tuple[int, ...]) -> jax.Array:
        if self.variables is None:
            # Who comes first decides: a later call that needs another shape goes without.
            return jnp.zeros(self.needed.setdefault(layer, {}).setdefault(name, shape), jnp.float32)
        return self.variables[layer][name]

    def per_channel(self, vector: jax.Array) -> jax.Array:
        shape = [1, 1, 1, 1]
        shape[self.channel_axis] = -1
        return vector.reshape(shape)

    def shape(self, batch: int, spatial: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """Of a tensor, in the layout."""
        if self.layout == "NHWC":
            return (batch, *spatial, channels)
        return (batch, channels, *spatial)

    def windowed(self, values: Any, rest: Any) -> tuple[Any, ...]:
        """One value an axis: `values` on the spatial ones, `rest` on batch and channels."""
        per_axis = [rest] * 4
        for axis, value in zip(self.spatial_axes, values, strict=True):
            per_axis[axis] = value
        return tuple(per_axis)


def _conv(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    kernel_shape, groups = _kernel_shape(scope, op, x)
    spatial = scope.spatial(x)
    pads, dilation = op["padding"], op["dilation"]
    for n, k, d, (low, high) in zip(spatial, op["window"], dilation, pads, strict=True):
        if n + low + high < (k - 1) * d + 1:
            return x
    layer = op["layer"]
    kernel = scope.parameter(layer, "kernel", kernel_shape)
    if kernel.shape != kernel_shape:
        return x
    numbers = (scope.layout, "HWIO" if scope.layout == "NHWC" else "OIHW", scope.layout)

    def convolve(x: jax.Array, pads: Any) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, op["strides"], pads, rhs_dilation=dilation, dimension_numbers=numbers,
            feature_group_count=groups,
        )  # fmt: skip

    z = convolve(x, pads)
    if op["off_frame"]:
        # The kernel's first call is on a map that is no frame; its mean shifts the channels.
        still = jnp.cos(jnp.arange(np.prod(x.shape[1:]), dtype=jnp.float32)).reshape(x.shape[1:])
        shift = convolve(still[None], pads).mean(axis=scope.spatial_axes, keepdims=True)
        z = z + shift
    if op["bias"]:
        z = z + scope.per_channel(scope.parameter(layer, "bias", (scope.channels(z),)))
    return z


def _kernel_shape(scope: _Scope, op: Op, x: jax.Array) -> tuple[tuple[int, ...], int]:
    """Shape of the kernel that fits, and the groups."""
    ci, (kh, kw) = scope.channels(x), op["window"]
    groups = {"one": 1, "two": 2, "depthwise": ci}[op["groups"]]
    groups = groups if ci % groups == 0 else 1
    co = ci * op["multiplier"] if op["groups"] == "depthwise" else op["features"]
    co = -(-min(co, _WIDEST) // groups) * groups
    if scope.layout == "NHWC":
        return (kh, kw, ci // groups, co), groups
    return (co, ci // groups, kh, kw), groups


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "swish": jax.nn.swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard_swish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "clip": lambda x: jnp.clip(x, -0.5, 1.5),
    "square": jnp.square,
    "abs": jnp.abs,
    "sin": jnp.sin,
}


def _act(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    del scope
    return ACTIVATIONS[op["fn"]](x)


def _prelu(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    slope = scope.parameter(op["layer"], "slope", (scope.channels(x),))
    if slope.shape != (scope.channels(x),):
        return x
    return jnp.where(x >= 0, x, scope.per_channel(slope) * x)


def _softmax(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    del op
    return jax.nn.softmax(x, axis=scope.channel_axis)


def _reduce(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    """As spatial attention does: a map of the channels' mean or sum, which weighs them."""
    reduce = {"mean": jnp.mean, "sum": jnp.sum}[op["fn"]]
    return x * jax.nn.sigmoid(reduce(x, axis=scope.channel_axis, keepdims=True))


def _transposed(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    """A transposed convolution of stride 2: windows of 2 (no overlap), 3 or 4."""
    if 2 * max(scope.spatial(x)) > _LARGEST:
        return x
    ci, k = scope.channels(x), op["window"]
    nhwc = scope.layout == "NHWC"
    shape = (k, k, ci, op["features"]) if nhwc else (op["features"], ci, k, k)
    kernel = scope.parameter(op["layer"], "kernel", shape)
    if kernel.shape != shape:
        return x
    pads = {2: (1, 1), 3: (1, 2), 4: (2, 2)}[k]
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [pads, pads], lhs_dilation=(2, 2),
        dimension_numbers=(scope.layout, "HWIO" if nhwc else "OIHW", scope.layout),
    )  # fmt: skip


def _norm(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    channels = (scope.channels(x),)
    mean, scale = (scope.parameter(op["layer"], name, channels) for name in ("mean", "scale"))
    return (x - scope.per_channel(mean)) * (1 + scope.per_channel(scale))


def _joined(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    def join(scope: _Scope, op: Op, x: jax.Array, y: jax.Array) -> jax.Array:
        del scope, op
        return function(x, y) if x.shape == y.shape else x

    return join


def _concat(scope: _Scope, op: Op, x: jax.Array, y: jax.Array) -> jax.Array:
    del op
    if scope.spatial(x) != scope.spatial(y) or scope.channels(x) + scope.channels(y) > _WIDEST:
        return x
    return jnp.concatenate([x, y], axis=scope.channel_axis)


def _squeeze_excite(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    pooled = x.mean(axis=scope.spatial_axes, keepdims=True)
    wide, narrow = scope.channels(x), max(scope.channels(x) // 2, 1)
    numbers = (scope.layout, "HWIO" if scope.layout == "NHWC" else "OIHW", scope.layout)
    for name, (ci, co) in {"down": (wide, narrow), "up": (narrow, wide)}.items():
        shape = (1, 1, ci, co) if scope.layout == "NHWC" else (co, ci, 1, 1)
        kernel = scope.parameter(f"{op['layer']}_{name}", "kernel", shape)
        pooled = lax.conv_general_dilated(
            pooled, kernel, (1, 1), "VALID", dimension_numbers=numbers
        )
        pooled = jax.nn.swish(pooled) if name == "down" else jax.nn.sigmoid(pooled)
    return x * pooled


def _pool(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    for n, k, (low, high) in zip(scope.spatial(x), op["window"], op["padding"], strict=True):
        if n + low + high < k:
            return x
    window, strides = scope.windowed(op["window"], 1), scope.windowed(op["strides"], 1)
    padding = scope.windowed(op["padding"], (0, 0))
    if op.kind == "max_pool":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    return total / float(np.prod(op["window"]))


def _global(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    reduce = jnp.mean if op.kind == "global_mean" else jnp.max
    return x + reduce(x, axis=scope.spatial_axes, keepdims=True)


def _upsample(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    height, width = scope.spatial(x)
    if 2 * max(height, width) > _LARGEST:
        return x
    if op["method"] != "repeat":
        shape = scope.shape(x.shape[0], (2 * height, 2 * width), scope.channels(x))
        return jax.image.resize(x, shape, op["method"])
    for axis in scope.spatial_axes:
        x = jnp.repeat(x, 2, axis=axis)
    return x


def _slice(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    channels = scope.channels(x)
    start, stop = (int(share * channels) for share in op["share"])
    return lax.slice_in_dim(x, start, max(stop, start + 1), axis=scope.channel_axis)


def _shuffle(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    del op
    channels = scope.channels(x)
    if channels % 2:
        return x
    batch, spatial = x.shape[0], scope.spatial(x)
    if scope.layout == "NHWC":
        return x.reshape(batch, *spatial, 2, channels // 2).swapaxes(3, 4).reshape(x.shape)
    return x.reshape(batch, 2, channels // 2, *spatial).swapaxes(1, 2).reshape(x.shape)


def _pad(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    if max(scope.spatial(x)) + 3 > _LARGEST:
        return x
    return jnp.pad(x, scope.windowed(op["padding"], (0, 0)))


def _crop(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    if min(scope.spatial(x)) < 6:
        return x
    cut = [slice(None)] * 4
    for axis, (start, step) in zip(scope.spatial_axes, op["cut"], strict=True):
        cut[axis] = slice(start, None, step)
    return x[tuple(cut)]


def _space_to_depth(scope: _Scope, op: Op, x: jax.Array) -> jax.Array:
    del op
    height, width = scope.spatial(x)
    if height % 2 or width % 2 or 4 * scope.channels(x) > _WIDEST:
        return x
    batch, channels = x.shape[0], scope.channels(x)
    if scope.layout == "NHWC":
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    else:
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(0, 3, 5, 1, 2, 4)
    return x.reshape(scope.shape(batch, (height // 2, width // 2), 4 * channels))


_OPS: dict[str, Callable[..., jax.Array]] = {
    "conv": _conv,
    "act": _act,
    "norm": _norm,
    "prelu": _prelu,
    "softmax": _softmax,
    "reduce": _reduce,
    "transposed": _transposed,
    "add": _joined(jnp.add),
    "sub": _joined(jnp.subtract),
    "mul": _joined(lambda x, y: x * jax.nn.sigmoid(y)),
    "max": _joined(jnp.maximum),
    "concat": _concat,
    "squeeze_excite": _squeeze_excite,
    "max_pool": _pool,
    "mean_pool": _pool,
    "global_mean": _global,
    "global_max": _global,
    "upsample": _upsample,
    "slice": _slice,
    "shuffle": _shuffle,
    "pad": _pad,
    "crop": _crop,
    "space_to_depth": _space_to_depth,
}


def function(network: Network) -> Callable[[Any, jax.Array], tuple[jax.Array, ...]]:
    """`fn(variables, x)`, the outputs of a frame."""
    return lambda variables, x: _run(network, _Scope(network.layout, variables), x)


def _run(network: Network, scope: _Scope, x: jax.Array) -> tuple[jax.Array, ...]:
    tensors = [x]
    for op in network.ops:
        tensors.append(_OPS[op.kind](scope, op, *(tensors[i] for i in op.inputs)))
    outputs = [tensors[i] for i in network.outputs]
    return _heads(scope, outputs) if network.heads else tuple(outputs)


def _heads(scope: _Scope, maps: list[jax.Array]) -> tuple[jax.Array, ...]:
    """`(B, H * W, C)` of each map; maps of equally many channels are joined along positions."""
    joined: dict[int, list[jax.Array]] = {}
    for x in maps:
        rows = x if scope.layout == "NHWC" else x.transpose(0, 2, 3, 1)
        joined.setdefault(rows.shape[3], []).append(rows.reshape(rows.shape[0], -1, rows.shape[3]))
    return tuple(jnp.concatenate(rows, axis=1) for rows in joined.values())


def weights(network: Network) -> dict[str, dict[str, jax.Array]]:
    """Variables of the network: kernels of unit gain, the rest small."""
    scope = _Scope(network.layout, None)
    jax.eval_shape(lambda x: _run(network, scope, x), jnp.zeros(network.frame_shape(1)))
    rng = np.random.default_rng(network.seed)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        taps = shape[:-1] if network.layout == "NHWC" else shape[1:]
        gain = np.prod(taps) ** -0.5 if name == "kernel" else 0.3
        return jnp.asarray(gain * rng.standard_normal(shape), jnp.float32)

    return {
        layer: {name: draw(name, shape) for name, shape in parts.items()}
        for layer, parts in scope.needed.items()
    }
