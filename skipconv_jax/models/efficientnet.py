"""EfficientNet as a backbone: features at strides 8, 16 and 32.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
    2019, with
TensorFlow's padding and batch-norm epsilon, in the names of the public PyTorch checkpoints ported
from it.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipconv_jax.models.layers import Dtype, batch_norm, conv, under

EPSILON = 1e-3  # of every batch norm in networks that come from TensorFlow


@dataclass(frozen=True)
class Stage:
    """A row of the paper's Table 1: `repeats` inverted bottlenecks of B0, before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_STEM = 32
_OUTPUTS = (2, 4, 6)  # the last stages at strides 8, 16 and 32


def scale_features(features: int, width: float) -> int:
    """`features` times `width`, to the nearest multiple of 8 that keeps nine tenths; at least 8."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def level_channels(width: float) -> tuple[int, int, int]:
    """Channels of the features at strides 8, 16 and 32."""
    fine, middle, coarse = (scale_features(STAGES[i].features, width) for i in _OUTPUTS)
    return fine, middle, coarse


class EfficientNet(nn.Module):
    """EfficientNet without its head: images (B, H, W, 3) to features at strides 8, 16 and 32.

    Sizes are rounded up at every halving. Squeeze-and-excitation sees the whole image at once: its
    1x1 convolutions run on one position.

    Attributes:
        width: multiplier of the channels (1.0 is B0, 1.2 is B3).
        depth: multiplier of the repeats (1.0 is B0, 1.4 is B3).
        dtype: of the computation (`jnp.bfloat16`, or None for the parameters' own); parameters stay
            float32.

    Raises:
        ValueError: a multiplier that is not positive.
    """

    width: float = 1.0
    depth: float = 1.0
    dtype: Dtype = None

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(
                    f"`{name}` (={value}) must be positive; use 1.0 for EfficientNet-B0"
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
        """Features of normalised frames `x` (B, H, W, 3); `train` uses the statistics of `x`."""
        stem = scale_features(_STEM, self.width)
        x = conv(stem, 3, stride=2, same=True, dtype=self.dtype, name="conv_stem")(x)
        x = nn.silu(batch_norm(x, train=train, epsilon=EPSILON, name="bn1"))
        return under("blocks", self._blocks, x, train)

    @nn.nowrap
    def _blocks(self, x: jax.Array, train: bool) -> list[jax.Array]:
        outputs = []
        for index, stage in enumerate(STAGES):
            x = under(str(index), self._stage, x, stage, train)
            if index in _OUTPUTS:
                outputs.append(x)
        return outputs

    @nn.nowrap
    def _stage(self, x: jax.Array, stage: Stage, train: bool) -> jax.Array:
        features = scale_features(stage.features, self.width)
        for i in range(math.ceil(stage.repeats * self.depth)):
            stride = stage.stride if i == 0 else 1
            block = InvertedBottleneck(
                features, stage.kernel, stride, stage.expansion, self.dtype, name=str(i)
            )
            x = block(x, train)
        return x


class InvertedBottleneck(nn.Module):
    """1x1 to `expansion` x channels, depthwise k x k, squeeze-and-excitation, 1x1 to `features`.

    A residual connection where the shape stays. With an expansion of 1 there is no first 1x1, and
    the public names
    shift: the last one is `conv_pw` there, `conv_pwl` elsewhere.
    """

    features: int
    kernel: int
    stride: int = 1
    expansion: int = 6
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kw: dict[str, Any] = {"same": True, "dtype": self.dtype}
        norms = iter(("bn1", "bn2", "bn3"))

        def norm(y: jax.Array) -> jax.Array:
            return batch_norm(y, train=train, epsilon=EPSILON, name=next(norms))

        inputs = x.shape[-1]
        hidden = inputs * self.expansion
        y = x
        if self.expansion != 1:
            y = nn.silu(norm(conv(hidden, 1, name="conv_pw", **kw)(y)))
        y = conv(hidden, self.kernel, stride=self.stride, groups=hidden, name="conv_dw", **kw)(y)
        y = nn.silu(norm(y))
        y = SqueezeExcite(round(inputs / 4), self.dtype, name="se")(y)
        last = "conv_pwl" if self.expansion != 1 else "conv_pw"
        y = norm(conv(self.features, 1, name=last, **kw)(y))
        return x + y if x.shape == y.shape else y


class SqueezeExcite(nn.Module):
    """x sigmoid(W2 silu(W1 mean(x))), the mean over H and W (Hu et al., 2018)."""

    hidden: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = nn.silu(conv(self.hidden, 1, bias=True, dtype=self.dtype, name="conv_reduce")(y))
        y = conv(x.shape[-1], 1, bias=True, dtype=self.dtype, name="conv_expand")(y)
        return x * jnp.broadcast_to(nn.sigmoid(y), x.shape)
