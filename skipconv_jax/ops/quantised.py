"""What integers mean, bit by bit: the arithmetic of a quantised network that every engine repeats.

A quantised tensor holds q in int8 or uint8 for the real number (q - zero) scale. Everything here is
integers, comparisons, and float32 operations that IEEE 754 rounds in one way only: never a product
that feeds a sum (a fused multiply-add would round once where two operations round twice), never a
division at run time (XLA divides by multiplying with a reciprocal, which is a last bit off).

    conv    acc = sum wq (xq - zx) + bias                    int32, exact, in any order
    sum     v = t1[q1] + t2[q2] + ...                        float32, from the left
    product v = float32((qa - za) (qb - zb)) m               one float32 product
    mean    v = float32(sum (q - z)) m                       one float32 product
    conv    v = float32(acc) m[c]                            one float32 product
    finish  q = clamp(rint(clip(v, lo, hi)) + zero), table   v counts steps of the output
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.ops.geometry import Conv

EXACT = 2**24
"""Whole numbers up to here, and their sums, are exact in float32."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The real numbers (q - zero) scale, q in a dtype.

    Attributes:
      scale: of one step, a positive float32.
      zero: q of the real number 0.
      dtype: 'int8' or 'uint8'.
    """

    scale: float
    zero: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ("int8", "uint8"):
            raise ValueError(f"`dtype` (={self.dtype!r}) must be 'int8' or 'uint8'.")
        object.__setattr__(self, "scale", float(np.float32(self.scale)))
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"`scale` (={self.scale}) must be positive and finite.")
        if not self.low <= self.zero <= self.high:
            raise ValueError(
                f"`zero` (={self.zero}) must be a {self.dtype}, {self.low} to {self.high}."
            )

    @property
    def low(self) -> int:
        """The least q."""
        return int(np.iinfo(self.dtype).min)

    @property
    def high(self) -> int:
        """The largest q."""
        return int(np.iinfo(self.dtype).max)

    @property
    def levels(self) -> np.ndarray:
        """Every q in order, `(256,)`; entry i of a table stands for q = low + i."""
        return np.arange(self.low, self.high + 1).astype(self.dtype)

    @property
    def values(self) -> np.ndarray:
        """The real number of every q, float32 `(256,)`: float32(q - zero) scale."""
        steps = np.arange(self.low, self.high + 1) - self.zero
        return steps.astype(np.float32) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Finish:
    """How v, a float32 that counts steps of the output, becomes what is stored.

    clip(v, lo, hi); of an output of 'float32' that is all. Else r = rint of it, half to even,
    q = clamp(r + zero, low, high), and `table[q - low]` where there is a table.

    Attributes:
      dtype: of what is stored: 'int8', 'uint8' or 'float32'.
      zero: added after rounding.
      lo: bound of v, float32; a relu's 0 (-inf for none).
      hi: bound of v.
      low: least q before the table; the dtype's where there is no table.
      high: largest q before the table.
      table: `(high - low + 1,)` of the dtype, or None.
    """

    dtype: str
    zero: int
    lo: float
    hi: float
    low: int
    high: int
    table: np.ndarray | None = None

    @classmethod
    def on(cls, grid: Grid, lo: float = -np.inf, hi: float = np.inf) -> "Finish":
        """Rounded to a grid; lo and hi in steps of it."""
        bounds = float(np.float32(lo)), float(np.float32(hi))
        return cls(grid.dtype, grid.zero, *bounds, grid.low, grid.high)

    @classmethod
    def real(cls, lo: float = -np.inf, hi: float = np.inf) -> "Finish":
        """Not rounded: float32 leaves the integers."""
        return cls("float32", 0, float(np.float32(lo)), float(np.float32(hi)), 0, 0)

    def then(self, table: np.ndarray) -> "Finish":
        """Followed by a table over what is stored (index: value minus the dtype's least)."""
        if self.table is not None:
            at = self.table.astype(np.int64) - np.iinfo(self.dtype).min
            return dataclasses.replace(self, dtype=str(table.dtype), table=table[at])
        return dataclasses.replace(self, dtype=str(table.dtype), table=table)


_ULPS = 4


@functools.lru_cache(maxsize=1024)
def thresholds(grid: Grid) -> np.ndarray:
    """Where each q begins: the least float32 that `quantize` maps to low + i, `(256,)`; -inf first.

    rint(x / scale) with the division rounded as IEEE 754 has it grows with x, so that comparing
    with these is the same thing without dividing.
    """
    steps = np.arange(grid.low + 1, grid.high + 1) - grid.zero
    scale = np.float32(grid.scale)

    def reached(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.rint(x / scale) >= steps)

    # From a few ulp below, upwards one float at a time.
    x = ((steps - 0.5) * np.float64(scale)).astype(np.float32)
    for _ in range(_ULPS):
        x = np.nextafter(x, np.float32(-np.inf))
    if reached(x).any():
        raise AssertionError(f"thresholds of {grid} lie more than {_ULPS} ulp below their quotient")
    for _ in range(2 * _ULPS):
        x = np.where(reached(x), x, np.nextafter(x, np.float32(np.inf)))
    return np.concatenate([[-np.inf], x]).astype(np.float32)


def quantize(x: jax.Array, grid: Grid) -> jax.Array:
    """clamp(rint(x / scale) + zero), the division rounded as IEEE 754 has it; NaN is the least q.

    Args:
      x: float32, of any shape.
      grid: of the result.
    """
    begin = jnp.asarray(np.append(thresholds(grid), np.float32(np.inf)))
    near = jnp.round(x * np.float32(1 / np.float64(grid.scale))) + float(grid.zero)
    # The product is off by little more than an ulp: by one step at most.
    at = jnp.clip(jnp.nan_to_num(near, nan=grid.low), grid.low, grid.high).astype(jnp.int32)
    at = at - grid.low
    at = jnp.where(x < begin[at], at - 1, jnp.where((x >= begin[at + 1]) & (at < 255), at + 1, at))
    q = jnp.where(jnp.isnan(x), 0, at) + grid.low
    return q.astype(grid.dtype)


def dequantize(q: jax.Array, grid: Grid) -> jax.Array:
    """float32(q - zero) scale."""
    return (q.astype(jnp.int32) - grid.zero).astype(jnp.float32) * np.float32(grid.scale)


def lookup(q: jax.Array, table: np.ndarray) -> jax.Array:
    """table[q - least q of its dtype], element by element; 256 entries."""
    at = q.astype(jnp.int32) - int(jnp.iinfo(q.dtype).min)
    return jnp.asarray(table)[at]


def finish(v: jax.Array, out: Finish) -> jax.Array:
    """`Finish` applied to v, float32 in steps of the output."""
    v = jnp.minimum(jnp.maximum(v, np.float32(out.lo)), np.float32(out.hi))
    if out.dtype == "float32":
        return v
    q = jnp.clip(jnp.round(v) + float(out.zero), float(out.low), float(out.high)).astype(jnp.int32)
    if out.table is None:
        return q.astype(out.dtype)
    return jnp.asarray(out.table)[q - out.low]


def scaled(acc: jax.Array, multiplier: Any, out: Finish) -> jax.Array:
    """finish(float32(acc) multiplier); acc int32, multiplier float32, of acc's last axes or ()."""
    return finish(acc.astype(jnp.float32) * last_axes(multiplier, acc), out)


def last_axes(values: Any, like: jax.Array) -> jax.Array:
    """Values along the last axes of an array, with unit axes before them."""
    array = jnp.asarray(values)
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape)


