"""Equivariance loss of section 3.3: pulls w * T(x) and T~(w * x) together, layer by layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.program.walk import Site, Visitor, evaluate
from skipconv_jax.warp.layers import layer_sources, per_image
from skipconv_jax.warp.motion import Motion, inside, resample


class _Equivariance(Visitor):
    def __init__(self, motion: Motion, frame: tuple[int, ...]) -> None:
        super().__init__()
        self._motion, self._frame = motion, frame

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        conv = site.conv
        if conv is None or conv.rank != 2:
            return None
        z = conv(x, kernel)
        sources = layer_sources(self._motion, conv, self._frame)
        source_in, source_out = (per_image(source, x.shape[0]) for source in sources)
        counted = inside(source_out, conv.out_spatial)[..., None].astype(z.dtype)
        moved = conv.padded()(resample(x, source_in), kernel)
        error = (moved - resample(z, source_out)) * counted
        # Relative, so that shrinking the weights does not pay.
        scale = jnp.sum((z * counted) ** 2) + jnp.asarray(1e-8, z.dtype)
        self.made[site.name] = jnp.sum(error**2) / scale
        return z


def equivariance_loss(
    fn: Callable[..., Any], variables: Any, x: Any, motion: Motion, *args: Any
) -> tuple[jax.Array, Any]:
    r"""mean_l ||w_l * T(x_l) - T~(w_l * x_l)||^2 / ||w_l * x_l||^2 where T~ sees.

    A term to add to the training loss of a network that is to run with warped residuals. Whole
    shifts that every stride divides cost nothing; strided layers and fractional shifts do.

    Args:
      fn: the network, as for `skip`.
      variables: its own.
      x: frames.
      motion: to be equivariant to; draw one per step.
      *args: further arguments of `fn`.

    Returns:
      The loss, a scalar, and what `fn` returns.

    Raises:
      ValueError: no convolution with two spatial axes.
    """
    frame = tuple(jax.tree.leaves(x)[0].shape[1:3])
    visitor = _Equivariance(motion, frame)
    y, _ = evaluate(fn, variables, x, args, visitor)
    if not visitor.made:
        raise ValueError("`fn` must hold a convolution with two spatial axes; it has none.")
    return jnp.stack([v.astype(jnp.float32) for v in visitor.made.values()]).mean(), y
