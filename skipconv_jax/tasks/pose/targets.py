"""From joints to heatmaps, and from heatmaps back to joints.

Pixels: joints are `(x, y)` in pixels of the network's input, 0-based, the centre of the top left
pixel at (0, 0). Heatmap position `p` stands for input position `stride * p`, as in the public HRNet
code.
"""

import jax
import jax.numpy as jnp


def heatmap_targets(
    joints: jax.Array,
    visible: jax.Array,
    height: int,
    width: int,
    stride: int = 4,
    sigma: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """`exp(-|p - c|^2 / (2 sigma^2))` where |p - c| <= 3 sigma, c = int(x / stride + .5).

    Args:
      joints: `(..., J, 2)` float, x and y in input pixels, 0-based.
      visible: `(..., J)` bool, joints that are annotated.
      height: heatmap rows.
      width: heatmap columns.
      stride: input pixels per heatmap pixel.
      sigma: standard deviation in heatmap pixels.

    Returns:
      Heatmaps `(..., height, width, J)` float32 with peak 1, and weights `(..., J)` float32: 1
      where the joint is annotated and its window touches the heatmap, else 0, as the heatmap.

    Raises:
      ValueError: shapes do not fit, or `stride` or `sigma` is not positive.
    """
    if joints.ndim < 2 or joints.shape[-1] != 2 or joints.shape[:-1] != visible.shape:
        raise ValueError(
            f"`joints` (of shape {joints.shape}) and `visible` (of shape {visible.shape}) must "
            "have shapes (..., J, 2) and (..., J)."
        )
    if stride <= 0 or sigma <= 0:
        raise ValueError(f"`stride` (={stride}) and `sigma` (={sigma}) must be positive.")
    radius = int(3 * sigma)
    # A joint without annotation may hold any number, NaN included: keep it out of the arithmetic.
    known = jnp.where(visible[..., None], joints.astype(jnp.float32), 0.0)
    centre = jnp.trunc(known / stride + 0.5)
    dx = _offsets(width, centre[..., 0])
    dy = _offsets(height, centre[..., 1])
    row = jnp.where(jnp.abs(dy) <= radius, jnp.exp(-(dy**2) / (2 * sigma**2)), 0.0)
    column = jnp.where(jnp.abs(dx) <= radius, jnp.exp(-(dx**2) / (2 * sigma**2)), 0.0)
    weights = visible & jnp.any(row > 0, axis=-1) & jnp.any(column > 0, axis=-1)
    weights = weights.astype(jnp.float32)
    heatmaps = jnp.einsum("...jh,...jw,...j->...hwj", row, column, weights)
    return heatmaps, weights


def _offsets(length: int, centre: jax.Array) -> jax.Array:
    positions = jnp.arange(length, dtype=jnp.float32).reshape((1,) * centre.ndim + (length,))
    return positions - centre[..., None]


def decode(heatmaps: jax.Array, stride: int = 4) -> tuple[jax.Array, jax.Array]:
    """Joints at the heatmaps' maxima, moved a quarter heatmap pixel towards the higher neighbour.

    Args:
      heatmaps: `(..., h, w, J)`.
      stride: input pixels per heatmap pixel.

    Returns:
      Joints `(..., J, 2)` float32 in input pixels, x then y, 0-based; confidence `(..., J)`
      float32, the value at the maximum.

    Raises:
      ValueError: `heatmaps` has fewer than 3 axes or an empty one.
    """
    if heatmaps.ndim < 3 or 0 in heatmaps.shape:
        raise ValueError(f"`heatmaps` (of shape {heatmaps.shape}) must be (..., h, w, J).")
    maps = jnp.moveaxis(heatmaps.astype(jnp.float32), -1, -3)
    height, width = maps.shape[-2:]
    flat = maps.reshape(*maps.shape[:-2], height * width)
    peak = jnp.argmax(flat, axis=-1)
    y, x = peak // width, peak % width

    def value(row: jax.Array, column: jax.Array) -> jax.Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.take_along_axis(flat, index[..., None], axis=-1)[..., 0]

    # At the border one neighbour is missing: the clipped index would compare the peak with itself.
    dx = jnp.where((x > 0) & (x < width - 1), jnp.sign(value(y, x + 1) - value(y, x - 1)), 0.0)
    dy = jnp.where((y > 0) & (y < height - 1), jnp.sign(value(y + 1, x) - value(y - 1, x)), 0.0)
    position = jnp.stack([x, y], axis=-1).astype(jnp.float32) + 0.25 * jnp.stack([dx, dy], axis=-1)
    return position * stride, value(y, x)