def summed(terms: Sequence[jax.Array], tables: np.ndarray, out: Finish) -> jax.Array:
    """finish(tables[0][q0] + tables[1][q1] + ...), added from the left.

    Args:
      terms: int8 or uint8, of one shape.
      tables: float32 `(terms, 256)`: each q's share in steps of the output.
      out: how the sum is stored.
    """
    parts = [lookup(q, t) for q, t in zip(terms, tables, strict=True)]
    return finish(sum(parts[1:], parts[0]), out)


def product(
    a: jax.Array, b: jax.Array, zeros: tuple[int, int], multiplier: float, out: Finish
) -> jax.Array:
    """finish(float32((a - za) (b - zb)) multiplier); unit axes broadcast."""
    whole = (a.astype(jnp.int32) - zeros[0]) * (b.astype(jnp.int32) - zeros[1])
    return scaled(whole, np.float32(multiplier), out)


def window_sum(
    x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], padding: Any
) -> jax.Array:
    """Sum over windows of int32 `(B, *spatial, C)`, borders of zeros."""
    return lax.reduce_window(
        x, np.int32(0), lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    )


def channel_groups(kernel: np.ndarray) -> list[tuple[int, int]] | None:
    """Ranges of input channels whose products can be added in float32 without rounding.

    Any |xq - zx| is at most 255, so that a sum is exact where 255 sum|w| stays below 2^24. None
    where the window of a single channel is too large for that.
    """
    share = 255 * np.abs(kernel.astype(np.int64)).sum(axis=tuple(range(kernel.ndim - 2)))
    if share.size and share.max() >= EXACT:
        return None
    ranges, start, total = [], 0, np.zeros(share.shape[1], np.int64)
    for channel, new in enumerate(share):
        if (total + new).max() >= EXACT:
            ranges.append((start, channel))
            start, total = channel, np.zeros_like(total)
        total = total + new
    return [*ranges, (start, share.shape[0])]


