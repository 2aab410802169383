"""A small FlowNet-S with a scale map: where a frame's features lie in those of a key frame.

Source: Fischer et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015, as
used by Zhu et al., "Deep Feature Flow for Video Recognition", CVPR 2017: on half resolution, with a
scale per feature beside the flow, both starting as a plain copy (flow 0, scale 1). It is smaller
here (DFF's costs as much as a detector of this family), and the flow comes at stride 8.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipconv_jax.models.layers import Dtype, Normal, conv

STRIDE = 8  # of the flow, which is predicted in positions of that stride
_HE = Normal(fan="in")
_ZERO = Normal(stddev=0.0)


class FlowNet(nn.Module):
    """Two frames (B, H, W, 3) to backward flow and one scale map per feature level.

    Returns the flow (B, ceil(H / 8), ceil(W / 8), 2), float32: (y, x) in pixels of the frame from
    a place now to where it was in the key frame; and scales of shapes (B, H_l, W_l, channels[l])
    for the levels of stride 8, 16 and 32. No batch norm, as published.

    Attributes:
        channels: of the three feature levels to scale.
        width: channels of the first convolution; the others have 2, 4 and 8 times as many. The cost
            grows with its square: 8 takes 104 MMAC on 512 x 512 frames.
        dtype: of the computation; parameters and results stay float32.

    Raises:
        ValueError: another number of levels, a width below 1, or frames whose shapes differ.
    """

    channels: tuple[int, int, int]
    width: int = 8
    dtype: Dtype = None

    def __post_init__(self) -> None:
        if len(self.channels) != 3:
            raise ValueError(
                f"`channels` (={self.channels}) must be those of three levels, strides 8, 16, 32."
            )
        if self.width < 1:
            raise ValueError(f"`width` (={self.width}) must be at least 1; use e.g. width=8")
        super().__post_init__()

    @nn.compact
    def __call__(self, key: jax.Array, now: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Flow and scales from a normalised key frame to a normalised later one."""
        if key.ndim != 4 or key.shape != now.shape:
            raise ValueError(
                f"`key` (shape {key.shape}) and `now` (shape {now.shape}) must be frames of one "
                "shape (B, H, W, C)."
            )
        pair = jnp.concatenate([key, now], axis=-1)
        x = nn.avg_pool(pair, (2, 2), (2, 2), "SAME", count_include_pad=False)
        w = self.width
        x = self._conv(x, w, 5, "conv1", 2)
        fine = self._conv(x, 2 * w, 3, "conv2", 2)
        middle = self._conv(fine, 4 * w, 3, "conv3", 2)
        middle = self._conv(middle, 4 * w, 3, "conv3_1")
        coarse = self._conv(middle, 8 * w, 3, "conv4", 2)
        coarse = self._conv(coarse, 8 * w, 3, "conv4_1")
        middle = self._refine(coarse, middle, 4 * w, "deconv3")
        fine = self._refine(middle, fine, 2 * w, "deconv2")
        field = STRIDE * self._predict(fine, 2, 3, "flow")
        scales = tuple(
            1.0 + self._predict(x, channels, 1, f"scale{level}")
            for level, x, channels in zip(
                (3, 4, 5), (fine, middle, coarse), self.channels, strict=True
            )
        )
        return field, scales

    @nn.nowrap
    def _conv(
        self, x: jax.Array, features: int, kernel: int, name: str, stride: int = 1
    ) -> jax.Array:
        kw: dict[str, Any] = {"same": True, "bias": True, "dtype": self.dtype}
        y = conv(features, kernel, stride=stride, kernel_init=_HE, name=name, **kw)(x)
        return nn.leaky_relu(y, 0.1)

    @nn.nowrap
    def _refine(self, coarse: jax.Array, fine: jax.Array, features: int, name: str) -> jax.Array:
        """The coarse features brought to the fine ones' size and channels, and joined with them."""
        reduced = self._conv(coarse, features, 1, f"{name}_reduce")
        shape = (*fine.shape[:3], features)
        joined = jnp.concatenate([jax.image.resize(reduced, shape, "linear"), fine], axis=-1)
        return self._conv(joined, features, 3, name)

    @nn.nowrap
    def _predict(self, x: jax.Array, features: int, kernel: int, name: str) -> jax.Array:
        kw: dict[str, Any] = {"same": True, "bias": True, "dtype": self.dtype}
        y = conv(features, kernel, kernel_init=_ZERO, name=name, **kw)(x)
        return y.astype(jnp.float32)
