"""Motions T of a frame: where each position of a map comes from, at any layer's resolution."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

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


def _corners(source: jax.Array, spatial: Spatial) -> tuple[list[Any], jax.Array]:
    """Flat indices `(B, h * w)` of the four neighbours and the fractions `(B, h, w, 2)`."""
    low = jnp.floor(source)
    fraction = source - low
    height, width = spatial
    y = jnp.clip(low[..., 0], 0, height - 1).astype(jnp.int32)
    x = jnp.clip(low[..., 1], 0, width - 1).astype(jnp.int32)
    down, right = jnp.minimum(y + 1, height - 1), jnp.minimum(x + 1, width - 1)
    corners = [(y, x), (y, right), (down, x), (down, right)]
    return [(r * width + c).reshape(r.shape[0], -1) for r, c in corners], fraction


def _at(x: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.take_along_axis(flat, index[..., None], axis=1).reshape(*shape, x.shape[-1])


def resample(x: jax.Array, source: jax.Array) -> jax.Array:
    """T(x): bilinear at the sources, exact at whole positions, 0 where the source is off the map.

    Args:
      x: `(B, h, w, C)`.
      source: `(B, h, w, 2)`, from `Motion.source`.
    """
    spatial, shape = x.shape[1:3], source.shape[:3]
    corners, fraction = _corners(source, spatial)
    fy, fx = (fraction[..., axis, None].astype(x.dtype) for axis in (0, 1))
    a, b, c, d = (_at(x, index, shape) for index in corners)
    value = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    return jnp.where(inside(source, spatial)[..., None], value, jnp.zeros((), x.dtype))


def largest_neighbour(x: jax.Array, source: jax.Array) -> jax.Array:
    """Maximum of `x` `(B, h, w)` over the positions `resample` would mix, `(B, h, w)`."""
    shape = source.shape[:3]
    corners, fraction = _corners(source, x.shape[1:3])
    a, b, c, d = (_at(x[..., None], index, shape)[..., 0] for index in corners)
    # A neighbour of weight 0 is not mixed in.
    mixed_x, mixed_y = fraction[..., 1] > 0, fraction[..., 0] > 0
    value = jnp.maximum(a, jnp.where(mixed_x, b, a))
    value = jnp.maximum(value, jnp.where(mixed_y, c, a))
    return jnp.maximum(value, jnp.where(mixed_x & mixed_y, d, a))