def channel_part(conv: Conv, start: int, stop: int) -> Conv:
    """The convolution of channels start to stop of every group, its products not rounded."""
    channels = (stop - start) * conv.groups
    return dataclasses.replace(conv, in_channels=channels, precision=lax.Precision.HIGHEST)


def channel_range(x: jax.Array, conv: Conv, start: int, stop: int) -> jax.Array:
    """Channels start to stop of every group."""
    if conv.groups == 1:
        return x[..., start:stop]
    parts = x.reshape(*x.shape[:-1], conv.groups, -1)[..., start:stop]
    return parts.reshape(*x.shape[:-1], -1)


def int_conv(steps: jax.Array, kernel: np.ndarray, conv: Conv) -> jax.Array:
    """sum w steps, int32 `(B, *out_spatial, Co)`, exact.

    Args:
      steps: whole numbers in -255..255, int32 or float32: xq - zx, or a residual; 0 around it.
      kernel: int8 `(*window, Ci / groups, Co)`.
      conv: geometry.
    """
    ranges = channel_groups(kernel)
    if ranges is None:
        return _int32_conv(steps.astype(jnp.int32), kernel, conv)
    total = jnp.zeros((), jnp.int32)
    for start, stop in ranges:
        part = channel_part(conv, start, stop)
        x = channel_range(steps, conv, start, stop).astype(jnp.float32)
        weights = jnp.asarray(kernel[..., start:stop, :], jnp.float32)
        total = total + part(x, weights).astype(jnp.int32)
    return total


def _int32_conv(steps: jax.Array, kernel: np.ndarray, conv: Conv) -> jax.Array:
    letters = "DHW"[-conv.rank :]
    return lax.conv_general_dilated(
        steps,
        jnp.asarray(kernel, jnp.int32),
        conv.strides,
        conv.padding,
        rhs_dilation=conv.dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=conv.groups,
    )


def support_change(steps: jax.Array, conv: Conv) -> jax.Array:
    """Sum of |residual| over each kernel support and all channels, int32 `(B, *out_spatial)`.

    Args:
      steps: residual xq_t - xq_past, int32 `(B, *spatial, Ci)`; 0 around it.
      conv: geometry.
    """
    change = jnp.abs(steps).sum(axis=-1, keepdims=True)
    return lax.reduce_window(
        change,
        np.int32(0),
        lax.add,
        (1, *conv.window, 1),
        (1, *conv.strides, 1),
        ((0, 0), *conv.padding, (0, 0)),
        window_dilation=(1, *conv.dilation, 1),
    )[..., 0]


def fires(change: jax.Array, factor: Any, threshold: jax.Array) -> jax.Array:
    """Where a norm gate fires: float32(change) factor > threshold, as 1 and 0 in float32.

    Args:
      change: int32, the largest `support_change` of each block, `(B, *grid)`.
      factor: float32, made once by `norm_factor`.
      threshold: in units of the activations (or of the output), as for the float gates. 0 is
        lossless: a block fires where a quantised number of its support changed. Below 0 all fire.
    """
    norm = change.astype(jnp.float32) * jnp.asarray(factor, jnp.float32)
    return (~(norm <= jnp.asarray(threshold, jnp.float32))).astype(jnp.float32)


def norm_factor(
    conv: Conv, scale: float, *, mean: bool = True, weights: float | None = None
) -> np.float32:
    """What one step of change on a support weighs.

    Args:
      conv: geometry.
      scale: of the input's grid.
      mean: the gate's reduction: over window and channels, else a sum.
      weights: of an Output-Norm gate, mean |w| (or its sum) of the real kernel.
    """
    factor = np.float64(scale) * (1.0 if weights is None else weights)
    return np.float32(factor / (np.prod(conv.window) * conv.in_channels if mean else 1))
