"""Static geometry of one convolution, and the block grid its gate decides on.

Everything here depends on shapes alone, works for 1, 2 and 3 spatial axes, and uses channels-last
layout: inputs `(B, *spatial, Ci)`, kernels `(*window, Ci / groups, Co)`.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax import checks
from skipconv_jax.ops.depthwise import depthwise

Padding = str | Sequence[tuple[int, int]] | Sequence[int] | int

_NAMED_PADDINGS = ("SAME", "SAME_LOWER", "VALID")
_SPATIAL_LETTERS = {1: "W", 2: "HW", 3: "DHW"}


def _per_axis(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    try:
        given = value if isinstance(value, Sequence) else (operator.index(value),) * rank
        values = tuple(operator.index(v) for v in given)
    except TypeError:
        values = ()
    if len(values) != rank or any(v < 1 for v in values):
        raise ValueError(
            f"`{name}` (={value!r}) must be a positive integer, or one for each of the "
            f"{rank} spatial axes."
        )
    return values


def _explicit_padding(padding: Padding, rank: int) -> tuple[tuple[int, int], ...] | str:
    if isinstance(padding, str):
        if padding.upper() not in _NAMED_PADDINGS:
            raise ValueError(
                f"`padding` (={padding!r}) must be one of {_NAMED_PADDINGS}, an integer, or a "
                "(low, high) pair per spatial axis."
            )
        return padding.upper()
    try:
        given: Any = padding if isinstance(padding, Sequence) else (padding,) * rank
        pairs = tuple(
            tuple(operator.index(v) for v in (p if isinstance(p, Sequence) else (p, p)))
            for p in given
        )
    except TypeError:
        pairs = ()
    if len(pairs) != rank or any(len(p) != 2 for p in pairs):
        raise ValueError(
            f"`padding` (={padding!r}) must give a (low, high) pair of integers for each of the "
            f"{rank} spatial axes."
        )
    return pairs  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Conv:
    """Geometry of a convolution with explicit padding; hashable, so it can be a static argument.

    Attributes:
      window: kernel extent per spatial axis, `(kh, kw)` in 2D.
      strides: output stride per spatial axis.
      padding: `(low, high)` zeros per spatial axis.
      dilation: kernel dilation per spatial axis.
      groups: feature groups; `groups == Ci` is a depthwise convolution.
      in_spatial: input extent per spatial axis, `(H, W)` in 2D.
      in_channels: Ci.
      out_channels: Co.
      precision: of the products, as in `jax.lax`; None for the platform's default.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    in_spatial: tuple[int, ...]
    in_channels: int
    out_channels: int
    precision: Any = None

    @classmethod
    def make(
        cls,
        x_shape: Sequence[int],
        kernel_shape: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        precision: Any = None,
    ) -> "Conv":
        """Resolves user arguments against an input `(B, *spatial, Ci)` and a kernel.

        Raises:
          ValueError: a shape, stride, padding, dilation or group count that does not fit.
        """
        rank = len(x_shape) - 2
        if rank not in _SPATIAL_LETTERS:
            raise ValueError(
                f"`x` (shape {tuple(x_shape)}) must be (B, *spatial, C) with 1 to 3 spatial axes; "
                "add the batch axis of streams if it is missing."
            )
        if len(kernel_shape) != rank + 2:
            raise ValueError(
                f"`kernel` (shape {tuple(kernel_shape)}) must have {rank + 2} axes "
                f"(*window, Ci / groups, Co) for an input of shape {tuple(x_shape)}."
            )
        *window, kernel_in, out_channels = (int(d) for d in kernel_shape)
        in_channels, in_spatial = int(x_shape[-1]), tuple(int(d) for d in x_shape[1:-1])
        if min(*x_shape, *kernel_shape) < 1:
            raise ValueError(
                f"`x` (shape {tuple(x_shape)}) and `kernel` (shape {tuple(kernel_shape)}) must not "
                "have empty axes; give at least one stream, position and channel."
            )
        groups = checks.positive_integer("groups", groups, "use 1 for a plain convolution.")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"`groups` (={groups}) must divide the input channels (={in_channels}) and the "
                f"output channels (={out_channels})."
            )
        if kernel_in * groups != in_channels:
            raise ValueError(
                f"`kernel` (shape {tuple(kernel_shape)}) must take in_channels / groups "
                f"(={in_channels} / {groups}) channels on its second last axis; it takes "
                f"{kernel_in}."
            )
        strides_ = _per_axis("strides", strides, rank)
        dilation_ = _per_axis("dilation", dilation, rank)
        pads = _explicit_padding(padding, rank)
        if isinstance(pads, str):
            extent = [(k - 1) * d + 1 for k, d in zip(window, dilation_, strict=True)]
            pads = tuple(
                (int(lo), int(hi))
                for lo, hi in lax.padtype_to_pads(in_spatial, extent, strides_, pads)
            )
        conv = cls(
            tuple(window),
            strides_,
            pads,
            dilation_,
            groups,
            in_spatial,
            in_channels,
            out_channels,
            precision,
        )
        if min(conv.out_spatial) < 1:
            raise ValueError(
                f"`x` (spatial extent {in_spatial}) must be large enough for a window of {window} "
                f"with dilation {dilation_} and padding {pads}; the output would be "
                f"{conv.out_spatial}."
            )
        return conv

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.window)

    @property
    def depthwise(self) -> bool:
        """Whether it has one filter per channel."""
        return self.groups == self.in_channels == self.out_channels > 1

    @property
    def extent(self) -> tuple[int, ...]:
        """Input positions one output position looks at, per axis: (k - 1) d + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True))

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output extent per spatial axis."""
        return tuple(
            (n + lo + hi - e) // s + 1
            for n, (lo, hi), e, s in zip(
                self.in_spatial, self.padding, self.extent, self.strides, strict=True
            )
        )

    @property
    def macs_per_position(self) -> int:
        """Multiply-accumulates of one output position, all channels: k Ci / groups Co."""
        return math.prod(self.window) * self.in_channels // self.groups * self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame."""
        return self.macs_per_position * math.prod(self.out_spatial)

    def grid(self, block: int) -> tuple[int, ...]:
        """Number of b x b blocks of output positions per axis; the last may be ragged."""
        return tuple(-(-n // block) for n in self.out_spatial)

    def tile(self, block: int) -> tuple[int, ...]:
        """Input positions, halo included, that one block of outputs looks at, per axis."""
        return tuple((block - 1) * s + e for s, e in zip(self.strides, self.extent, strict=True))

    def block_sizes(self, block: int) -> np.ndarray:
        """Output positions in each block, `grid(block)`; ragged edge blocks hold fewer."""
        sizes = np.ones((), np.float32)
        for n, blocks in zip(self.out_spatial, self.grid(block), strict=True):
            edge = np.minimum(block, n - block * np.arange(blocks)).astype(np.float32)
            sizes = sizes[..., None] * edge
        return sizes

    def padded(self) -> "Conv":
        """The same convolution of a frame that brings its padding with it, see `pad`."""
        grown = ((max(lo, 0), max(hi, 0)) for lo, hi in self.padding)
        spatial = tuple(n + lo + hi for n, (lo, hi) in zip(self.in_spatial, grown, strict=True))
        cut = tuple((min(lo, 0), min(hi, 0)) for lo, hi in self.padding)
        return dataclasses.replace(self, in_spatial=spatial, padding=cut)

    def pad(self, x: jax.Array) -> jax.Array:
        """A frame `(B, *spatial, Ci)` with its padding, zeros, as `padded` takes it."""
        pads = [(max(lo, 0), max(hi, 0), 0) for lo, hi in self.padding]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Dense convolution (Eq. 1) in the accumulation dtype, `(B, *out_spatial, Co)`.

        bfloat16 and float16 operands are widened first: the products are then exact and the sum is
        float32 in the forward and in the backward pass.
        """
        if self.depthwise and jax.default_backend() == "cpu":
            return depthwise(widen(x), widen(kernel), self.strides, self.padding, self.dilation)
        return self.primitive(x, kernel)

    def primitive(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The same as one equation of the trace, which whoever reads the trace knows again."""
        letters = _SPATIAL_LETTERS[self.rank]
        return lax.conv_general_dilated(
            widen(x),
            widen(kernel),
            self.strides,
            self.padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
            precision=self.precision,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float64 for float64, float32 for every narrower float."""
    return jnp.dtype(jnp.float64) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in its accumulation dtype."""
    return x.astype(accumulation_dtype(x.dtype))


def per_stream(flags: jax.Array, like: jax.Array) -> jax.Array:
    """`(B,)` flags with trailing unit axes, so that they select along the batch axis of `like`."""
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def block_max(scores: jax.Array, block: int) -> jax.Array:
    """Max-pools `(B, *out)` over blocks: kernel and stride b, ragged edges kept (section 3.2.2)."""
    if block == 1:
        return scores
    lowest = jnp.asarray(-jnp.inf, scores.dtype)
    pads = [(0, 0, 0)] + [(0, -n % block, 0) for n in scores.shape[1:]]
    padded = lax.pad(scores, lowest, pads)
    shape = [scores.shape[0]]
    for n in padded.shape[1:]:
        shape += [n // block, block]
    return padded.reshape(shape).max(axis=tuple(range(2, len(shape), 2)))


def block_upsample(mask: jax.Array, block: int, spatial: Sequence[int]) -> jax.Array:
    """Nearest upsampling of `(B, *grid)` by b, cut to `(B, *spatial)`."""
    for axis, n in enumerate(spatial, start=1):
        if block > 1:
            mask = jnp.repeat(mask, block, axis=axis)
        mask = lax.slice_in_dim(mask, 0, n, axis=axis)
    return mask


def tiles(x: jax.Array, conv: Conv, block: int) -> jax.Array:
    """Input tile of every output block, `(B, *grid, *tile, Ci)`; zeros outside the frame."""
    for axis in range(conv.rank):
        low, _ = conv.padding[axis]
        blocks, extent = conv.grid(block)[axis], conv.tile(block)[axis]
        start = np.arange(blocks) * block * conv.strides[axis] - low
        rows = start[:, None] + np.arange(extent)[None, :]
        inside = (rows >= 0) & (rows < conv.in_spatial[axis])
        at = 1 + 2 * axis
        x = jnp.take(x, np.clip(rows, 0, conv.in_spatial[axis] - 1), axis=at)
        shape = (1,) * at + rows.shape + (1,) * (x.ndim - at - 2)
        x = jnp.where(inside.reshape(shape), x, jnp.zeros((), x.dtype))
    order = [0, *range(1, 2 * conv.rank, 2), *range(2, 2 * conv.rank + 1, 2), 2 * conv.rank + 1]
    return x.transpose(order)
