"""Motions T of a frame: where each position of a map comes from, at any layer's resolution."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.geometry import Conv

Spatial = tuple[int, ...]

# Estimates and strides that are no power of two leave rounding; a thousandth of a pixel is none.
_SNAP = 1e-3


class Motion(Protocol):
    """A pytree with this method; write one for a motion of your own."""

    def source(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """Position `(y, x)` in the previous map each position of the current one comes from.

        Args:
          spatial: `(h, w)` of the map.
          frame: `(H, W)` of the frame the motion is measured on; position i of the map stands for
            position i H / h of the frame.

        Returns:
          `(B, h, w, 2)` float32, in positions of the map; outside of it where nothing was seen.
        """
        ...


def _positions(spatial: Spatial) -> jax.Array:
    """`(1, h, w, 2)`."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in spatial), indexing="ij"), axis=-1)
    return jnp.asarray(grid[None], jnp.float32)


def _strides(spatial: Spatial, frame: Spatial) -> np.ndarray:
    return np.asarray(frame, np.float32) / np.asarray(spatial, np.float32)


def _snapped(source: jax.Array) -> jax.Array:
    whole = jnp.round(source)
    return jnp.where(jnp.abs(source - whole) < _SNAP, whole, source)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Translation:
    """The whole frame moved: x_t(p) = x_{t-1}(p - shift).

    Attributes:
      shift: `(B, 2)` float32, (down, right) in pixels of the frame.
    """

    shift: jax.Array

    def source(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """p - shift / stride."""
        step = (self.shift / _strides(spatial, frame)[None])[:, None, None, :]
        return _snapped(_positions(spatial) - step)

    def rounded(self, step: float = 1.0) -> "Translation":
        """The shift in multiples of `step` pixels: exact where a stride divides them."""
        return Translation(jnp.round(self.shift / step) * step)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carried:
    """A translation that moves every layer by whole positions; what is left over is carried on.

    A layer of stride 8 under a pan of 1 pixel a frame stays for 7 frames and moves by one position
    with the 8th. Nothing is interpolated: a strided layer is not equivariant to fractions, and
    values that are interpolated at every frame blur.

        path = Carried.start(streams)
        path = path.moved(phase_correlation(previous, frame))    # at every frame
        y, state = net.apply(params, warp(state, path), frame)

    Attributes:
      before: `(B, 2)` float32, (down, right) in pixels from the first frame to the last one.
      now: likewise, to this one.
    """

    before: jax.Array
    now: jax.Array

    @classmethod
    def start(cls, streams: int) -> "Carried":
        """Streams that have not moved."""
        return cls(jnp.zeros((streams, 2), jnp.float32), jnp.zeros((streams, 2), jnp.float32))

    def moved(self, by: Translation) -> "Carried":
        """The path one frame on."""
        return Carried(self.now, self.now + by.shift)

    def positions(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """Whole positions `(B, 2)` that a map moves by."""
        strides = _strides(spatial, frame)[None]
        return jnp.round(self.now / strides) - jnp.round(self.before / strides)

    def source(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """p less the whole positions."""
        return _positions(spatial) - self.positions(spatial, frame)[:, None, None]

    def layer(self, conv: Conv, frame: Spatial) -> tuple[jax.Array, jax.Array]:
        """Sources of a layer's input and output: the input moves as the output does."""
        whole = self.positions(conv.out_spatial, frame)[:, None, None]
        strides = jnp.asarray(conv.strides, jnp.float32)
        source_in = _positions(conv.in_spatial) - whole * strides[None, None, None]
        return source_in, _positions(conv.out_spatial) - whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Homography:
    """The frame is a plane seen anew: (x, y, 1) of now maps to the past, in pixels of the frame.

    Attributes:
      matrix: `(B, 3, 3)` float32.
    """

    matrix: jax.Array

    def source(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """Projects p stride and divides by the stride."""
        strides = _strides(spatial, frame)
        y, x = (_positions(spatial)[0, ..., axis] * strides[axis] for axis in (0, 1))
        now = jnp.stack([x, y, jnp.ones_like(x)])
        then = jnp.einsum("bij,jhw->bihw", self.matrix, now)
        # Behind the camera is nowhere: far outside the map, so nothing is taken from there.
        depth = jnp.where(then[:, 2] > 1e-6, then[:, 2], jnp.float32(1e-6))
        source = jnp.stack([then[:, 1] / depth, then[:, 0] / depth], axis=-1)
        return _snapped(source / strides[None, None, None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow:
    """Every pixel has its own motion: x_t(p) = x_{t-1}(p + field(p)).

    Attributes:
      field: `(B, H, W, 2)` float32, (y, x) in pixels: backward flow, from now to the past.
    """

    field: jax.Array

    def source(self, spatial: Spatial, frame: Spatial) -> jax.Array:
        """p + field at p stride, over the stride."""
        strides, field = _strides(spatial, frame), self.field
        for axis, n in enumerate(spatial):
            at = np.clip(np.round(np.arange(n) * strides[axis]), 0, frame[axis] - 1).astype(int)
            field = jnp.take(field, jnp.asarray(at), axis=1 + axis)
        return _snapped(_positions(spatial) + field / strides[None, None, None])


def inside(source: jax.Array, spatial: Spatial) -> jax.Array:
    """`(B, h, w)` bool, where a source lies on the map, borders included."""
    last = jnp.asarray(spatial, jnp.float32)[None, None, None] - 1
    return ((source >= 0) & (source <= last)).all(axis=-1)


def extended(source: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Sources of a map with `(low, high)` more positions per axis, which move as the border does.

    Args:
      source: `(B, h, w, 2)`, from `Motion.source`.
      padding: of a convolution of the map; below 0 counts as 0.

    Returns:
      `(B, low + h + high, low + w + high, 2)`, still in positions of the map.
    """
    pads = [(max(low, 0), max(high, 0)) for low, high in padding]
    beyond = []
    for n, (low, high) in zip(source.shape[1:3], pads, strict=True):
        at = np.arange(-low, n + high)
        beyond.append(at - np.clip(at, 0, n - 1))
    offset = np.stack(np.meshgrid(*beyond, indexing="ij"), axis=-1)[None]
    return jnp.pad(source, ((0, 0), *pads, (0, 0)), mode="edge") + jnp.asarray(offset, jnp.float32)


def _corners(source: jax.Array, spatial: Spatial) -> tuple[list[Any], jax.Array]:
    """Rows and columns `(B, h, w)` of the four neighbours, and the fractions `(B, h, w, 2)`."""
    low = jnp.floor(source)
    fraction = source - low
    height, width = spatial
    y = jnp.clip(low[..., 0], -1, height).astype(jnp.int32)
    x = jnp.clip(low[..., 1], -1, width).astype(jnp.int32)
    return [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)], fraction


def _at(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`x` `(B, h, w, C)` at rows and columns `(B, ...)`, 0 outside of it."""
    (height, width), (row, column) = x.shape[1:3], at
    there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    value = jnp.take_along_axis(flat, index.reshape(len(index), -1)[..., None], axis=1)
    value = value.reshape(*row.shape, x.shape[-1])
    return jnp.where(there[..., None], value, jnp.zeros((), x.dtype))


def resample(x: jax.Array, source: jax.Array) -> jax.Array:
    """T(x): bilinear at the sources, exact at whole positions; zeros lie all around the map.

    Args:
      x: `(B, h, w, C)`.
      source: `(B, h', w', 2)`, from `Motion.source`.
    """
    corners, fraction = _corners(source, x.shape[1:3])
    fy, fx = (fraction[..., axis, None].astype(x.dtype) for axis in (0, 1))
    a, b, c, d = (_at(x, at) for at in corners)
    return (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy


def largest_neighbour(x: jax.Array, source: jax.Array) -> jax.Array:
    """Maximum of `x` `(B, h, w)`, not negative, over what `resample` would mix, `(B, h, w)`."""
    corners, fraction = _corners(source, x.shape[1:3])
    a, b, c, d = (_at(x[..., None], at)[..., 0] for at in corners)
    # A neighbour of weight 0 is not mixed in.
    mixed_x, mixed_y = fraction[..., 1] > 0, fraction[..., 0] > 0
    value = jnp.maximum(a, jnp.where(mixed_x, b, a))
    value = jnp.maximum(value, jnp.where(mixed_y, c, a))
    return jnp.maximum(value, jnp.where(mixed_x & mixed_y, d, a))
