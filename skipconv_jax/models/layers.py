"""Building blocks that several networks share. Plain Flax Linen, layout (B, H, W, C)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any
T = TypeVar("T")


@dataclass(frozen=True)
class Normal:
    """Normal initialiser of deviation `stddev`, else sqrt(gain / fan) (He et al., 2015).

    fan is kh kw Co / groups ("out", the default), kh kw Ci / groups ("in") or their mean ("avg"),
    as PyTorch and TensorFlow count them. The deviation is open to callers, so that `init_variables`
    can fill a whole network from one draw.
    """

    stddev: float | None = None
    gain: float = 2.0
    fan: Literal["out", "in", "avg"] = "out"
    groups: int = 1

    def std(self, shape: Sequence[int]) -> float:
        """The deviation for a kernel (..., Ci / groups, Co)."""
        if self.stddev is not None:
            return self.stddev
        receptive = math.prod(shape[:-2])
        fans = {"in": receptive * shape[-2], "out": receptive * shape[-1] / self.groups}
        fans["avg"] = (fans["in"] + fans["out"]) / 2
        return math.sqrt(self.gain / max(1.0, fans[self.fan]))

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32
    ) -> jax.Array:
        return jnp.asarray(self.std(shape), dtype) * jax.random.normal(key, tuple(shape), dtype)


def conv(
    features: int,
    kernel: int,
    *,
    name: str,
    stride: int = 1,
    groups: int = 1,
    same: bool = False,
    bias: bool = False,
    dtype: Dtype = None,
    kernel_init: Normal | None = None,
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros,
) -> nn.Conv:
    """A square convolution with symmetric pads of kernel // 2, or TensorFlow's if `same`.

    The two differ at stride 2: on an even size 'SAME' pads the end only.
    """
    pad = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding="SAME" if same else ((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or Normal(groups=groups),
        bias_init=bias_init,
        name=name,
    )


def batch_norm(
    x: jax.Array, *, name: str, train: bool, momentum: float = 0.1, epsilon: float = 1e-5
) -> jax.Array:
    """Batch norm in float32, back in the dtype of `x`; `momentum` is the share of the new step."""
    precise = x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=1 - momentum, epsilon=epsilon, name=name
    )
    return norm(precise).astype(x.dtype)


class Scope(nn.Module):
    """Calls `body(*args)` with the modules it makes under this one's name: a path, not a layer.

    A `body` that is a module's method must be `nn.nowrap`: Flax puts the others under their module.
    """

    @nn.compact
    def __call__(self, body: Callable[..., T], *args: Any) -> T:
        return body(*args)


def under(path: str, body: Callable[..., T], *args: Any) -> T:
    """`body(*args)` with the modules it makes under `path`, whose parts are divided by '/'.

    Each first part once per parent: make a `Scope` and call it again where several calls share it.
    """
    head, _, rest = path.partition("/")
    if rest:
        return Scope(name=head)(under, rest, body, *args)
    return Scope(name=head)(body, *args)


class ConvBN(nn.Module):
    """Convolution `0`, batch norm `1`, ReLU if asked: (B, H, W, C) -> (B, H/s, W/s, features)."""

    features: int
    kernel: int
    stride: int = 1
    relu: bool = True
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = conv(self.features, self.kernel, stride=self.stride, dtype=self.dtype, name="0")(x)
        x = batch_norm(x, train=train, name="1")
        return nn.relu(x) if self.relu else x


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al., 2016, Fig. 5 left)."""

    expansion = 1
    features: int
    stride: int = 1
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(y, train=train, name="bn1"))
        y = conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
        y = batch_norm(y, train=train, name="bn2")
        return nn.relu(y + _shortcut(x, self.features, self.stride, train, self.dtype))


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 to 4 `features` (ibid., right), stride in the 3x3."""

    expansion = 4
    features: int
    stride: int = 1
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        outputs = self.expansion * self.features
        y = conv(self.features, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(y, train=train, name="bn1"))
        y = conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(batch_norm(y, train=train, name="bn2"))
        y = conv(outputs, 1, dtype=self.dtype, name="conv3")(y)
        y = batch_norm(y, train=train, name="bn3")
        return nn.relu(y + _shortcut(x, outputs, self.stride, train, self.dtype))


def _shortcut(x: jax.Array, features: int, stride: int, train: bool, dtype: Dtype) -> jax.Array:
    """The input itself where its shape fits, else a 1x1 projection named `downsample`."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return ConvBN(features, 1, stride, relu=False, dtype=dtype, name="downsample")(x, train)


class Chain(nn.Module):
    """`count` residual blocks in a row, named by their number; the first one takes the stride."""

    block: type[BasicBlock] | type[Bottleneck]
    count: int
    features: int
    stride: int = 1
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i in range(self.count):
            stride = self.stride if i == 0 else 1
            x = self.block(self.features, stride, self.dtype, name=str(i))(x, train)
        return x


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Nearest-neighbour upsampling: (B, H, W, C) -> (B, factor H, factor W, C).

    One broadcast and one reshape: no gather, which would cost more and hide the layout from whoever
        reads the trace.
    """
    b, h, w, c = x.shape
    tiled = jax.lax.broadcast_in_dim(x, (b, h, factor, w, factor, c), (0, 1, 3, 5))
    return tiled.reshape(b, h * factor, w * factor, c)
